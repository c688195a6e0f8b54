"""Small envs, each with one fault for ``rayvec check`` to find, and a sound one."""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

Result = tuple[Any, Any, Any, Any, dict[str, Any]]


class SoundEnv(gym.Env[Any, Any]):
    """Walks at random for ten steps."""

    observation_space: Any = spaces.Box(-100.0, 100.0, (2,), np.float32)
    action_space: Any = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, size: int = 1) -> None:
        self.size = size
        self.position = np.zeros(2, np.float32)
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        self.position = np.zeros(2, np.float32) + self.size
        return self.observed(), {}

    def step(self, action: Any) -> Result:
        self.steps += 1
        self.position = self.position + action + self.np_random.normal(size=2).astype(np.float32)
        return self.observed(), 1.0, False, self.steps == 10, self.told()

    def observed(self) -> Any:
        return self.position.copy()

    def told(self) -> dict[str, Any]:
        return {"steps": self.steps}


def sound(size: int = 1) -> SoundEnv:
    """For ``module:function``."""
    return SoundEnv(size)


def no_env() -> int:
    """Makes something else."""
    return 3


def with_lock() -> Any:
    """A function that pickling refuses."""
    lock = threading.Lock()

    def make() -> SoundEnv:
        with lock:
            return SoundEnv()

    return make


class ReusesBuffer(SoundEnv):
    def observed(self) -> Any:
        self.buffer = getattr(self, "buffer", np.zeros(2, np.float32))
        self.buffer[:] = self.position
        return self.buffer


class KeepsAction(SoundEnv):
    def step(self, action: Any) -> Result:
        self.last_action = action
        return super().step(action)


class KeepsPartOfAction(SoundEnv):
    def step(self, action: Any) -> Result:
        self.last_action = action[:1]
        return super().step(action)


class TellsAction(SoundEnv):
    def step(self, action: Any) -> Result:
        *most, info = super().step(action)
        return (*most, info | {"action": action})


class ChangesAction(SoundEnv):
    def step(self, action: Any) -> Result:
        action *= 0.5
        return super().step(action)


class UsesNumpyRandom(SoundEnv):
    def step(self, action: Any) -> Result:
        np.random.random()
        return super().step(action)


class UsesRandom(SoundEnv):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        random.random()
        return super().reset(seed=seed)


class OutOfBounds(SoundEnv):
    observation_space = spaces.Box(0.0, 1.0, (2,), np.float32)

    def observed(self) -> Any:
        return np.full(2, 7.0, np.float32)


class NotANumber(SoundEnv):
    def observed(self) -> Any:
        return np.full(2, np.nan, np.float32)


class OtherDtype(SoundEnv):
    def observed(self) -> Any:
        return self.position.astype(np.float64)


class UnsafeDtype(SoundEnv):
    observation_space = spaces.Dict(a=spaces.Box(0, 255, (2,), np.uint8))

    def observed(self) -> Any:
        return {"a": np.ones(2, np.float32)}


class OtherShape(SoundEnv):
    def observed(self) -> Any:
        return np.zeros(3, np.float32)


class GivesList(SoundEnv):
    def observed(self) -> Any:
        return [0.0, 0.0]


class OutsideDiscrete(SoundEnv):
    observation_space = spaces.Discrete(3)

    def observed(self) -> Any:
        return 5


class OutsideText(SoundEnv):
    observation_space = spaces.Tuple((spaces.Text(3), spaces.Discrete(2)))

    def observed(self) -> Any:
        return "too long", 1


class Undecided(SoundEnv):
    def observed(self) -> Any:
        return np.random.default_rng().random(2, np.float32)


class CarriesOver(SoundEnv):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        _, info = super().reset(seed=seed)
        self.episode = getattr(self, "episode", -1) + 1
        self.position[:] = self.episode
        return self.observed(), info


class ReadsClock(SoundEnv):
    def told(self) -> dict[str, Any]:
        return {"time": time.perf_counter()}


class NeedsSeed(SoundEnv):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return super().reset(seed=seed + 1)  # type: ignore[operator]


class NoOptions(SoundEnv):
    def reset(self, seed: int | None = None) -> tuple[Any, dict[str, Any]]:  # type: ignore[override]
        return super().reset(seed=seed)


class NoPair(SoundEnv):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=seed)[0]


class SlowClose(SoundEnv):
    def close(self) -> None:
        time.sleep(0.3)


class StuckClose(SoundEnv):
    released = threading.Event()

    def close(self) -> None:
        self.released.wait(20)


class RaisesInClose(SoundEnv):
    def close(self) -> None:
        raise OSError("no such window")


class ClosesOnce(SoundEnv):
    def __init__(self) -> None:
        super().__init__()
        self.window: Any = [1]

    def close(self) -> None:
        self.window.clear()
        self.window = None  # and so it raises the next time


class RaggedInfo(SoundEnv):
    def told(self) -> dict[str, Any]:
        return {"deep": {"path": np.zeros((self.steps, 2))}}


class MixedInfo(SoundEnv):
    def told(self) -> dict[str, Any]:
        return {"score": None if self.steps % 2 else 1.0}


class ReservedInfo(SoundEnv):
    def told(self) -> dict[str, Any]:
        return {"final_info": {}}


class UnpicklableInfo(SoundEnv):
    def told(self) -> dict[str, Any]:
        return {"lock": threading.Lock()}


class RewardOfTwo(SoundEnv):
    def step(self, action: Any) -> Result:
        observation, _, *rest = super().step(action)
        return observation, np.zeros(2), *rest


class InfiniteReward(SoundEnv):
    def step(self, action: Any) -> Result:
        observation, _, *rest = super().step(action)
        return observation, float("nan"), *rest


class OddFlags(SoundEnv):
    def step(self, action: Any) -> Result:
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, None, truncated, info


class OtherSpaces(SoundEnv):
    count = 0

    def __init__(self) -> None:
        super().__init__()
        OtherSpaces.count += 1
        self.observation_space = spaces.Box(-100.0, 100.0 + OtherSpaces.count, (2,), np.float32)


class StartsProcess(SoundEnv):
    child: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if self.child is None:
            self.child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
            self.child.start()
        return super().reset(seed=seed)

    def close(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.join()
            self.child.close()
            self.child = None


class Raises(SoundEnv):
    def step(self, action: Any) -> Result:
        if self.steps == 4:
            raise RuntimeError("off the edge")
        return super().step(action)


class LacksDependency(SoundEnv):
    def __init__(self) -> None:
        raise gym.error.DependencyNotInstalled('engine3d is not installed, run `pip install "engine3d"`')


class LacksModule(SoundEnv):
    def __init__(self) -> None:
        raise ModuleNotFoundError("No module named 'engine3d'", name="engine3d")


class DiffersInProcess(SoundEnv):
    """Remembers where it was imported: another process gives something else."""

    def observed(self) -> Any:
        return np.full(2, float(multiprocessing.current_process().name == "MainProcess"), np.float32)


class RaisesInWorker(SoundEnv):
    """Works in the caller alone."""

    def __init__(self) -> None:
        super().__init__()
        if multiprocessing.parent_process() is not None:
            raise OSError("no display")


class RaisesLater(SoundEnv):
    """Steps in the caller, and for a while elsewhere."""

    count = 0

    def step(self, action: Any) -> Result:
        self.count += 1
        if multiprocessing.parent_process() is not None and self.count > 3:
            raise OSError("lost the display")
        return super().step(action)


class TellsOfSteps(SoundEnv):
    """Writes a file when it was stepped: then all vector envs over it are built."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def step(self, action: Any) -> Result:
        Path(self.path).touch()
        return super().step(action)
