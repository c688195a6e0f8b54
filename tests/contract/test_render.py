"""Frames of all or some sub-envs, wherever these live."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import ENGINES, FEW, Engine, each, named
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError
from painting import PaintingEnv
from workers import doubling_worker
from world import notes_of

from rayvec import AsyncVectorEnv, CallTimeoutError, WorkerLostError, tile_images
from rayvec.testing import PlainLoop, assert_same

NUM_ENVS = 5
ACTIONS = np.zeros(NUM_ENVS, np.int64)
FNS: Sequence[Any] = [partial(PaintingEnv, index=index, episode_length=3) for index in range(NUM_ENVS)]

SELECTIONS: list[Any] = [[3], [4, 0, 2], None, np.array([1, 0], np.uint8), range(NUM_ENVS), (2, 4), None]


def frames_of(loop: PlainLoop, env_ids: Any) -> tuple[Any, ...]:
    """What is due."""
    return tuple(loop.envs[index].render() for index in (range(NUM_ENVS) if env_ids is None else env_ids))


@each(ENGINES)
def test_selected_frames(engine: Engine) -> None:
    """One for each that is selected, in that order; the others do not draw, and the steps go on as if nobody had."""
    with closing(PlainLoop(FNS)) as loop, closing(engine.make(FNS)) as envs:
        assert_same(loop.reset(seed=1), envs.reset(seed=1), "reset")
        for env_ids in SELECTIONS:
            assert_same(loop.step(ACTIONS), envs.step(ACTIONS), "step")
            frames = envs.render() if env_ids is None else envs.render(env_ids)
            due = frames_of(loop, env_ids)
            assert_same(due, frames, f"render({env_ids})")
            picture = tile_images(frames)
            np.testing.assert_array_equal(picture[:2, :3], due[0])
        assert_same(loop.call("drawn"), envs.get_attr("drawn"), "drawn")


WRONG: list[tuple[Any, type[Exception], str]] = [
    ([], ValueError, r"from 0 to 4, got \[\]"),
    ([0, 5], ValueError, r"from 0 to 4, got \[0, 5\]"),
    ([-1], ValueError, r"got \[-1\]"),
    ([2, 2], ValueError, r"different indices .* got \[2, 2\]"),
    ([[0, 1]], ValueError, r"got \[\[0, 1\]\]"),
    (3, ValueError, "got 3: put a single one into a list"),
    ([0.0, 1.0], TypeError, "of dtype float64"),
    ([True] * NUM_ENVS, TypeError, r"np\.flatnonzero\(mask\)"),
    ("all", TypeError, "got 'all'"),
    ({1, 2}, TypeError, r"got \{1, 2\}"),
]


@each(named("sync", "async-caller"))
def test_wrong_selections(engine: Engine) -> None:
    """They are told before anyone draws; so is a call that comes at the wrong time."""
    with closing(engine.make(FNS)) as envs:
        envs.reset(seed=1)
        for env_ids, error, told in WRONG:
            with pytest.raises(error, match=f"env_ids: expected .*{told}"):
                envs.render(env_ids)
        envs.step_async(ACTIONS)
        with pytest.raises(AlreadyPendingCallError, match="`render`"):
            envs.render([0])
        envs.step_wait()
        assert envs.get_attr("drawn") == (0,) * NUM_ENVS
    with pytest.raises(ClosedEnvironmentError):
        envs.render([0])


@each(FEW)
def test_errors(engine: Engine) -> None:
    """What a selected sub-env raises is raised; what another would have raised is not; all of them go on."""
    with closing(PlainLoop(FNS)) as loop, closing(engine.make(FNS)) as envs:
        assert_same(loop.reset(seed=1), envs.reset(seed=1), "reset")
        envs.set_attr("level", [None, ("raise", OSError("no display")), None, None, None])
        with pytest.raises(OSError, match="no display") as caught:
            envs.render([2, 1])
        assert "sub-env 1" in notes_of(caught.value)
        frames_of(loop, [2])
        assert_same(frames_of(loop, [3, 2, 0]), envs.render([3, 2, 0]), "render")
        assert len(envs.call("where")) == NUM_ENVS
        assert_same(loop.step(ACTIONS), envs.step(ACTIONS), "step")


@each(FEW, needs="can_time_out")
def test_out_of_time(engine: Engine, tmp_path: Path) -> None:
    """``call_wait`` then gives the frames of the selected ones, in their order, and the next call is of all again."""
    gate = tmp_path / "gate"
    last = NUM_ENVS - 1
    fns = [*FNS[:last], partial(PaintingEnv, index=last, level=("wait", gate))]
    with closing(PlainLoop(FNS)) as loop, closing(engine.make(fns, call_timeout=0.1)) as envs:
        loop.reset(seed=1)
        envs.reset(seed=1)
        with pytest.raises(CallTimeoutError, match=r"0\.1 s"):
            envs.render([last, 1])
        with pytest.raises(AlreadyPendingCallError):
            envs.render([0])
        gate.touch()
        assert_same(frames_of(loop, [last, 1]), envs.call_wait(timeout=20), "call_wait")
        envs.call_async("where")
        assert [place[0] for place in envs.call_wait(timeout=20)] == list(range(NUM_ENVS))


@each(named("async", "async-pipe-workers-2", "ray-shared-memory", "ray-object-store"))
def test_a_death(engine: Engine) -> None:
    """A worker that dies while it draws is told of, and the next call is of all again."""
    with closing(engine.make(FNS)) as envs:
        envs.reset(seed=1)
        envs.set_attr("level", [None, None, None, None, ("die", 3)])
        with pytest.raises(WorkerLostError) as caught:
            envs.render([4, 0])
        assert caught.value.env_indices == tuple(engine.together_with(4, NUM_ENVS))
        envs.reset(seed=1)
        assert [place[0] for place in envs.call("where")] == list(range(NUM_ENVS))


def test_a_custom_worker() -> None:
    """It knows Gymnasium's messages only, and those are enough."""
    with closing(PlainLoop(FNS)) as loop, closing(AsyncVectorEnv(FNS, worker=doubling_worker)) as envs:
        loop.reset(seed=1)
        envs.reset(seed=1)
        for env_ids in ([3, 1], None, [0]):
            assert_same(frames_of(loop, env_ids), envs.render(env_ids), f"render({env_ids})")
        assert envs.get_attr("drawn") == loop.call("drawn")
