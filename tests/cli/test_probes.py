"""Each probe finds its fault in an env that has it, and nothing in a sound one."""

from __future__ import annotations

from typing import Any

import bad_envs
import pytest

from rayvec.cli import probes
from rayvec.cli.probes import PROBES, Probe
from rayvec.testing import EXAMPLE_SPACES

FAULTS = [
    (probes.pickling, bad_envs.with_lock(), "not picklable", "lock"),
    (probes.children, bad_envs.StartsProcess, "starts processes", "1 process"),
    (probes.same_spaces, bad_envs.OtherSpaces, "differing spaces", "observation_space"),
    (probes.plain_reset, bad_envs.NeedsSeed, "needs a seed", "TypeError"),
    (probes.plain_reset, bad_envs.NoOptions, "reset without its arguments", "no options"),
    (probes.plain_reset, bad_envs.NoPair, "reset returns no pair", "array"),
    (probes.observations, bad_envs.OutOfBounds, "observation outside its bounds", "from 7 to 7"),
    (probes.observations, bad_envs.NotANumber, "observation outside its bounds", "NaN"),
    (probes.observations, bad_envs.OtherDtype, "observation of another dtype", "float64"),
    (probes.observations, bad_envs.UnsafeDtype, "observation of another dtype", "key 'a'"),
    (probes.observations, bad_envs.OtherShape, "observation of another shape", "(3,)"),
    (probes.observations, bad_envs.GivesList, "observation is no array", "list"),
    (probes.observations, bad_envs.OutsideDiscrete, "observation outside its bounds", "5"),
    (probes.observations, bad_envs.OutsideText, "observation outside its space", "'too long'"),
    (probes.rewards, bad_envs.RewardOfTwo, "reward is no number", "array([0., 0.])"),
    (probes.rewards, bad_envs.InfiniteReward, "reward is not finite", "nan"),
    (probes.rewards, bad_envs.OddFlags, "flags are not bool", "None"),
    (probes.infos, bad_envs.RaggedInfo, "info does not batch", "infos['deep']['path'] is an array of shape (1, 2)"),
    (probes.infos, bad_envs.MixedInfo, "info does not batch", "None, a float"),
    (probes.infos, bad_envs.ReservedInfo, "info key taken", "'final_info'"),
    (probes.infos, bad_envs.UnpicklableInfo, "info cannot be pickled", "lock"),
    (probes.observation_buffer, bad_envs.ReusesBuffer, "reuses its observation buffer", "of reset changed when step 1"),
    (probes.action_kept, bad_envs.KeepsAction, "keeps its action", "refers"),
    (probes.action_kept, bad_envs.KeepsPartOfAction, "keeps its action", "refers"),
    (probes.action_kept, bad_envs.TellsAction, "keeps its action", "refers"),
    (probes.action_kept, bad_envs.ChangesAction, "changes its action", "in place"),
    (probes.global_random_state, bad_envs.UsesNumpyRandom, "uses global random state", "numpy.random (in step 1)"),
    (probes.global_random_state, bad_envs.UsesRandom, "uses global random state", "random (in reset)"),
    (probes.determinism, bad_envs.Undecided, "not decided by its seed", "differ in reset: observation"),
    (probes.determinism, bad_envs.ReadsClock, "not decided by its seed", "infos['time']"),
    (probes.determinism, bad_envs.CarriesOver, "not decided by its seed", "has been used"),
    (probes.closing, bad_envs.RaisesInClose, "close raises", "no such window"),
    (probes.closing, bad_envs.ClosesOnce, "closes only once", "AttributeError"),
]


@pytest.mark.parametrize(("probe", "env_fn", "name", "told"), FAULTS, ids=lambda value: getattr(value, "__name__", None))
def test_a_fault_is_found(probe: Probe, env_fn: Any, name: str, told: str) -> None:
    """The finding names it, says what was seen, and how to mend it."""
    (finding,) = probe(env_fn)
    assert finding.name == name
    assert told in finding.what
    assert finding.consequence
    assert finding.remedy


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.__name__)
def test_a_sound_env_has_none(probe: Probe) -> None:
    """An env without faults gives no finding in any probe."""
    assert probe(bad_envs.SoundEnv) == []


@pytest.mark.parametrize("name", EXAMPLE_SPACES)
def test_samples_of_any_space_lie_in_it(name: str) -> None:
    """What is due is not taken for a fault, whatever the space."""
    space = EXAMPLE_SPACES[name]
    assert [found for sample in range(5) for found in probes._misfits(space, space.sample(), str(sample))] == []


def test_a_slow_close_is_told_with_its_price(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes longer than it may."""
    monkeypatch.setattr(probes, "_SLOW_CLOSE", 0.1)
    (finding,) = probes.closing(bad_envs.SlowClose)
    assert finding.name == "slow close"
    assert "0.3 s" in finding.what
    assert "16 of them that is 5 s" in finding.consequence


def test_a_close_that_hangs_does_not_hang_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that never returns is left behind in a thread."""
    monkeypatch.setattr(probes, "_STUCK_CLOSE", 0.1)
    bad_envs.StuckClose.released.clear()
    (finding,) = probes.closing(bad_envs.StuckClose)
    bad_envs.StuckClose.released.set()
    assert finding.name == "close hangs"


def test_probing_leaves_global_random_state_alone() -> None:
    """What the caller draws afterwards does not depend on what was probed."""
    before = probes._global_states()
    for probe in (probes.global_random_state, probes.determinism):
        probe(bad_envs.UsesNumpyRandom)
        probe(bad_envs.UsesRandom)
    assert probes._are_same(before, probes._global_states())
