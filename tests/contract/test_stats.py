"""What ``stats()`` counts, on every engine."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import pytest
from engines import ONE_EACH, Engine, each
from world import kill_last

from rayvec.stats import NUM_SLOTS, QUICK_SECONDS, TIMED_EVERY, Tally, count_restart, read_stats
from rayvec.testing import CountingEnv, SlowEnv

NUM_ENVS = 4
ACTIONS = np.zeros(NUM_ENVS, np.int64)


@each(ONE_EACH)
@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_counts(engine: Engine, mode: str) -> None:
    """Steps and resets are those that the envs have seen; times are those of the workers."""
    lengths = [3, 4, 5, 100]
    env_fns: list[Any] = [partial(CountingEnv, index=index, episode_length=length) for index, length in enumerate(lengths)]
    with closing(engine.make(env_fns, autoreset_mode=mode)) as envs:
        assert str(envs.stats()) == "no steps yet"
        envs.reset(seed=1)
        for _ in range(20):
            envs.step(ACTIONS)
        stats = envs.stats()
    # An episode takes a step more where its end is reset by a step.
    period = [length + (mode == "NextStep") for length in lengths]
    in_steps = [20 // each for each in period]
    assert [told.resets for told in stats.sub_envs] == [1 + number for number in in_steps]
    assert [told.steps for told in stats.sub_envs] == [20 - number * (mode == "NextStep") for number in in_steps]
    assert [told.restarts for told in stats.sub_envs] == [0] * NUM_ENVS
    assert [list(told.envs) for told in stats.workers] == engine.shares(NUM_ENVS)
    for told in [*stats.sub_envs, *stats.workers]:
        assert 0 < told.mean_step_seconds <= told.worst_step_seconds
        assert 0 <= told.waiting_share <= 1
    for worker in stats.workers:
        assert worker.steps == 20
        assert worker.resets == sum(stats.sub_envs[index].resets for index in worker.envs)


@each(ONE_EACH, needs="in_processes")
@pytest.mark.parametrize("on_failure", ["raise", "restart"])
def test_a_worker_that_dies_before_it_has_done_anything(engine: Engine, on_failure: str) -> None:
    """The reset that starts it again is counted as a restart all the same."""
    with closing(engine.make([partial(CountingEnv, index=index) for index in range(NUM_ENVS)], on_failure=on_failure)) as envs:
        kill_last(envs)
        envs.reset(seed=1)
        stats = envs.stats()
    share = engine.together_with(NUM_ENVS - 1, NUM_ENVS)
    assert [told.restarts for told in stats.sub_envs] == [int(index in share) for index in range(NUM_ENVS)]


@each(ONE_EACH)
def test_the_one_that_holds_the_rest_back(engine: Engine) -> None:
    """The line names the worker with the slow sub-env."""
    env_fns: list[Any] = [partial(CountingEnv, index=index) for index in range(NUM_ENVS - 1)]
    with closing(engine.make([*env_fns, partial(SlowEnv, 0.1, index=NUM_ENVS - 1)])) as envs:
        envs.reset(seed=1)
        for _ in range(3):
            envs.step(ACTIONS)
        stats = envs.stats()
    share = engine.together_with(NUM_ENVS - 1, NUM_ENVS)
    assert list(stats.slowest.envs) == share
    assert stats.sub_envs[-1].mean_step_seconds >= 0.1
    if len(share) < NUM_ENVS:
        assert f"{share[-1]} (" in str(stats)
        assert "holds the rest back" in str(stats)
        assert "no worker" not in str(stats)


def step(tally: Tally, began: float, ended: float) -> None:
    """A step of which sub-env 1 takes a quarter of a second."""
    count(tally)
    assert tally.steps >= tally.due
    tally.time_one(1, 0.25)
    tally.end_step(began, ended)


def count(tally: Tally) -> None:
    """A step."""
    tally.told[0] = tally.steps = tally.steps + 1.0


def test_of_quick_steps_one_stands_for_many() -> None:
    """All are counted; one in so many is timed while they are quick, all from the first slow one on."""
    rows = np.zeros((1, NUM_SLOTS))
    tally = Tally(rows)
    count(tally)
    tally.end_step(10.0, 10.0 + QUICK_SECONDS / 2)
    for number in range(TIMED_EVERY):
        assert tally.steps + 1 < tally.due or number == TIMED_EVERY - 1
        count(tally)
    assert tally.steps == tally.due
    tally.end_step(20.0, 20.5)
    count(tally)
    assert tally.steps == tally.due
    worker = read_stats(rows, [(range(1), "someone")]).workers[0]
    assert worker.steps == TIMED_EVERY + 2
    assert worker.mean_step_seconds == pytest.approx(0.5 * TIMED_EVERY / (TIMED_EVERY + 1), rel=1e-4)
    assert worker.worst_step_seconds == 0.5


def test_times_add_up() -> None:
    """Known times give known numbers, also where a worker that was started again goes on with a tally."""
    rows = np.zeros((2, NUM_SLOTS))
    tally = Tally(rows)
    tally.end_reset(10.0, 11.0)
    step(tally, 12.0, 12.5)
    step(tally, 13.0, 14.5)
    again = Tally(rows)
    count_restart(rows)
    step(again, 1.0, 2.0)
    stats = read_stats(rows, [(range(2), "someone")])
    worker = stats.workers[0]
    assert (worker.steps, worker.mean_step_seconds, worker.worst_step_seconds, worker.restarts) == (3, 1.0, 1.5, 1)
    assert worker.waiting_share == pytest.approx(1 - 4.0 / 5.5)
    assert stats.sub_envs[1].mean_step_seconds == 0.25
    assert str(stats).startswith("the worker of sub-envs 0 to 1 (someone) takes 1 s a step")
