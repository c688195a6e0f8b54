"""What the sub-envs and their workers have done with their time: counted where they live, read by the caller at any moment.

::

    worker   │ waits for the caller │   step   │ waits for the caller │ step │      a clock reading at each │
             └──────────────────────┴──────────┴──────────────────────┴──────┘
             └───────────────────────── elapsed ─────────────────────────────┘

A :class:`Tally` adds up over a row of ``Batch.tallies`` for each sub-env; a row travels like any other, so nothing has to
be asked for. What concerns a worker as a whole stands in the row of its first sub-env. A step costs two clock readings and
a few stores a worker. Where several sub-envs share a worker, the time of each of them is taken at one step in
:data:`SAMPLED_EVERY` only.

Assumptions: a row has one writer at a time, its worker, and the caller reads single numbers, which are never torn. The
tally of a worker that is started again goes on from where the last one was.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["NUM_SLOTS", "SAMPLED_EVERY", "EnvStats", "Stats", "Tally", "WorkerStats", "read_stats"]

SAMPLED_EVERY = 8
"""One step in so many is timed for each sub-env, where several share a worker."""

NUM_SLOTS = 16
"""Numbers in a row: two cache lines, so that workers do not write into each other's."""
# Of a worker, in the row of its first sub-env:
_STEPS, _STEP_SECONDS, _WORST_STEP, _RESET_SECONDS, _ELAPSED = range(5)
# Of a sub-env:
_RESETS, _RESETS_IN_STEP, _RESTARTS, _SAMPLES, _SAMPLED_SECONDS, _WORST_SAMPLE = range(5, 11)

_STANDS_OUT = 1.2
"""A worker holds the others back if its steps take so many times what the median worker's take."""


class Tally:
    """Counts for a run of sub-envs that one worker steps.

    Args:
        rows: of ``Batch.tallies``, float64 ``(number of sub-envs, NUM_SLOTS)``.

    Attributes:
        samples: the next step is one at which each sub-env is timed by itself.
    """

    def __init__(self, rows: npt.NDArray[np.float64]) -> None:
        self._rows = rows
        # Plain numbers are quicker to count with than those of an array, and a memoryview to store into.
        self._own: Any = memoryview(rows[0])
        self._shares = len(rows) > 1
        self._steps = int(rows[0, _STEPS])
        self._seconds, self._worst, self._elapsed = (float(rows[0, slot]) for slot in (_STEP_SECONDS, _WORST_STEP, _ELAPSED))
        self._last = 0.0
        self.samples = self._shares
        if self._elapsed:
            rows[:, _RESTARTS] += 1

    def end_step(self, began: float, ended: float) -> None:
        """A step of all sub-envs was made between these times of ``time.perf_counter``."""
        taken = ended - began
        own = self._own
        self._steps += 1
        self._seconds += taken
        self._elapsed += ended - (self._last or began)
        self._last = ended
        own[_STEPS] = self._steps
        own[_STEP_SECONDS] = self._seconds
        own[_ELAPSED] = self._elapsed
        if taken > self._worst:
            own[_WORST_STEP] = self._worst = taken
        self.samples = self._shares and not self._steps % SAMPLED_EVERY

    def end_reset(self, began: float, ended: float) -> None:
        """Some sub-envs were reset on request between these times."""
        self._elapsed += ended - (self._last or began)
        self._last = ended
        self._own[_RESET_SECONDS] += ended - began
        self._own[_ELAPSED] = self._elapsed

    def sample(self, index: int, seconds: float) -> None:
        """The step of one sub-env took so long."""
        row = self._rows[index]
        row[_SAMPLES] += 1
        row[_SAMPLED_SECONDS] += seconds
        if seconds > row[_WORST_SAMPLE]:
            row[_WORST_SAMPLE] = seconds

    def count_reset(self, index: int, in_step: bool = False) -> None:
        """A sub-env was reset; ``in_step``: instead of being stepped."""
        self._rows[index, _RESETS] += 1
        if in_step:
            self._rows[index, _RESETS_IN_STEP] += 1

    def count_restart(self, index: int) -> None:
        """A sub-env was built anew."""
        self._rows[index, _RESTARTS] += 1


class EnvStats(NamedTuple):
    """What one sub-env has done.

    Attributes:
        steps: steps, those that were a reset under ``AutoresetMode.NEXT_STEP`` aside.
        resets: resets, whoever asked for them.
        restarts: times that it was built anew.
        mean_step_seconds: what a step takes on average, in seconds; 0.0 before the first one. With several sub-envs in a
            worker, one step in :data:`SAMPLED_EVERY` counts.
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
        mean, worst = _mean(own[_STEP_SECONDS], own[_STEPS]), float(own[_WORST_STEP])
        busy = own[_STEP_SECONDS] + own[_RESET_SECONDS]
        waiting = max(0.0, 1.0 - float(busy / own[_ELAPSED])) if own[_ELAPSED] else 0.0
        rows = tallies[envs.start : envs.stop]
        for row in rows:
            times = (mean, worst)
            if len(envs) > 1:
                times = (_mean(row[_SAMPLED_SECONDS], row[_SAMPLES]), float(row[_WORST_SAMPLE]))
            counts = (steps - int(row[_RESETS_IN_STEP]), int(row[_RESETS]), int(row[_RESTARTS]))
            sub_envs.append(EnvStats(*counts, *times, waiting))
        resets, restarts = int(rows[:, _RESETS].sum()), int(rows[:, _RESTARTS].max())
        told.append(WorkerStats(envs, name, steps, resets, restarts, mean, worst, waiting))
    return Stats(sub_envs, told)


def _mean(total: np.float64, count: np.float64) -> float:
    return float(total / count) if count else 0.0
