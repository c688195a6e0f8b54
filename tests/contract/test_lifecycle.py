"""From the constructor to ``close()``: bounded in time, whatever sub-envs do, and nothing is left behind.

That nothing is left is checked after every test, by the fixture ``clean_world``.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import ENGINES, FEW, ONE_EACH, START_METHODS, Engine, each, named
from gymnasium.error import ClosedEnvironmentError
from gymnasium.spaces import Box
from world import notes_of, wait_until_gone, within

from rayvec import CallTimeoutError
from rayvec.testing import (
    CountingEnv,
    GateEnv,
    RaisingEnv,
    SlowEnv,
    StubbornEnv,
    read_log,
    wait_for_path,
)

NUM_ENVS = 5
LAST = NUM_ENVS - 1
ACTIONS = np.zeros(NUM_ENVS, np.int64)


def counting(**kwargs: Any) -> list[Any]:
    """Five counting envs."""
    return [partial(CountingEnv, index=index, **kwargs) for index in range(NUM_ENVS)]


def with_one(index: int, env_fn: Any, **kwargs: Any) -> list[Any]:
    """Five counting envs, one of another kind."""
    fns = counting(**kwargs)
    fns[index] = partial(env_fn, index=index, **kwargs)
    return fns


def wait_in_vain(wait: Callable[..., Any], marker: Path) -> None:
    """Waits for a call that cannot end, a moment at a time, until an env has written its marker."""
    deadline = time.monotonic() + 10
    while not marker.exists():
        with pytest.raises(CallTimeoutError):
            wait(timeout=0.02)
        assert time.monotonic() < deadline


def assert_all_closed(log: Path, but: list[int] | None = None) -> None:
    """Checks that each env that was built was closed once, where it lived, except ``but``."""
    lines = read_log(log)
    built = sorted((line.env_index, line.pid) for line in lines if line.event == "built")
    closed = sorted((line.env_index, line.pid) for line in lines if line.event == "closed")
    assert closed == [entry for entry in built if entry[0] not in (but or [])]


# Building


@each(ENGINES)
def test_each_env_fn_is_called_once_where_its_env_lives(engine: Engine, tmp_path: Path) -> None:
    """Workers have consecutive runs of sub-envs; the caller builds none but its own share."""
    log = tmp_path / "log"
    with closing(engine.make(counting(log=log))) as envs:
        envs.reset()
        envs.step(ACTIONS)
        pids = {line.env_index: line.pid for line in read_log(log)}
        assert len(read_log(log)) == len(pids) == NUM_ENVS
        for share in engine.shares(NUM_ENVS):
            assert len({pids[index] for index in share}) == 1
        assert len(set(pids.values())) == len(engine.shares(NUM_ENVS))
        assert [index for index, pid in sorted(pids.items()) if pid == os.getpid()] == engine.in_caller_of(NUM_ENVS)
    assert_all_closed(log)


@each(ONE_EACH)
@pytest.mark.parametrize("position", range(NUM_ENVS))
def test_failing_constructor(engine: Engine, position: int, tmp_path: Path) -> None:
    """It raises the env_fn's own error, at once, and closes the sub-envs that were built."""
    log = tmp_path / "log"
    error = LookupError("no such simulator", 3)
    with within(1.0 + engine.start_seconds), pytest.raises(LookupError) as caught:
        engine.make(with_one(position, partial(RaisingEnv, on="init", error=error), log=log))
    assert caught.value.args == error.args
    told = notes_of(caught.value)
    assert f"sub-env {position}" in told
    assert "constructor" in told
    # The env that failed was half built, and wrote so.
    assert_all_closed(log, but=[position])


@each(START_METHODS)
def test_failing_constructor_under_each_start_method(engine: Engine, tmp_path: Path) -> None:
    """The same for every way to start a process, with an error whose class is the test's own."""
    log = tmp_path / "log"
    with pytest.raises(OwnError, match="own") as caught:
        engine.make(with_one(3, partial(RaisingEnv, on="init", error=OwnError("own")), log=log))
    assert "sub-env 3" in notes_of(caught.value)
    assert_all_closed(log, but=[3])


@each(START_METHODS)
def test_a_process_that_cannot_be_started(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's error is raised, and the processes that were started before close their sub-envs and end."""
    log = tmp_path / "log"
    start = BaseProcess.start

    def refused(process: BaseProcess) -> None:
        if process.name.endswith("VectorEnv>-1"):
            raise BlockingIOError(11, "no more processes")
        start(process)

    monkeypatch.setattr(BaseProcess, "start", refused)
    with pytest.raises(BlockingIOError, match="no more processes"):
        engine.make(counting(log=log))
    assert read_log(log)
    assert_all_closed(log)


class OwnError(Exception):
    """The test's own."""


@each(ONE_EACH)
def test_several_failing_constructors(engine: Engine, tmp_path: Path) -> None:
    """The lowest one's error is raised."""
    log = tmp_path / "log"
    fns = counting(log=log)
    for index in (1, 2, 4):
        fns[index] = partial(RaisingEnv, on="init", error=LookupError(index), index=index, log=log)
    with within(1.5 + engine.start_seconds), pytest.raises(LookupError) as caught:
        engine.make(fns)
    assert caught.value.args == (1,)
    assert_all_closed(log, but=[1, 2, 4])


@each([*ONE_EACH, ENGINES["async-forkserver"]], needs="can_time_out")
def test_hanging_constructor(engine: Engine, tmp_path: Path) -> None:
    """``start_timeout`` bounds it; the error names who is waited for; the stuck process is killed."""
    log, marker = tmp_path / "log", tmp_path / "marker"
    timeout = 1.0 if engine.start_method == "fork" else 8.0 if engine.is_ray else 4.0
    with within(timeout + 2.0), pytest.raises(CallTimeoutError, match="start_timeout") as caught:
        engine.make(with_one(LAST, partial(StubbornEnv, on="init", marker=marker), log=log), start_timeout=timeout)
    assert marker.exists()
    assert str(int(marker.read_text())) in str(caught.value)
    assert_all_closed(log, but=engine.together_with(LAST, NUM_ENVS))


@each(named("async", "async-pipe", "async-workers-2"))
def test_one_constructor_fails_while_another_hangs(engine: Engine, tmp_path: Path) -> None:
    """The failure is told soon, not after the one that hangs."""
    fns = with_one(0, partial(StubbornEnv, on="init", marker=tmp_path / "marker"))
    fns[LAST] = partial(RaisingEnv, on="init", error=LookupError("fails"), index=LAST)
    with within(4.0), pytest.raises(LookupError, match="fails"):
        engine.make(fns)


@each(named("async-spawn", "async-forkserver"))
def test_env_fn_that_cannot_be_pickled(engine: Engine) -> None:
    """The constructor says which one it is, and starts nothing."""
    lock = threading.Lock()

    def make_with_lock() -> CountingEnv:
        lock.acquire(False)
        return CountingEnv()

    with pytest.raises(TypeError, match=r"env_fns\[3\].*pickle"):
        engine.make([CountingEnv, CountingEnv, CountingEnv, make_with_lock, CountingEnv])


@each(named("async-spawn", "async-forkserver"))
def test_local_env_fns_travel(engine: Engine) -> None:
    """Closures and lambdas, and classes made inside a function, do."""
    base = 3

    class LocalEnv(CountingEnv):
        def where(self) -> Any:
            return self.index + base

    with closing(engine.make([lambda: LocalEnv(index=4), lambda: LocalEnv(index=base)])) as envs:
        assert envs.call("where") == (7, 6)


@each(named("async"))
def test_env_fns_under_fork_are_not_pickled(engine: Engine) -> None:
    """There they need not be."""
    lock = threading.Lock()

    def make_with_lock() -> CountingEnv:
        assert lock.acquire(False)
        return CountingEnv()

    with closing(engine.make([make_with_lock] * 2)) as envs:
        envs.reset()


@each(FEW)
def test_spaces_that_cannot_be_batched(engine: Engine) -> None:
    """A constructor that raises after the workers were started ends them."""
    with pytest.raises(RuntimeError):
        engine.make([CountingEnv, partial(RandomBoxEnv, 3), partial(RandomBoxEnv, 4)])


class RandomBoxEnv(CountingEnv):
    """Has an observation space of any size."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.observation_space = Box(-1, 1, (size,), np.int64)


# Closing


@each(ENGINES)
def test_close_from_any_state(engine: Engine, tmp_path: Path) -> None:
    """Before the first reset, after calls, while one is pending, after an error: it closes all, and twice is harmless."""

    def untouched(envs: Any) -> None:
        pass

    def stepped(envs: Any) -> None:
        envs.reset(seed=1)
        envs.step(ACTIONS)

    def resetting(envs: Any) -> None:
        envs.reset_async()

    def stepping(envs: Any) -> None:
        envs.reset()
        envs.step_async(ACTIONS)

    def calling(envs: Any) -> None:
        envs.call_async("where")

    def rejected(envs: Any) -> None:
        envs.reset()
        with pytest.raises((ValueError, TypeError)):
            envs.step(ACTIONS[:2])

    def failed(envs: Any) -> None:
        with pytest.raises(AttributeError):
            envs.call("no_such_method")

    for number, bring_there in enumerate((untouched, stepped, resetting, stepping, calling, rejected, failed)):
        if engine.start_method == "spawn" and bring_there in (untouched, rejected, failed):
            continue
        log = tmp_path / f"log-{number}"
        envs = engine.make(counting(log=log))
        bring_there(envs)
        with within(3.0):
            envs.close()
        assert_all_closed(log)
        assert envs.closed
        envs.close()
        envs.close(timeout=1, terminate=True)
        assert_all_closed(log)


@each(ONE_EACH)
def test_use_after_close(engine: Engine) -> None:
    """Everything raises ClosedEnvironmentError, both halves of each call; what needs no sub-env still answers."""
    envs = engine.make(counting())
    envs.reset()
    envs.step_async(ACTIONS)
    envs.close()
    calls: dict[str, tuple[Any, ...]] = {
        "reset": (),
        "reset_async": (),
        "reset_wait": (),
        "step": (ACTIONS,),
        "step_async": (ACTIONS,),
        "step_wait": (),
        "call": ("where",),
        "call_async": ("where",),
        "call_wait": (),
        "get_attr": ("level",),
        "set_attr": ("level", 1),
        "render": (),
    }
    for name, args in calls.items():
        with pytest.raises(ClosedEnvironmentError):
            getattr(envs, name)(*args)
    for name in ("np_random", "np_random_seed"):
        with pytest.raises(ClosedEnvironmentError):
            getattr(envs, name)
    assert envs.num_envs == NUM_ENVS
    assert type(envs).__name__ in repr(envs)


@each(FEW)
def test_context_manager_closes_when_its_body_raises(engine: Engine, tmp_path: Path) -> None:
    """The body's own error is what comes out."""
    log = tmp_path / "log"
    with pytest.raises(ZeroDivisionError), engine.make(counting(log=log)) as envs:  # noqa: PT012 - it is the body's
        envs.reset()
        envs.step_async(ACTIONS)
        raise ZeroDivisionError
    assert_all_closed(log)


@each(ONE_EACH, needs="in_processes")
@pytest.mark.parametrize(
    ("kind", "on"),
    [("stubborn", "step"), ("stubborn", "reset"), ("stubborn", "call"), ("stubborn", "close"), ("gate", "step")],
)
def test_close_with_a_stuck_env(engine: Engine, on: Any, kind: str, tmp_path: Path) -> None:
    """It returns within its timeout and a second, closes all that answer, and kills even what ignores SIGTERM."""
    log, marker = tmp_path / "log", tmp_path / "gate.entered"
    stuck = partial(StubbornEnv, marker=marker) if kind == "stubborn" else partial(GateEnv, tmp_path / "gate")
    fns = [partial(RaisingEnv, at=0, index=index, log=log) for index in range(LAST)]
    envs = engine.make([*fns, partial(stuck, on=on, at=2 if on == "reset" else 1, index=LAST, log=log)])
    envs.reset()
    args: dict[str, tuple[Any, ...]] = {"step": (ACTIONS,), "reset": (), "call": ("answer",)}
    if on != "close":
        getattr(envs, f"{on}_async")(*args[on])
        wait_in_vain(getattr(envs, f"{on}_wait"), marker)
    with within(1.4):
        envs.close(timeout=0.4)
    assert marker.exists()
    dead = [LAST] if on == "close" else engine.together_with(LAST, NUM_ENVS)
    lines = read_log(log)
    closed = sorted(line.env_index for line in lines if line.event == "closed" and line.env_index not in dead)
    assert closed == [index for index in range(NUM_ENVS) if index not in dead]


@each(START_METHODS)
def test_close_with_a_stuck_env_under_each_start_method(engine: Engine, tmp_path: Path) -> None:
    """The same for every way to start a process."""
    marker = tmp_path / "marker"
    envs = engine.make(with_one(LAST, partial(StubbornEnv, marker=marker)))
    envs.reset()
    envs.step_async(ACTIONS)
    wait_for_path(marker)
    with within(1.4):
        envs.close(timeout=0.4)


@each(ONE_EACH, needs="in_processes")
def test_close_at_once(engine: Engine, tmp_path: Path) -> None:
    """``terminate=True`` asks nobody."""
    marker = tmp_path / "marker"
    envs = engine.make(with_one(LAST, partial(StubbornEnv, marker=marker)))
    envs.reset()
    envs.step_async(ACTIONS)
    wait_in_vain(envs.step_wait, marker)
    with within(1.0):
        envs.close(terminate=True)


@each(ONE_EACH, needs="in_processes")
@pytest.mark.parametrize("pending", [False, True], ids=["idle", "pending"])
def test_close_with_a_stopped_worker(engine: Engine, pending: bool, tmp_path: Path) -> None:
    """A process under SIGSTOP answers neither requests nor SIGTERM."""
    log = tmp_path / "log"
    envs = engine.make(counting(log=log))
    envs.reset()
    pid = next(line.pid for line in read_log(log) if line.env_index == LAST)
    os.kill(pid, signal.SIGSTOP)
    if pending:
        envs.step_async(ACTIONS)
        with pytest.raises(CallTimeoutError):
            envs.step_wait(timeout=0.02)
    with within(2.0):
        envs.close(timeout=1)
    assert_all_closed(log, but=engine.together_with(LAST, NUM_ENVS))


@each(named("async", "async-pipe"))
def test_close_waits_for_a_slow_env(engine: Engine, tmp_path: Path) -> None:
    """Without a timeout one that is merely slow finishes its step and is closed."""
    log = tmp_path / "log"
    envs = engine.make(with_one(LAST, partial(SlowEnv, 1.0), log=log))
    envs.reset()
    envs.step_async(ACTIONS)
    envs.close()
    assert_all_closed(log)


@each(named("async-pipe", "async-pipe-workers-2"))
def test_close_with_a_worker_that_does_not_read(engine: Engine, tmp_path: Path) -> None:
    """Requests that are larger than any socket's buffer wait for a stopped worker without holding the caller."""
    log = tmp_path / "log"
    envs = engine.make(counting(log=log))
    envs.reset()
    os.kill(next(line.pid for line in read_log(log) if line.env_index == LAST), signal.SIGSTOP)
    with within(1.5):
        envs.call_async("append", list(range(3_000_000)))
        with pytest.raises(CallTimeoutError):
            envs.call_wait(timeout=0.02)
    with within(2.0):
        envs.close(timeout=1)


# Without close


@each(ENGINES, needs="in_processes")
def test_garbage_collection_ends_the_workers(engine: Engine, tmp_path: Path) -> None:
    """A vector env that is dropped, in a cycle or not, ends its workers, closes its sub-envs and frees its memory."""
    log = tmp_path / "log"
    envs = engine.make(counting(log=log))
    envs.reset()
    envs.step(ACTIONS)
    pids = [line.pid for line in read_log(log) if line.pid != os.getpid()]
    envs.myself = envs
    del envs
    gc.collect()
    wait_until_gone(pids, 3)
    assert_all_closed(log)


@each(ONE_EACH, needs="in_processes")
def test_garbage_collection_with_a_stuck_env(engine: Engine, tmp_path: Path) -> None:
    """It does not wait long for one that is stuck."""
    marker = tmp_path / "marker"
    envs = engine.make(with_one(LAST, partial(StubbornEnv, marker=marker)))
    envs.reset()
    envs.step_async(ACTIONS)
    wait_in_vain(envs.step_wait, marker)
    with within(3.0):
        del envs
        gc.collect()
    wait_until_gone([int(marker.read_text())], 1)


@pytest.mark.filterwarnings("ignore:This process")
@each(FEW, needs="can_fork_caller")
@pytest.mark.parametrize("what", ["drop", "close"])
def test_forked_child_of_the_caller_does_no_harm(engine: Engine, what: str, tmp_path: Path) -> None:
    """A process forked off the caller that drops or closes its copy of the vector env leaves the caller's alone."""
    log = tmp_path / "log"
    kept = [engine.make(counting(log=log))]
    kept[0].reset(seed=1)
    kept[0].step(ACTIONS)

    def in_child() -> None:
        if what == "close":
            kept[0].close()
        kept.clear()
        gc.collect()

    child = multiprocessing.get_context("fork").Process(target=in_child)
    child.start()
    child.join(10)
    assert child.exitcode == 0
    child.close()
    observations, *_ = kept[0].step(ACTIONS)
    assert observations[:, 3].tolist() == [2] * NUM_ENVS
    pid = os.getpid()
    in_workers = [line for line in read_log(log) if line.env_index not in engine.in_caller_of(NUM_ENVS)]
    assert not [line for line in in_workers if line.event == "closed"]
    kept.pop().close()
    assert pid == os.getpid()


def test_two_vector_envs_live_apart() -> None:
    """Closing one does not touch the other, whose workers have inherited its descriptors."""
    first = ENGINES["async"].make(counting())
    second = ENGINES["async-workers-2"].make(counting())
    with closing(second):
        first.reset()
        second.reset(seed=1)
        with within(2.0):
            first.close()
        observations, *_ = second.step(ACTIONS)
        assert observations[:, 3].tolist() == [1] * NUM_ENVS
