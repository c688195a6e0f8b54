"""Where the time of a step goes, by stopwatches in the engine itself: caller and workers, and each env.

::

    caller   ─ check, actions, bells ─┬─ steps its share ──────┬─ waits ─┬─ infos, hands out ─
    worker                            └─ steps its share ───────────────┘

A step takes as long as the caller's line, and each core has that time. What the envs take of it, what is done around them
(rows, flags, infos) and what the caller does alone is measured; the rest is waiting for each other.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray
from works import Env, EnvFn, Work

import rayvec
from rayvec.measuring import Turn
from rayvec.sub_envs import SubEnvs
from rayvec.worker import shares

_WIDTH = 8
_IN_ENV, _IN_STEP, _BEGAN, _ENDED = range(4)
"""What a row of the table holds, in seconds: for each sub-env, and for each worker in the row of its first."""


class Parts(NamedTuple):
    """Shares of the cores' time.

    Attributes:
        envs: the envs' own code.
        rows: around each env: rows, flags, infos, and these stopwatches (some 0.3 µs).
        caller: the caller's own, on all cores, for the others have nothing to do meanwhile.
        waiting: a core that has ended its share, or has not heard yet that it may begin.
    """

    envs: float
    rows: float
    caller: float
    waiting: float


class _TimedEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Adds up the time that is spent in an env."""

    def __init__(self, env: Env, cells: Any) -> None:
        super().__init__(env)
        self._cells = cells

    def step(self, action: Any) -> Any:
        """As the env's."""
        began = time.perf_counter()
        result = self.env.step(action)
        self._cells[_IN_ENV] += time.perf_counter() - began
        return result

    def reset(self, **options: Any) -> Any:
        """As the env's."""
        began = time.perf_counter()
        result = self.env.reset(**options)
        self._cells[_IN_ENV] += time.perf_counter() - began
        return result


class Accounted:
    """``AsyncVectorEnv`` with the caller among its workers, in a process that steps nothing else.

    Args:
        work: what is stepped.
        num_envs: how many of it.
        cores: how many workers, the caller among them.
    """

    def __init__(self, work: Work, num_envs: int, cores: int) -> None:
        self._cores = cores
        self._table: NDArray[np.float64] = np.frombuffer(mmap.mmap(-1, num_envs * _WIDTH * 8)).reshape(num_envs, _WIDTH)
        cells = [row.data for row in self._table]
        for name in ("step", "step_alone"):
            setattr(SubEnvs, name, _timed(getattr(SubEnvs, name), cells))
        env_fns: list[EnvFn] = [partial(_timed_env, work.env_fn, row) for row in cells]
        self._envs = rayvec.AsyncVectorEnv(env_fns, context="fork", num_workers=cores, step_in_caller=True)
        self._own, *self._others = (cells[envs.start] for envs in shares(num_envs, cores))
        self._total = self._alone = 0.0
        self.close = self._envs.close

    def reset(self, *, seed: int) -> None:
        """Resets all."""
        self._envs.reset(seed=seed)

    def step(self, actions: Any) -> None:
        """Steps all, and notes what the caller did."""
        began = time.perf_counter()
        self._envs.step(actions)
        ended = time.perf_counter()
        last = max(self._own[_ENDED], *(other[_ENDED] for other in self._others))
        self._total += ended - began
        self._alone += self._own[_BEGAN] - began + ended - last

    def account(self, turn: Turn, seconds: float) -> tuple[float, Parts]:
        """The rate of a turn, and what its time was spent on."""
        # Whoever has slept is awake then.
        turn.rate(seconds / 10)
        self._table[:, [_IN_ENV, _IN_STEP]] = 0.0
        self._total = self._alone = 0.0
        rate = turn.rate(seconds)
        in_env, in_step = (float(self._table[:, column].sum()) / (self._total * self._cores) for column in (_IN_ENV, _IN_STEP))
        alone = self._alone / self._total
        return rate, Parts(in_env, in_step - in_env, alone, 1.0 - in_step - alone)


def _timed_env(env_fn: EnvFn, cells: Any) -> Env:
    return _TimedEnv(env_fn(), cells)


def _timed(step: Callable[..., Any], cells: list[Any]) -> Callable[..., Any]:
    def timed(sub_envs: SubEnvs, *arguments: Any) -> Any:
        began = time.perf_counter()
        outcome = step(sub_envs, *arguments)
        ended = time.perf_counter()
        own = cells[sub_envs.first]
        own[_IN_STEP] += ended - began
        own[_BEGAN], own[_ENDED] = began, ended
        return outcome

    return timed
