"""Vector envs by name: ``rayvec.make_vec`` and ``rayvec.register``, held against Gymnasium's own."""

from __future__ import annotations

import copy
import inspect
import json
import multiprocessing
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import error
from gymnasium.envs.registration import EnvSpec, VectorizeMode
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import TimeAwareObservation, TransformReward
from world import child_environment

import rayvec
from rayvec.registration import EnvFactory, VectorEntryPoint

CLASSES: dict[str, Any] = {"sync": rayvec.SyncVectorEnv, "async": rayvec.AsyncVectorEnv}


@pytest.fixture(autouse=True)
def same_registry() -> Iterator[None]:
    """Gymnasium's registry as it was before, after each test."""
    before = dict(gymnasium.registry)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


@pytest.fixture(params=["sync", "async"])
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine's name in turn."""
    name: str = request.param
    return name


class Countdown(gymnasium.Env[np.ndarray[Any, Any], np.int64]):
    """Its observation is a start plus the steps taken; its reward is that too."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(
        self,
        start: float = 0.0,
        notes: list[str] | None = None,
        context: str = "",
        render_mode: str | None = None,
    ) -> None:
        self.start = start
        self.notes = notes
        self.context = context
        self.render_mode = render_mode
        if notes is not None:
            notes.append("built")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.at = self.start
        return np.array([self.at]), {}

    def step(self, action: np.int64) -> Any:
        self.at += 1
        return np.array([self.at]), self.at, False, False, {}

    def render(self) -> Any:
        return np.zeros((2, 2, 3), np.uint8)


def new_countdown(**kwargs: Any) -> Countdown:
    """An entry point for it."""
    return Countdown(**kwargs)


def closed(make_vec: Callable[..., Any], *args: Any, **kwargs: Any) -> closing[Any]:
    """For ``with``: what ``make_vec`` gives, closed afterwards."""
    return closing(make_vec(*args, **kwargs))


def negated(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """A wrapper of known effect."""
    return TransformReward(env, lambda reward: -float(reward))


@pytest.fixture
def countdown() -> str:
    """The id of a registered Countdown that has everything a spec can have."""
    gymnasium.register(
        "Countdown-v3",
        new_countdown,
        reward_threshold=3.5,
        nondeterministic=True,
        max_episode_steps=6,
        order_enforce=False,
        disable_env_checker=True,
        kwargs={"start": 10.0},
    )
    return "Countdown-v3"


class TestMakeVec:
    def test_its_signature_is_gymnasiums(self) -> None:
        ours = inspect.signature(rayvec.make_vec).parameters.values()
        theirs = inspect.signature(gymnasium.make_vec).parameters.values()
        assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in theirs]

    def test_gives_the_engine_that_was_asked_for(self, engine: str) -> None:
        with closed(rayvec.make_vec, "CartPole-v1", num_envs=3, vectorization_mode=engine) as envs:
            assert type(envs) is CLASSES[engine]
            assert envs.num_envs == 3

    @pytest.mark.parametrize("mode", [VectorizeMode.SYNC, VectorizeMode.ASYNC])
    def test_takes_gymnasiums_enum(self, mode: VectorizeMode) -> None:
        with closed(rayvec.make_vec, "CartPole-v1", 2, mode) as envs:
            assert type(envs) is CLASSES[mode.value]

    def test_no_mode_means_the_vector_entry_point_or_else_sync(self) -> None:
        for id_ in ["CartPole-v1", "Acrobot-v1"]:
            with closed(rayvec.make_vec, id_, 2) as ours, closed(gymnasium.make_vec, id_, 2) as theirs:
                assert type(ours).__name__ == type(theirs).__name__
        assert isinstance(ours, rayvec.SyncVectorEnv)

    @pytest.mark.parametrize("mode", ["snyc", "", 3, True, ["sync"]])
    def test_a_wrong_mode_names_itself_and_the_valid_ones(self, mode: Any) -> None:
        with pytest.raises(ValueError) as caught:
            rayvec.make_vec("CartPole-v1", 2, mode)
        for told in [repr(mode), "'sync'", "'async'", "'vector_entry_point'"]:
            assert told in str(caught.value)

    @pytest.mark.parametrize("num_envs", [0, -1, 2.0, "2", None])
    def test_a_number_of_envs_that_cannot_be_is_told(self, num_envs: Any) -> None:
        with pytest.raises(ValueError, match="num_envs"):
            rayvec.make_vec("CartPole-v1", num_envs, "sync")

    def test_numpy_integers_count_as_numbers_of_envs(self) -> None:
        num_envs: Any = np.int64(2)
        with closed(rayvec.make_vec, "CartPole-v1", num_envs, "sync") as envs:
            assert json.loads(envs.spec.to_json())["kwargs"]["num_envs"] == 2

    def test_unknown_ids_raise_gymnasiums_errors(self) -> None:
        ids: list[Any] = ["CratPole-v1", "CartPole-v99", "nowhere/CartPole-v1", "not an id", 7]
        for id_ in ids:
            with pytest.raises(error.Error) as theirs:
                gymnasium.make_vec(id_, 2, "sync")
            with pytest.raises(error.Error) as ours:
                rayvec.make_vec(id_, 2, "sync")
            assert type(ours.value) is type(theirs.value)
            if isinstance(id_, str):
                assert str(ours.value) == str(theirs.value)

    def test_an_id_without_version_is_the_newest(self) -> None:
        with (
            pytest.warns(UserWarning, match="latest versioned"),
            closed(rayvec.make_vec, "CartPole", 2, "sync") as envs,
        ):
            assert envs.spec.id == "CartPole-v1"

    def test_an_option_that_does_not_exist_names_its_neighbour(self, engine: str) -> None:
        with pytest.raises(TypeError, match="'observation_mod'; did you mean 'observation_mode'"):
            rayvec.make_vec("CartPole-v1", 2, engine, {"observation_mod": "same"})
        with pytest.raises(TypeError, match="'env_fns'"):
            rayvec.make_vec("CartPole-v1", 2, engine, {"env_fns": []})

    def test_kwargs_reach_the_env_and_options_the_engine(self, engine: str, countdown: str) -> None:
        options = {"copy": False, "autoreset_mode": "Disabled"}
        with closed(
            rayvec.make_vec,
            countdown,
            2,
            engine,
            options,
            start=5.0,
            max_episode_steps=2,
            render_mode="rgb_array",
        ) as envs:
            assert envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED
            assert envs.render_mode == "rgb_array"
            observations, _ = envs.reset(seed=1)
            np.testing.assert_array_equal(observations, [[5.0], [5.0]])
            envs.step(envs.action_space.sample())
            *_, truncations, _ = envs.step(envs.action_space.sample())
            assert truncations.all()

    def test_wrappers_are_applied_in_order_to_each_env(self, engine: str, countdown: str) -> None:
        with closed(rayvec.make_vec, countdown, 2, engine, wrappers=[negated, TimeAwareObservation]) as envs:
            envs.reset()
            observations, rewards, *_ = envs.step(envs.action_space.sample())
            np.testing.assert_array_equal(rewards, [-11.0, -11.0])
            np.testing.assert_array_equal(observations, [[11.0, 1.0], [11.0, 1.0]])

    def test_an_env_whose_wrapper_raises_is_closed(self) -> None:
        closed = []

        class Closing(Countdown):
            def close(self) -> None:
                closed.append(self)

        def refusing(env: Any) -> Any:
            raise OSError("no wrapper today")

        with pytest.raises(OSError, match="no wrapper today"):
            EnvFactory(EnvSpec("Closing-v0", lambda **kwargs: Closing(**kwargs)), {}, (refusing,))()
        assert len(closed) == 1

    def test_module_ids_import_the_module(self, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        name = f"plugin_for_{engine}"
        (tmp_path / f"{name}.py").write_text(
            "import gymnasium\n"
            "from gymnasium.envs.classic_control import CartPoleEnv\n"
            "gymnasium.register('Plugged-v0', lambda **kwargs: CartPoleEnv(**kwargs), max_episode_steps=4)\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        with closed(rayvec.make_vec, f"{name}:Plugged-v0", 2, engine) as envs:
            assert (envs.spec.id, envs.spec.max_episode_steps) == ("Plugged-v0", 4)
            envs.reset()
        with pytest.raises(ModuleNotFoundError, match="no_such_plugin"):
            rayvec.make_vec("no_such_plugin:Plugged-v0", 2, engine)

    def test_no_single_env_no_engine(self, engine: str) -> None:
        gymnasium.register("VectorOnly-v0", vector_entry_point="somewhere:Else")
        with pytest.raises(error.Error, match="VectorOnly-v0 has no entry point"):
            rayvec.make_vec("VectorOnly-v0", 2, engine)

    def test_nothing_the_caller_holds_is_changed(self, engine: str, countdown: str) -> None:
        gymnasium.registry[countdown].kwargs["notes"] = []
        spec_before = copy.deepcopy(gymnasium.spec(countdown))
        options: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}
        wrappers: list[Any] = [negated]
        kwargs: dict[str, Any] = {"start": 1.0}
        with closed(rayvec.make_vec, countdown, 3, engine, options, wrappers, **kwargs) as envs:
            assert envs.get_attr("notes") == (["built"], ["built"], ["built"]), "each env has its own copy"
            envs.spec.kwargs["vector_kwargs"]["copy"] = False
            envs.spec.kwargs["wrappers"].clear()
            envs.spec.kwargs["notes"].append("mine")
        assert options == {"autoreset_mode": AutoresetMode.SAME_STEP}
        assert wrappers == [negated]
        assert kwargs == {"start": 1.0}
        assert gymnasium.spec(countdown) == spec_before


class TestSpec:
    def test_it_is_laid_out_as_gymnasiums(self, engine: str, countdown: str) -> None:
        options: dict[str, Any] = {"copy": False}
        with (
            closed(rayvec.make_vec, countdown, 2, engine, options, [negated], max_episode_steps=9) as ours,
            closed(gymnasium.make_vec, countdown, 2, engine, options, [negated], max_episode_steps=9) as theirs,
        ):
            assert ours.spec == theirs.spec

    def test_it_makes_the_same_vector_env_again(self, engine: str, countdown: str) -> None:
        options = {"autoreset_mode": AutoresetMode.SAME_STEP}
        envs: Any = rayvec.make_vec(countdown, 2, engine, options, [negated], start=7.0, max_episode_steps=2)
        again: Any = rayvec.make_vec(envs.spec)
        with closing(envs), closing(again):
            assert type(again) is type(envs)
            assert again.spec == envs.spec
            assert again.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
            for one in [envs, again]:
                one.reset()
                one.step([0, 0])
                observations, rewards, _, truncations, _ = one.step([0, 0])
                np.testing.assert_array_equal(observations, [[7.0], [7.0]])
                np.testing.assert_array_equal(rewards, [-9.0, -9.0])
                assert truncations.all()

    def test_what_is_given_goes_before_what_it_records(self) -> None:
        envs: Any = rayvec.make_vec("CartPole-v1", 2, "sync", {"copy": False}, max_episode_steps=5)
        changed: Any = rayvec.make_vec(envs.spec, 3, "async", {"copy": True}, max_episode_steps=6)
        with closing(envs), closing(changed):
            assert type(changed) is CLASSES["async"]
            assert changed.spec.kwargs == {
                "num_envs": 3,
                "vectorization_mode": "async",
                "vector_kwargs": {"copy": True},
                "max_episode_steps": 6,
            } | ({"sutton_barto_reward": False} if "sutton_barto_reward" in envs.spec.kwargs else {})

    def test_json_and_back(self, engine: str) -> None:
        options = {"autoreset_mode": AutoresetMode.SAME_STEP, "copy": False}
        with closed(rayvec.make_vec, "CartPole-v1", 2, engine, options, max_episode_steps=9) as envs:
            read = EnvSpec.from_json(envs.spec.to_json())
            assert read == envs.spec
        with closed(rayvec.make_vec, read) as again:
            assert type(again) is CLASSES[engine]
            assert again.spec == read
            assert again.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP

    def test_gymnasium_takes_it_too(self, engine: str) -> None:
        with (
            closed(rayvec.make_vec, "CartPole-v1", 2, engine, {"autoreset_mode": "SameStep"}) as envs,
            closed(gymnasium.make_vec, envs.spec) as theirs,
        ):
            assert theirs.spec == envs.spec

    def test_it_shows_in_the_repr(self, engine: str) -> None:
        with closed(rayvec.make_vec, "CartPole-v1", 2, engine) as envs:
            assert "CartPole-v1" in repr(envs)


class TestVectorEntryPoint:
    def test_behaves_as_gymnasiums(self) -> None:
        with (
            closed(rayvec.make_vec, "CartPole-v1", 2, "vector_entry_point", max_episode_steps=3) as ours,
            closed(gymnasium.make_vec, "CartPole-v1", 2, "vector_entry_point", max_episode_steps=3) as theirs,
        ):
            assert type(ours) is type(theirs)
            assert ours.spec == theirs.spec
        with closed(rayvec.make_vec, ours.spec) as again:
            assert again.spec == ours.spec
            assert again.num_envs == 2

    def test_takes_neither_options_nor_wrappers(self) -> None:
        refused: list[dict[str, Any]] = [{"vector_kwargs": {"copy": False}}, {"wrappers": [negated]}]
        for given in refused:
            with pytest.raises(error.Error, match=next(iter(given))):
                rayvec.make_vec("CartPole-v1", 2, "vector_entry_point", **given)

    def test_says_when_there_is_none(self) -> None:
        with pytest.raises(error.Error, match=r"Acrobot-v1 has no vector entry point.*'sync', 'async', 'ray' or 'auto'"):
            rayvec.make_vec("Acrobot-v1", 2, "vector_entry_point")


class TestRegister:
    def test_gymnasium_gives_the_engine_by_the_new_id(self, engine: str) -> None:
        assert rayvec.register("CartPole-v1", engine=engine, copy=False) == "rayvec/CartPole-v1"
        with closed(gymnasium.make_vec, "rayvec/CartPole-v1", num_envs=3) as envs:
            assert type(envs) is CLASSES[engine]
            assert envs.num_envs == 3
            assert envs.spec.id == "rayvec/CartPole-v1"
        with closed(rayvec.make_vec, "rayvec/CartPole-v1", num_envs=3) as ours:
            assert type(ours) is CLASSES[engine]
            assert ours.spec == envs.spec

    def test_everything_else_of_the_env_is_kept(self, engine: str, countdown: str) -> None:
        rayvec.register(countdown, engine=engine)
        base, new = gymnasium.spec(countdown), gymnasium.spec("rayvec/Countdown-v3")
        for field in [
            "entry_point",
            "reward_threshold",
            "nondeterministic",
            "max_episode_steps",
            "order_enforce",
            "disable_env_checker",
            "kwargs",
        ]:
            assert getattr(new, field) == getattr(base, field)
        assert base.vector_entry_point is None, "the env's own id stays as it was"

        env = gymnasium.make("rayvec/Countdown-v3")
        assert env.reset()[0] == [10.0]
        with closed(gymnasium.make_vec, "rayvec/Countdown-v3", 2) as envs:
            observations, _ = envs.reset()
            np.testing.assert_array_equal(observations, [[10.0], [10.0]])
            lengths = [envs.step([0, 0])[3].all() for _ in range(6)]
            assert lengths == [False] * 5 + [True]

    def test_a_calls_kwargs_go_before_the_registered_ones(self, countdown: str) -> None:
        rayvec.register(countdown, engine="sync", autoreset_mode="SameStep")
        with closed(
            gymnasium.make_vec,
            "rayvec/Countdown-v3",
            2,
            autoreset_mode="Disabled",
            start=4.0,
            max_episode_steps=1,
        ) as envs:
            assert envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED
            observations, _ = envs.reset()
            np.testing.assert_array_equal(observations, [[4.0], [4.0]])
            assert envs.step([0, 0])[3].all()
        with closed(gymnasium.make_vec, "rayvec/Countdown-v3", 2) as envs:
            assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP

    def test_options_reach_the_engine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        given = []
        init = rayvec.AsyncVectorEnv.__init__

        def noting(self: Any, env_fns: Any, *args: Any, **kwargs: Any) -> None:
            given.append(kwargs)
            init(self, env_fns, *args, **kwargs)

        noting.__signature__ = inspect.signature(init)  # type: ignore[attr-defined]
        monkeypatch.setattr(rayvec.AsyncVectorEnv, "__init__", noting)
        rayvec.register("CartPole-v1", engine="async", num_workers=2, copy=False)
        gymnasium.make_vec("rayvec/CartPole-v1", 2).close()
        gymnasium.make_vec("rayvec/CartPole-v1", 2, num_workers=1).close()
        assert given == [{"num_workers": 2, "copy": False}, {"num_workers": 1, "copy": False}]

    def test_a_kwarg_the_env_is_registered_with_stays_the_envs(self) -> None:
        gymnasium.register("Contextual-v0", new_countdown, kwargs={"context": "the env's own"})
        rayvec.register("Contextual-v0", engine="async")
        with closed(gymnasium.make_vec, "rayvec/Contextual-v0", 2) as envs:
            assert envs.get_attr("context") == ("the env's own",) * 2

    def test_twice_is_quiet_and_the_last_one_counts(self) -> None:
        rayvec.register("CartPole-v1", engine="async", num_workers=2)
        rayvec.register("CartPole-v1", engine="sync")
        with closed(gymnasium.make_vec, "rayvec/CartPole-v1", 2) as envs:
            assert type(envs) is CLASSES["sync"]

    def test_the_new_id_can_be_registered_again(self) -> None:
        rayvec.register("CartPole-v1", engine="async", num_workers=2)
        assert rayvec.register("rayvec/CartPole-v1", engine="sync") == "rayvec/CartPole-v1"
        with closed(gymnasium.make_vec, "rayvec/CartPole-v1", 2) as envs:
            assert type(envs) is CLASSES["sync"]

    def test_taking_another_envs_id_warns(self) -> None:
        gymnasium.register("elsewhere/CartPole-v1", new_countdown)
        rayvec.register("CartPole-v1", engine="sync")
        with pytest.warns(UserWarning, match="stood for CartPole-v1 so far.*elsewhere/CartPole-v1"):
            rayvec.register("elsewhere/CartPole-v1", engine="sync")

    def test_another_namespace(self) -> None:
        assert rayvec.register("CartPole-v1", engine="sync", namespace="mine") == "mine/CartPole-v1"
        with closed(gymnasium.make_vec, "mine/CartPole-v1", 2) as envs:
            assert type(envs) is CLASSES["sync"]
        with pytest.raises(error.Error, match="Malformed"):
            rayvec.register("CartPole-v1", engine="sync", namespace="not one")

    def test_specs_and_modules(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rayvec.register(EnvSpec("Unregistered-v2", new_countdown, kwargs={"start": 3.0}), engine="async")
        with closed(gymnasium.make_vec, "rayvec/Unregistered-v2", 2) as envs:
            np.testing.assert_array_equal(envs.reset()[0], [[3.0], [3.0]])

        (tmp_path / "plugin_to_register.py").write_text(
            "import gymnasium\ngymnasium.register('Plugged-v1', 'gymnasium.envs.classic_control:CartPoleEnv')\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        assert rayvec.register("plugin_to_register:Plugged-v1", engine="sync") == "rayvec/Plugged-v1"
        with closed(gymnasium.make_vec, "rayvec/Plugged-v1", 2) as envs:
            envs.reset()

    def test_a_spec_with_wrappers_is_refused_and_made_directly(self, engine: str) -> None:
        wrapped = TimeAwareObservation(gymnasium.make("CartPole-v1", max_episode_steps=3))
        spec: Any = wrapped.spec
        with pytest.raises(error.Error, match=f"additional_wrappers.*vectorization_mode='{engine}'"):
            rayvec.register(spec, engine=engine)
        with closed(rayvec.make_vec, spec, 2, engine) as envs:
            assert envs.single_observation_space.shape == (5,)
            envs.reset(seed=1)
            assert [envs.step([0, 1])[3].all() for _ in range(3)] == [False, False, True]

    def test_mistakes_are_told(self) -> None:
        before = dict(gymnasium.registry)
        with pytest.raises(ValueError, match="engine must be 'sync', 'async', 'ray' or 'auto'; got 'thread'"):
            rayvec.register("CartPole-v1", engine="thread")
        with pytest.raises(TypeError, match=r"the async engine has no option 'num_worker'; .*'num_workers'"):
            rayvec.register("CartPole-v1", engine="async", num_worker=2)
        with pytest.raises(TypeError, match="the auto engine has no option 'num_actor'; did you mean 'num_actors'"):
            rayvec.register("CartPole-v1", engine="auto", num_actor=2)
        with pytest.raises(TypeError, match=r"no engine has both 'num_workers', .* and 'num_actors'"):
            rayvec.register("CartPole-v1", engine="auto", num_actors=2, num_workers=2)
        with pytest.raises(TypeError, match="the sync engine has no option 'zzz'; it has copy, "):
            rayvec.register("CartPole-v1", engine="sync", zzz=2)
        with pytest.raises(error.NameNotFound, match=r"Did you mean: `CartPole`\?"):
            rayvec.register("CratPole-v1", engine="sync")
        with (
            closed(rayvec.make_vec, "CartPole-v1", 2, "sync") as envs,
            pytest.raises(ValueError, match="a vector env's"),
        ):
            rayvec.register(envs.spec, engine="sync")
        assert gymnasium.registry == before

    def test_gymnasiums_refusals_hold(self) -> None:
        rayvec.register("CartPole-v1", engine="sync")
        for make_vec in [gymnasium.make_vec, rayvec.make_vec]:
            with pytest.raises(error.Error, match="vector_kwargs"):
                make_vec("rayvec/CartPole-v1", 2, vector_kwargs={"copy": False})

    def test_the_new_spec_survives_json(self) -> None:
        rayvec.register("CartPole-v1", engine="async", num_workers=2, autoreset_mode=AutoresetMode.SAME_STEP)
        told = gymnasium.spec("rayvec/CartPole-v1").to_json()
        del gymnasium.registry["rayvec/CartPole-v1"]
        with closed(gymnasium.make_vec, EnvSpec.from_json(told), 2) as envs:
            assert type(envs) is CLASSES["async"]
            assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
            assert EnvSpec.from_json(envs.spec.to_json()) == envs.spec

    def test_options_that_json_cannot_hold_work_and_pickle(self) -> None:
        rayvec.register("CartPole-v1", engine="async", worker=None, observation_mode="same", max_concurrency=(1,))
        spec = gymnasium.spec("rayvec/CartPole-v1")
        assert isinstance(spec.vector_entry_point, VectorEntryPoint)
        assert pickle.loads(pickle.dumps(spec)) == spec
        rayvec.register("CartPole-v1", engine="async", context=multiprocessing.get_context("fork"))
        with closed(gymnasium.make_vec, "rayvec/CartPole-v1", 2) as envs:
            assert type(envs) is CLASSES["async"]

    def test_percent_signs_and_colons_survive(self) -> None:
        spec = EnvSpec("Odd-v0", "a.b:C", kwargs={"text": "100%3A:%25 %"})
        entry_point = VectorEntryPoint("sync", spec, {"copy": True}, "some.module")
        name = entry_point.as_string()
        assert name is not None
        assert name.count(":") == 1
        assert VectorEntryPoint.from_attribute(name.partition(":")[2]) == entry_point


SPAWNING = """
    import gymnasium
    import rayvec
    from gymnasium.envs.classic_control import CartPoleEnv

    class Mine(CartPoleEnv):
        pass

    if __name__ == "__main__":
        gymnasium.register("Mine-v0", Mine, max_episode_steps=4)
        rayvec.register("Mine-v0", engine="async", context="{context}")
        for envs in [
            rayvec.make_vec("Mine-v0", 2, "async", {{"context": "{context}"}}),
            gymnasium.make_vec("rayvec/Mine-v0", 2),
        ]:
            envs.reset(seed=1)
            for _ in range(4):
                *_, truncations, infos = envs.step([0, 1])
            print(truncations.tolist())
            envs.close()
"""


@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_workers_need_not_know_the_id(context: str, tmp_path: Path) -> None:
    """An id registered under ``__main__`` is unknown to a worker that starts afresh; the spec goes along."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SPAWNING.format(context=context)))
    ran = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=50,
        env=child_environment(),
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == ["[True, True]"] * 2


def test_an_unknown_attribute_stays_unknown() -> None:
    """The module makes up attributes for entry points written as strings, and for nothing else."""
    with pytest.raises(AttributeError, match="has no attribute 'make_vek'"):
        rayvec.registration.make_vek  # type: ignore[attr-defined]  # noqa: B018
