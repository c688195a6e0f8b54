"""rayvec's vector envs under stable-baselines3, held against SB3's own, step by step."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from contextlib import closing
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from engines import FEW, Engine, each
from gymnasium import spaces
from world import notes_of

import rayvec
from rayvec.testing import CountingEnv, RaisingEnv, SpaceEnv, assert_same
from rayvec.testing.envs import Ending

if importlib.util.find_spec("stable_baselines3") is None:
    pytest.skip("needs the extra sb3", allow_module_level=True)

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*GPU.*:UserWarning"),
]

import torch  # noqa: E402
from stable_baselines3 import PPO  # noqa: E402
from stable_baselines3.common.evaluation import evaluate_policy  # noqa: E402
from stable_baselines3.common.monitor import Monitor  # noqa: E402
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor, VecNormalize  # noqa: E402

from rayvec.sb3 import SB3VecEnv, make_sb3_vec_env  # noqa: E402

EnvFns = list[Callable[[], Any]]

DICT = spaces.Dict({"place": spaces.Box(-1.0, 1.0, (2, 3), np.float32), "kind": spaces.Discrete(5)})
CONTINUOUS = spaces.Box(-2.0, 2.0, (2,), np.float32)


class LessonEnv(gym.Wrapper[Any, Any, Any, Any]):
    """An env with a method, an attribute and a notebook of the calls that reached it; its resets know their options."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.difficulty = 1
        self.calls: list[Any] = []
        self.options: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Tells the options in its info."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.options = options
        return observation, {**info, "options": str(options or None)}

    def teach(self, lesson: Any, *, twice: bool = False) -> tuple[Any, int]:
        """Notes the lesson."""
        self.calls += [lesson] * (1 + twice)
        return lesson, len(self.calls)


class HarderLessonEnv(LessonEnv):
    """Derived, to be asked for by its base."""


def wrapped(wrapper: type[LessonEnv], env_fn: Callable[[], Any]) -> LessonEnv:
    """An env in a wrapper."""
    return wrapper(env_fn())


def counting(num_envs: int = 3) -> EnvFns:
    """Episodes of different lengths, some of which end, and some of which are cut."""
    endings: tuple[Ending, ...] = ("terminated", "truncated", "both")
    return [
        functools.partial(CountingEnv, index, episode_length=2 + index, ends=ending)
        for index, ending in zip(range(num_envs), endings, strict=False)
    ]


ENVS: dict[str, Callable[[], EnvFns]] = {
    "counting": counting,
    "cartpole": lambda: [lambda: gym.make("CartPole-v1", max_episode_steps=15)] * 3,
    "pendulum": lambda: [lambda: gym.make("Pendulum-v1", max_episode_steps=15)] * 2,
    "dict": lambda: [functools.partial(SpaceEnv, DICT, episode_length=length) for length in (2, 3, 5)],
    "tuple": lambda: [functools.partial(SpaceEnv, spaces.Tuple(tuple(DICT.values())), episode_length=3)] * 2,
    "multi": lambda: [functools.partial(SpaceEnv, spaces.MultiDiscrete([3, 4]), spaces.MultiBinary(3))] * 2,
    "monitor": lambda: [lambda: Monitor(gym.make("CartPole-v1"))] * 2,
    "infos": lambda: [functools.partial(CountingEnv, index, 3, infos="rich") for index in range(3)],
}


def adapted(engine: Engine, env_fns: EnvFns) -> SB3VecEnv:
    """The engine over these, as a VecEnv."""
    return SB3VecEnv(engine.make(env_fns, autoreset_mode="SameStep"))


def assert_equal(ours: Any, theirs: Any) -> None:
    """The same structure, shapes, dtypes and values."""
    assert_same(ours, theirs, "SB3's own")


def plain(value: Any) -> Any:
    """Without what SB3's classes differ in themselves: tuples of infos, and the time that Monitor measures."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key != "t"}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def assert_equal_infos(ours: Any, theirs: Any) -> None:
    """The same keys and values; numbers may be NumPy's."""
    ours, theirs = plain(ours), plain(theirs)
    assert len(ours) == len(theirs)
    for own, other in zip(ours, theirs, strict=True):
        assert own.keys() == other.keys()
        for key, value in other.items():
            if isinstance(value, dict):
                assert_equal_infos([own[key]], [value])
            else:
                np.testing.assert_equal(own[key], value, err_msg=key)


@pytest.mark.parametrize("name", ENVS)
@each(FEW)
def test_steps_are_those_of_sb3s_own(engine: Engine, name: str) -> None:
    """Same seeds and actions: the same observations, rewards, dones, infos and infos of resets."""
    env_fns = ENVS[name]()
    theirs = DummyVecEnv(env_fns)
    with closing(theirs), closing(adapted(engine, env_fns)) as ours:
        assert ours.observation_space == theirs.observation_space
        assert ours.action_space == theirs.action_space
        ours.action_space.seed(5)
        assert ours.seed(11) == theirs.seed(11)
        for _ in range(2):
            assert_equal(ours.reset(), theirs.reset())
            assert_equal_infos(ours.reset_infos, theirs.reset_infos)
            for _ in range(12):
                actions = np.array([ours.action_space.sample() for _ in env_fns])
                mine, other = ours.step(actions), theirs.step(actions.copy())
                assert_equal(mine[:3], other[:3])
                assert type(mine[3]) is list
                assert_equal_infos(mine[3], other[3])
                assert all(type(info["TimeLimit.truncated"]) is bool for info in mine[3])
                assert_equal_infos(ours.reset_infos, theirs.reset_infos)


@pytest.mark.parametrize("name", ["counting", "dict"])
def test_steps_are_those_of_sb3s_processes(name: str) -> None:
    """SubprocVecEnv too, but for the dtype of its rewards."""
    env_fns = ENVS[name]()
    theirs = SubprocVecEnv(env_fns, start_method="fork")
    with closing(theirs), closing(SB3VecEnv(rayvec.AsyncVectorEnv(env_fns, autoreset_mode="SameStep"))) as ours:
        ours.seed(3)
        theirs.seed(3)
        assert_equal(ours.reset(), theirs.reset())
        for _ in range(12):
            actions = np.array([ours.action_space.sample() for _ in env_fns])
            mine, other = ours.step(actions), theirs.step(actions)
            assert_equal(mine[0], other[0])
            np.testing.assert_array_equal(mine[1], other[1].astype(np.float32))
            assert_equal(mine[2], other[2])
            assert_equal_infos(mine[3], other[3])


@each(FEW)
def test_attributes_and_methods_of_some(engine: Engine) -> None:
    """Only those that the indices name are called, in the indices' order, and a method is no attribute to call."""
    env_fns: EnvFns = [functools.partial(wrapped, HarderLessonEnv, env_fn) for env_fn in counting()]
    env_fns[0] = counting()[0]
    theirs = DummyVecEnv(env_fns)
    with closing(theirs), closing(adapted(engine, env_fns)) as ours:
        for venv in (theirs, ours):
            assert venv.env_is_wrapped(LessonEnv) == [False, True, True]
            assert venv.env_is_wrapped(HarderLessonEnv, indices=[2, 0]) == [True, False]
            assert venv.env_is_wrapped(Monitor, 1) == [False]
            assert venv.env_method("teach", "sums", indices=2) == [("sums", 1)]
            assert venv.env_method("teach", "maps", indices=[2, 1], twice=True) == [("maps", 3), ("maps", 2)]
            assert venv.get_attr("calls", [1, 2]) == [["maps", "maps"], ["sums", "maps", "maps"]]
            assert venv.get_attr("calls", -1) == [["sums", "maps", "maps"]]
            venv.set_attr("difficulty", 7, indices=[1])
            assert venv.get_attr("difficulty", indices=[1, 2]) == [7, 1]
            venv.set_attr("fresh", [4, 4])
            assert venv.get_attr("fresh") == [[4, 4]] * 3
            assert venv.has_attr("fresh")
            assert venv.env_method("teach", "late", indices=[]) == []
        assert not ours.has_attr("difficulty")
        with pytest.raises(IndexError):
            ours.get_attr("fresh", 3)
        with pytest.raises(AttributeError):
            ours.get_attr("difficulty")
        with pytest.raises(AttributeError):
            ours.env_method("teach", "sums", indices=[0])
        assert ours.env_method("teach", "on", indices=[1]) == [("on", 3)]


@each(FEW)
def test_options_for_each(engine: Engine) -> None:
    """Options and seeds count for one reset, each sub-env's its own."""
    env_fns: EnvFns = [functools.partial(wrapped, LessonEnv, env_fn) for env_fn in counting()]
    theirs = DummyVecEnv(env_fns)
    with closing(theirs), closing(adapted(engine, env_fns)) as ours:
        for options in ({"level": 2}, [{"level": 1}, {}, {"level": 3}], None):
            for venv in (ours, theirs):
                venv.seed(4)
                venv.set_options(options)
            # Options that differ, empty ones among them, come in one masked reset each.
            for _ in range(2):
                assert_equal(ours.reset(), theirs.reset())
                assert_equal([info["options"] for info in ours.reset_infos], [info["options"] for info in theirs.reset_infos])


def test_pictures() -> None:
    """Pictures of each, and all of them tiled."""
    env_fns: EnvFns = [lambda: gym.make("CartPole-v1", render_mode="rgb_array")] * 3
    theirs = DummyVecEnv(env_fns)
    with closing(theirs), closing(SB3VecEnv(rayvec.AsyncVectorEnv(env_fns, num_workers=2, autoreset_mode="SameStep"))) as ours:
        for venv in (ours, theirs):
            venv.seed(1)
            venv.reset()
        assert ours.render_mode == "rgb_array"
        assert_equal(ours.get_images(), theirs.get_images())
        assert_equal(ours.render(), theirs.render())


def test_no_pictures() -> None:
    """Envs that do not render give none, and a warning."""
    told = pytest.warns(UserWarning, match="get_images: expected sub-envs with render_mode='rgb_array', got None")
    with closing(SB3VecEnv(rayvec.SyncVectorEnv(counting(), autoreset_mode="SameStep"))) as ours, told:
        assert ours.get_images() == [None] * 3


@each(FEW)
def test_an_env_that_raises(engine: Engine) -> None:
    """Its own error comes through, and a reset goes on."""
    with closing(adapted(engine, [CountingEnv, functools.partial(RaisingEnv, on="step")])) as ours:
        ours.reset()
        with pytest.raises(RuntimeError) as raised:
            ours.step(np.zeros(2, np.int64))
        assert "sub-env 1" in notes_of(raised.value)
        assert len(ours.reset()) == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "expected autoreset_mode='SameStep'.*got 'NextStep'.*make_sb3_vec_env"),
        ({"autoreset_mode": "Disabled"}, "got 'Disabled'"),
        ({"autoreset_mode": "SameStep", "copy": False}, "expected copy=True"),
    ],
)
def test_what_does_not_suit_sb3_is_told(options: dict[str, Any], told: str) -> None:
    """Modes whose data would mean something else."""
    with closing(rayvec.SyncVectorEnv(counting(), **options)) as envs, pytest.raises(ValueError, match=told):
        SB3VecEnv(envs)
    others: Any = gym.make_vec("CartPole-v1", 1, "sync")
    with closing(others), pytest.raises(TypeError, match="a vector env of rayvec's"):
        SB3VecEnv(others)


def test_make_by_id() -> None:
    """Options go where they belong, and the seed decides the first observations."""
    options = {"num_workers": 2}
    with closing(make_sb3_vec_env("CartPole-v1", 4, "async", options, seed=5, max_episode_steps=9)) as venv:
        assert isinstance(venv, VecMonitor)
        with closing(rayvec.make_vec("CartPole-v1", 4, "sync")) as plain_envs:
            assert_equal(venv.reset(), plain_envs.reset(seed=5)[0])
        lengths: list[int] = []
        for _ in range(30):
            infos = venv.step(np.arange(4) % 2)[3]
            lengths += [info["episode"]["l"] for info in infos if "episode" in info]
        assert lengths
        assert max(lengths) <= 9
    assert options == {"num_workers": 2}
    with closing(make_sb3_vec_env("CartPole-v1", monitor=False)) as venv:
        assert isinstance(venv, SB3VecEnv)
        assert isinstance(venv.envs, rayvec.SyncVectorEnv)
    with pytest.raises(ValueError, match="got 'NextStep'"):
        make_sb3_vec_env("CartPole-v1", vector_kwargs={"autoreset_mode": "NextStep"})


def test_training_is_that_of_sb3s_own() -> None:
    """With the same seed PPO ends with the same weights, through VecNormalize, and plays the same episodes."""
    env_fns: EnvFns = [lambda: gym.make("CartPole-v1")] * 4
    torch.set_num_threads(1)  # a small policy: more would only wait for each other
    weights, evaluations = [], []
    for make in (DummyVecEnv, lambda fns: SB3VecEnv(rayvec.AsyncVectorEnv(fns, num_workers=2, autoreset_mode="SameStep"))):
        with closing(VecNormalize(VecMonitor(make(env_fns)))) as venv:
            model = PPO("MlpPolicy", venv, n_steps=32, batch_size=64, n_epochs=2, seed=7, device="cpu")
            model.learn(256)
            weights.append([parameter.detach().numpy().copy() for parameter in model.policy.parameters()])
            venv.seed(9)
            evaluations.append(evaluate_policy(model, venv, n_eval_episodes=4, return_episode_rewards=True, warn=True))
            assert len(model.ep_info_buffer or ()) > 0
    assert_equal(*weights)
    assert evaluations[0] == evaluations[1]
