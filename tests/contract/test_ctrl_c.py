"""Ctrl-C at any point: what was asked is pending, or was made, or was not, or a reset is needed; and nobody waits for ever."""

from __future__ import annotations

import dis
import functools
import itertools
import linecache
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from engines import Engine, each, named
from gymnasium.error import NoAsyncCallError, ResetNeeded
from world import within

import rayvec
from rayvec import WorkerLostError
from rayvec.local.starting import hearing_later
from rayvec.testing import CountingEnv, GateEnv, PlainLoop, wait_for_path

if TYPE_CHECKING:
    from typing_extensions import Self

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

FNS = [partial(CountingEnv, index=index, episode_length=50) for index in range(3)]
ACTIONS = np.zeros(3, np.int64)
_PACKAGE = str(Path(rayvec.__file__).parent)

PIPE_AND_CALLER = Engine(
    "async-pipe-caller",
    rayvec.AsyncVectorEnv,
    {"num_workers": 2, "shared_memory": False, "step_in_caller": True},
    num_workers=2,
    in_caller=True,
)

interrupted = each(
    [
        *named("sync", "async-workers-2", "async-pipe-workers-2", "async-caller", "async-outputs", "async-concurrency"),
        PIPE_AND_CALLER,
    ]
)


@functools.cache
def hearing_points(code: CodeType) -> frozenset[int]:
    """Where the interpreter looks for signals, by offset: behind calls, and at jumps back."""
    instructions = list(dis.get_instructions(code))
    behind = {after.offset for one, after in itertools.pairwise(instructions) if one.opname.startswith("CALL")}
    return frozenset(behind | {one.offset for one in instructions if "JUMP_BACKWARD" in one.opname})


class Interruption:
    """Ctrl-C at the so-manieth point of this package that runs here within it and at which it could be heard."""

    def __init__(self, at: int) -> None:
        self._left = at

    def __enter__(self) -> Self:
        # A background job is deaf to it.
        self._handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)
        signal.signal(signal.SIGINT, self._handler)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(_PACKAGE) or file.endswith("waiting.py"):
            # There one line is run again and again, for as long as it takes.
            return None
        frame.f_trace_opcodes = True
        # An interpreter that is interrupted right before or after an exception is caught forgets that it was.
        is_catching = sys.exc_info()[0] or linecache.getline(file, frame.f_lineno or 0).lstrip().startswith(("except", "with"))
        if event == "opcode" and frame.f_lasti in hearing_points(frame.f_code) and not is_catching:
            self._left -= 1
            if not self._left:
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)
        return self._trace


def interruptions(num_whole: int = 10) -> Iterator[Interruption]:
    """One for each point. How many there are depends on who is how quick: it ends when some have met none."""
    at = 0
    while num_whole:
        at += 1
        interruption = Interruption(at)
        yield interruption
        num_whole -= interruption._left > 0


def told(result: Any) -> Any:
    """Index, seed and step of each sub-env; one that was interrupted is built anew, and counts its episodes anew."""
    return result[0][:, [0, 1, 3]].tolist()


@interrupted
def test_in_a_step(engine: Engine) -> None:
    """No result is wrong."""
    with closing(engine.make(FNS)) as envs, closing(PlainLoop(FNS)) as loop:
        for seed, interruption in enumerate(interruptions()):
            assert told(envs.reset(seed=seed)) == told(loop.reset(seed=seed))
            due = [told(loop.step(list(ACTIONS))) for _ in range(2)]
            with suppress(KeyboardInterrupt), interruption:
                assert told(envs.step(ACTIONS)) == due[0]
            with suppress(NoAsyncCallError, WorkerLostError):
                assert told(envs.step_wait(timeout=20)) == due[0]
            with suppress(ResetNeeded, WorkerLostError):
                assert told(envs.step(ACTIONS)) in due


class TellingEnv(CountingEnv):
    """Tells numbers at each step, the last sub-env one more than others: workers settle on infos of different layouts."""

    def step(self, action: Any) -> Any:
        *result, _ = super().step(action)
        return *result, {"step": self._step, **({"index": self.index} if self.index == 2 else {})}


@each(named("sync", "async", "async-workers-2", "async-caller", "async-caller-each", "async-outputs"))
def test_in_a_step_with_infos(engine: Engine) -> None:
    """No info is missing from what a step gives."""
    fns = [partial(TellingEnv, index=index, episode_length=50) for index in range(3)]
    due = {"step": [4] * 3, "_step": [True] * 3, "index": [0, 0, 2], "_index": [False, False, True]}
    with closing(engine.make(fns)) as envs:
        for interruption in interruptions():
            envs.reset(seed=5)
            for _ in range(3):
                envs.step(ACTIONS)
            infos = None
            with suppress(KeyboardInterrupt), interruption:
                infos = envs.step(ACTIONS)[4]
            with suppress(NoAsyncCallError, WorkerLostError):
                infos = envs.step_wait(timeout=20)[4]
            assert infos is None or {key: column.tolist() for key, column in infos.items()} == due


class InterruptedEnv(CountingEnv):
    """Ctrl-C comes while it steps for the second time."""

    def step(self, action: Any) -> Any:
        if self._step == 1:
            raise KeyboardInterrupt
        return super().step(action)


@each(named("async-caller", "async-caller-each"))
def test_in_the_callers_own_share(engine: Engine, tmp_path: Path) -> None:
    """It is heard at once, whatever the others still do."""
    gate = tmp_path / "gate"
    fns: list[Callable[[], Any]] = [InterruptedEnv, CountingEnv, partial(GateEnv, gate, at=2)]
    with closing(engine.make(fns)) as envs:
        envs.reset()
        envs.step(ACTIONS)
        with within(10), pytest.raises(KeyboardInterrupt):
            envs.step(ACTIONS)
        wait_for_path(GateEnv.marker_of(gate), 10)
        gate.touch()


def interrupt(*_: Any) -> Any:
    """In place of what the vector env does."""
    raise KeyboardInterrupt


@contextmanager
def interrupted_telling(envs: rayvec.AsyncVectorEnv) -> Iterator[None]:
    """Ctrl-C comes when the second worker is to be told; no signal comes between two given ones."""
    lines = envs._crew._lines
    assert lines is not None
    worker, tell = lines.tells[1]
    lines.tells[1] = (worker, interrupt)
    yield
    lines.tells[1] = (worker, tell)


def test_while_workers_are_told_to_step() -> None:
    """Workers that had not been told were taken to owe a step, and the next reset waited for it for ever."""
    with closing(rayvec.AsyncVectorEnv(FNS)) as envs, closing(PlainLoop(FNS)) as loop:
        envs.reset(seed=1)
        envs.step(ACTIONS)
        with interrupted_telling(envs), pytest.raises(KeyboardInterrupt):
            envs.step(ACTIONS)
        with pytest.raises(ResetNeeded):
            envs.step(ACTIONS)
        loop.reset(seed=1)
        np.testing.assert_array_equal(envs.reset(seed=5)[0], loop.reset(seed=5)[0])
        envs.step(ACTIONS)


def test_again_behind_the_callers_own_share() -> None:
    """The step is over, and does not come back."""
    fns: list[Callable[[], Any]] = [InterruptedEnv, CountingEnv]
    with closing(rayvec.AsyncVectorEnv(fns, num_workers=2, step_in_caller=True)) as envs:
        envs.reset()
        envs.step(ACTIONS[:2])
        lines = envs._crew._lines
        assert lines is not None
        lines.watches[:] = [interrupt for _ in lines.watches]
        with pytest.raises(KeyboardInterrupt):
            envs.step(ACTIONS[:2])
        with pytest.raises(NoAsyncCallError):
            envs.step_wait()
        envs.reset()


def test_again_before_the_step_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not told to all has no result, and a reset sets it right."""
    with closing(rayvec.AsyncVectorEnv(FNS)) as envs, closing(PlainLoop(FNS)) as loop:
        envs.reset(seed=1)
        envs.step(ACTIONS)
        with interrupted_telling(envs), monkeypatch.context() as patched:
            patched.setattr(envs._call, "end", interrupt)
            with pytest.raises(KeyboardInterrupt):
                envs.step(ACTIONS)
        with pytest.raises(ResetNeeded):
            envs.step_wait(timeout=20)
        assert told(envs.reset(seed=5)) == told(loop.reset(seed=5))
        assert told(envs.step(ACTIONS)) == told(loop.step(list(ACTIONS)))


@interrupted
def test_in_a_reset(engine: Engine) -> None:
    """It can be waited for, or made once more; then all is as if nothing had been."""
    with closing(engine.make(FNS)) as envs, closing(PlainLoop(FNS)) as loop:
        for seed, interruption in enumerate(interruptions()):
            due = told(loop.reset(seed=seed))
            with suppress(KeyboardInterrupt), interruption:
                assert told(envs.reset(seed=seed)) == due
            with suppress(NoAsyncCallError):
                assert told(envs.reset_wait(timeout=20)) == due
            assert told(envs.reset(seed=seed)) == due
            assert told(envs.step(ACTIONS)) == told(loop.step(list(ACTIONS)))


@pytest.mark.parametrize("called", ["send", "recv"])
@each(named("async", "async-pipe", "async-caller-each", "async-concurrency"))
def test_in_partial_batches(engine: Engine, called: str) -> None:
    """What was sent is received, or nothing was sent; no result is wrong or comes twice."""
    with closing(engine.make(FNS, batch_size=1)) as envs:
        for interruption in interruptions():
            envs.reset(seed=5)
            due = {0, 1, 2}
            with suppress(KeyboardInterrupt):
                if called == "send":
                    with interruption:
                        envs.send(ACTIONS, np.arange(3))
                else:
                    envs.send(ACTIONS, np.arange(3))
                    with interruption:
                        due -= check_received(envs.recv(timeout=20), due)
            with suppress(NoAsyncCallError, ResetNeeded, WorkerLostError):
                while due:
                    due -= check_received(envs.recv(timeout=20), due)
            assert called == "recv" or len(due) in (0, 3)


def test_what_comes_late_is_no_part_of_another_call() -> None:
    """A worker's step that nobody waits for any more stays out of a call of other workers."""
    fns = [partial(CountingEnv, index=index, infos="rich") for index in range(3)]
    with closing(rayvec.AsyncVectorEnv(fns, shared_memory=False)) as envs:
        envs.reset(seed=5)
        for number, interruption in enumerate(interruptions()):
            envs.step_async(ACTIONS)
            with suppress(KeyboardInterrupt), interruption:
                envs.step_wait()
            with suppress(NoAsyncCallError):
                envs.step_wait()
            state = envs.get_state([number % 3])
            assert state.env_ids == (number % 3,)
            assert [type(sub_env).__name__ for sub_env in state.sub_envs] == ["SubEnvState"]
            envs.reset(seed=5)


def test_twice_is_heard_at_once() -> None:
    """Where it is held back, a second one is not, unless nothing may be interrupted; a forked process has the caller's."""
    heard: list[str] = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append("it"))
    try:
        for patient, due in [(True, [0, 0, 1]), (False, [0, 1, 1])]:
            heard.clear()
            counts = []
            with hearing_later(patient):
                for _ in range(2):
                    signal.raise_signal(signal.SIGINT)
                    counts.append(len(heard))
            assert [*counts, len(heard)] == due
        with hearing_later(), hearing_later():
            pid = os.fork()
            if not pid:
                signal.raise_signal(signal.SIGINT)
                os._exit(len(heard))
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
    finally:
        signal.signal(signal.SIGINT, before)


def check_received(result: Any, due: set[int]) -> set[int]:
    """The sub-envs that have made their first step, which are among those that are due."""
    indices = result[4]["env_id"].tolist()
    assert told(result) == [[index, 5 + index, 1] for index in indices]
    assert set(indices) <= due
    return set(indices)
