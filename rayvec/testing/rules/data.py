"""Observations, rewards and infos are what the sub-envs gave."""

from __future__ import annotations

from functools import partial
from typing import Any

from gymnasium import Space
from gymnasium.vector import AutoresetMode

from rayvec.testing.comparison import ConformanceError
from rayvec.testing.duel import MakeVectorEnv, close_quietly, duel
from rayvec.testing.envs import (
    BAD_REWARD_FORMS,
    EXAMPLE_SPACES,
    GOOD_REWARD_FORMS,
    WRONG_OBSERVATIONS,
    CountingEnv,
    EchoEnv,
    RewardEnv,
    WrongObservationEnv,
)
from rayvec.testing.oracle import EnvFn
from rayvec.testing.rules.common import MODES, assert_names, check_agreement, compare_spaces, counting, mask_of, take_steps
from rayvec.testing.table import rule

__all__: list[str] = ["check_space"]


@rule
def check_agreement_of_counting_envs(make: MakeVectorEnv) -> None:
    """Long random runs give the same as a plain loop, in every autoreset mode."""
    env_fns: list[EnvFn] = [
        *counting(3, infos="rich", lengths=(3, 5, 8)),
        partial(CountingEnv, index=3, episode_length=4, infos="numbers", ends="truncated"),
        partial(CountingEnv, index=4, episode_length=1, infos="numbers", ends="both"),
    ]
    check_agreement(make, env_fns, num_steps=60, seed=5)


@rule
def check_one_sub_env(make: MakeVectorEnv) -> None:
    """One sub-env alone is batched like several."""
    check_agreement(make, counting(1, infos="rich"), num_steps=20)


@rule
def check_rewards(make: MakeVectorEnv) -> None:
    """Rewards are float64 ``(num_envs,)``; one number in any form (numpy scalar, array or list of one) is taken."""
    forms = list(GOOD_REWARD_FORMS)
    with duel(make, [partial(RewardEnv, forms), partial(RewardEnv, forms[1:] + forms[:1])]) as both:
        both.reset(seed=0)
        take_steps(both, len(forms))


@rule
def check_bad_rewards(make: MakeVectorEnv) -> None:
    """A reward that is not one number raises."""
    for form in BAD_REWARD_FORMS:
        with duel(make, [RewardEnv, partial(RewardEnv, ["float", form])]) as both:
            both.reset(seed=0)
            both.step()
            try:
                both.ask_to_raise(Exception, "step", both.actions())
            except ConformanceError as error:
                error.problem += f"; the reward of sub-env 1 was of the form {form!r}"
                raise
            finally:
                close_quietly(both.envs)


@rule
def check_wrong_observations(make: MakeVectorEnv) -> None:
    """An observation of the wrong shape, dtype or structure raises and names the sub-env; nothing is made to fit."""
    for kind in WRONG_OBSERVATIONS:
        fine: partial[Any] = partial(WrongObservationEnv, kind, at=None)
        with duel(make, [fine] * 8 + [partial(WrongObservationEnv, kind, at=2)]) as both:
            try:
                both.reset(seed=0)
                both.step()
                assert_names(both.ask_to_raise(Exception, "step", both.actions()), 8)
            except ConformanceError as error:
                error.problem += f"; the observation of sub-env 8 was wrong in {kind!r}"
                raise
            finally:
                close_quietly(both.envs)


@rule
def check_info_layout(make: MakeVectorEnv) -> None:
    """Infos have an array and a mask for each key, nested dicts alike, and object arrays for what is no number."""
    for mode in MODES:
        with duel(make, counting(4, infos="rich", lengths=(9,)), mode) as both:
            both.reset(seed=0)
            take_steps(both, 6)


@rule
def check_info_promotion(make: MakeVectorEnv) -> None:
    """Infos of mixed types are promoted as NumPy would; what cannot be batched arrives intact in an object array."""
    for mode in MODES:
        with duel(make, counting(4, infos="alternating", lengths=(9, 10)), mode) as both:
            both.reset(seed=0)
            take_steps(both, 8)
            if mode is not AutoresetMode.DISABLED:
                take_steps(both, 4)


def check_space(make: MakeVectorEnv, space: Space[Any]) -> None:
    """Observations, actions and ``final_obs`` of the space arrive unchanged."""
    with duel(make, [partial(EchoEnv, space, episode_length=length) for length in (2, 3, 7)], AutoresetMode.SAME_STEP) as both:
        compare_spaces(both)
        both.reset(seed=5)
        take_steps(both, 4)
        both.reset(seed=6, options={"reset_mask": mask_of(0, 1, 0)})
        take_steps(both, 3)


def _add_space_check(name: str, space: Space[Any]) -> None:
    def check(make: MakeVectorEnv) -> None:
        check_space(make, space)

    check.__name__ = f"space_{name}".replace("-", "_")
    check.__doc__ = f"Observations, actions and ``final_obs`` of a space like {name!r} in EXAMPLE_SPACES arrive unchanged."
    rule(check)


for _name, _space in EXAMPLE_SPACES.items():
    _add_space_check(_name, _space)
