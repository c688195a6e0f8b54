"""``rayvec.tune`` and ``"auto"``: what is chosen and why, whatever the env does to those who measure it.

How fast anything is no test can tell. What follows from measured times is held against times that are made up.
"""

from __future__ import annotations

import inspect
import multiprocessing
import os
import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from world import wait_until_gone, within

import rayvec
from rayvec import tuning
from rayvec.testing import CountingEnv, DyingEnv, PlainLoop, RaisingEnv, SlowEnv, StubbornEnv
from rayvec.tuning import Choice, Measurement, Probe, TuningReport, tune

SYNC = Choice("sync", {})


def processes(count: int, in_caller: bool = False) -> Choice:
    """So many workers, the caller one of them or not."""
    return Choice("async", {"num_workers": count, "step_in_caller": in_caller})


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same choices on every machine, and nothing remembered."""
    monkeypatch.setattr(tuning, "usable_cores", lambda: 2)
    tuning._REMEMBERED.clear()
    yield
    tuning._REMEMBERED.clear()


class TestWhatFollowsFromAProbe:
    """Choices that could win, from what one env does alone."""

    BUSY = Probe(build=0.001, step=20e-6, cpu=20e-6, steps=100)
    WAITING = Probe(build=0.001, step=5e-3, cpu=50e-6, steps=100)

    def promising(self, probe: Probe, num_envs: int, cores: int, **options: Any) -> list[Choice]:
        choices = tuning._choices(tuning.engine_with(options), options, num_envs, cores)
        return tuning._promising(choices, probe, num_envs, cores)

    def test_busy_steps_want_no_more_processes_than_cores(self) -> None:
        assert set(map(str, self.promising(self.BUSY, 64, 2))) == set(
            map(str, [SYNC, processes(2), processes(2, in_caller=True)])
        )

    def test_one_core_and_busy_steps_want_none(self) -> None:
        assert self.promising(self.BUSY, 64, 1) == [SYNC]

    def test_one_loop_is_not_tried_where_it_must_lose(self) -> None:
        slow = Probe(build=0.001, step=1e-3, cpu=1e-3, steps=100)
        assert SYNC not in self.promising(slow, 64, 8)
        assert SYNC in self.promising(self.BUSY, 8, 2)

    @pytest.mark.parametrize("cores", [1, 2, 8])
    def test_waiting_steps_want_a_process_each(self, cores: int) -> None:
        assert self.promising(self.WAITING, 16, cores)[0] == processes(16)

    def test_short_waits_are_shared_by_fewer(self) -> None:
        """A process more costs more than it saves when what is waited for is short."""
        short = Probe(build=0.001, step=100e-6, cpu=5e-6, steps=100)
        counts = [choice.options["num_workers"] for choice in self.promising(short, 256, 2) if choice != SYNC]
        assert max(counts) < 256
        assert min(counts) > 2

    def test_many_cores_are_tried_in_few_steps(self) -> None:
        choices = self.promising(self.BUSY, 64, 48)
        assert 2 < len(choices) <= 6
        assert max(choice.options["num_workers"] for choice in choices if choice != SYNC) <= 48

    def test_the_fastest_is_taken_unless_fewer_processes_are_as_fast(self) -> None:
        def fastest(**rates: float) -> Choice:
            by_name = {"sync": SYNC, "caller": processes(2, in_caller=True), "workers": processes(2)}
            return tuning._fastest([Measurement(by_name[name], (rate,)) for name, rate in rates.items()])[0]

        assert fastest(sync=100, caller=200, workers=150) == processes(2, in_caller=True)
        assert fastest(sync=100, caller=99, workers=200) == processes(2)
        assert fastest(sync=98, caller=99, workers=100) == SYNC
        assert fastest(sync=90, caller=99, workers=100) == processes(2, in_caller=True)

    def test_choices_are_compared_round_by_round(self) -> None:
        """A machine that becomes slower between two rounds does so for all."""
        slower = Measurement(SYNC, (100.0, 50.0, 60.0))
        faster = Measurement(processes(2), (110.0, 55.0, 45.0))
        assert slower.rate > faster.rate
        assert tuning._fastest([slower, faster])[0] == faster.choice
        assert slower.share_of(faster) == pytest.approx(100 / 110)

    def test_a_result_against_all_expectation_is_looked_at_again(self) -> None:
        def surprises(*measured: Measurement) -> bool:
            return tuning._is_surprising(measured, self.BUSY, 64, 2)

        caller = processes(2, in_caller=True)
        assert surprises(Measurement(SYNC, (100.0,)), Measurement(caller, (50.0,)))
        assert not surprises(Measurement(SYNC, (50.0,)), Measurement(caller, (100.0,)))
        assert not surprises(Measurement(SYNC, (100.0,)), Measurement(caller, note="raised"))
        assert not surprises(Measurement(SYNC, note="raised"), Measurement(caller, note="raised"))
        # Four of them are too few to expect much of a second core.
        assert not tuning._is_surprising([Measurement(SYNC, (100.0,)), Measurement(caller, (50.0,))], self.BUSY, 4, 2)

    @pytest.mark.parametrize(
        ("probe", "told"),
        [
            (Probe(1.0, 1e-5, 1e-5, 9), "building them takes about"),
            (Probe(0.001, 1.0, 1.0, 9), "a step of each takes about"),
            (Probe(0.001, 1e-5, 1e-5, 9, resident_bytes=1 << 40), "GB of memory"),
            (Probe(0.001, 1e-5, 1e-5, 9, "ValueError: no"), "the env raised ValueError: no"),
        ],
    )
    def test_what_would_take_too_much_is_not_compared(self, probe: Probe, told: str) -> None:
        obstacle = tuning._obstacle([SYNC, processes(2)], probe, 16, 2, seconds=0.5, timeout=10.0)
        assert told in str(obstacle)
        assert tuning._obstacle([SYNC, processes(2)], self.BUSY, 16, 2, seconds=0.5, timeout=10.0) is None


class TestTune:
    """The report, end to end."""

    def test_it_compares_and_tells(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Which choices are promising depends on what a busy machine lets the probe see; here it is three."""
        three = [SYNC, processes(2, in_caller=True), processes(2)]
        monkeypatch.setattr(tuning, "_promising", lambda *_: three)
        report = tune(CountingEnv, 4, seconds=0.05)
        assert [str(of_one.choice) for of_one in report.measurements if not of_one.rates] == []
        assert [of_one.choice for of_one in report.measurements] == three
        best = max(of_one.rate for of_one in report.measurements)
        chosen = next(of_one for of_one in report.measurements if of_one.choice == report.choice)
        assert chosen.rate >= 0.97 * best
        assert report.probe is not None
        assert report.probe.observation_bytes == 32
        told = str(report)
        assert told.startswith(f"4 sub-envs on 2 cores: {report.choice}\n")
        for of_one in report.measurements:
            assert f"{of_one.choice}  " in told
        assert f"because {report.reason}" in told
        envs = report.build([CountingEnv] * 4)
        assert type(envs) is {"sync": rayvec.SyncVectorEnv, "async": rayvec.AsyncVectorEnv}[report.engine]
        envs.close()

    def test_it_looks_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """For longer, at the same vector envs, and once; the second look decides."""
        looks: list[Any] = []

        def surprising(measured: Any, *_: Any) -> bool:
            looks.append(measured)
            return True

        monkeypatch.setattr(tuning, "_is_surprising", surprising)
        report = tune(partial(CountingEnv, index=0), 2, seconds=0.05)
        first, second = looks
        assert [measured.choice for measured in first] == [measured.choice for measured in second]
        assert report.measurements == second
        assert report.choice == tuning._fastest(second)[0]

    def test_envs_that_wait_get_more_workers_than_cores(self) -> None:
        report = tune(partial(SlowEnv, step_seconds=0.02), 6, seconds=0.05)
        assert report.engine == "async"
        assert report.options["num_workers"] > 2

    def test_one_sub_env_is_not_measured(self) -> None:
        report = tune(lambda: pytest.fail("it was called"), 1)
        assert report.choice == SYNC
        assert "nobody to share" in report.reason

    @pytest.mark.parametrize(
        ("options", "engine", "chosen"),
        [
            ({"num_workers": 3, "step_in_caller": True}, "async", {"num_workers": 3, "step_in_caller": True}),
            ({"num_workers": 4}, "async", {"num_workers": 4, "step_in_caller": False}),
            ({"num_workers": "auto", "step_timeout": 5.0}, "async", {"num_workers": 2, "step_in_caller": False}),
            ({"num_actors": 2, "copy": False}, "ray", {}),
        ],
    )
    def test_options_that_leave_one_choice(self, options: dict[str, Any], engine: str, chosen: dict[str, Any]) -> None:
        report = tune(lambda: pytest.fail("it was called"), 4, **options)
        assert report.engine == engine
        assert report.options == {**options, **chosen}

    def test_options_go_to_all_that_is_measured(self) -> None:
        """What needs a process to be ended is not put into the caller; DISABLED is measured though random steps go on."""
        options: dict[str, Any] = {"step_timeout": 5.0, "autoreset_mode": AutoresetMode.DISABLED, "copy": False}
        report = tune(CountingEnv, 4, seconds=0.02, **options)
        assert report.engine == "async"
        assert not report.options["step_in_caller"]
        assert options.items() <= report.options.items()
        assert [of_one.note for of_one in report.measurements] == [""] * len(report.measurements)

    @pytest.mark.parametrize("name", ["num_envs", "seconds", "timeout"])
    def test_numbers_that_cannot_be(self, name: str) -> None:
        numbers: dict[str, Any] = {"num_envs": 2, name: 0}
        with pytest.raises(ValueError, match=f"{name}: expected more than 0, got 0"):
            tune(CountingEnv, **numbers)

    def test_options_of_which_no_engine_has_all(self) -> None:
        with pytest.raises(TypeError, match=r"no engine has both 'context', .* and 'num_cpus'"):
            tune(CountingEnv, 2, context="fork", num_cpus=1)
        with pytest.raises(ValueError, match="num_workers: expected 1 or more, got 0"):
            tune(CountingEnv, 2, num_workers=0)

    def test_the_ray_engines_options_are_known(self) -> None:
        of_ray = set(inspect.signature(rayvec.RayVectorEnv).parameters)
        assert set(tuning.RAY_OPTIONS) == of_ray - set(inspect.signature(rayvec.AsyncVectorEnv).parameters)

    def test_a_daemonic_process_keeps_to_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
        assert tune(lambda: pytest.fail("it was called"), 4).choice == SYNC

    def test_nothing_happens_in_the_caller(self) -> None:
        caller = os.getpid()

        def build() -> CountingEnv:
            assert os.getpid() != caller
            random.random()
            np.random.random()
            return CountingEnv()

        before = random.getstate(), repr(np.random.get_state())
        tune(build, 4, seconds=0.02)
        assert (random.getstate(), repr(np.random.get_state())) == before


class TestTroubledEnvs:
    """Envs that raise, die, or never answer."""

    def test_a_constructor_that_raises(self) -> None:
        with pytest.raises(OSError, match="no such simulator"):
            tune(partial(RaisingEnv, on="init", error=OSError("no such simulator")), 4)

    @pytest.mark.parametrize(("at", "told"), [(2, "stepped with random actions, raised ValueError: no"), (9, "not compared")])
    def test_a_step_that_raises(self, at: int, told: str) -> None:
        """Before anything is known, processes are safest; afterwards what is known decides."""
        report = tune(partial(RaisingEnv, at=at, error=ValueError("no")), 4)
        assert told in report.reason
        assert report.measurements == ()
        if at == 2:
            assert report.choice == processes(2)

    def test_choices_that_raise_when_they_are_compared(self) -> None:
        """An env that cannot be built twice in a machine, say: the probe decides, and the notes tell."""
        report = tune(partial(OnlyInProbe, os.getpid()), 4, seconds=0.02)
        assert "raised OSError: one licence" in report.reason
        assert {of_one.note for of_one in report.measurements} == {"raised OSError: one licence"}
        assert "one licence" in str(report)

    def test_an_env_that_dies(self) -> None:
        report = tune(partial(DyingEnv, at=3), 4)
        assert report.choice == processes(2)
        assert "died" in report.reason

    @pytest.mark.parametrize("on", ["init", "step"])
    def test_an_env_that_never_answers(self, on: Any, tmp_path: Any) -> None:
        with within(5):
            report = tune(partial(StubbornEnv, on=on, marker=tmp_path / "stuck"), 4, timeout=0.5)
        assert report.choice == processes(2)
        assert "timeout=0.5 s" in report.reason
        wait_until_gone([int((tmp_path / "stuck").read_text())], timeout=5)


class OnlyInProbe(CountingEnv):
    """Built in a grandchild, or for a second time, it raises: one at a time in the process that measures."""

    _built = 0

    def __init__(self, caller: int) -> None:
        super().__init__()
        OnlyInProbe._built += 1
        if os.getppid() != caller or OnlyInProbe._built > 1:
            raise OSError("one licence")


class TestAuto:
    """``make_vec`` and ``register``."""

    def test_the_data_are_those_of_any_engine(self) -> None:
        """Fresh and seeded, as if nothing had been measured."""
        envs = rayvec.make_vec("CartPole-v1", 3, "auto", max_episode_steps=7)
        plain = PlainLoop([partial(gymnasium.make, "CartPole-v1", max_episode_steps=7)] * 3)
        np.testing.assert_array_equal(envs.reset(seed=5)[0], plain.reset(seed=5)[0])
        envs.action_space.seed(1)
        for _ in range(20):
            actions = envs.action_space.sample()
            for ours, theirs in zip(envs.step(actions)[:4], plain.step(actions)[:4], strict=True):
                np.testing.assert_array_equal(ours, theirs)
        assert envs.spec is not None
        assert envs.spec.kwargs["vectorization_mode"] == "auto"
        envs.close()
        plain.close()

    def test_it_is_tuned_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tuned: list[tuple[int, dict[str, Any]]] = []

        def noting(env_fn: Any, num_envs: int, **options: Any) -> TuningReport:
            tuned.append((num_envs, options))
            return TuningReport(num_envs, 2, SYNC, options, "it is a test")

        monkeypatch.setattr(tuning, "tune", noting)

        def made(*args: Any, **kwargs: Any) -> Any:
            envs = rayvec.make_vec(*args, **kwargs)
            envs.close()
            return envs

        envs = made("CartPole-v1", 2, "auto")
        again = made(envs.spec)
        assert tuned == [(2, {})]
        assert again.tuning is envs.tuning
        assert again.spec == envs.spec
        made("CartPole-v1", 3, "auto")
        made("CartPole-v1", 2, "auto", {"copy": False})
        made("CartPole-v1", 2, "auto", max_episode_steps=9)
        made("CartPole-v1", 2, "auto", wrappers=[gymnasium.wrappers.TimeAwareObservation])
        made("CartPole-v1", 2, "auto", wrappers=[gymnasium.wrappers.TimeAwareObservation])
        assert tuned == [(2, {}), (3, {}), (2, {"copy": False}), (2, {}), (2, {})]

    def test_registered(self) -> None:
        name = rayvec.register("CartPole-v1", engine="auto", namespace="tuned", step_timeout=30.0)
        try:
            envs = gymnasium.make_vec(name, 2, num_workers=2)
            assert type(envs) is rayvec.AsyncVectorEnv
            assert envs.tuning is not None
            assert envs.tuning.options == {"step_timeout": 30.0, "num_workers": 2, "step_in_caller": False}
            envs.close()
        finally:
            del gymnasium.registry[name]
