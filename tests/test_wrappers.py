"""Gymnasium's vector wrappers give over rayvec's engines exactly what they give over Gymnasium's own."""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
from gymnasium import spaces, wrappers
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers import vector

from rayvec import AsyncVectorEnv, SyncVectorEnv
from rayvec.testing.comparison import assert_same
from rayvec.testing.envs import CountingEnv

NUM_STEPS = 200

AnyVectorEnv = VectorEnv[Any, Any, Any]
EnvFns = Sequence[Callable[[], gym.Env[Any, Any]]]
Make = Callable[[EnvFns, AutoresetMode], AnyVectorEnv]
Wrap = Callable[[Any], AnyVectorEnv]

ENGINES: dict[str, Make] = {
    "sync": lambda env_fns, mode: SyncVectorEnv(env_fns, autoreset_mode=mode),
    "async": lambda env_fns, mode: AsyncVectorEnv(env_fns, autoreset_mode=mode, num_workers=2),
    "async-pipe": lambda env_fns, mode: AsyncVectorEnv(env_fns, autoreset_mode=mode, num_workers=2, shared_memory=False),
    "async-caller": lambda env_fns, mode: AsyncVectorEnv(env_fns, autoreset_mode=mode, num_workers=2, step_in_caller=True),
}

NEXT_STEP, SAME_STEP, DISABLED = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED
MODES = (NEXT_STEP, SAME_STEP, DISABLED)
NOT_SAME_STEP = (NEXT_STEP, DISABLED)
"""Gymnasium's wrappers that change observations refuse ``SAME_STEP``: they would leave ``final_obs`` as it is."""


# Envs


class DictEnv(gym.Env[dict[str, Any], np.int64]):
    """Observes a dict; its rewards are not whole numbers, and its infos hold numbers."""

    def __init__(self, episode_length: int) -> None:
        box = spaces.Box(-1.0, 1.0, (2, 2), np.float32)
        self.observation_space = spaces.Dict({"position": box, "count": spaces.Discrete(4)})
        self.action_space = spaces.Discrete(2)
        self._episode_length = episode_length
        self._step = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begins an episode."""
        super().reset(seed=seed)
        self._step = 0
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Goes one step further."""
        self._step += 1
        info = {"score": self._step, "nested": {"action": int(action)}}
        return self._observation(), self._step / 7, self._step >= self._episode_length, False, info

    def _observation(self) -> dict[str, Any]:
        return {"position": self.np_random.random((2, 2), np.float32), "count": np.int64(self._step % 4)}


class ImageEnv(gym.Env[npt.NDArray[np.uint8], np.int64]):
    """Observes pictures; each episode ends after six steps."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 255, (6, 4, 3), np.uint8)
        self.action_space = spaces.Discrete(2)
        self._step = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.uint8], dict[str, Any]]:
        """Begins an episode."""
        super().reset(seed=seed)
        self._step = 0
        return self.np_random.integers(0, 256, (6, 4, 3), np.uint8), {}

    def step(self, action: np.int64) -> tuple[npt.NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Goes one step further."""
        self._step += 1
        return self.np_random.integers(0, 256, (6, 4, 3), np.uint8), 1.0, False, self._step == 6, {}


def made(name: str, **kwargs: Any) -> Callable[[], gym.Env[Any, Any]]:
    """One of Gymnasium's own envs."""
    return functools.partial(gym.make, name, disable_env_checker=True, **kwargs)


ENVS: dict[str, EnvFns] = {
    "cartpole": [made("CartPole-v1")] * 3,
    "pendulum": [made("Pendulum-v1", max_episode_steps=length) for length in (20, 33, 200)],
    "dict": [functools.partial(DictEnv, length) for length in (3, 8, 50)],
    "image": [ImageEnv] * 3,
}


class KeepsOptions(gym.vector.VectorWrapper):
    """Guards the caller's options against Gymnasium's ``SyncVectorEnv``.

    That takes the mask out of the caller's own dict, where ``RecordEpisodeStatistics`` looks for it afterwards: not finding
    it, it forgets the statistics of sub-envs that were not reset, and gives returns that are too small.
    """

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Passes a copy on."""
        return self.env.reset(seed=seed, options=None if options is None else dict(options))


def gymnasiums(env_fns: EnvFns, mode: AutoresetMode = NEXT_STEP) -> AnyVectorEnv:
    """What rayvec's engines are compared with."""
    return KeepsOptions(gym.vector.SyncVectorEnv(env_fns, autoreset_mode=mode))


# Wrappers


def double(value: Any) -> Any:
    """Twice as much."""
    return value * 2


def halved(space: spaces.Box) -> spaces.Box:
    """The space of actions that are doubled before the env gets them."""
    return spaces.Box(space.low / 2, space.high / 2, space.shape, space.dtype)


def doubled(space: spaces.Box) -> spaces.Box:
    """The space of observations that are doubled behind the env."""
    return spaces.Box(space.low * 2, space.high * 2, space.shape, space.dtype)


def stacked(envs: Any) -> AnyVectorEnv:
    """What a training script often puts around its envs."""
    envs = vector.RecordEpisodeStatistics(envs, buffer_length=20)
    envs = vector.ClipAction(envs)
    envs = vector.NormalizeObservation(envs)
    envs = vector.TransformObservation(envs, functools.partial(np.clip, a_min=-10, a_max=10))
    envs = vector.NormalizeReward(envs, gamma=0.9)
    return vector.TransformReward(envs, functools.partial(np.clip, a_min=-10, a_max=10))


class Case(NamedTuple):
    """A wrapper, the envs that it is tried on, and the modes that it supports."""

    env: str
    wrap: Wrap
    modes: Sequence[AutoresetMode] = MODES


CASES: dict[str, Case] = {
    "no-wrapper": Case("dict", lambda envs: envs),
    "RecordEpisodeStatistics": Case("cartpole", vector.RecordEpisodeStatistics),
    "RecordEpisodeStatistics-dict": Case("dict", functools.partial(vector.RecordEpisodeStatistics, stats_key="stats")),
    "NormalizeObservation": Case("cartpole", vector.NormalizeObservation, [NEXT_STEP]),
    "NormalizeReward": Case("pendulum", vector.NormalizeReward),
    "NormalizeReward-dict": Case("dict", functools.partial(vector.NormalizeReward, gamma=0.5)),
    "DictInfoToList": Case("dict", vector.DictInfoToList),
    "DictInfoToList-statistics": Case("cartpole", lambda envs: vector.DictInfoToList(vector.RecordEpisodeStatistics(envs))),
    "ClipReward": Case("pendulum", functools.partial(vector.ClipReward, min_reward=-2, max_reward=-0.5)),
    "TransformReward": Case("dict", functools.partial(vector.TransformReward, func=double)),
    "VectorizeTransformReward": Case(
        "pendulum", functools.partial(vector.VectorizeTransformReward, wrapper=wrappers.TransformReward, func=double)
    ),
    "TransformObservation": Case("cartpole", functools.partial(vector.TransformObservation, func=double), NOT_SAME_STEP),
    "VectorizeTransformObservation": Case(
        "cartpole",
        lambda envs: vector.VectorizeTransformObservation(
            envs,
            wrappers.TransformObservation,
            func=double,
            observation_space=doubled(envs.single_observation_space),
        ),
        NOT_SAME_STEP,
    ),
    "FilterObservation": Case("dict", functools.partial(vector.FilterObservation, filter_keys=["position"]), NOT_SAME_STEP),
    "FlattenObservation": Case("dict", vector.FlattenObservation, NOT_SAME_STEP),
    "GrayscaleObservation": Case("image", vector.GrayscaleObservation, NOT_SAME_STEP),
    "ReshapeObservation": Case("image", functools.partial(vector.ReshapeObservation, shape=(3, 24)), NOT_SAME_STEP),
    "RescaleObservation": Case(
        "pendulum", functools.partial(vector.RescaleObservation, min_obs=np.float32(0), max_obs=np.float32(1)), NOT_SAME_STEP
    ),
    "DtypeObservation": Case("cartpole", functools.partial(vector.DtypeObservation, dtype=np.float64), NOT_SAME_STEP),
    "RescaleAction": Case(
        "pendulum", functools.partial(vector.RescaleAction, min_action=np.float32(-0.5), max_action=np.float32(0.5))
    ),
    "ClipAction": Case("pendulum", vector.ClipAction),
    "TransformAction": Case(
        "pendulum",
        lambda envs: vector.TransformAction(envs, double, single_action_space=halved(envs.single_action_space)),
    ),
    "VectorizeTransformAction": Case(
        "pendulum",
        lambda envs: vector.VectorizeTransformAction(
            envs, wrappers.TransformAction, func=double, action_space=halved(envs.single_action_space)
        ),
    ),
    "stack": Case("pendulum", stacked, [NEXT_STEP]),
}


# Running


def without_times(value: Any) -> Any:
    """Infos without the seconds that ``RecordEpisodeStatistics`` measures: they are never the same twice."""
    if isinstance(value, dict):
        own = {key: without_times(part) for key, part in value.items()}
        return {key: part for key, part in own.items() if not (key in ("t", "_t") and "r" in own)}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def spaces_of(envs: AnyVectorEnv) -> list[Any]:
    """The four spaces, as text that tells all there is to tell."""
    return [
        repr(space)
        for space in (envs.observation_space, envs.single_observation_space, envs.action_space, envs.single_action_space)
    ]


def rollout(envs: AnyVectorEnv, mode: AutoresetMode, num_steps: int = NUM_STEPS) -> list[Any]:
    """Everything that a run returns; without autoreset, episodes that have ended are reset by mask."""
    envs.action_space.seed(3)
    results: list[Any] = [("spaces", spaces_of(envs), envs.num_envs, envs.metadata["autoreset_mode"])]
    results.append(("reset", *copy.deepcopy(envs.reset(seed=11))))
    for _ in range(num_steps):
        observations, rewards, terminations, truncations, infos = envs.step(envs.action_space.sample())
        results.append(copy.deepcopy(("step", observations, rewards, terminations, truncations, without_times(infos))))
        ended = terminations | truncations
        if mode is DISABLED and ended.any():
            results.append(copy.deepcopy(("masked reset", *envs.reset(options={"reset_mask": ended}))))
    results.append(("full reset", *copy.deepcopy(envs.reset(seed=7))))
    return results


def state_of(envs: Any) -> list[Any]:
    """What the wrappers have gathered: running means, statistics of episodes."""
    found: list[Any] = []
    while isinstance(envs, gym.vector.VectorWrapper) and not isinstance(envs, KeepsOptions):
        for name in ("return_queue", "length_queue", "episode_count"):
            if hasattr(envs, name):
                found.append((name, np.array(getattr(envs, name))))
        for name in ("obs_rms", "return_rms"):
            if hasattr(envs, name):
                rms = getattr(envs, name)
                found.append((name, rms.mean, rms.var, rms.count))
        envs = envs.env
    return found


@functools.cache
def due(name: str, mode: AutoresetMode) -> list[Any]:
    """What the wrapper gives over Gymnasium's own ``SyncVectorEnv``."""
    case = CASES[name]
    envs = case.wrap(gymnasiums(ENVS[case.env], mode))
    results = [*rollout(envs, mode), ("state", *state_of(envs))]
    envs.close()
    return results


def assert_equal_runs(expected: list[Any], actual: list[Any]) -> None:
    """Every call has returned the same, down to types and bits."""
    assert len(expected) == len(actual)
    for number, (one, other) in enumerate(zip(expected, actual, strict=True)):
        assert_same(one, other, f"call {number} ({one[0]})")


def runs() -> list[Any]:
    """Each wrapper over every engine, in each of its modes over the sync one and in turn over the others."""
    first, *others = ENGINES
    return [
        pytest.param(name, mode, engine, id=f"{name}-{mode.name.lower()}-{engine}")
        for name, case in CASES.items()
        for turn, mode in enumerate(case.modes)
        for engine in [first, *others[turn :: len(case.modes)]]
    ]


@pytest.mark.parametrize(("name", "mode", "engine"), runs())
def test_a_wrapper_gives_the_same(name: str, mode: AutoresetMode, engine: str) -> None:
    """A run of 200 steps through the wrapper is identical over Gymnasium's engine and over rayvec's."""
    case = CASES[name]
    envs = case.wrap(ENGINES[engine](ENVS[case.env], mode))
    try:
        actual = [*rollout(envs, mode), ("state", *state_of(envs))]
    finally:
        envs.close()
    assert_equal_runs(due(name, mode), actual)
    assert any((result[3] | result[4]).any() for result in actual if result[0] == "step"), "no episode has ended"


def test_every_wrapper_is_tried() -> None:
    """Those that Gymnasium has now, and the reason why some are not in the table."""
    elsewhere = {
        "RecordVideo": "below",
        "HumanRendering": "below",
        "NumpyToTorch": "below, where torch is installed",
        "JaxToNumpy": "converts for envs that compute with JAX",
        "JaxToTorch": "converts for envs that compute with JAX",
        "ArrayConversion": "converts for envs that compute with other frameworks",
        "ResizeObservation": "needs OpenCV; it is a VectorizeTransformObservation",
    }
    tried = {name.split("-")[0] for name in CASES}
    assert set(vector.__all__) <= tried | set(elsewhere)


# Wrappers that need something more

needs_torch = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ["torch", "array_api_compat"])), reason="needs the extra torch"
)


@needs_torch
@pytest.mark.parametrize("engine", ENGINES)
def test_tensors_are_the_same(engine: str) -> None:
    """``NumpyToTorch`` makes the same tensors."""
    torch: Any = importlib.import_module("torch")

    def run(envs: AnyVectorEnv) -> list[Any]:
        wrapped: Any = vector.NumpyToTorch(envs)
        results: list[Any] = [("reset", wrapped.reset(seed=1)[0].numpy())]
        for step in range(NUM_STEPS):
            result = wrapped.step(torch.tensor([step % 2, 1, 0]))
            results.append(("step", *(part.numpy().copy() for part in result[:4])))
        wrapped.close()
        return results

    expected = run(gymnasiums(ENVS["cartpole"]))
    assert_equal_runs(expected, run(ENGINES[engine](ENVS["cartpole"], NEXT_STEP)))


@needs_torch
@pytest.mark.parametrize("copy_results", [True, False])
def test_tensors_are_the_arrays_memory(copy_results: bool) -> None:
    """``NumpyToTorch`` copies nothing: each step's tensors are its own with ``copy=True``, otherwise the engine's."""
    torch: Any = importlib.import_module("torch")
    given: list[Any] = []

    class Witness(gym.vector.VectorWrapper[Any, Any, Any, Any, Any]):
        """Keeps the arrays that the engine gives."""

        def step(self, actions: Any) -> Any:
            """Steps."""
            given.append(self.env.step(actions))
            return given[-1]

    envs = AsyncVectorEnv(ENVS["cartpole"], num_workers=2, copy=copy_results)
    wrapped: Any = vector.NumpyToTorch(Witness(envs))
    wrapped.reset(seed=1)
    steps = [wrapped.step(torch.tensor([0, 1, 0]))[:4] for _ in range(2)]
    places = [[tensor.data_ptr() for tensor in step] for step in steps]
    assert places == [[array.ctypes.data for array in result[:4]] for result in given]
    assert (places[0][0] != places[1][0]) == copy_results
    assert torch.equal(steps[0][0], steps[1][0]) != copy_results
    wrapped.close()


PICTURES: EnvFns = [functools.partial(CountingEnv, index, 4 + index, render_mode="rgb_array") for index in range(3)]

Videos = dict[str, npt.NDArray[Any]]


class FakeClip:
    """Stands for moviepy's: it keeps the frames instead of encoding them."""

    videos: Videos = {}  # noqa: RUF012 - one for all, emptied before each run

    def __init__(self, frames: Sequence[npt.NDArray[Any]], fps: int) -> None:
        self._frames = np.array(frames)

    def write_videofile(self, path: str, logger: Any) -> None:
        """Keeps them under the name of the file."""
        self.videos[Path(path).name] = self._frames


@pytest.fixture
def fake_moviepy(monkeypatch: pytest.MonkeyPatch) -> Videos:
    """Frames of videos that would have been written, by file name."""
    for name in ["moviepy", "moviepy.video", "moviepy.video.io", "moviepy.video.io.ImageSequenceClip"]:
        module = ModuleType(name)
        module.ImageSequenceClip = FakeClip  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
    FakeClip.videos.clear()
    return FakeClip.videos


@pytest.mark.filterwarnings("ignore:.*(Overwriting existing videos|same-step|zero frames)")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", MODES)
def test_videos_are_the_same(mode: AutoresetMode, engine: str, fake_moviepy: Videos, tmp_path: Path) -> None:
    """``RecordVideo`` records the same videos, frame by frame; only the encoder is replaced."""

    def run(envs: AnyVectorEnv) -> tuple[list[Any], Videos]:
        fake_moviepy.clear()
        wrapped = vector.RecordVideo(envs, str(tmp_path), episode_trigger=lambda episode: episode % 2 == 0)
        results = rollout(wrapped, mode, 30)
        wrapped.close()
        return results, dict(fake_moviepy)

    expected, videos = run(gymnasiums(PICTURES, mode))
    actual, own_videos = run(ENGINES[engine](PICTURES, mode))
    assert_equal_runs(expected, actual)
    assert len(videos) >= 2
    assert_same(videos, own_videos, "videos")


@pytest.mark.parametrize("engine", ENGINES)
def test_windows_show_the_same(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``HumanRendering`` shows the same pictures, on a display that nobody sees; only OpenCV's resize is replaced."""
    pygame = pytest.importorskip("pygame", reason="pygame is not installed", exc_type=ImportError)
    opencv = ModuleType("cv2")
    opencv.resize = lambda image, size: np.resize(image, (size[1], size[0], 3))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cv2", opencv)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")

    def run(envs: AnyVectorEnv) -> list[Any]:
        envs.metadata = {**envs.metadata, "render_fps": 10_000}
        wrapped = vector.HumanRendering(envs, screen_size=(8, 8))
        shown = []
        try:
            wrapped.reset(seed=1)
            for _ in range(12):
                wrapped.step(np.array([0, 1, 0]))
                assert wrapped.window is not None
                shown.append(("picture", pygame.surfarray.array3d(wrapped.window)))
        finally:
            wrapped.close()
        return shown

    expected = run(gymnasiums(PICTURES))
    assert len({picture.tobytes() for _, picture in expected}) > 4
    assert_equal_runs(expected, run(ENGINES[engine](PICTURES, NEXT_STEP)))
