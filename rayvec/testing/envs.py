"""Small environments whose every answer is known beforehand, and example spaces to give them.

All are module-level classes, so that ``functools.partial(CountingEnv, index=3)`` is an ``env_fn`` that can be pickled and
works under every start method. None draws anything that its seed does not decide, :class:`RandomStateEnv` excepted.
The ones that fail, block or die are in :mod:`rayvec.testing.trouble`.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import Space, spaces

__all__ = [
    "BAD_REWARD_FORMS",
    "EXAMPLE_SPACES",
    "GOOD_REWARD_FORMS",
    "WRONG_OBSERVATIONS",
    "BufferEnv",
    "CountingEnv",
    "EchoEnv",
    "LogLine",
    "RandomStateEnv",
    "RewardEnv",
    "SpaceEnv",
    "WrongObservationEnv",
    "counting_info",
    "counting_observation",
    "counting_reward",
    "read_log",
    "reward_value",
]

InfoKind = Literal["none", "numbers", "rich", "alternating"]
Ending = Literal["terminated", "truncated", "both"]
Step = tuple[Any, Any, bool, bool, dict[str, Any]]

EXAMPLE_SPACES: dict[str, Space[Any]] = {
    "box-float32": spaces.Box(-1.0, 1.0, (3,), np.float32),
    "box-float16": spaces.Box(-1.0, 1.0, (2, 3), np.float16),
    "box-float64-scalar": spaces.Box(-1.0, 1.0, (), np.float64),
    "box-unbounded": spaces.Box(-np.inf, np.inf, (2,), np.float32),
    "box-uint8-image": spaces.Box(0, 255, (4, 5, 3), np.uint8),
    "box-int64": spaces.Box(-(2**40), 2**40, (2,), np.int64),
    "discrete": spaces.Discrete(5),
    "discrete-negative-start": spaces.Discrete(5, start=-3),
    "multi-discrete": spaces.MultiDiscrete([3, 5]),
    "multi-discrete-2d": spaces.MultiDiscrete(np.array([[2, 3], [4, 5]])),
    "multi-binary": spaces.MultiBinary(4),
    "multi-binary-2d": spaces.MultiBinary([2, 3]),
    "text": spaces.Text(6, charset="abcé€𝄞"),
    "text-may-be-empty": spaces.Text(4, min_length=0),
    "one-of": spaces.OneOf([spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,), np.float32), spaces.Text(4)]),
    "dict": spaces.Dict({"image": spaces.Box(0, 255, (2, 2), np.uint8), "count": spaces.Discrete(4)}),
    "tuple": spaces.Tuple([spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,), np.float32)]),
    "nested": spaces.Dict(
        {
            "pair": spaces.Tuple([spaces.MultiBinary(2), spaces.Dict({"name": spaces.Text(3)})]),
            "choice": spaces.OneOf([spaces.Discrete(2), spaces.MultiDiscrete([2, 2])]),
        }
    ),
    "graph": spaces.Graph(spaces.Box(-1.0, 1.0, (2,), np.float32), spaces.Discrete(3)),
    "graph-without-edge-features": spaces.Graph(spaces.Discrete(4), None),
    "sequence": spaces.Sequence(spaces.Box(-1.0, 1.0, (2,), np.float32)),
    "sequence-stacked": spaces.Sequence(spaces.Box(-1.0, 1.0, (2,), np.float32), stack=True),
    "dict-with-graph-and-sequence": spaces.Dict(
        {
            "position": spaces.Box(-1.0, 1.0, (2,), np.float32),
            "graph": spaces.Graph(spaces.Box(-1.0, 1.0, (2,), np.float32), None),
            "path": spaces.Sequence(spaces.Discrete(4)),
        }
    ),
}
"""A space of every kind that Gymnasium has, by a readable name."""


def counting_observation(index: int, seed: int, episode: int, step: int) -> npt.NDArray[np.int64]:
    """What :class:`CountingEnv` observes: ``[index, seed, episode, step]``, int64 ``(4,)``."""
    return np.array([index, seed, episode, step], np.int64)


def counting_reward(index: int, episode: int, step: int) -> float:
    """What :class:`CountingEnv` gives as a reward; float32 cannot hold it."""
    return index + episode / 10 + step / 1000


def counting_info(kind: InfoKind, index: int, episode: int, step: int) -> dict[str, Any]:
    """What :class:`CountingEnv` gives as an info, at a reset (step 0) and at a step.

    Args:
        kind: ``"none"``: nothing; ``"numbers"``: ``step`` (int), ``elapsed`` (float) and ``even`` (bool), always;
            ``"rich"``: these and numpy scalars, arrays, nested dicts, strings, lists and None, some at some steps only, each
            key always of one type and shape; ``"alternating"``: keys whose type or shape differs from sub-env to sub-env
            and step to step.
        index: of the sub-env.
        episode: number of resets before the one that began this episode.
        step: number of steps in this episode.
    """
    turn = index + episode + step
    if kind == "none":
        return {}
    info: dict[str, Any] = {"step": step, "elapsed": step / 10, "even": step % 2 == 0}
    if kind == "rich":
        info |= {
            "small": np.float32(step / 10),
            "counts": np.array([index, episode, step], np.int32),
            "name": f"env {index}, step {step}",
            "history": [index, list(range(step))],
            "flag": np.bool_(turn % 2 == 0),
            "nothing": None,
            "nested": {"step": step, "deeper": {"name": f"env {index}", "elapsed": step / 10}},
        }
        if turn % 2:
            info["odd_turn"] = turn
        if turn % 3 == 0:
            info["rare"] = {"counts": np.array([index, step], np.int16), "words": "three"}
    elif kind == "alternating":
        info |= {
            "number": [step, step / 10, np.float32(step), step % 2 == 0][turn % 4],
            "integer": [np.int8(-step), np.uint8(step), np.int16(step)][turn % 3],
            "array": np.full(2, step, [np.int32, np.float32][turn % 2]),
            "ragged": np.arange(1 + turn % 3),
            "big": 2**70 + step if turn % 2 else step,
            "dict_or_number": {"step": step, "list": [step]} if turn % 2 else step,
            "words": np.array(["a" * (1 + turn % 3)]),
            "text_or_number": f"step {step}" if turn % 2 else step,
        }
    return info


class LogLine(NamedTuple):
    """A line of the log that :class:`CountingEnv` keeps.

    Attributes:
        event: ``"built"`` or ``"closed"``.
        env_index: of the sub-env.
        pid: of the process it lived in.
    """

    event: str
    env_index: int
    pid: int


def read_log(path: str | os.PathLike[str]) -> list[LogLine]:
    """The lines of a log so far; none if there is no such file yet."""
    if not Path(path).exists():
        return []
    words = [line.split() for line in Path(path).read_text().splitlines()]
    return [LogLine(event, int(index), int(pid)) for event, index, pid in words]


class CountingEnv(gym.Env[npt.NDArray[np.int64], np.int64]):
    """Counts, so that every datum it gives can be written down beforehand.

    Observation ``[index, seed, episode, step]``, int64 ``(4,)`` (:func:`counting_observation`); reward
    :func:`counting_reward`; infos :func:`counting_info`. ``seed`` is the last one it was reset with, -1 before any;
    ``episode`` the number of resets before the latest, whatever their seeds, so that no reset goes unnoticed; ``step`` the
    number of steps since. Actions (``Discrete(2)``) change nothing. Stepped on beyond the end of an episode it keeps
    counting, and every such step ends the episode again.

    Args:
        index: which sub-env it is.
        episode_length: the step at which each episode ends.
        ends: whether it ends as terminated, truncated, or both at once.
        infos: the kind of infos, see :func:`counting_info`.
        render_mode: None or ``"rgb_array"``: ``(2, 2, 3)`` uint8, filled with ``step``.
        log: a file to which a line is appended when it is built and each time it is closed, see :func:`read_log`.

    Attributes:
        level: settable, for ``set_attr``; 0 at first.
        options: what the latest reset was given.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012 - as Gymnasium has it

    def __init__(
        self,
        index: int = 0,
        episode_length: int = 5,
        *,
        ends: Ending = "terminated",
        infos: InfoKind = "none",
        render_mode: str | None = None,
        log: str | os.PathLike[str] | None = None,
    ) -> None:
        self.observation_space = spaces.Box(-1, 2**62, (4,), np.int64)
        self.action_space = spaces.Discrete(2)
        self.render_mode = render_mode
        self.index = index
        self.level: Any = 0
        self.options: dict[str, Any] | None = None
        self._episode_length = episode_length
        self._ends = ends
        self._infos = infos
        self._seed = -1
        self._episode = -1
        self._step = 0
        self._log = log
        self._write_log("built")

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.int64], dict[str, Any]]:
        """Begins the next episode."""
        super().reset(seed=seed)
        self._seed = self._seed if seed is None else int(seed)
        self.options = options
        self._episode += 1
        self._step = 0
        return self._observation(), counting_info(self._infos, self.index, self._episode, 0)

    def step(self, action: np.int64) -> Step:
        """Counts one further."""
        self._step += 1
        ended = self._step >= self._episode_length
        return (
            self._observation(),
            counting_reward(self.index, self._episode, self._step),
            ended and self._ends in ("terminated", "both"),
            ended and self._ends in ("truncated", "both"),
            counting_info(self._infos, self.index, self._episode, self._step),
        )

    def render(self) -> npt.NDArray[np.uint8]:
        """A small picture in the colour of the step."""
        return np.full((2, 2, 3), self._step, np.uint8)

    def close(self) -> None:
        """Writes it down in the log."""
        self._write_log("closed")

    def where(self) -> tuple[int, int, int, int]:
        """``(index, seed, episode, step)``, to call from outside."""
        return self.index, self._seed, self._episode, self._step

    def add(self, number: float, *, times: int = 1) -> float:
        """``index + number * times``, to call from outside."""
        return self.index + number * times

    def append(self, items: list[int]) -> list[int]:
        """Appends its index to the list it is given, and returns that: a callee that changes its argument."""
        items.append(self.index)
        return items

    def _observation(self) -> npt.NDArray[np.int64]:
        return counting_observation(self.index, self._seed, self._episode, self._step)

    def _write_log(self, event: str) -> None:
        if self._log is not None:
            with Path(self._log).open("a") as log:
                log.write(f"{event} {self.index} {os.getpid()}\n")


class EchoEnv(gym.Env[Any, Any]):
    """Observes the action it is given, whatever its space; a reset observes a sample that its seed decides.

    The reward is the number of steps in the episode, so that an action that got lost shows.

    Args:
        action_space: of its actions and observations; ``Box(-1, 1, (2,), float32)`` if None.
        episode_length: the step at which each episode is truncated; None: never.
        infos: whether infos hold the action, too.
    """

    def __init__(
        self,
        action_space: Space[Any] | None = None,
        *,
        episode_length: int | None = None,
        infos: bool = False,
    ) -> None:
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32) if action_space is None else action_space
        self.observation_space = self.action_space
        self._source = copy.deepcopy(self.action_space)
        self._source.seed(0)
        self._episode_length = episode_length
        self._infos = infos
        self._step = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Samples an observation."""
        super().reset(seed=seed)
        if seed is not None:
            self._source.seed(int(seed))
        self._step = 0
        return self._source.sample(), {}

    def step(self, action: Any) -> Step:
        """Gives the action back."""
        self._step += 1
        truncated = self._episode_length is not None and self._step >= self._episode_length
        info = {"action": copy.deepcopy(action)} if self._infos else {}
        return copy.deepcopy(action), float(self._step), False, truncated, info


class SpaceEnv(gym.Env[Any, Any]):
    """Observes samples of any space; each depends on its seed, the episode and the step alone.

    Args:
        observation_space: of its observations.
        action_space: of its actions, which change nothing; ``Discrete(2)`` if None.
        episode_length: the step at which each episode is terminated.
    """

    def __init__(
        self, observation_space: Space[Any], action_space: Space[Any] | None = None, *, episode_length: int = 5
    ) -> None:
        self.observation_space = observation_space
        self.action_space = spaces.Discrete(2) if action_space is None else action_space
        self._source = copy.deepcopy(observation_space)
        self._episode_length = episode_length
        self._seed = 0
        self._episode = -1
        self._step = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins the next episode."""
        super().reset(seed=seed)
        self._seed = self._seed if seed is None else int(seed)
        self._episode += 1
        self._step = 0
        return self.observation_at(self._seed, self._episode, 0), {}

    def step(self, action: Any) -> Step:
        """Goes one step further; the reward is the number of steps."""
        self._step += 1
        observation = self.observation_at(self._seed, self._episode, self._step)
        return observation, float(self._step), self._step >= self._episode_length, False, {}

    def observation_at(self, seed: int, episode: int, step: int) -> Any:
        """What it observes there."""
        self._source.seed(int(np.random.SeedSequence([seed, episode, step]).generate_state(1)[0]))
        return self._source.sample()


class BufferEnv(gym.Env[npt.NDArray[np.float64], npt.NDArray[np.float32]]):
    """Reuses everything it can: one observation array, one info dict with one list, array and dict in it, one action.

    Observation ``[episode, step]``, float64 ``(2,)``, always the same array. It keeps the action it was given, adds 100 to
    it in place there and then and again at the next step, and shows it as ``info["kept"]``. A reset changes the options
    it is given.

    Args:
        index: which sub-env it is.
        episode_length: the step at which each episode is terminated.
    """

    def __init__(self, index: int = 0, episode_length: int = 3) -> None:
        self.observation_space = spaces.Box(-1.0, np.inf, (2,), np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._index = index
        self._episode_length = episode_length
        self._observation = np.array([-1.0, 0.0])
        self._kept = np.zeros(2, np.float32)
        self._history: list[int] = []
        self._counts = np.zeros(2, np.int64)
        self._words = ["step"]
        self._nested = {"history": self._history, "words": self._words}
        self._info: dict[str, Any] = {"history": self._history, "counts": self._counts, "nested": self._nested}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float64], dict[str, Any]]:
        """Begins the next episode, in the same buffers."""
        super().reset(seed=seed)
        if options:
            self._info["options"] = sorted(options)
            for value in options.values():
                if isinstance(value, list):
                    value.append(self._index)
            options["touched"] = True
        self._observation += [1, 0]
        self._observation[1] = 0
        self._history.clear()
        self._counts[:] = [self._index, 0]
        self._info.pop("kept", None)
        return self._observation, self._info

    def step(self, action: npt.NDArray[np.float32]) -> Step:
        """Goes one step further, in the same buffers."""
        self._kept += 100
        self._kept = action
        self._kept += 100
        self._observation[1] += 1
        step = int(self._observation[1])
        self._history.append(step)
        self._counts[1] = step
        self._words.append("step")
        self._info["kept"] = self._kept
        return self._observation, float(step), step >= self._episode_length, False, self._info

    def draw(self) -> None:
        """Changes the observation that it gave last, as an env does that renders into its frame."""
        self._observation -= 0.5


class RandomStateEnv(gym.Env[npt.NDArray[np.float64], np.int64]):
    """Observes what the process's global random states give: ``[random.random(), numpy.random.random()]``, float64 ``(2,)``.

    Its seed plays no part; two in one process draw from the same states.
    """

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (2,), np.float64)
        self.action_space = spaces.Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float64], dict[str, Any]]:
        """Draws."""
        super().reset(seed=seed)
        return self._draw(), {}

    def step(self, action: np.int64) -> Step:
        """Draws; the reward is 0 and no episode ends."""
        return self._draw(), 0.0, False, False, {}

    def _draw(self) -> npt.NDArray[np.float64]:
        return np.array([random.random(), np.random.random()])


class _Wrong(NamedTuple):
    """A space, an observation in it and one that is not."""

    space: Space[Any]
    right: Any
    wrong: Any


_THREE = spaces.Box(-9.0, 9.0, (3,), np.float32)
_RIGHT_THREE = np.zeros(3, np.float32)
_PAIR = spaces.Dict({"left": _THREE, "right": spaces.Discrete(3)})
_RIGHT_PAIR = {"left": _RIGHT_THREE, "right": np.int64(2)}

WRONG_OBSERVATIONS: dict[str, _Wrong] = {
    "shape": _Wrong(_THREE, _RIGHT_THREE, np.zeros(5, np.float32)),
    "scalar-that-broadcasts": _Wrong(_THREE, _RIGHT_THREE, np.float32(0.5)),
    "one-that-broadcasts": _Wrong(_THREE, _RIGHT_THREE, np.ones(1, np.float32)),
    "row-that-broadcasts": _Wrong(
        spaces.Box(-9.0, 9.0, (2, 3), np.float32), np.zeros((2, 3), np.float32), np.ones(3, np.float32)
    ),
    "extra-axis": _Wrong(_THREE, _RIGHT_THREE, np.zeros((1, 3), np.float32)),
    "transposed": _Wrong(spaces.Box(-9.0, 9.0, (2, 3), np.float32), np.zeros((2, 3), np.float32), np.ones((3, 2), np.float32)),
    "array-for-number": _Wrong(spaces.Discrete(3), np.int64(1), np.array([1], np.int64)),
    "float-into-int": _Wrong(spaces.Box(-9, 9, (2,), np.int64), np.zeros(2, np.int64), np.array([0.5, 1.5])),
    "float-into-discrete": _Wrong(spaces.Discrete(3), np.int64(1), np.float64(1.5)),
    "int-that-wraps": _Wrong(spaces.Box(0, 255, (2,), np.uint8), np.zeros(2, np.uint8), np.array([0, 300])),
    "text-too-long": _Wrong(spaces.Text(5), "right", "wrong and long"),
    "number-for-text": _Wrong(spaces.Text(5), "right", 5),
    "dict-key-missing": _Wrong(_PAIR, _RIGHT_PAIR, {"left": _RIGHT_THREE}),
    "dict-value-shape": _Wrong(_PAIR, _RIGHT_PAIR, {"left": np.zeros(2, np.float32), "right": np.int64(2)}),
    "tuple-too-short": _Wrong(spaces.Tuple([spaces.Discrete(3), _THREE]), (np.int64(1), _RIGHT_THREE), (np.int64(1),)),
    "choice-out-of-range": _Wrong(
        spaces.OneOf([spaces.Discrete(3), _THREE]), (np.int64(1), _RIGHT_THREE), (np.int64(2), _RIGHT_THREE)
    ),
    "none": _Wrong(_THREE, _RIGHT_THREE, None),
}
"""What :class:`WrongObservationEnv` can get wrong, with the space, an observation in it and the wrong one."""


class WrongObservationEnv(gym.Env[Any, np.int64]):
    """Observes something that its space does not allow, once.

    Args:
        kind: what is wrong about it, a key of :data:`WRONG_OBSERVATIONS`.
        at: at which call of ``on`` since it was built, from 1; None: never.
        on: ``"step"`` or ``"reset"``.
    """

    def __init__(self, kind: str, *, at: int | None = 2, on: Literal["step", "reset"] = "step") -> None:
        self.observation_space = WRONG_OBSERVATIONS[kind].space
        self.action_space = spaces.Discrete(2)
        self._kind = kind
        self._at = at
        self._on = on
        self._counts = {"step": 0, "reset": 0}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Right, unless it is the one."""
        super().reset(seed=seed)
        return self._observe("reset"), {}

    def step(self, action: np.int64) -> Step:
        """Right, unless it is the one; the reward is the number of steps since it was built."""
        observation = self._observe("step")
        return observation, float(self._counts["step"]), False, False, {}

    def _observe(self, call: str) -> Any:
        self._counts[call] += 1
        is_wrong = call == self._on and self._counts[call] == self._at
        case = WRONG_OBSERVATIONS[self._kind]
        return copy.deepcopy(case.wrong if is_wrong else case.right)


GOOD_REWARD_FORMS: dict[str, Callable[[int], Any]] = {
    "float": lambda step: step + 0.25,
    "int": lambda step: step,
    "bool": lambda step: step % 2 == 0,
    "numpy-float32": lambda step: np.float32(step + 0.25),
    "numpy-float64": lambda step: np.float64(step + 0.25),
    "numpy-int64": lambda step: np.int64(step),
    "array-without-axes": lambda step: np.array(step + 0.25),
    "array-of-one": lambda step: np.array([step + 0.25]),
    "array-of-one-by-one": lambda step: np.array([[step + 0.25]]),
    "list-of-one": lambda step: [step + 0.25],
}
"""Forms of a reward that every engine takes."""

BAD_REWARD_FORMS: dict[str, Callable[[int], Any]] = {
    "array-of-two": lambda step: np.array([0.25, 1.25]),
    "list-of-two": lambda step: [0.25, 1.25],
    "empty-list": lambda step: [],
    "none": lambda step: None,
    "text": lambda step: "1.5",
}
"""Forms of a reward that every engine refuses."""


def reward_value(form: str, step: int) -> float:
    """What a good form of reward is at a step: ``step + 0.25``, ``step`` for whole numbers, whether it is even for ``bool``."""
    if form == "bool":
        return float(step % 2 == 0)
    return float(step) if form in ("int", "numpy-int64") else step + 0.25


class RewardEnv(gym.Env[npt.NDArray[np.int64], np.int64]):
    """Gives its rewards in odd forms.

    Observation ``[step]``, int64 ``(1,)``; no episode ends.

    Args:
        form: a key of :data:`GOOD_REWARD_FORMS` or :data:`BAD_REWARD_FORMS`, or several, which take turns: the first one at
            step 1.
    """

    def __init__(self, form: str | Sequence[str] = "float") -> None:
        self.observation_space = spaces.Box(0, 2**62, (1,), np.int64)
        self.action_space = spaces.Discrete(2)
        self._forms = [form] if isinstance(form, str) else list(form)
        self._step = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.int64], dict[str, Any]]:
        """Begins again at step 0."""
        super().reset(seed=seed)
        self._step = 0
        return np.array([0]), {}

    def step(self, action: np.int64) -> Step:
        """Goes one step further."""
        form = self._forms[self._step % len(self._forms)]
        self._step += 1
        reward = (GOOD_REWARD_FORMS | BAD_REWARD_FORMS)[form](self._step)
        return np.array([self._step]), reward, False, False, {}
