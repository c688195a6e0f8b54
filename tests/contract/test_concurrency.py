"""``max_concurrency``: how many workers may be in a reset or a step at a time, shown by envs that wait to be let go."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import ENGINES, Engine, each, named

from rayvec import CallTimeoutError, WorkerLostError
from rayvec.testing import CountingEnv, DyingEnv, GateEnv, RaisingEnv, RandomStateEnv, check_vector_env

NUM_ENVS = 5
ACTIONS = np.zeros(NUM_ENVS, np.int64)

BOUNDED = [
    *named("async-concurrency"),
    Engine(
        "async-pipe-concurrency",
        ENGINES["async-concurrency"].base,
        {"context": "fork", "shared_memory": False, "max_concurrency": 2},
    ),
]
"""At most two at a time."""


def gates(folder: Path) -> list[Path]:
    """A gate for each sub-env."""
    return [folder / f"gate-{index}" for index in range(NUM_ENVS)]


def entered(folder: Path) -> set[int]:
    """The sub-envs that have come to their gates."""
    return {index for index, gate in enumerate(gates(folder)) if GateEnv.marker_of(gate).exists()}


def wait_in_steps(wait: Callable[..., Any], until: Callable[[], bool]) -> None:
    """Waits for a call that cannot end yet, a moment at a time, until something is so."""
    deadline = time.monotonic() + 10
    while True:
        with pytest.raises(CallTimeoutError):
            wait(timeout=0.02)
        if until():
            return
        assert time.monotonic() < deadline


@each(BOUNDED)
@pytest.mark.parametrize("on", ["step", "reset"])
def test_no_more_than_that_at_a_time(engine: Engine, on: Any, tmp_path: Path) -> None:
    """Two are let in; another one enters for each that leaves; all get their turn."""
    fns = [partial(GateEnv, gate, on=on, at=1 if on == "step" else 2, index=i) for i, gate in enumerate(gates(tmp_path))]
    with closing(engine.make(fns)) as envs:
        envs.reset(seed=1)
        if on == "step":
            envs.step_async(ACTIONS)
        else:
            envs.reset_async(seed=2)
        wait = envs.step_wait if on == "step" else envs.reset_wait
        left: set[int] = set()
        while len(left) < NUM_ENVS - 1:
            due = min(len(left) + 2, NUM_ENVS)
            wait_in_steps(wait, lambda due=due: len(entered(tmp_path)) >= due)  # type: ignore[misc]
            # Some time for one too many to come.
            with pytest.raises(CallTimeoutError):
                wait(timeout=0.1)
            assert len(entered(tmp_path)) == due
            leaves = min(entered(tmp_path) - left)
            gates(tmp_path)[leaves].touch()
            left.add(leaves)
        for gate in gates(tmp_path):
            gate.touch()
        observations = wait()[0]
        assert observations[:, 3].tolist() == [1 if on == "step" else 0] * NUM_ENVS


@each(BOUNDED)
def test_calls_are_not_bounded(engine: Engine, tmp_path: Path) -> None:
    """All sub-envs may be in ``call`` at once."""
    fns = [partial(GateEnv, gate, on="call", index=index) for index, gate in enumerate(gates(tmp_path))]
    with closing(engine.make(fns)) as envs:
        envs.reset(seed=1)
        envs.call_async("answer")
        wait_in_steps(envs.call_wait, lambda: len(entered(tmp_path)) == NUM_ENVS)
        for gate in gates(tmp_path):
            gate.touch()
        assert envs.call_wait() == (42, 43, 44, 45, 46)


@pytest.mark.parametrize("bound", [1, 3, 99])
def test_any_bound(bound: int, tmp_path: Path) -> None:
    """One at a time, or more than there are."""
    fns = [partial(GateEnv, gate, index=index) for index, gate in enumerate(gates(tmp_path))]
    with closing(ENGINES["async"].make(fns, max_concurrency=bound)) as envs:
        envs.reset(seed=1)
        envs.step_async(ACTIONS)
        due = min(bound, NUM_ENVS)
        wait_in_steps(envs.step_wait, lambda: len(entered(tmp_path)) >= due)
        with pytest.raises(CallTimeoutError):
            envs.step_wait(timeout=0.1)
        assert len(entered(tmp_path)) == due
        for gate in gates(tmp_path):
            gate.touch()
        envs.step_wait()


def test_sub_envs_of_one_worker_count_as_one(tmp_path: Path) -> None:
    """Those that share a worker take turns anyway."""
    fns = [partial(GateEnv, gate, index=index) for index, gate in enumerate(gates(tmp_path))]
    with closing(ENGINES["async-workers-3"].make(fns, max_concurrency=2)) as envs:
        envs.reset(seed=1)
        envs.step_async(ACTIONS)
        wait_in_steps(envs.step_wait, lambda: len(entered(tmp_path)) >= 2)
        with pytest.raises(CallTimeoutError):
            envs.step_wait(timeout=0.1)
        assert entered(tmp_path) == {0, 2}
        for gate in gates(tmp_path):
            gate.touch()
        observations, *_ = envs.step_wait()
        assert observations[:, 3].tolist() == [1] * NUM_ENVS


@each(BOUNDED)
def test_close_while_some_are_queued(engine: Engine, tmp_path: Path) -> None:
    """They need not have their turn first."""
    fns = [partial(GateEnv, gate, index=index) for index, gate in enumerate(gates(tmp_path))]
    envs = engine.make(fns)
    envs.reset(seed=1)
    envs.step_async(ACTIONS)
    wait_in_steps(envs.step_wait, lambda: len(entered(tmp_path)) == 2)
    begin = time.monotonic()
    envs.close(timeout=0.3)
    assert time.monotonic() - begin < 1.3
    assert len(entered(tmp_path)) == 2


@each(BOUNDED)
def test_errors_and_deaths_leave_the_queue_going(engine: Engine) -> None:
    """A sub-env that raises or dies makes room for the next one."""
    fns: list[Any] = [partial(CountingEnv, index=index) for index in range(NUM_ENVS)]
    fns[0] = partial(RaisingEnv, at=1, error=KeyError("first"), index=0)
    fns[1] = partial(RaisingEnv, at=1, error=KeyError("second"), index=1)
    with closing(engine.make(fns)) as envs:
        envs.reset(seed=1)
        with pytest.raises(KeyError, match="first"):
            envs.step(ACTIONS)
        assert [place[3] for place in envs.call("where")[2:]] == [1, 1, 1]
        envs.reset(seed=2)
    fns[0] = partial(DyingEnv, at=1, index=0)
    fns[1] = partial(DyingEnv, at=1, index=1)
    with closing(engine.make(fns)) as envs:
        for _ in range(3):
            envs.reset(seed=1)
            with pytest.raises(WorkerLostError):
                envs.step(ACTIONS)
        observations, _ = envs.reset(seed=2)
        assert observations[:, 1].tolist() == [2, 3, 4, 5, 6]


@each(BOUNDED)
def test_queued_worker_dies(engine: Engine, tmp_path: Path) -> None:
    """One that dies before its turn is told of at once, and started again by the reset."""
    fns: list[Any] = [partial(GateEnv, gate, at=1, index=index) for index, gate in enumerate(gates(tmp_path))]
    with closing(engine.make(fns)) as envs:
        envs.reset(seed=1)
        envs.step_async(ACTIONS)
        wait_in_steps(envs.step_wait, lambda: len(entered(tmp_path)) == 2)
        queued = min(set(range(NUM_ENVS)) - entered(tmp_path))
        os.kill(envs.processes[queued].pid, signal.SIGKILL)
        begin = time.monotonic()
        with pytest.raises(WorkerLostError) as caught:
            envs.step_wait()
        assert time.monotonic() - begin < 1
        assert caught.value.env_indices == (queued,)
        for gate in gates(tmp_path):
            gate.touch()
        observations, _ = envs.reset(seed=5)
        assert observations[:, 1].tolist() == [5, 6, 7, 8, 9]
        observations, *_ = envs.step(ACTIONS)
        assert observations[:, 3].tolist() == [1] * NUM_ENVS


def test_kit_holds_for_one_at_a_time() -> None:
    """The strictest bound gives the same data."""
    checks = ["async_halves", "masked_reset", "several_errors", "error_spares_others", "pending_call", "call"]
    check_vector_env(partial(ENGINES["async"].make, max_concurrency=1), checks=checks)
    check_vector_env(partial(ENGINES["async-caller"].make, max_concurrency=1), checks=checks)


@pytest.mark.parametrize("bound", [0, -1, 1.5, "2", True])
def test_bad_bounds(bound: Any) -> None:
    """It is None or a number of at least 1."""
    with pytest.raises(ValueError, match="max_concurrency"):
        ENGINES["async"].make([RandomStateEnv] * 2, max_concurrency=bound)
