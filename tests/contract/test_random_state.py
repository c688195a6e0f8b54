"""The workers' global random states: each its own, all decided by the caller's."""

from __future__ import annotations

import os
import random
import signal
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from engines import ENGINES, START_METHODS, Engine, each, named
from world import wait_until_gone

from rayvec import WorkerLostError
from rayvec.testing import RandomStateEnv

NUM_ENVS = 4
ACTIONS = np.zeros(NUM_ENVS, np.int64)


def drawn(engine: Engine, python_seed: int, numpy_seed: int) -> list[list[float]]:
    """What the sub-envs draw from ``random`` and ``numpy.random`` after the caller has seeded its own."""
    random.seed(python_seed)
    np.random.seed(numpy_seed)
    with closing(engine.make([RandomStateEnv] * NUM_ENVS)) as envs:
        reset, _ = envs.reset(seed=1)
        step, *_ = envs.step(ACTIONS)
    rows: list[list[float]] = np.concatenate([reset, step], axis=1).tolist()
    return rows


@each([*START_METHODS, *named("async", "async-pipe")])
def test_differ_and_are_reproducible(engine: Engine) -> None:
    """No two sub-envs draw the same; the same seeds of the caller give the same; either of the two others gives others."""
    first = drawn(engine, 1, 2)
    numbers = [number for row in first for number in row]
    assert len(set(numbers)) == len(numbers)
    assert drawn(engine, 1, 2) == first
    for other in (drawn(engine, 3, 2), drawn(engine, 1, 3)):
        assert not {number for row in other for number in row} & set(numbers)


@each(named("async", "async-caller"))
def test_differ_from_the_caller(engine: Engine) -> None:
    """The caller does not draw what its workers draw."""
    random.seed(5)
    np.random.seed(6)
    with closing(engine.make([RandomStateEnv] * NUM_ENVS)) as envs:
        observations, _ = envs.reset()
    own = {*(random.random() for _ in range(50)), *np.random.random(50).tolist()}
    assert not own & set(observations[len(engine.in_caller_of(NUM_ENVS)) :].ravel().tolist())


@pytest.mark.parametrize("name", ["async", "async-workers-2"])
def test_caller_draws_as_if_there_were_no_workers(name: str) -> None:
    """Making a vector env does not disturb the caller's own states."""
    random.seed(7)
    np.random.seed(8)
    with closing(ENGINES[name].make([RandomStateEnv] * NUM_ENVS)) as envs:
        envs.reset(seed=1)
        came = (random.random(), np.random.random())
    random.seed(7)
    np.random.seed(8)
    assert came == (random.random(), np.random.random())


def test_worker_that_is_started_again_draws_others() -> None:
    """It does not repeat what it has drawn before."""
    with closing(ENGINES["async"].make([RandomStateEnv] * NUM_ENVS)) as envs:
        seen: set[float] = set()
        for _ in range(3):
            observations, _ = envs.reset(seed=1)
            drawn_now: set[Any] = set(observations.ravel().tolist())
            assert len(drawn_now) == 2 * NUM_ENVS
            assert not drawn_now & seen
            seen |= drawn_now
            pid = envs.processes[1].pid
            os.kill(pid, signal.SIGKILL)
            wait_until_gone([pid], 5)
            with pytest.raises(WorkerLostError):
                envs.step(ACTIONS)
