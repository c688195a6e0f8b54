"""Environments whose states are taken in different ways. All walk: the observation is where they are."""

from __future__ import annotations

import threading
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Discrete
from gymnasium.utils import EzPickle

__all__ = [
    "ArgumentsEnv",
    "CloningEnv",
    "HoldingEnv",
    "LambdaEnv",
    "MujocoLikeEnv",
    "OwnStateEnv",
    "ReducingEnv",
    "StatefulPickleEnv",
    "StubbornStateEnv",
    "WalkingEnv",
]

Walked = tuple[npt.NDArray[np.float64], float, bool, bool, dict[str, Any]]


class WalkingEnv(gym.Env[npt.NDArray[np.float64], np.int64]):
    """Takes steps of random length; each episode has a random end."""

    def __init__(self) -> None:
        self.observation_space = Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = Discrete(3)
        self.place = np.zeros(2)
        self.end = 0
        # Another name for what must stay the same object.
        self.alias = self.place
        self.walk = self._walk

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float64], dict[str, Any]]:
        super().reset(seed=seed)
        self.place[:] = self.np_random.random(2)
        self.end = int(self.np_random.integers(2, 6))
        return self.place, {}

    def step(self, action: np.int64) -> Walked:
        self.walk(int(action))
        self.end -= 1
        return self.alias, float(self.place.sum()), self.end == 0, False, {"left": self.end}

    def _walk(self, action: int) -> None:
        self.place += self.np_random.normal(size=2) * action


class OwnStateEnv(WalkingEnv):
    """Cannot be pickled, and has methods for its state, which say nothing of its random generator."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def get_state(self) -> dict[str, Any]:
        return {"place": self.place, "end": self.end}

    def set_state(self, state: dict[str, Any]) -> None:
        self.place[:] = state["place"]
        self.end = state["end"]


class CloningEnv(WalkingEnv):
    """The same, with ALE's names."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def clone_state(self, include_rng: bool = False) -> Any:
        return (self.place.tolist(), self.end, self.np_random if include_rng else None)

    def restore_state(self, state: Any) -> None:
        self.place[:] = state[0]
        self.end = state[1]
        self.np_random = state[2]


class HoldingEnv(WalkingEnv):
    """Cannot be pickled, and has no methods for its state."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class ArgumentsEnv(WalkingEnv, EzPickle):
    """Is pickled as the arguments of its constructor: unpickled, it would begin anew."""

    def __init__(self) -> None:
        EzPickle.__init__(self)
        super().__init__()
        self.other = Arguments()

    def step(self, action: np.int64) -> Walked:
        self.other.total += 1.0
        observation, _, terminated, truncated, info = super().step(action)
        return observation, self.other.total, terminated, truncated, info


class Arguments(EzPickle):
    """Part of such an env, pickled in the same way."""

    def __init__(self) -> None:
        EzPickle.__init__(self)
        self.total = 0.0


class MujocoLikeEnv(WalkingEnv):
    """Has a ``set_state`` that is none of a pair."""

    def set_state(self, qpos: Any, qvel: Any) -> None:
        raise AssertionError("not to be called")

    def get_state(self) -> Any:
        raise AssertionError("not to be called")


class LambdaEnv(WalkingEnv):
    """Holds a function that no import reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.shape: Any = lambda place: place * 2.0

    def step(self, action: np.int64) -> Walked:
        observation, reward, terminated, truncated, info = super().step(action)
        return self.shape(observation), reward, terminated, truncated, info


class StatefulPickleEnv(WalkingEnv):
    """Says itself what is pickled of it."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.lock = threading.Lock()

    def step(self, action: np.int64) -> Walked:
        with self.lock:
            return super().step(action)


def _made_anew(place: npt.NDArray[np.float64], end: int, generator: np.random.Generator) -> ReducingEnv:
    env = ReducingEnv()
    env.place[:] = place
    env.end = end
    env.np_random = generator
    return env


class ReducingEnv(WalkingEnv):
    """Says itself how it is made anew."""

    def __reduce__(self) -> Any:
        return _made_anew, (self.place, self.end, self.np_random)


class StubbornStateEnv(OwnStateEnv):
    """Takes no state back."""

    def set_state(self, state: dict[str, Any]) -> None:
        raise ValueError("not this one")
