"""A lamp announces rings, each once, and never holds anybody for long."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from rayvec.local import waiting
from rayvec.local.waiting import Lamp, usable_cores


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
    ringing.raise_()
    waiting_.note()
    assert waiting_.watch()
    waiting_.note()
    assert not waiting_.watch()


def test_watching_ends_with_a_ring_from_elsewhere(pair: tuple[Lamp, Lamp], monkeypatch: pytest.MonkeyPatch) -> None:
    """It sees what somebody else writes while it looks."""
    monkeypatch.setattr(waiting, "SPIN_SECONDS", 30.0)
    ringing, waiting_ = pair
    seen: list[bool] = []
    watcher = threading.Thread(target=lambda: seen.append(waiting_.watch()))
    watcher.start()
    ringing.raise_()
    watcher.join(20)
    assert seen == [True]


def test_usable_cores_are_those_of_this_process() -> None:
    """One at least, and no more than the machine has."""
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
