"""Large observations that workers write straight into what is handed out: the receiver's for as long as anybody holds them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
from engines import ENGINES, START_METHODS, Engine, each, named
from gymnasium import spaces

from rayvec import WorkerLostError
from rayvec.recycling import MOST

NUM_ENVS = 4
ACTIONS = np.zeros(NUM_ENVS, np.int64)
SHAPE = (320, 320, 3)
SHARING = [*START_METHODS, *named("async", "async-caller", "ray-shared-memory", "ray-two-nodes")]
"""Engines whose workers, or some of them, share memory with the caller."""


class FilmEnv(gym.Env[Any, np.int64]):
    """Each of its frames is filled with one number: its index and, in the lower bits, how many it has given.

    Args:
        index: its own.
        raises_at: the frame in place of which it raises; None: at none.
        dies_at: the frame in place of which its process dies.
    """

    observation_space = spaces.Dict({"frame": spaces.Box(0, 255, SHAPE, np.uint8), "count": spaces.Box(0, 255, (1,), np.uint8)})
    action_space = spaces.Discrete(2)

    def __init__(self, index: int, raises_at: int | None = None, dies_at: int | None = None) -> None:
        self._index = index
        self._raises_at = raises_at
        self._dies_at = dies_at
        self._count = 0
        self._frame = np.zeros(SHAPE, np.uint8)

    def _observe(self) -> dict[str, Any]:
        # It draws into the same frame each time.
        self._frame[...] = value = told(self._index, self._count)
        self._count += 1
        return {"frame": self._frame, "count": np.array([value], np.uint8)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The next frame."""
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The next frame, or trouble."""
        if self._count == self._raises_at:
            self._raises_at = None
            raise ValueError("no film")
        if self._count == self._dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._observe(), 0.0, False, False, {}


def told(index: int, count: int) -> int:
    """What the frame ``count`` of a sub-env is filled with."""
    return 32 * (index % 8) + count % 32


def films(**options: dict[int, int]) -> list[Any]:
    """A FilmEnv each; of each option, what it is for some of them."""
    return [
        partial(FilmEnv, index, **{name: of_some[index] for name, of_some in options.items() if index in of_some})
        for index in range(NUM_ENVS)
    ]


def shown(observations: Any) -> list[int]:
    """What each frame is filled with, all over."""
    frames = observations["frame"].reshape(NUM_ENVS, -1)
    assert (frames == frames[:, :1]).all()
    assert (observations["count"] == frames[:, :1]).all()
    return [int(value) for value in frames[:, 0]]


def due(count: int) -> list[int]:
    """The same, of the frames ``count``."""
    return [told(index, count) for index in range(NUM_ENVS)]


def addresses(observations: Any) -> set[int]:
    """Where its frames lie."""
    return {int(observations["frame"].__array_interface__["data"][0])}


@each(SHARING)
def test_what_is_held_never_changes(engine: Engine) -> None:
    """However many are held, and whatever is done to them; also after the end of everything."""
    with closing(engine.make(films())) as envs:
        held = [envs.reset(seed=0)[0]]
        for count in range(1, 2 * MOST):
            observations = envs.step(ACTIONS)[0]
            assert shown(observations) == due(count)
            held.append({key: array[...] for key, array in observations.items()})
        for count, observations in enumerate(held):
            assert shown(observations) == due(count)
            observations["frame"][...] = observations["count"][...] = 200 + count
            observations["frame"].flags.writeable = False
        del observations
        for count in range(2 * MOST, 4 * MOST):
            assert shown(envs.step(ACTIONS)[0]) == due(count)
    assert [shown(observations) for observations in held] == [[200 + count] * NUM_ENVS for count in range(2 * MOST)]


@each(named("async", "async-workers-2", "async-caller", "ray-shared-memory"))
def test_nothing_is_copied_in_the_caller(engine: Engine) -> None:
    """What comes out has been filled by the workers; memory that was let go of is used again."""
    with closing(engine.make(films())) as envs:
        envs.reset(seed=0)
        seen: set[int] = set()
        last = None
        for _ in range(6 * MOST):
            observations = envs.step(ACTIONS)[0]
            seen |= addresses(observations)
            last = observations
        assert last is not None
        assert len(seen) <= 2
        copies = {address for column in envs._batch._output_columns for address in addresses(column.read_all(False))}
        assert seen <= copies


@contextmanager
def holder_of(observations: Any) -> Iterator[list[int]]:
    """A process that is forked off this one, holds observations, and tells at the end what they show then."""
    told_by, telling = os.pipe()
    ends, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(end)
        os.read(ends, 1)
        os.write(telling, bytes(shown(observations)))
        os._exit(0)
    seen: list[int] = []
    try:
        del observations
        os.close(ends)
        yield seen
    finally:
        os.close(end)
        os.waitpid(pid, 0)
        seen.extend(os.read(told_by, NUM_ENVS))
        os.close(told_by)
        os.close(telling)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@each(named("async-workers-2", "async-caller"))
def test_what_a_forked_process_holds_never_changes(engine: Engine) -> None:
    """No reference of its is counted here."""
    with closing(engine.make(films())) as envs:
        envs.reset(seed=0)
        with holder_of(envs.step(ACTIONS)[0]) as seen:
            for count in range(2, 4 * MOST):
                assert shown(envs.step(ACTIONS)[0]) == due(count)
        assert seen == due(1)


@each(SHARING)
def test_rows_of_one_that_raised(engine: Engine) -> None:
    """It has a new frame behind the reset; the others go on, and what was held before stays."""
    with closing(engine.make(films(raises_at={1: 2}))) as envs:
        envs.reset(seed=0)
        first = envs.step(ACTIONS)[0]
        with pytest.raises(ValueError, match="no film"):
            envs.step(ACTIONS)
        mask = np.array([False, True, False, False])
        assert shown(envs.reset(options={"reset_mask": mask})[0]) == [told(0, 2), told(1, 0), told(2, 2), told(3, 2)]
        assert shown(envs.step(ACTIONS)[0]) == [told(0, 3), told(1, 1), told(2, 3), told(3, 3)]
        assert shown(first) == due(1)


@each(SHARING)
def test_rows_of_one_that_was_built_anew(engine: Engine) -> None:
    """They hold the frame that was handed out last, which it has not drawn itself."""
    with closing(engine.make(films(raises_at={1: 2}), on_failure="restart")) as envs:
        envs.reset(seed=0)
        first = envs.step(ACTIONS)[0]
        assert shown(envs.step(ACTIONS)[0]) == [told(0, 2), told(1, 1), told(2, 2), told(3, 2)]
        assert shown(envs.step(ACTIONS)[0]) == [told(0, 3), told(1, 0), told(2, 3), told(3, 3)]
        assert shown(first) == due(1)


@each(SHARING)
def test_rows_of_a_worker_that_was_started_anew(engine: Engine) -> None:
    """The same, where all of its rows were written by nobody."""
    gone = engine.together_with(3, NUM_ENVS)
    with closing(engine.make(films(dies_at={3: 3}), on_failure="restart")) as envs:
        envs.reset(seed=0)
        held = [envs.step(ACTIONS)[0], envs.step(ACTIONS)[0]]
        for count in (3, 4):
            observations, _, _, truncations, _ = envs.step(ACTIONS)
            assert np.flatnonzero(truncations).tolist() == (gone if count == 3 else [])
            new = 2 if count == 3 else 0
            assert shown(observations) == [told(index, new if index in gone else count) for index in range(NUM_ENVS)]
        assert [shown(observations) for observations in held] == [due(1), due(2)]


@each(named("async-workers-2", "async-caller"))
def test_a_worker_that_dies_while_copies_are_held(engine: Engine) -> None:
    """What it has filled stays as it is."""
    with closing(engine.make(films(dies_at={3: 3}))) as envs:
        envs.reset(seed=0)
        held = [envs.step(ACTIONS)[0], envs.step(ACTIONS)[0]]
        with pytest.raises(WorkerLostError):
            envs.step(ACTIONS)
        # The new one does not come to its last frame: in its place is that of a reset.
        for num_steps in (2, 2 * MOST):
            envs.reset(seed=0)
            for _ in range(num_steps):
                envs.step(ACTIONS)
        assert [shown(observations) for observations in held] == [due(1), due(2)]


def test_views_where_they_are_wanted() -> None:
    """With ``copy=False`` nothing is filled a second time."""
    with closing(ENGINES["async-workers-2"].make(films(), copy=False)) as envs:
        frames: npt.NDArray[np.uint8] = envs.reset(seed=0)[0]["frame"]
        observations = envs.step(ACTIONS)[0]
        assert np.shares_memory(frames, observations["frame"])
        assert shown(observations) == due(1)
        assert not any(column.read_all(False)["frame"].any() for column in envs._batch._output_columns)
