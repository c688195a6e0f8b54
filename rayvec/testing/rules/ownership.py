"""Who may change what: actions, options, returned data, buffers that envs reuse."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from rayvec.testing.comparison import assert_same
from rayvec.testing.duel import MakeVectorEnv, duel
from rayvec.testing.envs import BufferEnv
from rayvec.testing.rules.common import MODES, counting, mask_of, take_steps
from rayvec.testing.table import rule

__all__: list[str] = []


@rule
def check_actions_are_the_envs(make: MakeVectorEnv) -> None:
    """A sub-env may keep and change the action it is given; the caller's actions never change."""
    with duel(make, [partial(BufferEnv, index=index) for index in range(3)]) as both:
        both.reset(seed=0)
        for _ in range(5):
            actions = both.actions()
            before = copy.deepcopy(actions)
            both.compare_step(both.ask("step", actions), before)
            assert_same(before, actions, "the caller's actions after step")
            actions[...] = 0.125


@rule
def check_final_snapshots(make: MakeVectorEnv) -> None:
    """``final_obs`` and ``final_info`` are what they were before the reset, even when the env reuses its buffers."""
    env_fns = [partial(BufferEnv, index=index, episode_length=2 + index) for index in range(3)]
    with duel(make, env_fns, AutoresetMode.SAME_STEP) as both:
        both.reset(seed=0)
        take_steps(both, 9)


@rule
def check_other_rows(make: MakeVectorEnv) -> None:
    """A masked reset gives the rows of all others as they were, whatever their envs have done to their buffers since."""
    for mode in MODES:
        with duel(make, [partial(BufferEnv, index=index, episode_length=9) for index in range(3)], mode) as both:
            both.reset(seed=0)
            both.step()
            both.call("call", "draw")
            both.reset(options={"reset_mask": mask_of(0, 1, 0)})


@rule
def check_copies_never_change(make: MakeVectorEnv) -> None:
    """With ``copy=True`` nothing that was returned changes later."""
    _assert_returned_stays(make, list(range(5)), copy=True)


@rule
def check_infos_never_change(make: MakeVectorEnv) -> None:
    """Rewards, flags and infos that were returned never change later, with ``copy=False`` either."""
    _assert_returned_stays(make, [1, 2, 3, 4], copy=False)


def _assert_returned_stays(make: MakeVectorEnv, parts: Sequence[int], **kwargs: Any) -> None:
    """Checks that what steps returned (those of the five parts) stays the same while sub-envs with buffers go on."""
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        env_fns = [partial(BufferEnv, index=index, episode_length=2 + index) for index in range(3)]
        with duel(make, env_fns, mode, **kwargs) as both:
            observations, infos = both.reset(seed=0)
            kept: list[tuple[str, Any, Any]] = [("infos of the reset", infos, copy.deepcopy(infos))]
            if 0 in parts:
                kept.append(("observations of the reset", observations, copy.deepcopy(observations)))
            for step in range(8):
                result = both.step()
                for part in parts:
                    name = ("observations", "rewards", "terminations", "truncations", "infos")[part]
                    kept.append((f"{name} of step {step + 1}", result[part], copy.deepcopy(result[part])))
            both.reset()
            for name, value, was in kept:
                assert_same(was, value, f"{name}, later")


@rule
def check_returned_is_the_callers(make: MakeVectorEnv) -> None:
    """With ``copy=True`` the caller may write into what was returned; that reaches nothing."""
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        with duel(make, counting(3, infos="rich"), mode, copy=True) as both:
            _scribble(both.reset(seed=0))
            for step in range(8):
                if step % 3 == 2:
                    _scribble(both.reset(options={"reset_mask": mask_of(0, 1, 0)}))
                _scribble(both.step())


def _scribble(value: Any) -> None:
    """Spoils every number that can be written to."""
    if isinstance(value, dict):
        for part in value.values():
            _scribble(part)
    elif isinstance(value, tuple | list):
        for part in value:
            _scribble(part)
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.flags.writeable:
        value[...] = np.logical_not(value) if value.dtype.kind == "b" else 77


@rule
def check_without_copy(make: MakeVectorEnv) -> None:
    """With ``copy=False`` what was returned is right until the next call."""
    for mode in MODES:
        with duel(make, counting(3, infos="numbers", lengths=(20,)), mode, copy=False) as both:
            both.reset(seed=0)
            for _ in range(4):
                both.step()
                both.reset(options={"reset_mask": mask_of(0, 1, 0)})
