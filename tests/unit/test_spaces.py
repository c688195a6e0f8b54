"""The spaces of a vector env follow from those of its sub-envs, or the error says which one stands out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import Space, spaces
from gymnasium.vector.utils import batch_differing_spaces, batch_space

from rayvec.spaces import check_observation_mode, join_spaces
from rayvec.testing.envs import EXAMPLE_SPACES

ACTION = spaces.Discrete(2)
NARROW = spaces.Box(-1.0, 1.0, (2,), np.float32)
WIDE = spaces.Box(-5.0, 5.0, (2,), np.float32)
LONG = spaces.Box(-1.0, 1.0, (3,), np.float32)
FINE = spaces.Box(-1.0, 1.0, (2,), np.float64)


@pytest.fixture(autouse=True)
def clean_world() -> None:
    """Nothing here reaches the world outside: there is nothing to look for after each test."""


def pairs(*observation_spaces: Space[Any]) -> list[tuple[Space[Any], Space[Any]]]:
    """Sub-envs of those observation spaces."""
    return [(space, ACTION) for space in observation_spaces]


@pytest.mark.parametrize("name", EXAMPLE_SPACES)
def test_equal_spaces_are_batched(name: str) -> None:
    """``"same"``: the first one's space, and Gymnasium's batch of it."""
    space = EXAMPLE_SPACES[name]
    joined = join_spaces([(space, space)] * 3, "same")
    assert joined.single_observation_space == joined.single_action_space == space
    assert joined.observation_space == joined.action_space == batch_space(space, 3)


def test_other_bounds_are_kept_apart() -> None:
    """``"different"``: the bounds of each sub-env in its row."""
    joined = join_spaces(pairs(NARROW, WIDE, NARROW), "different")
    assert joined.single_observation_space == NARROW
    assert joined.observation_space == batch_differing_spaces([NARROW, WIDE, NARROW])
    assert isinstance(joined.observation_space, spaces.Box)
    assert joined.observation_space.low.tolist() == [[-1, -1], [-5, -5], [-1, -1]]


def test_spaces_may_be_given() -> None:
    """A pair: these very spaces, whatever the bounds of the sub-envs are."""
    given = (batch_space(WIDE, 2), WIDE)
    joined = join_spaces(pairs(NARROW, WIDE), given)
    assert joined.observation_space is given[0]
    assert joined.single_observation_space is given[1]


def test_another_space_is_named() -> None:
    """Which sub-env, its space, what is due, and what to do about it."""
    with pytest.raises(RuntimeError) as info:
        join_spaces(pairs(NARROW, NARROW, WIDE), "same")
    told = str(info.value)
    assert f"observation space of sub-env 2, {WIDE}, is not that of sub-env 0, {NARROW}" in told
    assert "observation_mode='different'" in told


@pytest.mark.parametrize("odd", [LONG, FINE, spaces.Discrete(3), spaces.Dict({"a": NARROW})])
@pytest.mark.parametrize("mode", ["different", (batch_space(WIDE, 2), WIDE)])
def test_another_layout_cannot_be_batched(mode: Any, odd: Space[Any]) -> None:
    """Another shape, dtype or kind is refused in every mode, by the name of the sub-env where rayvec tells it."""
    with pytest.raises((RuntimeError, TypeError, ValueError, AssertionError)) as info:
        join_spaces(pairs(NARROW, odd), mode)
    assert isinstance(info.value, RuntimeError)
    assert "sub-env 1" in str(info.value)
    assert str(odd) in str(info.value)


@pytest.mark.parametrize("mode", ["same", "different", (batch_space(NARROW, 2), NARROW)])
def test_another_action_space_is_named(mode: Any) -> None:
    """Actions have to be equal in every mode."""
    with pytest.raises(RuntimeError) as info:
        join_spaces([(NARROW, ACTION), (NARROW, spaces.Discrete(3))], mode)
    assert f"action space of sub-env 1, {spaces.Discrete(3)}, is not that of sub-env 0, {ACTION}" in str(info.value)


@pytest.mark.parametrize("mode", ["same", "different", (batch_space(NARROW, 2), NARROW)])
def test_known_modes_are_taken(mode: Any) -> None:
    """The two words and a pair of spaces."""
    check_observation_mode(mode)


@pytest.mark.parametrize("mode", ["other", None, 3, (NARROW,), (NARROW, NARROW, NARROW), [NARROW, NARROW], ""])
def test_unknown_modes_are_refused(mode: Any) -> None:
    """The error says what came and what there is."""
    with pytest.raises(ValueError, match="observation_mode: expected 'same', 'different' or a pair") as info:
        check_observation_mode(mode)
    assert repr(mode) in str(info.value)


def test_a_pair_of_something_else_is_refused() -> None:
    """By the types that came."""
    with pytest.raises(TypeError, match=r"observation_mode: expected two spaces .* got \('Box', 'str'\)"):
        check_observation_mode((NARROW, "same"))
