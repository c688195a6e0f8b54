"""``on_failure="restart"``: what fails is built anew, its episode ends, and all other data are those of a plain loop."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from engines import FEW, ONE_EACH, Engine, each, named
from envs import bad_once
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from workers import doubling_worker
from world import kill_last, notes_of

import rayvec
from rayvec import CallTimeoutError, WorkerLostError
from rayvec.restarts import FailurePolicy, restart_seed
from rayvec.testing import (
    CountingEnv,
    DyingEnv,
    GateEnv,
    RaisingEnv,
    RestartedLoop,
    SlowEnv,
    StubbornEnv,
    assert_same,
    wait_for_path,
)

NUM_ENVS = 5
LAST = NUM_ENVS - 1
"""The sub-env that fails: where there are processes it does not live in the caller."""
ACTIONS = np.zeros(NUM_ENVS, np.int64)
KWARGS: dict[str, Any] = {"episode_length": 4, "infos": "rich"}
MODES = list(AutoresetMode)
SHARING = named("async-workers-2", "async-pipe-workers-2", "async-caller", "ray-object-store")
"""Where the last sub-env shares a worker, which can die, with others."""


def counting() -> list[Any]:
    """Five envs that do not fail."""
    return [partial(CountingEnv, index=index, **KWARGS) for index in range(NUM_ENVS)]


def with_last(env_fn: Callable[..., Any]) -> list[Any]:
    """Five envs of which the last one fails."""
    return [*counting()[:LAST], partial(env_fn, index=LAST, **KWARGS)]


class Follower:
    """Drives a vector env and holds everything that it gives against a plain loop."""

    def __init__(self, envs: Any, mode: AutoresetMode, env_fns: Sequence[Any] | None = None) -> None:
        self.envs = envs
        self.loop = RestartedLoop(env_fns or counting(), mode)

    def reset(self, **kwargs: Any) -> list[int]:
        """Resets; returns which sub-envs were restarted."""
        observations, infos = self.envs.reset(**kwargs)
        due = self.loop.follow_reset(infos, self.envs.num_restarts, **kwargs)
        assert_same(due, (observations, infos), "reset")
        return restarted(infos)

    def step(self, actions: Any = ACTIONS) -> list[int]:
        """Steps; resets before that what has ended, where nobody else does. Returns which sub-envs were restarted."""
        result = self.envs.step(actions)
        assert_same(self.loop.follow_step(list(actions), result[-1], self.envs.num_restarts), result, "step")
        ended = result[2] | result[3]
        found = restarted(result[-1])
        if self.envs.autoreset_mode is AutoresetMode.DISABLED and ended.any():
            assert self.reset(options={"reset_mask": ended}) == []
        return found

    def close(self) -> None:
        self.loop.close()


def restarted(infos: dict[str, Any]) -> list[int]:
    """The sub-envs that infos say were restarted."""
    return [int(index) for index in np.flatnonzero(infos.get("restarted", ()))]


@each(ONE_EACH)
@pytest.mark.parametrize("mode", MODES)
def test_raising_step(engine: Engine, mode: AutoresetMode) -> None:
    """The sub-env that raised is restarted alone, again and again; its last good observation ends its episode."""
    fns = with_last(partial(RaisingEnv, at=3, error=KeyError("oh")))
    with closing(engine.make(fns, autoreset_mode=mode, on_failure="restart")) as envs, closing(Follower(envs, mode)) as both:
        assert both.reset(seed=8) == []
        found = [both.step() for _ in range(13)]
        apart = 4 if mode is AutoresetMode.NEXT_STEP else 3
        assert [index for index, which in enumerate(found) if which == [LAST]] == list(range(2, 13, apart))
        assert sum(map(bool, found)) == envs.num_restarts[LAST] == envs.num_restarts.sum()


@each(ONE_EACH, needs="in_processes")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("env_fn", [DyingEnv, StubbornEnv])
def test_worker_dies_or_is_stuck(engine: Engine, mode: AutoresetMode, env_fn: Any) -> None:
    """Its worker is started anew, with all of its sub-envs; the others know nothing of it."""
    fns = with_last(partial(env_fn, at=6))
    options: dict[str, Any] = {"step_timeout": 0.4 + engine.start_seconds} if env_fn is StubbornEnv else {}
    both_die = engine.together_with(LAST, NUM_ENVS)
    with (
        closing(engine.make(fns, autoreset_mode=mode, on_failure="restart", **options)) as envs,
        closing(Follower(envs, mode)) as both,
    ):
        both.reset(seed=8)
        found = [both.step() for _ in range(12)]
        assert [which for which in found if which] == [both_die] * (1 if mode is AutoresetMode.NEXT_STEP else 2)
        assert envs.num_restarts.tolist() == [
            int(any(index in which for which in found)) * sum(map(bool, found)) for index in range(NUM_ENVS)
        ]


@each(FEW, needs="in_processes")
def test_killed_while_idle(engine: Engine) -> None:
    """The step that meets the death ends the episode, whether a call has met it before or not."""
    share = engine.together_with(LAST, NUM_ENVS)
    with (
        closing(engine.make(counting(), on_failure="restart")) as envs,
        closing(Follower(envs, AutoresetMode.NEXT_STEP)) as both,
    ):
        both.reset(seed=8)
        both.step()
        kill_last(envs)
        assert both.step() == share
        both.step()
        both.step()
        kill_last(envs)
        with pytest.raises(WorkerLostError, match="started again by what comes next"):
            envs.call("where")
        assert both.step() == share
        assert [place[0] for place in envs.call("where")] == list(range(NUM_ENVS))
        kill_last(envs)
        with pytest.raises(WorkerLostError):
            envs.call("where")
        assert [place[0] for place in envs.call("where")] == list(range(NUM_ENVS))
        assert both.step() == share
        for _ in range(5):
            assert both.step() == []


@each(FEW)
def test_raising_reset(engine: Engine, tmp_path: Path) -> None:
    """A reset that fails is tried anew with the restart's seed; so is one that a step was to make."""
    for at, mode in [(1, AutoresetMode.NEXT_STEP), (2, AutoresetMode.NEXT_STEP)]:
        fns = with_last(partial(bad_once, tmp_path / f"{at}", partial(RaisingEnv, on="reset", at=at)))
        with (
            closing(engine.make(fns, autoreset_mode=mode, on_failure="restart")) as envs,
            closing(Follower(envs, mode)) as both,
        ):
            first = both.reset(seed=8, options={"difficulty": 2})
            assert first == ([LAST] if at == 1 else [])
            assert envs.call("options") == ({"difficulty": 2},) * NUM_ENVS
            found = [both.step() for _ in range(11)]
            assert [index for index, which in enumerate(found) if which] == ([] if at == 1 else [4])
            assert both.reset(seed=9) == []


@each(FEW, needs="in_processes")
@pytest.mark.parametrize("env_fn", [DyingEnv, StubbornEnv])
def test_worker_dies_or_is_stuck_in_a_reset(engine: Engine, env_fn: Any, tmp_path: Path) -> None:
    """The worker is started anew and its reset tried anew."""
    fns = with_last(partial(bad_once, tmp_path / "note", partial(env_fn, on="reset", at=2)))
    options: dict[str, Any] = {"reset_timeout": 0.4 + engine.start_seconds} if env_fn is StubbornEnv else {}
    with (
        closing(engine.make(fns, on_failure="restart", **options)) as envs,
        closing(Follower(envs, AutoresetMode.NEXT_STEP)) as both,
    ):
        both.reset(seed=8)
        assert both.step() == []
        assert both.reset(seed=[None, 3, None, 5, None]) == engine.together_with(LAST, NUM_ENVS)
        for _ in range(6):
            assert both.step() == []


@each(SHARING)
@pytest.mark.parametrize("mode", MODES)
def test_dies_in_a_masked_reset(engine: Engine, mode: AutoresetMode, tmp_path: Path) -> None:
    """Those of its worker's sub-envs that were not to be reset end their episode in the next step."""
    share = engine.together_with(LAST, NUM_ENVS)
    fns = with_last(partial(bad_once, tmp_path / "note", partial(DyingEnv, on="reset", at=2)))
    with closing(engine.make(fns, autoreset_mode=mode, on_failure="restart")) as envs, closing(Follower(envs, mode)) as both:
        both.reset(seed=8)
        both.step()
        assert both.reset(options={"reset_mask": np.arange(NUM_ENVS) == LAST}) == [LAST]
        assert both.step() == share[:-1]
        for _ in range(6):
            assert both.step() == []


@each(SHARING)
def test_reset_of_what_was_lost_outside_a_step(engine: Engine, tmp_path: Path) -> None:
    """A reset goes before the step that would have ended the episode; its infos tell of the restart, its seed counts."""
    with (
        closing(engine.make(counting(), on_failure="restart")) as envs,
        closing(Follower(envs, AutoresetMode.NEXT_STEP)) as both,
    ):
        both.reset(seed=8)
        both.step()
        kill_last(envs)
        with pytest.raises(WorkerLostError):
            envs.call("where")
        observations, infos = envs.reset(seed=50)
        assert restarted(infos) == engine.together_with(LAST, NUM_ENVS)
        assert observations[:, 1].tolist() == [50, 51, 52, 53, 54]
        _, _, _, truncations, infos = envs.step(ACTIONS)
        assert not truncations.any()
        assert restarted(infos) == []


@each(FEW)
def test_raises_when_there_were_too_many(engine: Engine) -> None:
    """The error is what it would have been, with a note on how often; others complete the step; reset() makes it good."""
    fns = with_last(partial(RaisingEnv, at=1, error=KeyError("oh")))
    with (
        closing(engine.make(fns, on_failure="restart", max_restarts=2)) as envs,
        closing(Follower(envs, AutoresetMode.NEXT_STEP)) as both,
    ):
        both.reset(seed=8)
        assert [both.step() for _ in range(4)] == [[LAST], [], [LAST], []]
        with pytest.raises(KeyError, match="oh") as caught:
            envs.step(ACTIONS)
        assert f"sub-env {LAST} was restarted 2 times within restart_window=60 s" in notes_of(caught.value)
        with pytest.raises(ResetNeeded, match=str(LAST)):
            envs.step(ACTIONS)
        envs.reset(seed=8)
        assert envs.num_restarts.tolist() == [0, 0, 0, 0, 2]


@each(FEW, needs="in_processes")
@pytest.mark.parametrize(("env_fn", "error"), [(DyingEnv, WorkerLostError), (StubbornEnv, CallTimeoutError)])
def test_raises_when_too_many_workers_died(engine: Engine, env_fn: Any, error: type[Exception]) -> None:
    """So it is with workers that die or are stuck; a reset of the user's starts a dead one, whatever the bound."""
    options = {"step_timeout": 0.4 + engine.start_seconds} if env_fn is StubbornEnv else {}
    with closing(engine.make(with_last(partial(env_fn, at=1)), on_failure="restart", max_restarts=1, **options)) as envs:
        envs.reset(seed=8)
        assert restarted(envs.step(ACTIONS)[-1]) == engine.together_with(LAST, NUM_ENVS)
        envs.step(ACTIONS)
        with pytest.raises(error) as caught:
            envs.step(ACTIONS)
        assert "restarted 1 times" in notes_of(caught.value)
        if error is WorkerLostError:
            observations, _ = envs.reset(seed=30)
            assert observations[:, 1].tolist() == [30, 31, 32, 33, 34]
        # What is stuck does not close.
        envs.close(timeout=5.0 if error is WorkerLostError else 0.1)


@each(named("sync", "async", "async-pipe-workers-2"))
def test_the_window(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Restarts that are older than the window do not count."""
    now = 1000.0
    monkeypatch.setattr("rayvec.restarts.time", type("Clock", (), {"monotonic": staticmethod(lambda: now)}))
    fns = with_last(partial(RaisingEnv, at=1))
    with closing(engine.make(fns, on_failure="restart", max_restarts=1, restart_window=30)) as envs:
        envs.reset(seed=8)
        for _ in range(3):
            assert restarted(envs.step(ACTIONS)[-1]) == [LAST]
            envs.step(ACTIONS)
            now += 30
        now -= 1
        with pytest.raises(RuntimeError):
            envs.step(ACTIONS)


@each(FEW)
def test_constructor_that_fails_at_a_restart(engine: Engine, tmp_path: Path) -> None:
    """It is tried again, and counts each time; at the first start its own error is raised."""
    with pytest.raises(ZeroDivisionError):
        engine.make(with_last(partial(RaisingEnv, on="init", error=ZeroDivisionError)), on_failure="restart")
    for env_fn in (RaisingEnv, DyingEnv) if engine.in_processes else (RaisingEnv,):
        folder = tmp_path / env_fn.__name__
        folder.mkdir()
        fns = with_last(partial(bad_second_time, folder, env_fn))
        with closing(engine.make(fns, on_failure="restart")) as envs, closing(Follower(envs, AutoresetMode.NEXT_STEP)) as both:
            both.reset(seed=8)
            assert LAST in both.step()
            assert envs.num_restarts[LAST] == 2
            for _ in range(6):
                assert both.step() == []


def bad_second_time(folder: Path, env_fn: Any, **kwargs: Any) -> Any:
    """An env that fails in its first step, then one that fails in its constructor, then good ones."""
    num_built = len(list(folder.iterdir()))
    (folder / str(num_built)).touch()
    if num_built == 0:
        return env_fn(at=1, **kwargs)
    return env_fn(on="init", **kwargs) if num_built == 1 else CountingEnv(**kwargs)


class HalfWrongEnv(gym.Env[Any, np.int64]):
    """Gives at its third step an observation of which the last part does not fit; the others may have been written."""

    def __init__(self, fails: bool) -> None:
        self._fails = fails
        self._count = 0
        self.action_space = spaces.Discrete(2)
        self.observation_space = spaces.Dict(
            a=spaces.Box(-1, 9e9, (3,), np.float64),
            b=spaces.Sequence(spaces.Discrete(100)),
            c=spaces.Text(8),
            d=spaces.Box(-1, 9e9, (2,), np.float32),
        )

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._count = 0
        return self._observe(2), {}

    def step(self, action: np.int64) -> Any:
        self._count += 1
        return self._observe(5 if self._fails and self._count == 3 else 2), 1.0, False, False, {}

    def _observe(self, size: int) -> Any:
        number = float(self.np_random.random())
        return {
            "a": np.full(3, number),
            "b": tuple(range(self._count % 4)),
            "c": "x" * (self._count % 7 + 1),
            "d": np.full(size, self._count, np.float32),
        }


@each(FEW)
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_half_written_row(engine: Engine, mode: AutoresetMode) -> None:
    """What failed has written a part of its row; the last good observation is handed out whole, of whatever spaces."""
    fns = [partial(HalfWrongEnv, fails=index == 1) for index in range(3)]
    if engine.options.get("shared_memory") is not False and engine.is_ray:
        pytest.skip("a space without a layout over Ray is tried on ray-object-store")
    with (
        closing(engine.make(fns, autoreset_mode=mode, on_failure="restart")) as envs,
        closing(Follower(envs, mode, [partial(HalfWrongEnv, fails=False)] * 3)) as both,
    ):
        both.reset(seed=8)
        found = [both.step(np.zeros(3, np.int64)) for _ in range(8)]
        assert [index for index, which in enumerate(found) if which == [1]] == (
            [2, 6] if mode is AutoresetMode.NEXT_STEP else [2, 5]
        )


class TearingEnv(CountingEnv):
    """Its observation ends its process while it is being written into the row."""

    def __init__(self, tears: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._tears = tears
        plain = self.observation_space
        self.observation_space = spaces.Dict(a=plain, b=plain)  # type: ignore[assignment]

    def _observation(self) -> Any:
        plain = super()._observation()
        return {"a": plain, "b": Deadly(plain) if self._tears and self._step == 3 else plain}


class Deadly:
    """Ends the process that looks at it."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __array__(self, *_: Any, **__: Any) -> Any:
        os._exit(3)


@each(FEW, needs="in_processes")
def test_death_in_the_middle_of_a_row(engine: Engine) -> None:
    """A worker that died while it wrote its row has not touched the observation that was handed out last."""
    fns = [partial(TearingEnv, index == LAST, index=index, episode_length=8) for index in range(NUM_ENVS)]
    calm = [partial(TearingEnv, False, index=index, episode_length=8) for index in range(NUM_ENVS)]
    for copies in (True, False):
        with (
            closing(engine.make(fns, on_failure="restart", copy=copies)) as envs,
            closing(Follower(envs, AutoresetMode.NEXT_STEP, calm)) as both,
        ):
            both.reset(seed=8)
            found = [both.step() for _ in range(6)]
            assert [index for index, which in enumerate(found) if which] == [2]


@each(named("async", "async-pipe-workers-2", "ray-shared-memory"))
def test_own_timeout_kills_nothing(engine: Engine, tmp_path: Path) -> None:
    """A wait that is given its own timeout raises when that is over, and the step stays pending."""
    gate = tmp_path / "gate"
    fns = [*counting()[:LAST], partial(GateEnv, gate, at=1, index=LAST, **KWARGS)]
    with (
        closing(engine.make(fns, on_failure="restart", step_timeout=30)) as envs,
        closing(Follower(envs, AutoresetMode.NEXT_STEP)) as both,
    ):
        both.reset(seed=8)
        envs.step_async(ACTIONS)
        with pytest.raises(CallTimeoutError):
            envs.step_wait(timeout=0.05)
        wait_for_path(GateEnv.marker_of(gate))
        gate.touch()
        result = envs.step_wait()
        assert_same(both.loop.follow_step(list(ACTIONS), result[-1], envs.num_restarts), result, "step")
        assert envs.num_restarts.sum() == 0


def test_waiting_for_a_turn_is_not_taking_long() -> None:
    """With ``max_concurrency`` the time of a worker begins with its turn; one that is stuck loses just its own."""
    fns: list[Any] = [partial(SlowEnv, 0.25, index=index, **KWARGS) for index in range(LAST)]
    fns.append(partial(StubbornEnv, at=2, index=LAST, **KWARGS))
    envs = rayvec.AsyncVectorEnv(fns, max_concurrency=1, on_failure="restart", step_timeout=0.6)
    with closing(envs), closing(Follower(envs, AutoresetMode.NEXT_STEP)) as both:
        both.reset(seed=8)
        assert [both.step() for _ in range(3)] == [[], [LAST], []]


@each(FEW)
def test_log(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """Each restart is logged once, with the reason and how many there were."""
    fns = with_last(partial(RaisingEnv, at=1, error=KeyError("oh")))
    with closing(engine.make(fns, on_failure="restart")) as envs, caplog.at_level(logging.WARNING, "rayvec"):
        envs.reset(seed=8)
        for _ in range(4):
            envs.step(ACTIONS)
    told = [record.getMessage() for record in caplog.records if record.name == "rayvec"]
    assert len(told) == 2
    for number, text in enumerate(told, 1):
        assert f"sub-env {LAST} is built anew after KeyError: 'oh' (in step)" in text
        assert f"restart {number} of this sub-env, {number} in all" in text
        assert "Traceback" in text


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"on_failure": "ignore"}, ValueError),
        ({"max_restarts": -1}, ValueError),
        ({"max_restarts": 2.5}, TypeError),
        ({"restart_window": 0}, ValueError),
        ({"restart_window": float("nan")}, ValueError),
        ({"restart_window": "long"}, TypeError),
    ],
)
def test_wrong_options(options: Any, error: type[Exception]) -> None:
    """They are refused before anything is built, and named."""
    for make in (rayvec.SyncVectorEnv, rayvec.AsyncVectorEnv, rayvec.RayVectorEnv):
        with pytest.raises(error, match=next(iter(options))):
            make(counting(), **options)


def test_custom_worker() -> None:
    """A worker function of the user's knows nothing of restarts: that is said at once."""
    with pytest.raises(ValueError, match="custom worker"):
        rayvec.AsyncVectorEnv(counting(), worker=doubling_worker, on_failure="restart")


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_make_vec(mode: str) -> None:
    """The options go through ``vector_kwargs``."""
    options = {"on_failure": "restart", "max_restarts": 3, "restart_window": 5.0}
    made: Any = rayvec.make_vec("CartPole-v1", 2, mode, vector_kwargs=options)
    with closing(made) as envs:
        envs.reset(seed=1)
        envs.step(np.zeros(2, np.int64))
        assert envs.num_restarts.tolist() == [0, 0]


def test_seeds() -> None:
    """They are what they always were, differ, and stay within what any env takes."""
    assert restart_seed(None, 3) is None
    assert [restart_seed(13, count) for count in (1, 2)] == [1709445263, 486748436]
    seeds = {restart_seed(seed, count) for seed in range(50) for count in range(50)}
    assert len(seeds) == 2500
    assert all(seed is not None and 0 <= seed < 2**31 for seed in seeds)
    assert not FailurePolicy().restarts
