"""What the sub-envs and their workers have done with their time: counted where they live, read by the caller at any moment.

::

    worker   │ waits for the caller │   step   │ waits for the caller │ step │      a clock reading at some │
             └──────────────────────┴──────────┴──────────────────────┴──────┘
             └───────────────────────── elapsed ─────────────────────────────┘

A :class:`Tally` adds up over a row of ``Batch.tallies`` for each sub-env; a row travels like any other, so nothing has to
be asked for. What concerns a worker as a whole stands in the row of its first sub-env.

Every step is counted. Where its sub-envs take so long that reading a clock is nothing to them, every step is timed too, and
each sub-env within it; where each is quicker than :data:`QUICK_SECONDS`, one step in :data:`TIMED_EVERY`, which then stands
for all that were not timed since the last one.

Assumptions: a row has one writer at a time, its worker, and the caller reads single numbers, which are never torn. The
tally of a worker that is started again goes on from where the last one was.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "NUM_SLOTS",
    "QUICK_SECONDS",
    "TIMED_EVERY",
    "EnvStats",
    "Stats",
    "Tally",
    "WorkerStats",
    "count_restart",
    "read_stats",
]

QUICK_SECONDS = 200e-6
"""Sub-envs whose steps take less on average are not timed at each step: where processes are many, clock and tally are cold."""
TIMED_EVERY = 61
"""One step of theirs in so many is: a number that shares no factor with the lengths that things in envs tend to have."""

NUM_SLOTS = 16
"""Numbers in a row: two cache lines, so that workers do not write into each other's."""
# Of a worker, in the row of its first sub-env:
_STEPS, _STEPS_TIMED, _STEP_SECONDS, _WORST_STEP, _RESET_SECONDS, _ELAPSED = range(6)
# Of a sub-env:
_RESETS_ALONE, _RESETS_IN_STEP, _RESTARTS, _STEP_SECONDS_OF_ONE, _WORST_STEP_OF_ONE = range(6, 11)

_STANDS_OUT = 1.2
"""A worker holds the others back if its steps take so many times what the median worker's take."""


class Tally:
    """Counts for a run of sub-envs that one worker steps, and says which steps are to be timed.

    Args:
        rows: of ``Batch.tallies``, float64 ``(number of sub-envs, NUM_SLOTS)``.

    Attributes:
        shares: several sub-envs share the worker, so that each of them is timed in a step that is.
        steps: how many steps of all sub-envs were begun; who makes one adds it, here and in ``told``.
        told: the numbers of the worker, of which the first says how many steps.
        due: the step that is timed next, unless it was passed already.
    """

    def __init__(self, rows: npt.NDArray[np.float64]) -> None:
        # Plain floats are quicker to count with than anything else that goes into the rows, and a memoryview to store into.
        self._views: list[Any] = [memoryview(row) for row in rows]
        self.told = self._views[0]
        self.shares = len(rows) > 1
        self.steps = self._timed = float(rows[0, _STEPS])
        self.due = self.steps + 1.0
        self._quick = len(rows) * QUICK_SECONDS
        self._elapsed = float(rows[0, _ELAPSED])
        self._last = 0.0

    def end_step(self, began: float, ended: float) -> None:
        """The step that was counted last was made between these times of ``time.perf_counter``."""
        taken = ended - began
        own = self.told
        num_steps = self.steps - self._timed
        own[_STEP_SECONDS] += taken * num_steps
        own[_STEPS_TIMED] += num_steps
        self._timed = self.steps
        self._elapsed += ended - (self._last or began)
        self._last = ended
        own[_ELAPSED] = self._elapsed
        if taken > own[_WORST_STEP]:
            own[_WORST_STEP] = taken
        self.due = self._timed + (TIMED_EVERY if taken < self._quick else 1.0)

    def end_reset(self, began: float, ended: float) -> None:
        """Some sub-envs were reset on request between these times."""
        self._elapsed += ended - (self._last or began)
        self._last = ended
        self.told[_RESET_SECONDS] += ended - began
        self.told[_ELAPSED] = self._elapsed

    def time_one(self, index: int, seconds: float) -> None:
        """The step of one sub-env, of the step that was counted last, took so long."""
        own = self._views[index]
        own[_STEP_SECONDS_OF_ONE] += seconds * (self.steps - self._timed)
        if seconds > own[_WORST_STEP_OF_ONE]:
            own[_WORST_STEP_OF_ONE] = seconds

    def count_reset(self, index: int, in_step: bool = False) -> None:
        """A sub-env was reset; ``in_step``: instead of being stepped."""
        self._views[index][_RESETS_IN_STEP if in_step else _RESETS_ALONE] += 1.0

    def count_restart(self, index: int) -> None:
        """A sub-env was built anew."""
        self._views[index][_RESTARTS] += 1.0


def count_restart(rows: npt.NDArray[np.float64]) -> None:
    """All sub-envs of a worker are built anew; nobody counts in their rows meanwhile."""
    rows[:, _RESTARTS] += 1


class EnvStats(NamedTuple):
    """What one sub-env has done.

    Attributes:
        steps: steps, those that were a reset under ``AutoresetMode.NEXT_STEP`` aside.
        resets: resets, whoever asked for them.
        restarts: times that it was built anew.
        mean_step_seconds: what a step takes on average, in seconds; 0.0 before the first one. Of quick sub-envs one step in
            :data:`TIMED_EVERY` counts.
        worst_step_seconds: what the longest one of these took.
        waiting_share: the share of time, from 0 to 1, that its worker has waited for the caller, between its first request
            and its last reply.
    """

    steps: int
    resets: int
    restarts: int
    mean_step_seconds: float
    worst_step_seconds: float
    waiting_share: float


class WorkerStats(NamedTuple):
    """What one worker has done; a step of it steps all of its sub-envs.

    Attributes:
        envs: the indices of its sub-envs.
        name: who it is.
        steps: steps.
        resets: resets of its sub-envs, added up.
        restarts: of its sub-envs, the most.
        mean_step_seconds: what a step of all its sub-envs takes on average, in seconds; 0.0 before the first one.
        worst_step_seconds: what the longest one took.
        waiting_share: the share of time, from 0 to 1, that it has waited for the caller.
    """

    envs: range
    name: str
    steps: int
    resets: int
    restarts: int
    mean_step_seconds: float
    worst_step_seconds: float
    waiting_share: float

    def __str__(self) -> str:
        which = f"sub-env {self.envs[0]}" if len(self.envs) == 1 else f"sub-envs {self.envs[0]} to {self.envs[-1]}"
        return f"the worker of {which} ({self.name})"


class Stats(NamedTuple):
    """What all have done; as text, a line that says which worker holds the rest back.

    Attributes:
        sub_envs: in their order.
        workers: in the order of their sub-envs.
    """

    sub_envs: list[EnvStats]
    workers: list[WorkerStats]

    @property
    def slowest(self) -> WorkerStats:
        """The worker whose steps take longest on average."""
        return max(self.workers, key=lambda worker: worker.mean_step_seconds)

    def __str__(self) -> str:
        slowest = self.slowest
        if not slowest.steps:
            return "no steps yet"
        told = f"{slowest} takes {_shown(slowest.mean_step_seconds)} a step, {_shown(slowest.worst_step_seconds)} at worst"
        waits = f"and waits for the caller {slowest.waiting_share:.0%} of the time"
        others = [worker for worker in self.workers if worker is not slowest]
        if not others:
            return f"{told}, {waits}; there is no other"
        median = statistics.median(worker.mean_step_seconds for worker in others)
        waiting = statistics.median(worker.waiting_share for worker in others)
        rest = f"the median of the others takes {_shown(median)} and waits {waiting:.0%}"
        if slowest.mean_step_seconds < _STANDS_OUT * median:
            return f"no worker holds the rest back: {told}, {waits}; {rest}"
        return f"{told}, {waits}, and holds the rest back: {rest}"


def _shown(seconds: float) -> str:
    if seconds >= 1.0:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def read_stats(tallies: npt.NDArray[np.float64], workers: Sequence[tuple[range, str]]) -> Stats:
    """What the tallies say.

    Args:
        tallies: of all sub-envs, float64 ``(num_envs, NUM_SLOTS)``.
        workers: the sub-envs of each worker, and who it is.
    """
    tallies = tallies.copy()
    sub_envs: list[EnvStats] = []
    told: list[WorkerStats] = []
    for envs, name in workers:
        own = tallies[envs.start]
        steps = int(own[_STEPS])
        mean, worst = _mean(own[_STEP_SECONDS], own[_STEPS_TIMED]), float(own[_WORST_STEP])
        busy = own[_STEP_SECONDS] + own[_RESET_SECONDS]
        waiting = max(0.0, 1.0 - float(busy / own[_ELAPSED])) if own[_ELAPSED] else 0.0
        rows = tallies[envs.start : envs.stop]
        for row in rows:
            times = (mean, worst)
            if len(envs) > 1:
                times = (_mean(row[_STEP_SECONDS_OF_ONE], own[_STEPS_TIMED]), float(row[_WORST_STEP_OF_ONE]))
            counts = (steps - int(row[_RESETS_IN_STEP]), int(row[_RESETS_ALONE] + row[_RESETS_IN_STEP]), int(row[_RESTARTS]))
            sub_envs.append(EnvStats(*counts, *times, waiting))
        resets, restarts = sum(env.resets for env in sub_envs[envs.start :]), int(rows[:, _RESTARTS].max())
        told.append(WorkerStats(envs, name, steps, resets, restarts, mean, worst, waiting))
    return Stats(sub_envs, told)


def _mean(total: np.float64, count: np.float64) -> float:
    return float(total / count) if count else 0.0
