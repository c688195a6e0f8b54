"""Partial batches under ``on_failure="restart"``: what fails in flight comes as a row, the others as a plain loop says."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import FEW, ONE_EACH, Engine, each, named
from envs import bad_once
from gymnasium import spaces
from gymnasium.error import NoAsyncCallError, ResetNeeded
from gymnasium.vector import AutoresetMode
from partial_loop import LAST, NUM_ENVS, PartialLoop, batch_size_of, counting, go_on, share_of, with_last, zeros
from world import kill_last, notes_of, within

import rayvec
from rayvec import CallTimeoutError, WorkerLostError
from rayvec.testing import (
    CountingEnv,
    DyingEnv,
    GateEnv,
    RaisingEnv,
    SlowEnv,
    StubbornEnv,
    assert_same,
    wait_for_path,
)

MODES = list(AutoresetMode)
SHARING = named("async-pipe-workers-2", "async-caller", "async-workers-3", "ray-object-store")
"""Where the last sub-env shares a worker, which can die, with others."""


class Follower:
    """Drives a vector env and holds every batch against a plain loop."""

    def __init__(
        self, engine: Engine, env_fns: Sequence[Any], mode: AutoresetMode = AutoresetMode.NEXT_STEP, **options: Any
    ) -> None:
        options = {"batch_size": batch_size_of(engine), **options}
        self.engine = engine
        self.loop = PartialLoop(options.pop("calm", counting()), mode)
        self.envs = engine.make(env_fns, autoreset_mode=mode, on_failure="restart", **options)

    def begin(self) -> None:
        """Resets all."""
        self.envs.async_reset(seed=5)
        self.loop.async_reset(range(5, 5 + NUM_ENVS), range(NUM_ENVS))

    def reset(self, reset: Sequence[int], idle: Sequence[int] = ()) -> None:
        """Resets some, without seeds."""
        self.envs.async_reset(options={"reset_mask": np.isin(np.arange(NUM_ENVS), reset)})
        self.loop.async_reset([None] * NUM_ENVS, reset, idle, self.envs.num_restarts)

    def send(self, ids: Sequence[int]) -> None:
        """Steps some."""
        self.envs.send(zeros(len(ids)), ids)
        self.loop.send(zeros(len(ids)), ids)

    def receive(self, timeout: float | None = None) -> tuple[list[int], list[int]]:
        """Which sub-envs came, and which of them were restarted."""
        received = self.envs.recv(timeout)
        ids = self.loop.check(received, self.envs.num_restarts)
        return ids, [ids[row] for row in np.flatnonzero(received[4].get("restarted", ()))]

    def turn(self) -> list[int]:
        """Receives a batch, and sends it; returns which were restarted."""
        ids, restarted = self.receive()
        go_on(self.envs, self.loop, ids, self.engine)
        return restarted

    def go_on(self) -> list[int]:
        """Turns until some were restarted in one, which it returns; the others do not wait while a new worker starts."""
        deadline = time.monotonic() + 60
        while not (found := self.turn()):
            assert time.monotonic() < deadline
        return found

    def collect(self) -> list[int]:
        """Receives all that are at work; returns which were restarted."""
        found: list[int] = []
        while True:
            try:
                found += self.receive()[1]
            except NoAsyncCallError:
                return sorted(found)

    def check_counts(self) -> None:
        """The statistics tell of as many restarts as there were."""
        assert [told.restarts for told in self.envs.stats().sub_envs] == self.envs.num_restarts.tolist()

    def close(self) -> None:
        self.envs.close()
        self.loop.close()


@each(ONE_EACH)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_raising(engine: Engine, mode: AutoresetMode) -> None:
    """The sub-env that raised is restarted alone, again and again; all batches are right, and so is the step behind them."""
    with closing(Follower(engine, with_last(RaisingEnv, at=3, error=KeyError("oh")), mode)) as both:
        both.begin()
        found = [index for _ in range(3) for index in both.go_on()] + both.collect()
        assert set(found) == {LAST}
        assert len(found) == both.envs.num_restarts.sum() >= 3
        both.check_counts()
        both.envs.reset(seed=9)
        assert not both.envs.step(zeros(NUM_ENVS))[3].any()


@each(ONE_EACH, needs="in_processes")
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_dying(engine: Engine, mode: AutoresetMode) -> None:
    """A worker that dies in flight is started anew with all of its sub-envs, which come together as ever."""
    share = share_of(engine, LAST)
    with closing(Follower(engine, with_last(DyingEnv, at=5), mode)) as both:
        both.begin()
        assert both.go_on() == share
        for _ in range(10):
            both.turn()
        both.collect()
        assert both.envs.num_restarts.tolist() == [int(both.envs.num_restarts[LAST]) * (index in share) for index in range(6)]
        both.check_counts()


@each(FEW, needs="in_processes")
@pytest.mark.parametrize("own", [None, 0.05])
def test_stuck_while_others_come(engine: Engine, own: float | None) -> None:
    """It is killed when its own time is over, though somebody else is always ready, or though recv does not wait so long."""
    share = share_of(engine, LAST)
    env_fns = with_last(partial(StubbornEnv, at=2))
    options: dict[str, Any] = {"step_timeout": 0.6 + engine.start_seconds, "batch_size": len(share)}
    with closing(Follower(engine, env_fns, **options)) as both:
        both.begin()
        found: list[int] = []
        batches = 0
        with within(60):
            while not found:
                try:
                    ids, found = both.receive(own)
                except CallTimeoutError:
                    assert own is not None
                    continue
                batches += 1
                # With a time of its own, the last one is left alone at work.
                if own is None or LAST in ids or batches < 20:
                    both.send(ids)
        assert found == share
        assert both.collect() in ([], share)


@each(named("async", "async-pipe"))
def test_slow_learner_kills_nobody(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that has answered in time is not late, however late it is asked."""
    with closing(Follower(engine, counting(), step_timeout=30.0, reset_timeout=30.0)) as both:
        both.begin()
        both.turn()
        clock = type("Clock", (), {"monotonic": staticmethod(lambda: time.monotonic() + 1000)})
        for module in ("recovery", "partial"):
            monkeypatch.setattr(f"rayvec.{module}.time", clock)
        assert both.collect() == []
        assert both.envs.num_restarts.sum() == 0


def test_waiting_for_a_turn_is_not_taking_long() -> None:
    """With ``max_concurrency`` the time of a worker begins with its turn; one that is stuck loses just its own."""
    engine = named("async")[0]
    env_fns: list[Any] = [partial(SlowEnv, 0.25, **env_fn.keywords) for env_fn in counting()[:LAST]]
    env_fns.append(partial(StubbornEnv, at=2, index=LAST, episode_length=5, infos="numbers"))
    with closing(Follower(engine, env_fns, max_concurrency=1, step_timeout=0.6, batch_size=NUM_ENVS)) as both:
        both.begin()
        found = []
        for _ in range(4):
            ids, restarted = both.receive()
            found.append(restarted)
            both.send(ids)
        assert found == [[], [], [LAST], []]


@each(FEW, needs="in_processes")
@pytest.mark.parametrize("is_told", [True, False])
def test_killed_in_hand(engine: Engine, is_told: bool) -> None:
    """A worker that dies in the caller's hand ends its episodes in the step it is sent next, met before or not."""
    share = share_of(engine, LAST)
    with closing(Follower(engine, counting(), batch_size=NUM_ENVS)) as both:
        both.begin()
        both.receive()
        for _ in range(2):
            both.send(range(NUM_ENVS))
            assert both.receive()[1] == []
            kill_last(both.envs)
            if is_told:
                with pytest.raises(WorkerLostError):
                    both.envs.call("where")
            both.send(range(NUM_ENVS))
            assert both.receive()[1] == share
            both.send(range(NUM_ENVS))
            both.receive()
        both.check_counts()


@each(SHARING)
def test_dies_in_a_masked_reset(engine: Engine, tmp_path: Path) -> None:
    """What came along with the reset keeps its row, and its next step ends its episode."""
    share = share_of(engine, LAST)
    env_fns = with_last(partial(bad_once, tmp_path / "note", partial(DyingEnv, on="reset", at=2)))
    with closing(Follower(engine, env_fns)) as both:
        both.begin()
        both.collect()
        both.send(range(NUM_ENVS))
        both.collect()
        rest = [index for index in range(NUM_ENVS) if index not in share]
        both.reset([LAST], share[:-1])
        both.send(rest)
        assert both.collect() == [LAST]
        both.send(range(NUM_ENVS))
        assert both.collect() == share[:-1]
        for _ in range(4):
            both.send(range(NUM_ENVS))
            assert both.collect() == []


@each(FEW)
def test_raises_when_there_were_too_many(engine: Engine) -> None:
    """The error is what it would have been, with a note; the others come, and a reset by mask makes it good."""
    share = share_of(engine, LAST)
    env_fns = with_last(RaisingEnv, at=1, error=KeyError("oh"))
    with closing(Follower(engine, env_fns, max_restarts=2)) as both:
        envs = both.envs
        both.begin()
        with pytest.raises(KeyError, match="oh") as caught:
            [both.go_on() for _ in range(3)]
        assert f"sub-env {LAST} was restarted 2 times within restart_window=60 s" in notes_of(caught.value)
        with pytest.raises(ResetNeeded, match=str(LAST)):
            envs.send(zeros(len(share)), share)
        envs.async_reset(seed=40, options={"reset_mask": np.isin(np.arange(NUM_ENVS), share)})
        seen: list[int] = []
        while sorted(seen) != list(range(NUM_ENVS)):
            seen += envs.recv()[4]["env_id"].tolist()
        assert envs.num_restarts.tolist() == [0] * LAST + [2]


@each(FEW, needs="in_processes")
@pytest.mark.parametrize(("env_fn", "error"), [(DyingEnv, WorkerLostError), (StubbornEnv, CallTimeoutError)])
def test_raises_when_too_many_workers_died(engine: Engine, env_fn: Any, error: type[Exception]) -> None:
    """So it is with workers that die or are stuck: the others come all the same."""
    share = share_of(engine, LAST)
    options: dict[str, Any] = {"step_timeout": 0.6 + engine.start_seconds} if env_fn is StubbornEnv else {}
    with closing(Follower(engine, with_last(partial(env_fn, at=1)), max_restarts=1, **options)) as both:
        both.begin()
        both.collect()
        for due in (share, []):
            both.send(range(NUM_ENVS))
            assert both.collect() == due
        both.send(range(NUM_ENVS))
        with pytest.raises(error) as caught:
            both.collect()
        assert "restarted 1 times" in notes_of(caught.value)
        envs = both.envs
        if error is CallTimeoutError:
            with pytest.raises(CallTimeoutError, match=f"{LAST}"):
                envs.recv()
            # What is stuck does not close.
            envs.close(timeout=0.1)
            return
        both.collect()
        envs.async_reset(seed=40, options={"reset_mask": np.isin(np.arange(NUM_ENVS), share)})
        assert envs.recv()[0][:, 1].tolist() == [40 + index for index in share]


@each(named("sync", "async", "async-workers-3", "async-pipe-workers-2", "ray-object-store"))
def test_replay(engine: Engine) -> None:
    """A recorded order gives the same data with the same failures, on any engine."""
    env_fns = with_last(RaisingEnv, at=2, error=KeyError("oh"))

    def run(envs: Any, replay: Any) -> list[Any]:
        batches = []
        envs.async_reset(seed=5, replay=replay)
        for turn in range(40):
            batches.append(envs.recv(timeout=20))
            ids = batches[-1][4]["env_id"]
            envs.send((ids + turn) % 2, ids)
        return batches

    with closing(engine.make(env_fns, batch_size=batch_size_of(engine), on_failure="restart", max_restarts=None)) as envs:
        recorded = run(envs, None)
    with closing(rayvec.SyncVectorEnv(env_fns, batch_size=1, on_failure="restart", max_restarts=None)) as envs:
        assert_same(recorded, run(envs, [batch[4]["env_id"] for batch in recorded]), "batches")


class TearingEnv(CountingEnv):
    """Its third observation has its process wait in the middle of its row, and then ends it."""

    def __init__(self, gate: Path | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._gate = gate
        plain = self.observation_space
        self.observation_space = spaces.Dict(a=plain, b=plain)  # type: ignore[assignment]

    def _observation(self) -> Any:
        plain = super()._observation()
        return {"a": plain, "b": _Deadly(self._gate) if self._gate is not None and self._step == 3 else plain}


class _Deadly:
    def __init__(self, gate: Path) -> None:
        self._gate = gate

    def __array__(self, *_: Any, **__: Any) -> Any:
        GateEnv.marker_of(self._gate).touch()
        wait_for_path(self._gate)
        os._exit(3)


@each(named("async", "async-pipe", "async-caller-each", "ray-shared-memory"))
def test_rows_in_flight_are_not_kept(engine: Engine, tmp_path: Path) -> None:
    """While one is in the middle of its row others are handed out: the last good observation is the one handed out last."""
    gate = tmp_path / "gate"
    share = share_of(engine, LAST)
    env_fns = [partial(TearingEnv, None if index < LAST else gate, index=index, episode_length=8) for index in range(NUM_ENVS)]
    calm = [partial(TearingEnv, None, index=index, episode_length=8) for index in range(NUM_ENVS)]
    with closing(Follower(engine, env_fns, calm=calm, batch_size=len(share))) as both:
        both.begin()
        both.collect()
        for _ in range(2):
            both.send(range(NUM_ENVS))
            both.collect()
        both.send(share)
        wait_for_path(GateEnv.marker_of(gate))
        rest = [index for index in range(NUM_ENVS) if index not in share]
        both.send(rest)
        come: list[int] = []
        while sorted(come) != rest:
            come += both.receive()[0]
        gate.touch()
        assert both.collect() == share
