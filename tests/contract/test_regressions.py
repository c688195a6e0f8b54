"""Bugs that a review found, each told by its test. All of them are about processes."""

from __future__ import annotations

import _thread
import atexit
import gc
import os
import selectors
import signal
import weakref
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from engines import Engine, each, named
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from workers import doubling_worker

from rayvec import AsyncVectorEnv, QuotedEnvError, SyncVectorEnv, WorkerLostError
from rayvec.testing import CountingEnv, GateEnv, SpaceEnv

ACTIONS = np.zeros(3, np.int64)
FIRST = np.array([True, False, False])


@each(named("async", "async-pipe", "async-workers-2", "async-concurrency"))
def test_large_spaces_start(engine: Engine) -> None:
    """The bounds of an image space are more than a socket takes at once; the rest of them was never sent."""
    space = spaces.Box(0, 255, (210, 160, 3), np.uint8)
    with closing(engine.make([partial(SpaceEnv, space, spaces.Discrete(2))] * 3)) as envs:
        observations, _ = envs.reset(seed=1)
        assert observations.shape == (3, 210, 160, 3)


class UnbuildableError(Exception):
    """Pickles well and cannot be unpickled: its __init__ takes other arguments than it keeps."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


class TellsUnbuildable(CountingEnv):
    """Its second step's info cannot be rebuilt in another process."""

    def step(self, action: Any) -> Any:
        """As CountingEnv's."""
        observation, reward, terminated, truncated, info = super().step(action)
        odd = {"error": UnbuildableError(1, 2)} if observation[3] == 2 else {}
        return observation, reward, terminated, truncated, {**info, **odd}


@pytest.mark.filterwarnings("ignore::UserWarning")
@each(named("async", "async-pipe"))
def test_info_that_cannot_be_rebuilt(engine: Engine) -> None:
    """The reply was taken and not counted, so that the step was pending for ever; now its sub-envs count as failed."""
    fns: list[Any] = [partial(CountingEnv, index=0), partial(TellsUnbuildable, index=1), partial(CountingEnv, index=2)]
    with closing(engine.make(fns)) as envs:
        envs.reset(seed=1)
        envs.step(ACTIONS)
        with pytest.raises(QuotedEnvError, match="UnbuildableError"):
            envs.step(ACTIONS)
        with pytest.raises(ResetNeeded, match=r"\[1\]"):
            envs.step(ACTIONS)
        envs.reset(options={"reset_mask": np.array([False, True, False])})
        envs.step(ACTIONS)


class Leaves(GateEnv):
    """Ends its process when it is let through its gate."""

    def step(self, action: Any) -> Any:
        """Does not return."""
        super().step(action)
        os._exit(4)


class Tells(GateEnv):
    """Says in its step's info that it has stepped."""

    def step(self, action: Any) -> Any:
        """As GateEnv's."""
        *result, info = super().step(action)
        return *result, {**info, "stepped": True}


def open_gate(gate: Path) -> Path:
    """A gate that is open."""
    gate.touch()
    return gate


def test_late_step_is_not_part_of_a_masked_reset(tmp_path: Path) -> None:
    """A step that a death had left behind told its infos in the masked reset that came next."""
    gate = tmp_path / "gate"
    fns: list[Any] = [partial(Leaves, open_gate(tmp_path / "open")), partial(Tells, gate), partial(Tells, gate)]
    with closing(AsyncVectorEnv(fns)) as envs:
        envs.reset(seed=1)
        with pytest.raises(WorkerLostError):
            envs.step(ACTIONS)
        envs.reset_async(options={"reset_mask": FIRST})
        gate.touch()
        _, infos = envs.reset_wait()
        assert "stepped" not in infos


def test_death_of_a_worker_that_a_masked_reset_leaves_out(tmp_path: Path) -> None:
    """The reset raised KeyError for a worker that it had not asked; now that one waits for a reset of its own."""
    gate = tmp_path / "gate"
    fns: list[Any] = [partial(Leaves, open_gate(tmp_path / "open")), partial(Leaves, gate), partial(Tells, gate)]
    with closing(AsyncVectorEnv(fns)) as envs:
        envs.reset(seed=1)
        with pytest.raises(WorkerLostError):
            envs.step(ACTIONS)
        envs.reset_async(options={"reset_mask": FIRST})
        gate.touch()
        envs.reset_wait()
        with pytest.raises(ResetNeeded, match=r"\[1\]"):
            envs.step(ACTIONS)
        envs.reset()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_observation_of_plain_integers() -> None:
    """A Discrete takes Python's own integers, and no others than its dtype holds."""

    class Tiny(gym.Env[Any, Any]):
        observation_space = spaces.Discrete(5, dtype=np.int8)
        action_space = spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
            return 4, {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            return 300, 0.0, False, False, {}

    with closing(SyncVectorEnv([Tiny])) as envs:
        observations, _ = envs.reset()
        assert observations.tolist() == [4]
        with pytest.raises(ValueError, match="300"):
            envs.step(np.zeros(1, np.int64))


class Garbage:
    """Unreachable from the start, and finalized by whichever process collects it."""

    def __init__(self, finalized: Path) -> None:
        self._finalized = finalized
        self._itself = self

    def __del__(self) -> None:
        with self._finalized.open("a") as file:
            file.write(f"{os.getpid()}\n")


_BEFORE_FORK: list[Callable[[], object]] = []
"""Called right before this process forks."""


def _forking() -> None:
    for call in _BEFORE_FORK:
        call()


os.register_at_fork(before=_forking)


@pytest.mark.parametrize("options", [{}, {"worker": doubling_worker}], ids=["own", "custom"])
def test_workers_leave_the_callers_garbage_alone(options: dict[str, Any], tmp_path: Path) -> None:
    """Finalizers ran in workers, too: those of gRPC crashed them, and others would have closed what the caller uses."""
    finalized = tmp_path / "finalized"
    thresholds = gc.get_threshold()

    def make_garbage() -> None:
        Garbage(finalized)
        gc.set_threshold(1, 1, 1)

    _BEFORE_FORK.append(make_garbage)
    try:
        with closing(AsyncVectorEnv([CountingEnv] * 2, **options)) as envs:
            _BEFORE_FORK.clear()
            envs.reset(seed=1)
            envs.step(envs.action_space.sample())
            assert gc.isenabled()
    finally:
        _BEFORE_FORK.clear()
        gc.set_threshold(*thresholds)
    gc.collect()
    assert finalized.read_text().split() == [str(os.getpid())] * 2


class StartingEnv(CountingEnv):
    """Has started workers of its own once."""

    def __init__(self) -> None:
        super().__init__()
        AsyncVectorEnv([CountingEnv]).close()


@pytest.mark.parametrize(
    ("env_fn", "options"),
    [(CountingEnv, {}), (CountingEnv, {"worker": doubling_worker}), (StartingEnv, {"daemon": False})],
    ids=["own", "custom", "nested"],
)
def test_workers_leave_what_the_callers_handlers_hold_alone(
    env_fn: Callable[[], Any], options: dict[str, Any], tmp_path: Path
) -> None:
    """A forked process forgets them (those of atexit from Python 3.13 on), and finalized what nothing else held.

    Ray's hold its client of gRPC, which crashed every worker that was forked once Ray had been shut down.
    """
    finalized = tmp_path / "finalized"

    def handler() -> Callable[..., object]:
        held = Garbage(finalized)
        del held._itself
        return lambda *_: held

    at_exit = weakref.ref(atexit.register(handler()))
    before = signal.signal(signal.SIGTERM, handler())
    try:
        with closing(AsyncVectorEnv([env_fn] * 2, **options)) as envs:
            envs.reset(seed=1)
            envs.step(envs.action_space.sample())
    finally:
        atexit.unregister(at_exit())  # type: ignore[arg-type]
        signal.signal(signal.SIGTERM, before)
    gc.collect()
    assert finalized.read_text().split() == [str(os.getpid())] * 2


class CollectingEnv(CountingEnv):
    """Knows whether the collector runs where it lives."""

    def collects(self) -> bool:
        """Whether it does."""
        return gc.isenabled()


@each(named("async", "async-forkserver"))
@pytest.mark.parametrize("collects", [True, False])
def test_workers_collect_their_own_garbage(engine: Engine, collects: bool) -> None:
    """A forked worker does as its caller did; any other has a collector of its own."""
    try:
        if not collects:
            gc.disable()
        with closing(engine.make([CollectingEnv] * 2)) as envs:
            assert gc.isenabled() == collects
            assert envs.call("collects") == (collects or engine.start_method != "fork",) * 2
    finally:
        gc.enable()


@pytest.mark.parametrize("options", [{}, {"worker": doubling_worker}], ids=["own", "custom"])
def test_interrupted_right_after_a_fork(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another thread takes the signal, the mask of this one keeps nothing back: the process was left behind."""
    fork = os.fork

    def interrupted() -> int:
        pid = fork()
        if pid:
            _thread.interrupt_main()
        return pid

    monkeypatch.setattr(os, "fork", interrupted)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        AsyncVectorEnv([CountingEnv] * 3, **options)
    assert signal.getsignal(signal.SIGINT) is before


class LoggedVectorEnv(AsyncVectorEnv):
    """Notes its calls."""

    calls = ""

    def step_async(self, actions: Any) -> None:
        self.calls += "async "
        super().step_async(actions)

    def step_wait(self, timeout: float | None = None) -> Any:
        self.calls += "wait "
        return super().step_wait(timeout)


def test_a_step_is_made_of_its_halves_where_these_are_overridden() -> None:
    """The short way did without them."""
    with closing(LoggedVectorEnv([CountingEnv] * 2)) as envs:
        envs.reset()
        envs.step(np.zeros(2, np.int64))
        assert envs.calls == "async wait "


class HandlingEnv(CountingEnv):
    """Knows what Ctrl-C would do where it lives."""

    def handler(self) -> str:
        """The name of the handler."""
        return getattr(signal.getsignal(signal.SIGINT), "__name__", "none")


def test_a_custom_worker_has_the_callers_handlers() -> None:
    """What holds Ctrl-C back while processes are started is no business of theirs."""
    due = HandlingEnv().handler()
    with closing(AsyncVectorEnv([HandlingEnv] * 2, worker=doubling_worker)) as envs:
        assert envs.call("handler") == (due, due)


class ForgetfulEnv(CountingEnv):
    """Has one info dict, empty at the end of an episode, and puts something into it at the next reset."""

    def __init__(self) -> None:
        super().__init__(episode_length=2)
        self._own: dict[str, Any] = {}

    def reset(self, **kwargs: Any) -> Any:
        """As CountingEnv."""
        self._own["start"] = 1
        return super().reset(**kwargs)[0], self._own

    def step(self, action: np.int64) -> Any:
        """As CountingEnv."""
        self._own.clear()
        return (*super().step(action)[:4], self._own)


@each(named("sync", "async", "async-workers-2"))
def test_an_empty_final_info_is_a_snapshot_too(engine: Engine) -> None:
    """It was the env's own dict, and had in it what the reset behind it put there."""
    with closing(engine.make([ForgetfulEnv] * 2, autoreset_mode="SameStep")) as envs:
        envs.reset(seed=1)
        envs.step(np.zeros(2, np.int64))
        _, _, terminations, _, infos = envs.step(np.zeros(2, np.int64))
        assert terminations.all()
        assert infos["start"].tolist() == [1, 1]
        assert not infos["final_info"]


def test_interrupted_while_a_worker_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C came out as a KeyError of the selector."""
    register = selectors.DefaultSelector.register
    calls = iter(range(100))

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return register(*arguments)

    monkeypatch.setattr(selectors.DefaultSelector, "register", interrupted)
    with pytest.raises(KeyboardInterrupt):
        AsyncVectorEnv([CountingEnv] * 3)
