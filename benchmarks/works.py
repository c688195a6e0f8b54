"""What the benchmarks step: envs of known cost, and well-known envs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Env: TypeAlias = gymnasium.Env[Any, Any]
EnvFn: TypeAlias = Callable[[], Env]


class BusyEnv(gymnasium.Env[NDArray[Any], np.int64]):
    """An env whose step keeps a core busy for a number of loops, and whose episodes never end.

    Args:
        loops: of :func:`keep_busy` in each step; 0: no work at all.
        shape: of an observation.
        dtype: of an observation.
    """

    def __init__(self, loops: int, shape: tuple[int, ...] = (4,), dtype: str = "float32") -> None:
        self.loops = loops
        self.observation_space = spaces.Box(0, 1 if dtype == "float32" else 255, shape, np.dtype(dtype).type)
        self.action_space = spaces.Discrete(2)
        self.observation = np.zeros(shape, dtype)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray[Any], dict[str, Any]]:
        """Starts an episode."""
        super().reset(seed=seed)
        return self.observation, {}

    def step(self, action: np.int64) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        """Works for a while."""
        keep_busy(self.loops)
        return self.observation, 1.0, False, False, {}


def keep_busy(loops: int) -> None:
    """Counts to ``loops``: time spent on a core, unlike a wait for the clock, which also passes off it."""
    for _ in range(loops):
        pass


def loops_for(microseconds: float) -> int:
    """How many loops take this long when nothing else is in the way."""
    if microseconds == 0:
        return 0
    tried = 100_000
    taken = []
    for _ in range(10):
        started = time.perf_counter()
        keep_busy(tried)
        taken.append(time.perf_counter() - started)
    return max(1, round(tried * microseconds / 1e6 / min(taken)))


@dataclass(frozen=True)
class Work:
    """An env to step.

    Attributes:
        name: as it is shown.
        env_id: of Gymnasium; None: a :class:`BusyEnv`.
        kwargs: the env's own.
        needs: the module that has to be there.
        envpool: the id and the options of the nearest that EnvPool has; None: it has nothing like it.
    """

    name: str
    env_id: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    needs: str | None = None
    envpool: tuple[str, dict[str, Any]] | None = None

    @property
    def env_fn(self) -> EnvFn:
        """Makes one of it."""
        if self.env_id is None:
            return partial(BusyEnv, **self.kwargs)
        return partial(gymnasium.make, self.env_id, **self.kwargs)
