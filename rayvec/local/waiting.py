"""How long to wait actively before sleeping, and for what.

Waking a process that sleeps on an idle core takes 20 to 50 µs on many machines, as long as several steps of a small env.
Whoever waits for a bell therefore looks at a lamp first, again and again for a moment, as long as there is a core that has
nothing to step meanwhile: more processes than cores would take time from each other.

A :class:`Lamp` is a byte of shared memory that counts how often a bell was rung, a moment after each ring. It is a hint and
nothing else: what it announces is believed when the bell is heard, which the kernel orders behind all that was written
before, on every machine. A hint that comes late, too soon or never costs time, never data.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["LONGEST_SPIN_SECONDS", "SPIN_SECONDS", "Lamp", "usable_cores"]

SPIN_SECONDS = 200e-6
"""Seconds to look before sleeping."""
LONGEST_SPIN_SECONDS = 2e-3
"""The same where the last wait that was slept in was shorter: what is waited for takes about so long each time (a policy that
chooses the next actions), or less than being woken does (on a virtual machine that is up to a millisecond; and two that both
sleep before the other is awake would go on so)."""
_LOOKS = 64
"""How often to look, some 40 ns each, before giving way to others that want this core and reading the clock."""


def _stay() -> None:
    pass


_give_way: Callable[[], None] = getattr(os, "sched_yield", _stay)


class Lamp:
    """A count that one side raises and the other watches.

    Args:
        counts: uint8 in shared memory; zero at first.
        index: which of them.
    """

    def __init__(self, counts: npt.NDArray[np.uint8], index: int) -> None:
        self._counts = counts.data
        self._index = index
        self._due = 1
        self._bound = SPIN_SECONDS
        self._asleep_since = 0.0

    def raise_(self) -> None:
        """Notes that the bell was rung once more."""
        self._counts[self._index] = (self._counts[self._index] + 1) & 255

    def note(self, rings: int = 1) -> None:
        """Notes that so many rings were heard, right after the wait for them."""
        self._due = (self._due + rings) & 255
        if self._asleep_since:
            waited = time.perf_counter() - self._asleep_since
            self._asleep_since = 0.0
            self._bound = LONGEST_SPIN_SECONDS if waited < LONGEST_SPIN_SECONDS else SPIN_SECONDS
            # Counted anew, in case Ctrl-C has come between a ring and its count, or its note.
            self._due = (self._counts[self._index] + 1) & 255

    def watch(self) -> bool:
        """Waits a moment for the next ring; returns whether it came."""
        counts, index, due = self._counts, self._index, self._due
        began = self._asleep_since = 0.0
        looks = _LOOKS
        while counts[index] != due:
            looks -= 1
            if not looks:
                now = time.perf_counter()
                if not began:
                    began = now
                elif now - began >= self._bound:
                    self._asleep_since = began
                    return False
                _give_way()
                looks = _LOOKS
        return True


def usable_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
