"""Resets: seeds, options, masks, and the step after them."""

from __future__ import annotations

import copy
from functools import partial

from rayvec.testing.comparison import assert_same
from rayvec.testing.duel import MakeVectorEnv, duel
from rayvec.testing.envs import BufferEnv
from rayvec.testing.rules.common import MODES, counting, mask_of, take_steps
from rayvec.testing.table import rule

__all__: list[str] = []


@rule
def check_reset_seeds(make: MakeVectorEnv) -> None:
    """A seed is None, an int that counts up over the sub-envs, or one int or None for each; sub-envs get exactly theirs."""
    for mode in MODES:
        with duel(make, counting(), mode) as both:
            for seed in (None, 7, 0, [5, 3, 2**31], [None, 4, None], None):
                both.reset(seed=seed)
                take_steps(both, 2)


@rule
def check_np_random(make: MakeVectorEnv) -> None:
    """``np_random_seed`` and ``np_random`` are tuples of the sub-envs' own."""
    with duel(make, counting()) as both:
        both.reset(seed=[4, 8, 2])
        assert_same(both.loop.get_attr("np_random_seed"), both.envs.np_random_seed, "np_random_seed")
        assert_same(both.loop.get_attr("np_random"), both.envs.np_random, "np_random")


@rule
def check_reset_options(make: MakeVectorEnv) -> None:
    """Each sub-env gets options of its own, without the mask; what a sub-env does with them reaches nobody else."""
    with duel(make, counting()) as both:
        for options in ({"level": 3, "nested": {"words": ["a"]}}, None, {}):
            both.reset(options=options)
            both.call("get_attr", "options")
        both.reset(options={"reset_mask": mask_of(1, 0, 1), "level": 4})
        both.call("get_attr", "options")
    with duel(make, [partial(BufferEnv, index=index) for index in range(3)]) as both:
        options = {"list": [1]}
        before = copy.deepcopy(options)
        both.compare_reset(both.ask("reset", options=options), options=copy.deepcopy(before))
        assert_same(before, options, "the caller's options after reset")


@rule
def check_caller_keeps_mask(make: MakeVectorEnv) -> None:
    """The caller's options keep their ``reset_mask``, and neither mask nor seeds are changed."""
    with duel(make, counting()) as both:
        both.reset(seed=1)
        options = {"reset_mask": mask_of(0, 1, 1)}
        seed = [None, 4, 5]
        both.ask("reset", seed=seed, options=options)
        assert_same({"reset_mask": mask_of(0, 1, 1)}, options, "the caller's options after reset")
        assert_same([None, 4, 5], seed, "the caller's seeds after reset")


@rule
def check_masked_reset(make: MakeVectorEnv) -> None:
    """A masked reset resets the named sub-envs alone; the others keep their observations and give no infos."""
    for mode in MODES:
        with duel(make, counting(3, infos="rich", lengths=(5, 6, 7)), mode) as both:
            both.reset(seed=10)
            take_steps(both, 2)
            both.reset(options={"reset_mask": mask_of(0, 1, 0)})
            both.step()
            both.reset(seed=20, options={"reset_mask": mask_of(1, 0, 1)})
            take_steps(both, 2)
            both.reset(seed=[1, 2, 3], options={"reset_mask": mask_of(1, 1, 1)})
            take_steps(both, 2)


@rule
def check_first_masked_reset(make: MakeVectorEnv) -> None:
    """The first reset may be masked: sub-envs that are not reset show zeros and can be reset later."""
    for mode in MODES:
        with duel(make, counting(3, infos="numbers"), mode) as both:
            both.reset(seed=1, options={"reset_mask": mask_of(0, 1, 0)})
            both.reset(seed=1, options={"reset_mask": mask_of(1, 0, 1)})
            take_steps(both, 2)


@rule
def check_step_after_manual_reset(make: MakeVectorEnv) -> None:
    """After a full or masked reset the next step steps; sub-envs that ended and were not named are still reset by it."""
    for mode in MODES:
        for options in (None, {"reset_mask": mask_of(1, 1, 0)}, {"reset_mask": mask_of(1, 1, 1)}):
            with duel(make, counting(3, lengths=(2, 2, 4)), mode) as both:
                both.reset(seed=1)
                take_steps(both, 2)
                both.reset(options=options)
                both.step()
    with duel(make, counting(3, lengths=(2, 2, 4))) as both:
        both.reset(seed=1)
        take_steps(both, 2)
        both.reset(options={"reset_mask": mask_of(1, 0, 1)})
        take_steps(both, 4)
