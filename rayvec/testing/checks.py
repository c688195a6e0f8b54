"""The rules of the contract that any vector env can be held against, each a function that raises where one is broken.

Every check takes ``make``, builds vector envs over sub-envs of known answers and compares them, call by call, with a
:class:`~rayvec.testing.oracle.PlainLoop`. The first line of its docstring is the rule. :data:`CHECKS` has them all by
name, for a test suite to parametrise over::

    @pytest.mark.parametrize("name", CHECKS)
    def test_conformance(name):
        CHECKS[name](MyVectorEnv)

``make(env_fns, **kwargs)`` gives a vector env; ``kwargs`` hold ``autoreset_mode`` always, ``copy`` and
``observation_mode`` at times. The checks have no time limit of their own: a vector env that hangs hangs them.
"""

from __future__ import annotations

import copy
import functools
import multiprocessing
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import Space, spaces
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError, ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_differing_spaces

from rayvec.testing.comparison import ConformanceError, assert_same
from rayvec.testing.duel import Duel, MakeVectorEnv, close_quietly, duel
from rayvec.testing.envs import (
    BAD_REWARD_FORMS,
    EXAMPLE_SPACES,
    GOOD_REWARD_FORMS,
    WRONG_OBSERVATIONS,
    BufferEnv,
    CountingEnv,
    EchoEnv,
    InfoKind,
    RewardEnv,
    SpaceEnv,
    WrongObservationEnv,
    read_log,
)
from rayvec.testing.oracle import EnvFn
from rayvec.testing.trouble import RaisingEnv, SlowEnv, TroubleCall, UnbuildableError, UnpicklableError

__all__ = ["CHECKS", "Check", "check_agreement", "check_space", "check_vector_env"]

Check = Callable[[MakeVectorEnv], None]

CHECKS: dict[str, Check] = {}
"""Every check by its name."""

_MODES = tuple(AutoresetMode)
_METADATA = {"render_modes": ["rgb_array"], "render_fps": 50}


def check_vector_env(
    make: MakeVectorEnv,
    *,
    env_fns: Sequence[EnvFn] | None = None,
    num_steps: int = 200,
    seed: int = 0,
    checks: Iterable[str] | None = None,
    autoreset_modes: Iterable[AutoresetMode] = _MODES,
) -> None:
    """Holds a vector env against the contract, and raises at the first rule that it breaks.

    Args:
        make: ``make(env_fns, autoreset_mode=..., ...)`` gives the vector env.
        env_fns: a function for each sub-env, to compare your own envs instead of running the checks: the vector env and a
            plain loop over envs of their own take the same random actions and have to give the same. The envs must be
            decided by their seeds and actions.
        num_steps: how many steps to compare over ``env_fns``, in each autoreset mode.
        seed: for ``env_fns`` and their actions.
        checks: names out of :data:`CHECKS`; None: all, or none beside the comparison if ``env_fns`` is given.
        autoreset_modes: for the comparison over ``env_fns``.

    Raises:
        ConformanceError: a rule is broken; its text says which, in which mode, at which call, for which sub-env and key,
            what came and what was due.
        KeyError: there is no check of that name.
    """
    names = (list(CHECKS) if env_fns is None else []) if checks is None else list(checks)
    unknown = [name for name in names if name not in CHECKS]
    if unknown:
        raise KeyError(f"no checks named {unknown}; there are {list(CHECKS)}")
    if env_fns is not None:
        check_agreement(make, env_fns, num_steps=num_steps, seed=seed, autoreset_modes=autoreset_modes)
    for name in names:
        CHECKS[name](make)


def check_agreement(
    make: MakeVectorEnv,
    env_fns: Sequence[EnvFn],
    *,
    num_steps: int = 200,
    seed: int = 0,
    autoreset_modes: Iterable[AutoresetMode] = _MODES,
) -> None:
    """Spaces, observations, rewards, flags and infos are those of a plain loop, under random actions and masked resets.

    Args:
        make: makes the vector env.
        env_fns: a function for each sub-env.
        num_steps: how many steps, in each mode.
        seed: of the sub-envs and the actions.
        autoreset_modes: which modes.

    Raises:
        ConformanceError: they differ.
    """
    generator = np.random.default_rng(seed)
    for mode in autoreset_modes:
        with duel(make, env_fns, mode, seed=seed) as both:
            _compare_spaces(both)
            both.reset(seed=seed)
            for step in range(num_steps):
                if mode is AutoresetMode.DISABLED and both.ended.any():
                    both.reset(options={"reset_mask": both.ended.copy()})
                elif step % 17 == 16:
                    mask = generator.random(len(env_fns)) < 0.5
                    mask[generator.integers(len(env_fns))] = True
                    both.reset(options={"reset_mask": mask | (both.ended if mode is AutoresetMode.DISABLED else False)})
                elif step % 61 == 60:
                    both.reset(seed=seed + step)
                both.step()


def _rule(function: Check) -> Check:
    """Puts a check into the table, and its name and rule into what it raises."""
    name = function.__name__.removeprefix("check_")
    rule = f"{name}: {(function.__doc__ or '').splitlines()[0]}"

    @functools.wraps(function)
    def run(make: MakeVectorEnv) -> None:
        try:
            function(make)
        except ConformanceError as error:
            error.locate(rule=rule)
            raise

    CHECKS[name] = run
    return run


def _counting(count: int = 3, *, infos: InfoKind = "none", lengths: Sequence[int] = (3, 4, 6), **kwargs: Any) -> list[EnvFn]:
    """Counting envs whose episodes end at different steps."""
    return [
        partial(CountingEnv, index=index, episode_length=lengths[index % len(lengths)], infos=infos, **kwargs)
        for index in range(count)
    ]


def _mask(*flags: int) -> npt.NDArray[np.bool_]:
    return np.array(flags, np.bool_)


def _steps(both: Duel, count: int) -> None:
    for _ in range(count):
        both.step()


# What it says of itself


@_rule
def check_spaces_and_attributes(make: MakeVectorEnv) -> None:
    """``num_envs``, the four spaces, ``metadata["autoreset_mode"]`` and ``render_mode`` are those of its sub-envs, batched."""
    for mode in _MODES:
        with duel(make, _counting(3, render_mode="rgb_array"), mode) as both:
            _compare_spaces(both)
            assert_same("rgb_array", both.envs.render_mode, "render_mode")
            assert_same({**_METADATA, "autoreset_mode": mode}, dict(both.envs.metadata), "metadata")


def _compare_spaces(both: Duel) -> None:
    loop, envs = both.loop, both.envs
    assert_same(loop.num_envs, envs.num_envs, "num_envs")
    for name in ("single_observation_space", "observation_space", "single_action_space", "action_space"):
        due, came = getattr(loop, name), getattr(envs, name)
        if due != came:
            raise ConformanceError(f"{name}: got {came}, expected {due}", key=name)
    assert_same(loop.autoreset_mode, envs.metadata.get("autoreset_mode"), "metadata['autoreset_mode']")


@_rule
def check_metadata_of_class(make: MakeVectorEnv) -> None:
    """The env class's own ``metadata`` is not changed."""
    _EnvWithItsOwnMetadata.metadata = dict(_METADATA)
    with duel(make, [_EnvWithItsOwnMetadata] * 2) as both:
        both.reset(seed=0)
        assert_same(_METADATA, _EnvWithItsOwnMetadata.metadata, "the env class's metadata")


class _EnvWithItsOwnMetadata(CountingEnv):
    """A class whose metadata a vector env may spoil without harm to the next one that is judged."""


@_rule
def check_observation_mode(make: MakeVectorEnv) -> None:
    """``observation_mode`` takes "different" and a pair of spaces; "same" refuses sub-envs whose spaces differ."""
    single = [spaces.Box(-1.0 - index, 1.0 + index, (2,), np.float32) for index in range(3)]
    env_fns = [partial(SpaceEnv, space, episode_length=3) for space in single]
    pair = (spaces.Box(-9.0, 9.0, (3, 2), np.float32), spaces.Box(-9.0, 9.0, (2,), np.float32))
    for observation_mode, due in (("different", (batch_differing_spaces(single), single[0])), (pair, pair)):
        with duel(make, env_fns, observation_mode=observation_mode) as both:
            for name, space in zip(("observation_space", "single_observation_space"), due, strict=True):
                if getattr(both.envs, name) != space:
                    problem = f"{name}: got {getattr(both.envs, name)}, expected {space}, under {observation_mode=}"
                    raise ConformanceError(problem, key=name)
            both.reset(seed=3)
            _steps(both, 5)
    _assert_not_made(make, env_fns, "sub-envs with different spaces under observation_mode='same'", observation_mode="same")


@_rule
def check_render(make: MakeVectorEnv) -> None:
    """``render()`` gives a tuple of what the sub-envs render."""
    with duel(make, _counting(3, render_mode="rgb_array")) as both:
        both.reset(seed=0)
        both.step()
        assert_same(both.loop.call("render"), both.ask("render"), "render()")


# Resets


@_rule
def check_reset_seeds(make: MakeVectorEnv) -> None:
    """A seed is None, an int that counts up over the sub-envs, or one int or None for each; sub-envs get exactly theirs."""
    for mode in _MODES:
        with duel(make, _counting(), mode) as both:
            for seed in (None, 7, 0, [5, 3, 2**31], [None, 4, None], None):
                both.reset(seed=seed)
                _steps(both, 2)


@_rule
def check_np_random(make: MakeVectorEnv) -> None:
    """``np_random_seed`` and ``np_random`` are tuples of the sub-envs' own."""
    with duel(make, _counting()) as both:
        both.reset(seed=[4, 8, 2])
        assert_same(both.loop.get_attr("np_random_seed"), both.envs.np_random_seed, "np_random_seed")
        assert_same(both.loop.get_attr("np_random"), both.envs.np_random, "np_random")


@_rule
def check_reset_options(make: MakeVectorEnv) -> None:
    """Each sub-env gets options of its own, without the mask; what a sub-env does with them reaches nobody else."""
    with duel(make, _counting()) as both:
        for options in ({"level": 3, "nested": {"words": ["a"]}}, None, {}):
            both.reset(options=options)
            both.call("get_attr", "options")
        both.reset(options={"reset_mask": _mask(1, 0, 1), "level": 4})
        both.call("get_attr", "options")
    with duel(make, [partial(BufferEnv, index=index) for index in range(3)]) as both:
        options = {"list": [1]}
        before = copy.deepcopy(options)
        both.compare_reset(both.ask("reset", options=options), options=copy.deepcopy(before))
        assert_same(before, options, "the caller's options after reset")


@_rule
def check_caller_keeps_mask(make: MakeVectorEnv) -> None:
    """The caller's options keep their ``reset_mask``, and neither mask nor seeds are changed."""
    with duel(make, _counting()) as both:
        both.reset(seed=1)
        options = {"reset_mask": _mask(0, 1, 1)}
        seed = [None, 4, 5]
        both.ask("reset", seed=seed, options=options)
        assert_same({"reset_mask": _mask(0, 1, 1)}, options, "the caller's options after reset")
        assert_same([None, 4, 5], seed, "the caller's seeds after reset")


@_rule
def check_masked_reset(make: MakeVectorEnv) -> None:
    """A masked reset resets the named sub-envs alone; the others keep their observations and give no infos."""
    for mode in _MODES:
        with duel(make, _counting(3, infos="rich", lengths=(5, 6, 7)), mode) as both:
            both.reset(seed=10)
            _steps(both, 2)
            both.reset(options={"reset_mask": _mask(0, 1, 0)})
            both.step()
            both.reset(seed=20, options={"reset_mask": _mask(1, 0, 1)})
            _steps(both, 2)
            both.reset(seed=[1, 2, 3], options={"reset_mask": _mask(1, 1, 1)})
            _steps(both, 2)


@_rule
def check_first_masked_reset(make: MakeVectorEnv) -> None:
    """The first reset may be masked: sub-envs that are not reset show zeros and can be reset later."""
    for mode in _MODES:
        with duel(make, _counting(3, infos="numbers"), mode) as both:
            both.reset(seed=1, options={"reset_mask": _mask(0, 1, 0)})
            both.reset(seed=1, options={"reset_mask": _mask(1, 0, 1)})
            _steps(both, 2)


@_rule
def check_step_after_manual_reset(make: MakeVectorEnv) -> None:
    """After a full or masked reset the next step steps; sub-envs that ended and were not named are still reset by it."""
    for mode in _MODES:
        for options in (None, {"reset_mask": _mask(1, 1, 0)}, {"reset_mask": _mask(1, 1, 1)}):
            with duel(make, _counting(3, lengths=(2, 2, 4)), mode) as both:
                both.reset(seed=1)
                _steps(both, 2)
                both.reset(options=options)
                both.step()
    with duel(make, _counting(3, lengths=(2, 2, 4))) as both:
        both.reset(seed=1)
        _steps(both, 2)
        both.reset(options={"reset_mask": _mask(1, 0, 1)})
        _steps(both, 4)


# Autoreset


@_rule
def check_next_step_autoreset(make: MakeVectorEnv) -> None:
    """NEXT_STEP: the step after an episode's end resets, with reward 0 and no flags, and ignores the action."""
    for ends in ("terminated", "truncated", "both"):
        with duel(make, _counting(4, infos="rich", lengths=(1, 2, 3, 5), ends=ends)) as both:
            both.reset(seed=3)
            _steps(both, 12)


@_rule
def check_same_step_autoreset(make: MakeVectorEnv) -> None:
    """SAME_STEP: the step that ends an episode resets, and gives the last observation and info as final_obs and final_info."""
    for ends in ("terminated", "truncated", "both"):
        with duel(make, _counting(4, infos="rich", lengths=(1, 2, 3, 5), ends=ends), AutoresetMode.SAME_STEP) as both:
            both.reset(seed=3)
            _steps(both, 12)
    with duel(make, _counting(3, lengths=(2, 3, 4)), AutoresetMode.SAME_STEP) as both:
        both.reset(seed=3)
        _steps(both, 6)


@_rule
def check_disabled_autoreset(make: MakeVectorEnv) -> None:
    """DISABLED: a sub-env stays at its episode's end until a masked reset names it."""
    for ends in ("terminated", "truncated", "both"):
        with duel(make, _counting(3, infos="rich", lengths=(2, 3, 4), ends=ends), AutoresetMode.DISABLED) as both:
            both.reset(seed=3)
            for _ in range(10):
                both.step()
                if both.ended.any():
                    both.reset(options={"reset_mask": both.ended.copy()})


@_rule
def check_disabled_refuses_to_step(make: MakeVectorEnv) -> None:
    """DISABLED: stepping a finished sub-env raises ResetNeeded, which names it, and advances none."""
    with duel(make, _counting(6, lengths=(9, 9, 9, 9, 9, 2)), AutoresetMode.DISABLED) as both:
        both.reset(seed=3)
        _steps(both, 2)
        for _ in range(2):
            _assert_names(both.ask_to_raise(ResetNeeded, "step", both.actions()), 5)
            both.call("call", "where")
        both.reset(options={"reset_mask": both.ended.copy()})
        both.step()


# Data


@_rule
def check_agreement_of_counting_envs(make: MakeVectorEnv) -> None:
    """Long random runs give the same as a plain loop, in every autoreset mode."""
    env_fns: list[EnvFn] = [
        *_counting(3, infos="rich", lengths=(3, 5, 8)),
        partial(CountingEnv, index=3, episode_length=4, infos="numbers", ends="truncated"),
        partial(CountingEnv, index=4, episode_length=1, infos="numbers", ends="both"),
    ]
    check_agreement(make, env_fns, num_steps=60, seed=5)


@_rule
def check_one_sub_env(make: MakeVectorEnv) -> None:
    """One sub-env alone is batched like several."""
    check_agreement(make, _counting(1, infos="rich"), num_steps=20)


@_rule
def check_rewards(make: MakeVectorEnv) -> None:
    """Rewards are float64 ``(num_envs,)``; one number in any form (numpy scalar, array or list of one) is taken."""
    forms = list(GOOD_REWARD_FORMS)
    with duel(make, [partial(RewardEnv, forms), partial(RewardEnv, forms[1:] + forms[:1])]) as both:
        both.reset(seed=0)
        _steps(both, len(forms))


@_rule
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


@_rule
def check_wrong_observations(make: MakeVectorEnv) -> None:
    """An observation of the wrong shape, dtype or structure raises and names the sub-env; nothing is made to fit."""
    for kind in WRONG_OBSERVATIONS:
        fine: partial[Any] = partial(WrongObservationEnv, kind, at=None)
        with duel(make, [fine] * 8 + [partial(WrongObservationEnv, kind, at=2)]) as both:
            try:
                both.reset(seed=0)
                both.step()
                _assert_names(both.ask_to_raise(Exception, "step", both.actions()), 8)
            except ConformanceError as error:
                error.problem += f"; the observation of sub-env 8 was wrong in {kind!r}"
                raise
            finally:
                close_quietly(both.envs)


@_rule
def check_info_layout(make: MakeVectorEnv) -> None:
    """Infos have an array and a mask for each key, nested dicts alike, and object arrays for what is no number."""
    for mode in _MODES:
        with duel(make, _counting(4, infos="rich", lengths=(9,)), mode) as both:
            both.reset(seed=0)
            _steps(both, 6)


@_rule
def check_info_promotion(make: MakeVectorEnv) -> None:
    """Infos of mixed types are promoted as NumPy would; what cannot be batched arrives intact in an object array."""
    for mode in _MODES:
        with duel(make, _counting(4, infos="alternating", lengths=(9, 10)), mode) as both:
            both.reset(seed=0)
            _steps(both, 8)
            if mode is not AutoresetMode.DISABLED:
                _steps(both, 4)


def check_space(make: MakeVectorEnv, space: Space[Any]) -> None:
    """Observations, actions and ``final_obs`` of the space arrive unchanged."""
    with duel(make, [partial(EchoEnv, space, episode_length=length) for length in (2, 3, 7)], AutoresetMode.SAME_STEP) as both:
        _compare_spaces(both)
        both.reset(seed=5)
        _steps(both, 4)
        both.reset(seed=6, options={"reset_mask": _mask(0, 1, 0)})
        _steps(both, 3)


def _add_space_check(name: str, space: Space[Any]) -> None:
    def check(make: MakeVectorEnv) -> None:
        check_space(make, space)

    check.__name__ = f"space_{name}".replace("-", "_")
    check.__doc__ = f"Observations, actions and final_obs of the space {space} arrive unchanged."
    _rule(check)


for _name, _space in EXAMPLE_SPACES.items():
    _add_space_check(_name, _space)


# Who owns what


@_rule
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


@_rule
def check_final_snapshots(make: MakeVectorEnv) -> None:
    """``final_obs`` and ``final_info`` are what they were before the reset, even when the env reuses its buffers."""
    env_fns = [partial(BufferEnv, index=index, episode_length=2 + index) for index in range(3)]
    with duel(make, env_fns, AutoresetMode.SAME_STEP) as both:
        both.reset(seed=0)
        _steps(both, 9)


@_rule
def check_copies_never_change(make: MakeVectorEnv) -> None:
    """With ``copy=True`` nothing that was returned changes later."""
    _assert_returned_stays(make, list(range(5)), copy=True)


@_rule
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


@_rule
def check_returned_is_the_callers(make: MakeVectorEnv) -> None:
    """With ``copy=True`` the caller may write into what was returned; that reaches nothing."""
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        with duel(make, _counting(3, infos="rich"), mode, copy=True) as both:
            _scribble(both.reset(seed=0))
            for step in range(8):
                if step % 3 == 2:
                    _scribble(both.reset(options={"reset_mask": _mask(0, 1, 0)}))
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


@_rule
def check_without_copy(make: MakeVectorEnv) -> None:
    """With ``copy=False`` what was returned is right until the next call."""
    for mode in _MODES:
        with duel(make, _counting(3, infos="numbers", lengths=(20,)), mode, copy=False) as both:
            both.reset(seed=0)
            for _ in range(4):
                both.step()
                both.reset(options={"reset_mask": _mask(0, 1, 0)})


# Calls that are refused


@_rule
def check_wrong_action_counts(make: MakeVectorEnv) -> None:
    """Actions for too few or too many sub-envs raise, and no sub-env is stepped."""
    with duel(make, _counting(3, lengths=(9,))) as both:
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


@_rule
def check_wrong_masks(make: MakeVectorEnv) -> None:
    """A mask that is no bool array ``(num_envs,)`` with a True in it raises, and no sub-env is reset."""
    wrong = ([True, False, True], np.array([1, 0, 1]), _mask(1, 0), _mask(1, 0, 1, 0), _mask(0, 0, 0), True)
    with duel(make, _counting(3, lengths=(30,))) as both:
        both.reset(seed=0)
        both.step()
        for mask in wrong:
            both.ask_to_raise(Exception, "reset", options={"reset_mask": mask})
            both.call("call", "where")
            both.step()


@_rule
def check_wrong_seeds(make: MakeVectorEnv) -> None:
    """Seeds for too few or too many sub-envs raise, and no sub-env is reset."""
    with duel(make, _counting(3, lengths=(30,))) as both:
        both.reset(seed=0)
        both.step()
        for seeds in ([1, 2], [1, 2, 3, 4], []):
            both.ask_to_raise(Exception, "reset", seed=seeds)
            both.call("call", "where")
            both.step()


# Calls of methods and attributes


@_rule
def check_call(make: MakeVectorEnv) -> None:
    """``call`` calls a method of every sub-env, or reads an attribute, and gives a tuple; arguments are the callee's own."""
    with duel(make, _counting(3)) as both:
        both.reset(seed=2)
        both.step()
        both.call("call", "where")
        both.call("call", "add", 3, times=2)
        both.call("call", "index")
        items = [7]
        assert_same(([7, 0], [7, 1], [7, 2]), both.ask("call", "append", items), "call('append', [7])")
        assert_same([7], items, "the caller's argument after call")


@_rule
def check_attributes(make: MakeVectorEnv) -> None:
    """``set_attr`` takes a value for all, or a list or tuple of one for each; ``get_attr`` gives a tuple."""
    with duel(make, _counting(3)) as both:
        good: list[Any] = [5, [1, 2, 3], ("a", None, 2.5), "text", [[1], [2], [3]], {"key": 1}, np.arange(3)]
        wrong: list[Any] = [[1, 2], (1, 2, 3, 4), []]
        for values in good:
            both.ask("set_attr", "level", values)
            both.loop.set_attr("level", values)
            both.call("get_attr", "level")
        for values in wrong:
            both.ask_to_raise(Exception, "set_attr", "level", values)
            both.call("get_attr", "level")


@_rule
def check_failing_call(make: MakeVectorEnv) -> None:
    """A ``call``, ``get_attr`` or ``set_attr`` that fails raises the sub-env's error and leaves everything usable."""
    error = KeyError("sulking", 3)
    cases: list[tuple[TroubleCall, str, tuple[Any, ...]]] = [
        ("call", "call", ("answer",)),
        ("get", "get_attr", ("mood",)),
        ("set", "set_attr", ("mood", 1)),
    ]
    for on, name, args in cases:
        quiet = [partial(RaisingEnv, at=0, index=index) for index in (0, 2)]
        with duel(make, [quiet[0], partial(RaisingEnv, on=on, error=error, index=1), quiet[1]]) as both:
            both.reset(seed=0)
            for _ in range(2):
                try:
                    getattr(both.loop, name)(*args)
                except KeyError as expected:
                    both.compare_error(both.ask_to_raise(Exception, name, *args), expected)
                else:
                    both.ask(name, *args)
                both.step()
            both.call("call", "answer")
            both.call("get_attr", "mood")
            both.ask_to_raise(AttributeError, "call", "no_such_method")
            both.step()


# Sub-envs that raise


@_rule
def check_error_of_sub_env(make: MakeVectorEnv) -> None:
    """An exception in ``step`` or ``reset`` arrives with its own type and arguments and names the sub-env and the call."""
    error = ZeroDivisionError("boom", 77)
    calls: list[TroubleCall] = ["step", "reset"]
    for on in calls:
        with duel(make, [*_counting(8), partial(RaisingEnv, on=on, at=2, error=error, index=8)]) as both:
            both.reset(seed=0)
            both.step()
            came = both.ask_to_raise(Exception, on, *([both.actions()] if on == "step" else []))
            both.compare_error(came, error)
            _assert_names(came, 8)
            if on not in _text_of(came):
                raise ConformanceError(f"got an error whose text and notes do not name the call {on!r}: {_text_of(came)!r}")


@_rule
def check_error_spares_others(make: MakeVectorEnv) -> None:
    """When one sub-env raises, all others complete the call; ``step`` raises ResetNeeded until ``reset`` has built it anew."""
    calls: list[TroubleCall] = ["step", "reset"]
    for mode in _MODES:
        for on in calls:
            env_fns = _counting(3, infos="numbers", lengths=(30,))
            env_fns[1] = partial(RaisingEnv, on=on, at=2, error=ValueError("boom"), index=1, episode_length=30)
            with duel(make, env_fns, mode) as both:
                both.reset(seed=0)
                both.step()
                _fail_both(both, on)
                for _ in range(2):
                    _assert_names(both.ask_to_raise(ResetNeeded, "step", both.actions()), 1)
                both.reset(options={"reset_mask": _mask(0, 1, 0)})
                both.call("call", "where")
                both.step()
                if on == "step":
                    _fail_both(both, on)
                    both.reset(seed=4)
                    both.call("call", "where")
                    both.step()


def _fail_both(both: Duel, on: str) -> None:
    """Makes the call that raises in the loop and in the vector env."""
    both.num_calls += 1
    actions = both.actions()
    kwargs = {"actions": actions} if on == "step" else {"seed": 3}
    try:
        getattr(both.loop, on)(**kwargs)
    except Exception as expected:
        both.compare_error(both.ask_to_raise(Exception, on, **kwargs), expected)


@_rule
def check_several_errors(make: MakeVectorEnv) -> None:
    """If several sub-envs raise in one call, the lowest one's error is raised, and a note tells of the others."""
    env_fns = _counting(4)
    env_fns[1] = partial(RaisingEnv, at=2, error=ValueError("the lower one"), index=1)
    env_fns[3] = partial(RaisingEnv, at=2, error=KeyError("the higher one"), index=3)
    with duel(make, env_fns) as both:
        both.reset(seed=0)
        both.step()
        error = both.ask_to_raise(Exception, "step", both.actions())
        both.compare_error(error, ValueError("the lower one"))
        _assert_names(error, 1, 3)


@_rule
def check_odd_errors(make: MakeVectorEnv) -> None:
    """An exception that cannot be pickled or rebuilt still arrives, as itself or as an error that quotes it."""
    for error_type in (UnpicklableError, UnbuildableError):
        with duel(make, [*_counting(2), partial(RaisingEnv, at=1, error=error_type, index=2)]) as both:
            both.reset(seed=0)
            error = both.ask_to_raise(Exception, "step", both.actions())
            if str(error_type()) not in str(error):
                raise ConformanceError(f"got {error!r}, expected an error that quotes {str(error_type())!r}")


@_rule
def check_failing_constructor(make: MakeVectorEnv) -> None:
    """If an env_fn raises, so does the constructor, with that error, and the sub-envs that were built are closed."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        fine: list[EnvFn] = [partial(CountingEnv, index=index, log=log) for index in range(2)]
        error = LookupError("no such simulator", 3)
        try:
            envs = make([*fine, partial(RaisingEnv, on="init", error=error, index=2)], autoreset_mode=AutoresetMode.NEXT_STEP)
        except Exception as came:
            if type(came) is not LookupError or came.args != error.args:
                raise ConformanceError(f"got {came!r}, expected the env_fn's own {error!r}") from came
        else:
            close_quietly(envs)
            raise ConformanceError("the vector env was made, expected its constructor to raise what an env_fn raised")
        _assert_all_closed(log)


# Calls in two halves


@_rule
def check_async_halves(make: MakeVectorEnv) -> None:
    """``reset``, ``step`` and ``call`` come in two halves as well: ``step_async`` and ``step_wait``, and so on."""
    with duel(make, _counting(3, infos="numbers")) as both:
        both.ask("reset_async", seed=5)
        both.compare_reset(both.ask("reset_wait"), seed=5)
        for _ in range(5):
            actions = both.actions()
            given = copy.deepcopy(actions)
            both.ask("step_async", given)
            given[...] = 0
            both.compare_step(both.ask("step_wait"), actions)
        both.ask("call_async", "where")
        assert_same(both.loop.call("where"), both.ask("call_wait"), "call('where')")


@_rule
def check_pending_call(make: MakeVectorEnv) -> None:
    """While a call is pending any other raises AlreadyPendingCallError; without one, waiting raises NoAsyncCallError."""
    with duel(make, _counting(3)) as both:
        for name in ("reset_wait", "step_wait", "call_wait"):
            both.ask_to_raise(NoAsyncCallError, name)
        both.reset(seed=1)
        actions = both.actions()
        both.ask("step_async", actions)
        others: Mapping[str, tuple[Any, ...]] = {
            "step_async": (actions,),
            "reset_async": (),
            "call_async": ("where",),
            "set_attr": ("level", 1),
        }
        for name, args in others.items():
            both.ask_to_raise(AlreadyPendingCallError, name, *args)
        both.ask_to_raise(NoAsyncCallError, "reset_wait")
        both.compare_step(both.ask("step_wait"), actions)
        both.call("get_attr", "level")
        both.step()


@_rule
def check_timed_out_wait(make: MakeVectorEnv) -> None:
    """A wait that times out leaves the call pending: waiting again gives that very call's result, which no other takes."""
    with duel(make, [partial(SlowEnv, 0.25, index=index, infos="numbers") for index in range(2)]) as both:
        both.reset(seed=1)
        for _ in range(2):
            actions = both.actions()
            both.ask("step_async", actions)
            try:
                result = both.envs.step_wait(timeout=0.01)
            except multiprocessing.TimeoutError:
                both.ask_to_raise(AlreadyPendingCallError, "step_async", actions)
                result = both.ask("step_wait")
            both.compare_step(result, actions)
        both.call("call", "where")


# The end


@_rule
def check_close(make: MakeVectorEnv) -> None:
    """Each env_fn is called once, where its env lives; ``close()`` closes every sub-env once and may be called again."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        env_fns = [partial(CountingEnv, index=index, log=log) for index in range(3)]
        envs = make(env_fns, autoreset_mode=AutoresetMode.NEXT_STEP)
        try:
            envs.reset(seed=0)
            built = sorted(line.env_index for line in read_log(log) if line.event == "built")
            assert_same([0, 1, 2], built, "indices of the sub-envs built")
            envs.close()
            assert_same(True, envs.closed, "closed")
            envs.close()
        finally:
            close_quietly(envs)
        _assert_all_closed(log)


@_rule
def check_use_after_close(make: MakeVectorEnv) -> None:
    """Every call after ``close()`` raises ClosedEnvironmentError."""
    with duel(make, _counting(3)) as both:
        both.reset(seed=0)
        actions = both.actions()
        both.ask("close")
        calls: Mapping[str, tuple[Any, ...]] = {
            "reset": (),
            "step": (actions,),
            "call": ("where",),
            "get_attr": ("level",),
            "set_attr": ("level", 1),
            "render": (),
        }
        for name, args in calls.items():
            both.ask_to_raise(ClosedEnvironmentError, name, *args)


@_rule
def check_close_while_pending(make: MakeVectorEnv) -> None:
    """``close()`` works while a call is pending."""
    with duel(make, _counting(3)) as both:
        both.reset(seed=0)
        both.ask("step_async", both.actions())
        both.ask("close")


@_rule
def check_context_manager(make: MakeVectorEnv) -> None:
    """It is a context manager that gives itself and closes at the end."""
    envs = make(_counting(2), autoreset_mode=AutoresetMode.NEXT_STEP)
    try:
        with envs as entered:
            if entered is not envs:
                raise ConformanceError(f"__enter__ gave {entered!r}, expected the vector env itself")
            envs.reset(seed=0)
        assert_same(True, envs.closed, "closed")
    except (AttributeError, TypeError) as error:
        raise ConformanceError(f"got {error!r}, expected a context manager") from error
    finally:
        close_quietly(envs)


def _assert_all_closed(log: Path) -> None:
    lines = read_log(log)
    built = sorted((line.env_index, line.pid) for line in lines if line.event == "built")
    closed = sorted((line.env_index, line.pid) for line in lines if line.event == "closed")
    assert_same(built, closed, "(index, pid) of the sub-envs closed")


def _assert_not_made(make: MakeVectorEnv, env_fns: Sequence[EnvFn], what: str, **kwargs: Any) -> None:
    try:
        envs = make(list(env_fns), autoreset_mode=AutoresetMode.NEXT_STEP, **kwargs)
    except Exception:
        return
    close_quietly(envs)
    raise ConformanceError(f"a vector env was made of {what}, expected its constructor to raise")


def _text_of(error: BaseException) -> str:
    """All that an error tells: its text and its notes."""
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


def _assert_names(error: BaseException, *indices: int) -> None:
    """Checks that an error's text or notes name sub-envs."""
    for index in indices:
        if not re.search(rf"(?<!\d){index}(?!\d)", _text_of(error)):
            problem = f"got {type(error).__name__} with the text {_text_of(error)!r}, expected one that names sub-env {index}"
            raise ConformanceError(problem)
