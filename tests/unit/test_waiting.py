"""A lamp announces rings, each once, and never holds anybody for long."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from rayvec.local import waiting
from rayvec.local.waiting import LONGEST_SPIN_SECONDS, SPIN_SECONDS, Lamp, usable_cores


@pytest.fixture
def pair() -> tuple[Lamp, Lamp]:
    """The lamp as the one who rings has it, and as the one who waits."""
    counts = np.zeros(3, np.uint8)
    return Lamp(counts, 1), Lamp(counts, 1)


def test_each_ring_is_announced_once(pair: tuple[Lamp, Lamp]) -> None:
    """Also when the count begins anew, which it does every 256 rings."""
    ringing, waiting_ = pair
    for _ in range(600):
        ringing.raise_()
        assert waiting_.watch()
        waiting_.note()
    assert not waiting_.watch()


def test_rings_that_were_heard_before_they_were_announced(pair: tuple[Lamp, Lamp]) -> None:
    """The one who waits may hear the bell before the lamp is raised; that ring is not announced any more."""
    ringing, waiting_ = pair
    waiting_.note()
    ringing.raise_()
    assert not waiting_.watch()
    ringing.raise_()
    waiting_.note()
    assert not waiting_.watch()


@pytest.mark.parametrize("missed", ["ring", "note"])
def test_a_count_that_was_interrupted_heals(pair: tuple[Lamp, Lamp], missed: str) -> None:
    """Ctrl-C came between a ring and its count, or between hearing and noting it: one more is slept for, and that is all."""
    ringing, waiting_ = pair
    if missed == "note":
        ringing.raise_()
    else:
        waiting_.note()
    ringing.raise_()
    assert not waiting_.watch()
    waiting_.note()
    for _ in range(3):
        ringing.raise_()
        assert waiting_.watch()
        waiting_.note()
    assert not waiting_.watch()


def test_watching_ends_with_a_ring_from_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sees what somebody else writes while it looks."""
    monkeypatch.setattr(waiting, "SPIN_SECONDS", 30.0)
    counts = np.zeros(1, np.uint8)
    ringing, waiting_ = Lamp(counts, 0), Lamp(counts, 0)
    seen: list[bool] = []
    watcher = threading.Thread(target=lambda: seen.append(waiting_.watch()))
    watcher.start()
    ringing.raise_()
    watcher.join(20)
    assert seen == [True]


class Clock:
    """In place of the module ``time``: a clock that somebody else turns, and that goes on a little at each look.

    Attributes:
        now: what it shows, in seconds.
    """

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        """What it shows."""
        self.now += 10e-6
        return self.now


def test_who_was_woken_soon_looks_longer_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no longer than at first once it has waited for long."""
    clock = Clock()
    monkeypatch.setattr(waiting, "time", clock)
    counts = np.zeros(1, np.uint8)
    ringing, waiting_ = Lamp(counts, 0), Lamp(counts, 0)

    def looked(asleep: float = 0.0) -> float:
        """How long it looks in vain, before it sleeps for so long and is woken."""
        began = clock.now
        assert not waiting_.watch()
        lasted = clock.now - began
        clock.now += asleep
        ringing.raise_()
        waiting_.note()
        return lasted

    short, long = pytest.approx(SPIN_SECONDS, abs=50e-6), pytest.approx(LONGEST_SPIN_SECONDS, abs=50e-6)
    assert looked(0.5e-3) == short
    # One that it sees while it looks changes nothing.
    ringing.raise_()
    assert waiting_.watch()
    waiting_.note()
    assert looked(0.5e-3) == long
    assert looked(5e-3) == short
    assert looked() == short
    assert looked() == long


def test_usable_cores_are_those_of_this_process() -> None:
    """One at least, and no more than the machine has."""
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
