"""Calls that are refused change nothing."""

from __future__ import annotations

from functools import partial

import numpy as np
from gymnasium import spaces

from rayvec.testing.duel import MakeVectorEnv, duel
from rayvec.testing.envs import EchoEnv
from rayvec.testing.rules.common import counting, mask_of
from rayvec.testing.table import rule

__all__: list[str] = []


@rule
def check_wrong_action_counts(make: MakeVectorEnv) -> None:
    """Actions for too few or too many sub-envs raise, and no sub-env is stepped."""
    with duel(make, counting(3, lengths=(9,))) as both:
        both.reset(seed=0)
        for count in (2, 4, 0):
            both.ask_to_raise(Exception, "step", np.zeros(count, np.int64))
            both.call("call", "where")
            both.step()
    space = spaces.Dict({"left": spaces.Discrete(3), "right": spaces.Box(-1.0, 1.0, (2,), np.float32)})
    with duel(make, [partial(EchoEnv, space)] * 3) as both:
        both.reset(seed=0)
        actions = both.actions()
        for wrong in ({**actions, "right": actions["right"][:2]}, {"left": actions["left"]}):
            both.ask_to_raise(Exception, "step", wrong)
            both.step()


@rule
def check_wrong_masks(make: MakeVectorEnv) -> None:
    """A mask that is no bool array ``(num_envs,)`` with a True in it raises, and no sub-env is reset."""
    wrong = ([True, False, True], np.array([1, 0, 1]), mask_of(1, 0), mask_of(1, 0, 1, 0), mask_of(0, 0, 0), True)
    with duel(make, counting(3, lengths=(30,))) as both:
        both.reset(seed=0)
        both.step()
        for mask in wrong:
            both.ask_to_raise(Exception, "reset", options={"reset_mask": mask})
            both.call("call", "where")
            both.step()


@rule
def check_wrong_seeds(make: MakeVectorEnv) -> None:
    """Seeds for too few or too many sub-envs raise, and no sub-env is reset."""
    with duel(make, counting(3, lengths=(30,))) as both:
        both.reset(seed=0)
        both.step()
        for seeds in ([1, 2], [1, 2, 3, 4], []):
            both.ask_to_raise(Exception, "reset", seed=seeds)
            both.call("call", "where")
            both.step()
