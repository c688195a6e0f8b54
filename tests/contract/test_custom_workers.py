"""Workers that a user has written for Gymnasium: they run unchanged, and their failures are everybody's."""

from __future__ import annotations

import inspect
import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import AlreadyPendingCallError, ResetNeeded
from gymnasium.spaces import Box, Dict, Discrete, Sequence, Tuple
from gymnasium.vector import AutoresetMode
from gymnasium.vector.async_vector_env import _async_worker
from workers import CustomEnv, doubling_worker, older_worker
from world import is_running, notes_of, wait_until_gone

from rayvec import AsyncVectorEnv, CallTimeoutError, WorkerLostError
from rayvec.testing import CHECKS, CountingEnv, PlainLoop, SpaceEnv, assert_same, read_log, wait_for_path

NUM_ENVS = 3
ACTIONS = np.zeros(NUM_ENVS, np.int64)

WORKERS: dict[str, Callable[..., None]] = {"gymnasium": _async_worker, "eight": doubling_worker, "seven": older_worker}

GYMNASIUM_HOLDS = [
    "spaces_and_attributes",
    "render",
    "reset_seeds",
    "np_random",
    "reset_options",
    "caller_keeps_mask",
    "next_step_autoreset",
    "one_sub_env",
    "rewards",
    "bad_rewards",
    "info_layout",
    "info_promotion",
    "space_box_float32",
    "space_box_uint8_image",
    "space_discrete_negative_start",
    "space_multi_binary_2d",
    "space_text",
    "space_nested",
    "wrong_action_counts",
    "wrong_masks",
    "wrong_seeds",
    "call",
    "attributes",
    "async_halves",
    "pending_call",
    "timed_out_wait",
    "use_after_close",
    "close_while_pending",
    "context_manager",
]
"""Rules that do not depend on what Gymnasium's own worker does at the end of an episode, or when an env raises."""


def make(worker: Any = doubling_worker, *, num_envs: int = NUM_ENVS, log: Path | None = None, **kwargs: Any) -> Any:
    """A vector env of CustomEnvs run by a custom worker."""
    kwargs.setdefault("context", "fork")
    fns = [partial(CustomEnv, index=index, episode_length=4, log=log) for index in range(num_envs)]
    return AsyncVectorEnv(fns, worker=worker, **kwargs)


def levels(*level: Any) -> list[Any]:
    """Nothing for all but sub-env 1."""
    return [0, level, 0]


@pytest.mark.parametrize("name", GYMNASIUM_HOLDS)
@pytest.mark.parametrize("shared_memory", [True, False], ids=["shared", "pipe"])
def test_rule_with_gymnasiums_own_worker(name: str, shared_memory: bool) -> None:
    """The conformance kit holds."""
    CHECKS[name](partial(AsyncVectorEnv, worker=_async_worker, shared_memory=shared_memory, context="fork"))


@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.parametrize("context", ["fork", "forkserver", "spawn"])
@pytest.mark.parametrize("shared_memory", [True, False], ids=["shared", "pipe"])
def test_data(worker: str, context: str, shared_memory: bool) -> None:
    """They are what the worker gives."""
    loop = PlainLoop([partial(CustomEnv, index=index, episode_length=4) for index in range(NUM_ENVS)])
    with closing(loop), closing(make(WORKERS[worker], context=context, shared_memory=shared_memory)) as envs:
        assert_same(loop.reset(seed=3), envs.reset(seed=3), "reset")
        for _ in range(7):
            observations, rewards, terminations, truncations, _ = loop.step(ACTIONS)
            came = envs.step(ACTIONS)
            assert_same((observations, terminations, truncations), (came[0], came[2], came[3]), "step")
            assert_same(rewards if worker == "gymnasium" else rewards * 2, came[1], "rewards")
            if worker != "gymnasium":
                assert len(set(came[4]["pid"].tolist())) == NUM_ENVS
                assert os.getpid() not in came[4]["pid"]
        assert envs.call("add", 1, times=2) == (2, 3, 4)
        envs.set_attr("level", [5, 6, 7])
        assert envs.get_attr("level") == (5, 6, 7)


@pytest.mark.parametrize("worker", WORKERS)
def test_masked_reset(worker: str) -> None:
    """Only the named sub-envs hear of it."""
    with closing(make(WORKERS[worker], autoreset_mode=AutoresetMode.DISABLED)) as envs:
        envs.reset(seed=1)
        envs.step(ACTIONS)
        options: dict[str, Any] = {"reset_mask": np.array([False, True, False]), "level": 1}
        observations, _ = envs.reset(seed=7, options=options)
        assert observations.tolist() == [[0, 1, 0, 1], [1, 8, 1, 0], [2, 3, 0, 1]]
        assert envs.get_attr("options") == (None, {"level": 1}, None)
        for _ in range(3):
            _, _, terminations, _, _ = envs.step(ACTIONS)
        assert terminations.tolist() == [True, False, True]
        with pytest.raises(ResetNeeded):
            envs.step(ACTIONS)
        envs.reset(options={"reset_mask": terminations})
        envs.step(ACTIONS)


@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.parametrize("call", ["step", "reset"])
def test_error(worker: str, call: str) -> None:
    """It comes through the error queue with its own type and arguments; the others complete the call."""
    with closing(make(WORKERS[worker])) as envs:
        for _ in range(2):
            before, _ = envs.reset(seed=1)
            envs.step(ACTIONS)
            pid = envs.processes[1].pid
            envs.set_attr("level", levels(call, "raise", ZeroDivisionError("boom", 5)))
            with pytest.raises(ZeroDivisionError) as caught:
                envs.step(ACTIONS) if call == "step" else envs.reset(seed=2)
            assert caught.value.args == ("boom", 5)
            assert "raise args[0]" in str(caught.value.__cause__)
            notes = notes_of(caught.value)
            assert "sub-env 1" in notes
            assert call in notes
            with pytest.raises(ResetNeeded, match=r"\[1\]"):
                envs.step(ACTIONS)
            observations, _ = envs.reset(seed=3)
            num_resets = 2 if call == "reset" else 1
            assert observations[:, 2].tolist() == [before[0, 2] + num_resets, 0, before[2, 2] + num_resets]
            assert not is_running(pid)
            envs.step(ACTIONS)


@pytest.mark.parametrize("worker", WORKERS)
def test_failing_call(worker: str) -> None:
    """A worker of this kind ends with any error, of a call as well; the next reset starts it again."""
    with closing(make(WORKERS[worker])) as envs:
        envs.reset(seed=1)
        for name, args, error_type in (
            ("call", ("no_such_method",), AttributeError),
            ("get_attr", ("no_such_attribute",), AttributeError),
            ("call", ("add", "text"), TypeError),
        ):
            with pytest.raises(error_type):
                getattr(envs, name)(*args)
            envs.reset(seed=2)
            envs.step(ACTIONS)
            assert envs.call("add", 1) == (1, 2, 3)


@pytest.mark.parametrize("worker", WORKERS)
def test_several_errors(worker: str) -> None:
    """The lowest one is raised, the other is noted."""
    with closing(make(WORKERS[worker])) as envs:
        envs.reset()
        envs.set_attr("level", [0, ("step", "raise", KeyError("low")), ("step", "raise", ValueError("high"))])
        with pytest.raises(KeyError, match="low") as caught:
            envs.step(ACTIONS)
        assert "ValueError: high" in notes_of(caught.value)
        envs.reset()
        envs.step(ACTIONS)


@pytest.mark.parametrize("worker", WORKERS)
def test_death(worker: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In a step, idle, or met by a reset: told and mended as with rayvec's own workers."""
    with closing(make(WORKERS[worker])) as envs:
        envs.reset(seed=1)
        envs.set_attr("level", levels("step", "die", 9))
        begin = time.monotonic()
        with pytest.raises(WorkerLostError, match="exit code 9") as caught:
            envs.step(ACTIONS)
        assert time.monotonic() - begin < 1
        assert caught.value.env_indices == (1,)
        envs.reset(seed=2)
        envs.step(ACTIONS)
        for met_by_reset in (False, True):
            pid = envs.processes[1].pid
            os.kill(pid, signal.SIGKILL)
            wait_until_gone([pid], 5)
            if not met_by_reset:
                with pytest.raises(WorkerLostError, match="SIGKILL") as caught:
                    envs.step(ACTIONS)
                assert (caught.value.pid, caught.value.exitcode) == (pid, -9)
            with caplog.at_level(logging.WARNING, "rayvec"):
                observations, _ = envs.reset(seed=3)
            assert observations[:, 1].tolist() == [3, 4, 5]
            assert [str(pid) in record.getMessage() for record in caplog.records] == ([True] if met_by_reset else [])
        envs.step(ACTIONS)


@pytest.mark.parametrize("worker", WORKERS)
def test_timeout(worker: str, tmp_path: Path) -> None:
    """The call stays pending, the late reply is its own, and close() is bounded."""
    gate = tmp_path / "gate"
    envs = make(WORKERS[worker])
    envs.reset(seed=1)
    envs.set_attr("level", levels("step", "wait", str(gate)))
    envs.step_async(ACTIONS)
    wait_for_path(f"{gate}.entered")
    for _ in range(2):
        with pytest.raises(CallTimeoutError, match="sub-env 1"):
            envs.step_wait(timeout=0.02)
        with pytest.raises(AlreadyPendingCallError):
            envs.reset()
    gate.touch()
    observations, *_ = envs.step_wait(timeout=20)
    assert observations[:, 3].tolist() == [1, 1, 1]
    observations, *_ = envs.step(ACTIONS)
    assert observations[:, 3].tolist() == [2, 2, 2]
    gate.unlink()
    envs.step_async(ACTIONS)
    begin = time.monotonic()
    envs.close(timeout=0.3)
    assert time.monotonic() - begin < 1.3


@pytest.mark.parametrize("worker", WORKERS)
def test_stuck_in_close(worker: str, tmp_path: Path) -> None:
    """It is killed."""
    envs = make(WORKERS[worker])
    envs.reset(seed=1)
    envs.set_attr("level", levels("close", "wait", str(tmp_path / "gate")))
    begin = time.monotonic()
    envs.close(timeout=0.3)
    assert time.monotonic() - begin < 1.3
    assert (tmp_path / "gate.entered").exists()


def test_max_concurrency(tmp_path: Path) -> None:
    """Its semaphore bounds the sub-envs in a step."""
    gates = [tmp_path / f"gate-{index}" for index in range(NUM_ENVS)]

    def entered() -> int:
        return len(list(tmp_path.glob("*.entered")))

    with closing(make(max_concurrency=2)) as envs:
        envs.reset(seed=1)
        envs.set_attr("level", [("step", "wait", str(gate)) for gate in gates])
        envs.step_async(ACTIONS)
        while entered() < 2:
            time.sleep(0.002)
        with pytest.raises(CallTimeoutError):
            envs.step_wait(timeout=0.2)
        assert entered() == 2
        for gate in gates:
            gate.touch()
        envs.step_wait()
        assert entered() == NUM_ENVS
    with pytest.raises(ValueError, match="8 arguments"):
        make(older_worker, max_concurrency=2)


@pytest.mark.parametrize("shared_memory", [True, False], ids=["shared", "pipe"])
def test_death_with_the_semaphore_in_hand(shared_memory: bool) -> None:
    """A worker that dies in a step under ``max_concurrency`` does not take its permit along."""
    envs = make(max_concurrency=1, shared_memory=shared_memory, reset_timeout=5, step_timeout=5)
    try:
        for seed in range(3):
            envs.reset(seed=seed)
            envs.set_attr("level", levels("step", "die", 9))
            with pytest.raises(WorkerLostError):
                envs.step(ACTIONS)
        envs.reset(seed=3)
    finally:
        envs.close(timeout=1)


def test_env_fns_are_called_once_and_the_first_once_more(tmp_path: Path) -> None:
    """In the caller, to learn the spaces; that env is closed at once."""
    log = tmp_path / "log"
    with closing(make(log=log)) as envs:
        lines = read_log(log)
        assert [(line.event, line.env_index) for line in lines if line.pid == os.getpid()] == [("built", 0), ("closed", 0)]
        assert sorted(line.env_index for line in lines if line.pid != os.getpid()) == [0, 1, 2]
        envs.reset()
    closed = [line for line in read_log(log) if line.event == "closed" and line.pid != os.getpid()]
    assert sorted(line.env_index for line in closed) == [0, 1, 2]


@pytest.mark.parametrize("worker", WORKERS)
def test_failing_constructor(worker: str) -> None:
    """An env_fn that raises in its worker, where nobody expects it, ends it; the first one raises in the caller."""

    def fail() -> CountingEnv:
        raise LookupError("no such simulator")

    with pytest.raises(LookupError, match="no such simulator"):
        AsyncVectorEnv([fail, CountingEnv], worker=WORKERS[worker], context="fork")
    with pytest.raises(WorkerLostError, match="sub-env 1"):
        AsyncVectorEnv([CountingEnv, _exit_quietly], worker=WORKERS[worker], context="fork")


def _exit_quietly() -> CountingEnv:
    os._exit(3)


@pytest.mark.parametrize("worker", WORKERS)
def test_spaces_that_differ(worker: str) -> None:
    """They are refused, and nothing is left."""
    other = partial(SpaceEnv, Box(-1, 1, (3,)), Discrete(2))
    with pytest.raises(RuntimeError, match="sub-env 1"):
        AsyncVectorEnv([CountingEnv, other], worker=WORKERS[worker], context="fork")


def test_spaces_without_a_layout() -> None:
    """Gymnasium's shared memory cannot hold them; a pipe can."""
    space = Dict({"path": Sequence(Discrete(3)), "pair": Tuple([Discrete(2), Box(-1, 1, (2,), np.float32)])})
    fns = [partial(SpaceEnv, space)] * 2
    with pytest.raises(ValueError, match="shared_memory=False"):
        AsyncVectorEnv(fns, worker=_async_worker, context="fork")
    loop = PlainLoop(fns)
    with closing(loop), closing(AsyncVectorEnv(fns, worker=_async_worker, shared_memory=False, context="fork")) as envs:
        assert_same(loop.reset(seed=4), envs.reset(seed=4), "reset")


def test_signatures() -> None:
    """A function that takes neither 8 nor 7 arguments, and options that go with no custom worker, are refused at once."""
    assert len(inspect.signature(_async_worker).parameters) == (8 if gymnasium.__version__ >= "1.4" else 7)
    with pytest.raises(ValueError, match="8 arguments"):
        AsyncVectorEnv([CountingEnv], worker=lambda index, env_fn: None)
    with pytest.raises(ValueError, match="worker"):
        make(num_workers=2)
    with pytest.raises(ValueError, match="worker"):
        make(step_in_caller=True)
    with closing(AsyncVectorEnv([CountingEnv], worker=_any_worker, context="fork")) as envs:
        envs.reset()


def _any_worker(*args: Any) -> None:
    doubling_worker(*args)
