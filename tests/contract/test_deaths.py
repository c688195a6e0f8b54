"""Workers that die: noticed at once, told exactly, started again by ``reset()``."""

from __future__ import annotations

import logging
import os
import signal
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from engines import ENGINES, FEW, ONE_EACH, START_METHODS, Engine, each, named
from envs import bad_once
from gymnasium.error import ResetNeeded
from world import is_running, notes_of, wait_until_gone, within

from rayvec import CallTimeoutError, WorkerLostError
from rayvec.testing import (
    CountingEnv,
    DyingEnv,
    GateEnv,
    PlainLoop,
    RaisingEnv,
    StubbornEnv,
    assert_same,
    read_log,
    wait_for_path,
)

NUM_ENVS = 5
LAST = NUM_ENVS - 1
"""The sub-env whose worker dies: in no engine with processes does it live in the caller."""
ACTIONS = np.zeros(NUM_ENVS, np.int64)
NOTICE_SECONDS = 1.0

SEVERAL = named("async", "async-pipe", "async-workers-2", "async-pipe-workers-2", "async-concurrency")
"""Engines where sub-env 0 lives in another process than the last one."""


def counting(**kwargs: Any) -> list[Any]:
    """Five counting envs."""
    return [partial(CountingEnv, index=index, episode_length=4, infos="rich", **kwargs) for index in range(NUM_ENVS)]


def with_last(env_fn: Any, **kwargs: Any) -> list[Any]:
    """Five counting envs, the last of another kind."""
    return [*counting(**kwargs)[:LAST], partial(env_fn, index=LAST, episode_length=4, infos="rich", **kwargs)]


def pid_of(log: Path, index: int) -> int:
    """The process that sub-env ``index`` was built in last."""
    return [line.pid for line in read_log(log) if line.event == "built" and line.env_index == index][-1]


def kill(pid: int) -> None:
    """Kills a process and waits for its end."""
    os.kill(pid, signal.SIGKILL)
    wait_until_gone([pid], 5)


def assert_works(engine: Engine, envs: Any, num_dead: list[int], episode: int) -> None:
    """Checks that a full reset makes everything good again, and that data are those of a plain loop."""
    loop = PlainLoop(counting())
    with closing(loop):
        for _ in range(episode):
            loop.reset()
        due, due_infos = loop.reset(seed=50)
        observations, infos = envs.reset(seed=50)
        # Those in the worker that died are new envs, which have seen no other reset.
        assert observations[:, 2].tolist() == [0 if index in num_dead else episode for index in range(NUM_ENVS)]
        assert_same(due[:, [0, 1, 3]], observations[:, [0, 1, 3]], "observations")
        assert infos.keys() == due_infos.keys()
        for _ in range(6):
            _, _, *flags, _ = envs.step(ACTIONS)
            assert_same(loop.step(ACTIONS)[2:4], tuple(flags), "flags")


def assert_tells(error: WorkerLostError, engine: Engine, pid: int, how: str, exitcode: int) -> None:
    """Checks that an error names the sub-envs, the process and its end (of an actor's, what Ray knows of it)."""
    share = engine.together_with(LAST, NUM_ENVS)
    assert error.env_indices == tuple(share)
    assert error.pid == pid
    parts = [str(LAST), str(share[0]), str(pid)]
    if engine.is_ray:
        assert error.actor_id is not None
        assert error.node_id is not None
        parts += [error.actor_id, error.node_id, "its worker process has died"]
    if error.exitcode is not None or not engine.is_ray:
        # Of an actor's process, no child of the caller, only a recent kernel tells.
        assert error.exitcode == exitcode
        parts.append(how)
    for part in parts:
        assert part in str(error)


@each(ENGINES, needs="in_processes")
def test_killed_while_idle(engine: Engine, tmp_path: Path) -> None:
    """The next step raises at once, names sub-envs, process and signal, and so again until reset() starts it anew."""
    log = tmp_path / "log"
    with closing(engine.make(counting(log=log))) as envs:
        envs.reset(seed=1)
        envs.step(ACTIONS)
        pid = pid_of(log, LAST)
        kill(pid)
        with within(NOTICE_SECONDS), pytest.raises(WorkerLostError) as caught:
            envs.step(ACTIONS)
        assert_tells(caught.value, engine, pid, "SIGKILL", -signal.SIGKILL)
        with within(NOTICE_SECONDS), pytest.raises(ResetNeeded, match=str(LAST)):
            envs.step(ACTIONS)
        with within(NOTICE_SECONDS), pytest.raises(WorkerLostError) as caught:
            envs.call("where")
        assert_tells(caught.value, engine, pid, "SIGKILL", -signal.SIGKILL)
        assert_works(engine, envs, engine.together_with(LAST, NUM_ENVS), 1)


@each(ENGINES, needs="in_processes")
@pytest.mark.parametrize("how", ["sigkill", "exit"])
def test_dies_in_a_step(engine: Engine, how: Any, tmp_path: Path) -> None:
    """The step that it dies in raises, with the signal or the exit code."""
    log = tmp_path / "log"
    with closing(engine.make(with_last(partial(DyingEnv, at=2, how=how, exit_code=77), log=log))) as envs:
        envs.reset(seed=1)
        envs.step(ACTIONS)
        with within(NOTICE_SECONDS), pytest.raises(WorkerLostError) as caught:
            envs.step(ACTIONS)
        ends = {"sigkill": ("SIGKILL", -signal.SIGKILL), "exit": ("77", 77)}
        assert_tells(caught.value, engine, pid_of(log, LAST), *ends[how])
        envs.reset(seed=2)
        envs.step(ACTIONS)
        with pytest.raises(WorkerLostError):
            envs.step(ACTIONS)


@each(ENGINES, needs="in_processes")
@pytest.mark.parametrize("name", ["call", "get_attr", "set_attr"])
def test_dies_in_a_call(engine: Engine, name: str, tmp_path: Path) -> None:
    """The call raises; a reset makes everything good again."""
    log = tmp_path / "log"
    on: Any = {"call": "call", "get_attr": "get", "set_attr": "set"}[name]
    args = {"call": ("answer",), "get_attr": ("mood",), "set_attr": ("mood", 1)}[name]
    fns = [partial(RaisingEnv, at=0, index=index, log=log) for index in range(LAST)]
    with closing(engine.make([*fns, partial(DyingEnv, on=on, how="exit", index=LAST, log=log)])) as envs:
        envs.reset(seed=1)
        with within(NOTICE_SECONDS), pytest.raises(WorkerLostError) as caught:
            getattr(envs, name)(*args)
        assert_tells(caught.value, engine, pid_of(log, LAST), "exit code 7", 7)
        with pytest.raises(ResetNeeded, match=str(LAST)):
            envs.step(ACTIONS)
        envs.reset(seed=2)
        envs.step(ACTIONS)


@each([*SEVERAL, ENGINES["async-caller-each"]])
@pytest.mark.parametrize("then", ["reset", "masked reset", "close"])
def test_others_are_in_a_long_step(engine: Engine, then: str, tmp_path: Path) -> None:
    """The death is told within a second all the same; reset() waits for the others' replies, close() bounds the wait."""
    gate = tmp_path / "gate"
    fns = with_last(partial(bad_once, tmp_path / "note", DyingEnv))
    held = 1 if engine.in_caller else 0
    fns[held] = partial(GateEnv, gate, index=held, episode_length=4, infos="rich")
    with closing(engine.make(fns)) as envs:
        envs.reset(seed=1)
        envs.step_async(ACTIONS)
        wait_for_path(GateEnv.marker_of(gate))
        with within(NOTICE_SECONDS), pytest.raises(WorkerLostError):
            envs.step_wait()
        if then == "close":
            with within(1.5):
                envs.close(timeout=0.5)
            return
        with pytest.raises(ResetNeeded):
            envs.step(ACTIONS)
        options = None
        if then == "masked reset":
            options = {"reset_mask": np.isin(np.arange(NUM_ENVS), engine.together_with(LAST, NUM_ENVS))}
        envs.reset_async(seed=7, options=options)
        with pytest.raises(CallTimeoutError):
            envs.reset_wait(timeout=0.3)
        gate.touch()
        observations, _ = envs.reset_wait()
        assert observations[LAST].tolist() == [LAST, 7 + LAST, 0, 0]
        # The late reply was the step's, and is nobody's now.
        due = [held, 1 + held, 0, 1] if then == "masked reset" else [held, 7 + held, 1, 0]
        assert list(envs.call("where")[held]) == due
        observations, *_ = envs.step(ACTIONS) if then == "reset" else (observations,)
        assert observations[held].tolist() == [held, due[1], due[2], 1]


@each(ENGINES, needs="in_processes")
@pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
def test_reset_is_the_first_to_meet_it(engine: Engine, masked: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A reset starts the worker again of itself and logs a warning that names it."""
    log = tmp_path / "log"
    with closing(engine.make(counting(log=log))) as envs:
        envs.reset(seed=1)
        envs.step(ACTIONS)
        pid = pid_of(log, LAST)
        kill(pid)
        share = engine.together_with(LAST, NUM_ENVS)
        options = {"reset_mask": np.isin(np.arange(NUM_ENVS), share)} if masked else None
        with caplog.at_level(logging.WARNING, "rayvec"):
            observations, _ = envs.reset(seed=20, options=options)
        records = [record for record in caplog.records if record.name == "rayvec"]
        assert len(records) == 1
        assert str(pid) in records[0].getMessage()
        assert str(LAST) in records[0].getMessage()
        for index in range(NUM_ENVS):
            fresh = [index, 20 + index, 0 if index in share else 1, 0]
            assert observations[index].tolist() == (fresh if index in share or not masked else [index, 1 + index, 0, 1])
        assert pid_of(log, LAST) != pid
        envs.step(ACTIONS)


@each(ONE_EACH, needs="in_processes")
def test_dies_in_a_reset(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """The reset in which it dies starts it again and succeeds; if it dies again, the reset raises."""
    with caplog.at_level(logging.WARNING, "rayvec"):
        with closing(engine.make(with_last(partial(DyingEnv, on="reset", at=2)))) as envs:
            envs.reset(seed=1)
            observations, _ = envs.reset(seed=2)
            assert observations[LAST].tolist() == [LAST, 2 + LAST, 0, 0]
            envs.step(ACTIONS)
        with closing(engine.make(with_last(partial(DyingEnv, on="reset", how="exit")))) as envs:
            for _ in range(2):
                with pytest.raises(WorkerLostError, match="exit code 7") as caught:
                    envs.reset(seed=1)
                assert LAST in caught.value.env_indices
                with pytest.raises(ResetNeeded, match=str(LAST)):
                    envs.step(ACTIONS)


@each(SEVERAL)
def test_two_die_at_once(engine: Engine, tmp_path: Path) -> None:
    """The error names both, one of them in a note, and one reset starts both again."""
    log = tmp_path / "log"
    with closing(engine.make(counting(log=log))) as envs:
        envs.reset(seed=1)
        pids = [pid_of(log, 0), pid_of(log, LAST)]
        for pid in pids:
            kill(pid)
        with within(NOTICE_SECONDS), pytest.raises(WorkerLostError) as caught:
            envs.step(ACTIONS)
        told = f"{caught.value}\n{notes_of(caught.value)}"
        for pid in pids:
            assert str(pid) in told
        with pytest.raises(ResetNeeded, match=r"\b0\b.*\b4\b"):
            envs.step(ACTIONS)
        assert_works(engine, envs, engine.together_with(0, NUM_ENVS) + engine.together_with(LAST, NUM_ENVS), 1)


@each(named("async-workers-2", "async-pipe-workers-2"))
def test_masked_reset_of_a_part_of_its_sub_envs(engine: Engine, tmp_path: Path) -> None:
    """Sub-envs that died with the worker and were not named still have to be reset, which step says."""
    log = tmp_path / "log"
    with closing(engine.make(counting(log=log))) as envs:
        envs.reset(seed=1)
        envs.step(ACTIONS)
        kill(pid_of(log, LAST))
        with pytest.raises(WorkerLostError):
            envs.step(ACTIONS)
        envs.reset(seed=9, options={"reset_mask": np.isin(np.arange(NUM_ENVS), [3])})
        with pytest.raises(ResetNeeded, match=r"\[4\]"):
            envs.step(ACTIONS)
        envs.reset(seed=9, options={"reset_mask": np.isin(np.arange(NUM_ENVS), [4])})
        assert envs.call("where")[3:] == ((3, 12, 0, 0), (4, 13, 0, 0))
        envs.step(ACTIONS)


@each([*SEVERAL, *named("async-caller", "async-caller-each")])
def test_another_raises_in_the_step_in_which_it_dies(engine: Engine, tmp_path: Path) -> None:
    """The death is raised, and the sub-env that raised is built anew by the reset as well."""
    gate = tmp_path / "gate"
    fns = with_last(partial(bad_once, tmp_path / "note", partial(GateDyingEnv, gate)))
    raising = partial(RaisingEnv, error=KeyError("by the way"), marker=gate)
    fns[0] = partial(bad_once, tmp_path / "other note", raising, index=0, episode_length=4, infos="rich")
    with closing(engine.make(fns)) as envs:
        envs.reset(seed=1)
        with pytest.raises(WorkerLostError):
            envs.step(ACTIONS)
        with pytest.raises(ResetNeeded):
            envs.step(ACTIONS)
        assert_works(engine, envs, [0, *engine.together_with(LAST, NUM_ENVS)], 1)


class GateDyingEnv(GateEnv):
    """Waits for a file and dies."""

    def _happen(self) -> None:
        super()._happen()
        os._exit(3)


class ForkingEnv(CountingEnv):
    """Starts a process of its own that inherits all descriptors, and dies of its second step."""

    def __init__(self, note: Path, **kwargs: Any) -> None:
        self._note = note
        super().__init__(**kwargs)

    def step(self, action: np.int64) -> Any:
        if self._step == 1:
            os._exit(9)
        pid = os.fork()
        if not pid:
            time.sleep(60)
            os._exit(0)
        self._note.write_text(str(pid))
        return super().step(action)


@pytest.mark.filterwarnings("ignore:This process")
@each(FEW, needs="in_processes")
def test_its_own_children_do_not_hide_its_end(engine: Engine, tmp_path: Path) -> None:
    """A process that the env has started, and that outlives it with its descriptors, keeps nobody waiting."""
    note = tmp_path / "note"
    grandchild = 0
    try:
        with closing(engine.make(with_last(partial(ForkingEnv, note)))) as envs:
            envs.reset(seed=1)
            envs.step(ACTIONS)
            grandchild = int(note.read_text())
            with within(NOTICE_SECONDS), pytest.raises(WorkerLostError, match="exit code 9"):
                envs.step(ACTIONS)
            assert is_running(grandchild)
            envs.reset(seed=1)
            with within(2.0):
                envs.close(timeout=1)
        assert is_running(grandchild)
    finally:
        if grandchild:
            os.kill(grandchild, signal.SIGKILL)
            wait_until_gone([grandchild], 5)


class Slow:
    """Takes its time to be pickled."""

    def __reduce__(self) -> Any:
        time.sleep(0.1)
        return int, ()


@each(SEVERAL)
def test_cannot_be_built_when_it_is_started_again(engine: Engine, tmp_path: Path) -> None:
    """Its constructor's own error is raised, though the worker has ended before it was told of its memory."""
    envs_log, flag = tmp_path / "log", tmp_path / "flag"

    def env_fn() -> CountingEnv:
        if flag.exists():
            raise LookupError("not again")
        return CountingEnv(index=LAST, log=envs_log)

    with closing(engine.make([*counting(log=envs_log)[:LAST], env_fn])) as envs:
        envs.reset(seed=1)
        flag.touch()
        kill(pid_of(envs_log, LAST))
        with pytest.raises(LookupError, match="not again"):
            envs.reset(options={"slow": Slow()})


@each([*FEW, *START_METHODS], needs="in_processes")
def test_dies_in_the_constructor(engine: Engine, tmp_path: Path) -> None:
    """The vector env's constructor tells of it, and leaves nothing behind."""
    log = tmp_path / "log"
    with pytest.raises(WorkerLostError, match="exit code 7") as caught:
        engine.make(with_last(partial(DyingEnv, on="init", how="exit"), log=log))
    assert LAST in caught.value.env_indices


class DyingOnceEnv(CountingEnv):
    """Dies of its first step, and gets stuck when it is built again."""

    def __init__(self, note: Path, marker: Path, **kwargs: Any) -> None:
        self._note = note
        if note.exists():
            StubbornEnv(on="init", marker=marker)
        super().__init__(**kwargs)

    def step(self, action: np.int64) -> Any:
        self._note.touch()
        os._exit(1)


@each(ONE_EACH, needs="in_processes")
def test_stuck_when_started_again(engine: Engine, tmp_path: Path) -> None:
    """A constructor that hangs in a reset can be bounded, and close() still works."""
    marker = tmp_path / "marker"
    envs = engine.make(with_last(partial(DyingOnceEnv, tmp_path / "note", marker)))
    with pytest.raises(WorkerLostError):
        _reset_and_step(envs)
    envs.reset_async(seed=2)
    wait_for_path(marker)
    with pytest.raises(CallTimeoutError):
        envs.reset_wait(timeout=0.05)
    with within(1.3):
        envs.close(timeout=0.3)


def _reset_and_step(envs: Any) -> npt.NDArray[Any]:
    envs.reset(seed=1)
    observations: npt.NDArray[Any] = envs.step(ACTIONS)[0]
    return observations


@each(ENGINES, needs="in_processes")
def test_close_is_the_first_to_meet_it(engine: Engine, tmp_path: Path) -> None:
    """It closes the others and does not wait for the dead one."""
    log = tmp_path / "log"
    envs = engine.make(counting(log=log))
    envs.reset(seed=1)
    kill(pid_of(log, LAST))
    with within(2.0):
        envs.close()
    dead = engine.together_with(LAST, NUM_ENVS)
    closed = sorted(line.env_index for line in read_log(log) if line.event == "closed")
    assert closed == [index for index in range(NUM_ENVS) if index not in dead]


@each(ONE_EACH, needs="in_processes")
def test_dies_again_and_again(engine: Engine, tmp_path: Path) -> None:
    """Ten deaths and resets later everything is as on the first day."""
    log = tmp_path / "log"
    with closing(engine.make(counting(log=log))) as envs:
        for episode in range(10):
            envs.reset(seed=episode)
            envs.step(ACTIONS)
            kill(pid_of(log, LAST))
            with pytest.raises(WorkerLostError):
                envs.step(ACTIONS)
        assert_works(engine, envs, engine.together_with(LAST, NUM_ENVS), 10)
        num_processes = len([pid for pid in {line.pid for line in read_log(log)} if is_running(pid)])
        assert num_processes == len(engine.shares(NUM_ENVS))
