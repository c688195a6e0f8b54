"""Snapshots: what follows a restored state is what followed it the first time, wherever it is restored."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import snapshot_envs
from engines import ENGINES, FEW, ONE_EACH, Engine, each, named
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import TimeLimit, TransformReward
from workers import doubling_worker

import rayvec
from rayvec import SnapshotError, SyncVectorEnv, VectorEnvState
from rayvec.testing import EXAMPLE_SPACES, CountingEnv, PlainLoop, RaisingEnv, SpaceEnv, assert_same, counting_observation

NUM_ENVS = 4
MODES = list(AutoresetMode)

EnvFns = Sequence[Callable[[], gym.Env[Any, Any]]]


def poles() -> EnvFns:
    """CartPoles in Gymnasium's wrappers, the first of which ends after 5 steps, the next one after 6, ..."""
    return [partial(gym.make, "CartPole-v1", max_episode_steps=5 + index) for index in range(NUM_ENVS)]


def limited(env_fn: Callable[[], gym.Env[Any, Any]]) -> gym.Env[Any, Any]:
    """That env, four steps long at most."""
    return TimeLimit(env_fn(), 4)


def walking(kind: str) -> EnvFns:
    """Envs of tests/contract/snapshot_envs.py, which may end sooner."""
    return [partial(limited, getattr(snapshot_envs, kind))] * NUM_ENVS


def counting(**kwargs: Any) -> EnvFns:
    """Counting envs whose episodes differ in length."""
    return [partial(CountingEnv, index=index, episode_length=3 + index, **kwargs) for index in range(NUM_ENVS)]


def resets_of(envs: Any, step: Any) -> None:
    """Under ``DISABLED``, resets what has ended in ``step``."""
    ended = step[2] | step[3]
    if envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED and ended.any():
        envs.reset(options={"reset_mask": ended})


def walk(envs: Any, actions: Sequence[Any]) -> list[Any]:
    """The steps, copied."""
    steps = []
    for action in actions:
        steps.append(copy.deepcopy(envs.step(action)))
        resets_of(envs, steps[-1])
    return steps


def check_steps(due: Sequence[Any], steps: Sequence[Any]) -> None:
    """Raises where they differ."""
    assert_same(list(due), list(steps), "steps")


def due_of(env_fns: EnvFns, actions: Sequence[Any], mode: AutoresetMode = AutoresetMode.NEXT_STEP) -> list[Any]:
    """What a plain loop over bare envs gives from ``reset(seed=3)`` on."""
    with closing(PlainLoop(env_fns, mode)) as loop:
        loop.metadata = {"autoreset_mode": mode}  # type: ignore[attr-defined]
        loop.reset(seed=3)
        return walk(loop, actions)


def random_actions(env_fns: EnvFns, count: int) -> list[Any]:
    """The same for every engine."""
    env = env_fns[0]()
    space = gym.vector.utils.batch_space(env.action_space, NUM_ENVS)
    env.close()
    space.seed(8)
    return [space.sample() for _ in range(count)]


def there_and_back(engine: Engine, env_fns: EnvFns, mode: AutoresetMode, first: int = 5, count: int = 15) -> None:
    """A sync engine begins; ``engine``, never reset, goes on; another sync engine ends: as one plain loop."""
    actions = random_actions(env_fns, count)
    due = due_of(env_fns, actions, mode)
    middle = first + (count - first) // 2
    with closing(SyncVectorEnv(env_fns, autoreset_mode=mode)) as start:
        start.reset(seed=3)
        walk(start, actions[:first])
        written = pickle.dumps(start.get_state())
    with closing(engine.make(env_fns, autoreset_mode=mode)) as envs:
        envs.set_state(pickle.loads(written))
        check_steps(due[first:middle], walk(envs, actions[first:middle]))
        state = envs.get_state()
        check_steps(due[middle:], walk(envs, actions[middle:]))
        # Back, with what is there now overwritten.
        envs.set_state(state)
        check_steps(due[middle:], walk(envs, actions[middle:]))
    with closing(SyncVectorEnv(env_fns, autoreset_mode=mode)) as end:
        end.set_state(pickle.loads(pickle.dumps(state)))
        check_steps(due[middle:], walk(end, actions[middle:]))


@each(ENGINES)
def test_there_and_back(engine: Engine) -> None:
    """From one engine to another and a third, at a step that has ended an episode, wrappers and all."""
    there_and_back(engine, poles(), AutoresetMode.NEXT_STEP)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
@each(FEW)
def test_there_and_back_in_other_modes(engine: Engine, mode: AutoresetMode) -> None:
    """The same."""
    there_and_back(engine, poles(), mode)


@pytest.mark.parametrize(
    "kind",
    [
        "WalkingEnv",
        "OwnStateEnv",
        "CloningEnv",
        "ArgumentsEnv",
        "MujocoLikeEnv",
        "LambdaEnv",
        "StatefulPickleEnv",
        "ReducingEnv",
    ],
)
@each(named("sync", "async-pipe-workers-2"))
def test_every_way_to_take_a_state(engine: Engine, kind: str) -> None:
    """By its own methods, its attributes, its ``__getstate__``, its ``__reduce__``; wrapped, so that steps are counted."""
    there_and_back(engine, walking(kind), AutoresetMode.NEXT_STEP)


@pytest.mark.parametrize("space", ["nested", "text", "dict-with-graph-and-sequence"])
@each(named("async-workers-2", "async-pipe-workers-2"))
def test_every_layout(engine: Engine, space: str) -> None:
    """Observations without a fixed layout too."""
    there_and_back(engine, [partial(SpaceEnv, EXAMPLE_SPACES[space])] * NUM_ENVS, AutoresetMode.NEXT_STEP)


@each(ONE_EACH)
def test_some_sub_envs(engine: Engine) -> None:
    """Only those that were asked for are in the state, and only they go back."""
    fns = counting()
    zeros = np.zeros(NUM_ENVS, np.int64)
    with closing(engine.make(fns)) as envs:
        envs.reset(seed=3)
        envs.step(zeros)
        state = envs.get_state(np.array([2, 0]))
        assert state.env_ids == (0, 2)
        later, *_ = envs.step(zeros)
        envs.set_state(state)
        observations, *_ = envs.step(zeros)
        last, *_ = envs.step(zeros)
    np.testing.assert_array_equal(observations[[0, 2]], later[[0, 2]])
    assert (observations[[1, 3]] != later[[1, 3]]).any(axis=1).all()
    assert last.shape == later.shape


@each(FEW)
def test_disabled_still_asks_for_a_reset(engine: Engine) -> None:
    """Where the state has ended episodes, ``step`` is refused after it, by an engine that has never been stepped too."""
    fns = counting()
    zeros = np.zeros(NUM_ENVS, np.int64)
    with closing(SyncVectorEnv(fns, autoreset_mode=AutoresetMode.DISABLED)) as start:
        start.reset(seed=3)
        for _ in range(3):
            start.step(zeros)
        state = start.get_state()
    with closing(engine.make(fns, autoreset_mode=AutoresetMode.DISABLED)) as envs:
        envs.set_state(state)
        with pytest.raises(ResetNeeded, match=r"\[0\]"):
            envs.step(zeros)
        envs.reset(options={"reset_mask": np.array([True, False, False, False])})
        envs.step(zeros)


@each(FEW)
def test_failures_are_part_of_it(engine: Engine) -> None:
    """One that had failed needs a reset after it; one that fails later is as good as before."""
    fns: EnvFns = [*counting()[:3], partial(RaisingEnv, index=3, episode_length=6, on="step", at=2)]
    zeros = np.zeros(NUM_ENVS, np.int64)
    with closing(engine.make(fns)) as envs:
        envs.reset(seed=3)
        envs.step(zeros)
        good = envs.get_state()
        with pytest.raises(RuntimeError):
            envs.step(zeros)
        bad = pickle.loads(pickle.dumps(envs.get_state()))
        envs.set_state(good)
        # It raises where it raised before.
        with pytest.raises(RuntimeError):
            envs.step(zeros)
        envs.reset(seed=3)
        envs.set_state(bad)
        with pytest.raises(ResetNeeded, match=r"\[3\]"):
            envs.step(zeros)
        observations, _ = envs.reset(seed=3, options={"reset_mask": np.array([False, False, False, True])})
        # Built anew, it counts its episodes from 0.
        np.testing.assert_array_equal(observations[3], counting_observation(index=3, seed=6, episode=0, step=0))
        envs.step(zeros)


@each(FEW)
def test_neither_way_names_the_sub_env(engine: Engine) -> None:
    """What can neither be asked nor pickled is named, with the attribute that is in the way; all else works on."""
    fns: EnvFns = [*walking("WalkingEnv")[:2], *walking("HoldingEnv")[:1], *walking("WalkingEnv")[:1]]
    ones = np.ones(NUM_ENVS, np.int64)
    due = due_of(fns, [ones] * 3)
    with closing(engine.make(fns)) as envs:
        envs.reset(seed=3)
        steps = walk(envs, [ones])
        with pytest.raises(SnapshotError, match=r"sub-env 2: HoldingEnv\.lock \(lock\) cannot be pickled.*get_state") as told:
            envs.get_state()
        assert "raised by sub-env 2 in get_state" in getattr(told.value, "__notes__", ())
        assert envs.get_state([0, 1, 3]).env_ids == (0, 1, 3)
        check_steps(due, steps + walk(envs, [ones] * 2))


@each(FEW)
def test_one_that_cannot_take_it(engine: Engine) -> None:
    """Other wrappers, or a ``set_state`` that raises: that sub-env needs a reset, the others are where they were."""
    ones = np.ones(NUM_ENVS, np.int64)
    fns = walking("WalkingEnv")
    due = due_of(fns, [ones] * 2)
    with closing(SyncVectorEnv(fns)) as start:
        start.reset(seed=3)
        start.step(ones)
        state = start.get_state()
    others: EnvFns = [*fns[:3], snapshot_envs.WalkingEnv]
    with closing(engine.make(others)) as envs:
        with pytest.raises(SnapshotError, match="sub-env 3: the state is of TimeLimit > WalkingEnv, this env is WalkingEnv"):
            envs.set_state(state)
        with pytest.raises(ResetNeeded, match=r"\[3\]"):
            envs.step(ones)
        envs.reset(seed=6, options={"reset_mask": np.array([False, False, False, True])})
        observations, *_ = envs.step(ones)
        np.testing.assert_array_equal(observations[:3], due[1][0][:3])


@each(FEW)
def test_a_set_state_that_raises(engine: Engine) -> None:
    """An env's own error comes with its own type."""
    with closing(engine.make(walking("StubbornStateEnv"))) as envs:
        envs.reset(seed=3)
        state = envs.get_state([1])
        with pytest.raises(ValueError, match="not this one"):
            envs.set_state(state)
        envs.reset()


def other_states(state: VectorEnvState) -> dict[str, tuple[Any, type[Exception], str]]:
    """States that do not suit, what is raised, and what it says."""
    return {
        "no state": (b"state", TypeError, "got bytes"),
        "version": (replace(state, version=0), ValueError, "of version 0"),
        "number": (replace(state, num_envs=5), ValueError, "of 5 sub-envs; this one has 4"),
        "mode": (replace(state, autoreset_mode="SameStep"), ValueError, "SameStep"),
        "layout": (replace(state, layout=((), (), 0)), ValueError, "lie as"),
        "index": (replace(state, env_ids=(0, 1, 2, 4)), ValueError, "from 0 to 3"),
        "length": (replace(state, sub_envs=state.sub_envs[:2]), ValueError, "2 states for 4"),
    }


@each(named("sync", "async-workers-2"))
def test_wrong_states_change_nothing(engine: Engine) -> None:
    """They are refused before anything is sent."""
    zeros = np.zeros(NUM_ENVS, np.int64)
    fns = counting()
    due = due_of(fns, [zeros] * 3)
    with closing(engine.make(fns)) as envs:
        envs.reset(seed=3)
        state = envs.get_state()
        steps = walk(envs, [zeros])
        for other, error, told in other_states(state).values():
            with pytest.raises(error, match=told):
                envs.set_state(other)
        for wrong in ([], [4], [-1], [1, 1], [[0, 1]], 2):
            with pytest.raises(ValueError, match="env_ids: expected"):
                envs.get_state(wrong)
        with pytest.raises(TypeError, match="env_ids: expected"):
            envs.get_state([True, False, True, True])
        check_steps(due, steps + walk(envs, [zeros] * 2))


@each(named("sync", "async", "async-caller"))
def test_not_while_a_call_is_pending(engine: Engine) -> None:
    """A state in the middle of a step would be none; nor is there one after ``close()``."""
    zeros = np.zeros(NUM_ENVS, np.int64)
    fns = counting()
    due = due_of(fns, [zeros] * 2)
    with closing(engine.make(fns)) as envs:
        envs.reset(seed=3)
        state = envs.get_state()
        envs.step_async(zeros)
        with pytest.raises(AlreadyPendingCallError, match="step_wait"):
            envs.get_state()
        with pytest.raises(AlreadyPendingCallError, match="step_wait"):
            envs.set_state(state)
        check_steps(due, [copy.deepcopy(envs.step_wait()), envs.step(zeros)])
    for ask in (envs.get_state, partial(envs.set_state, state)):
        with pytest.raises(ClosedEnvironmentError):
            ask()


def test_the_envs_stay_themselves() -> None:
    """Restoring changes an env, not which env it is; a state can be restored again and again."""
    with closing(SyncVectorEnv(walking("WalkingEnv"))) as envs:
        envs.reset(seed=3)
        before: list[Any] = list(envs.envs)
        state = envs.get_state()
        ones = np.ones(NUM_ENVS, np.int64)
        first = walk(envs, [ones] * 3)
        before[0].unwrapped.later = True
        for _ in range(2):
            envs.set_state(state)
            check_steps(first, walk(envs, [ones] * 3))
        assert all(env is old for env, old in zip(envs.envs, before, strict=True))
        base = before[0].unwrapped
        assert not hasattr(base, "later")
        assert base.alias is base.place


def test_a_wrapper_with_a_lambda() -> None:
    """What a wrapper was given may be a function that no import reaches."""
    fns = [lambda: TransformReward(snapshot_envs.WalkingEnv(), lambda reward: float(reward) * 3.0)] * NUM_ENVS
    there_and_back(ENGINES["async-workers-2"], fns, AutoresetMode.NEXT_STEP)


@each(named("sync", "async-workers-2"))
def test_restarts_go_on_with_their_seeds(engine: Engine) -> None:
    """What ``on_failure="restart"`` does after a restored state is what it did the first time."""
    fns = [partial(RaisingEnv, index=index, episode_length=9, on="step", at=2 + index) for index in range(NUM_ENVS)]
    zeros = np.zeros(NUM_ENVS, np.int64)
    with closing(engine.make(fns, on_failure="restart")) as envs:
        envs.reset(seed=3)
        walk(envs, [zeros] * 2)
        state = pickle.loads(pickle.dumps(envs.get_state()))
        due = walk(envs, [zeros] * 6)
    with closing(engine.make(fns, on_failure="restart")) as envs:
        envs.set_state(state)
        check_steps(due, walk(envs, [zeros] * 6))


def test_custom_workers_have_none() -> None:
    """Gymnasium's messages have no word for it."""
    with closing(rayvec.AsyncVectorEnv(counting(), worker=doubling_worker)) as envs:
        envs.reset(seed=3)
        with pytest.raises(NotImplementedError, match="custom worker"):
            envs.get_state()
        envs.step(np.zeros(NUM_ENVS, np.int64))
