"""The spaces of a vector env, from those of its sub-envs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from gymnasium import Space
from gymnasium.spaces.utils import is_space_dtype_shape_equiv
from gymnasium.vector.utils import batch_differing_spaces, batch_space

__all__ = ["ObservationMode", "VectorSpaces", "check_observation_mode", "join_spaces"]

ObservationMode = str | tuple[Space[Any], Space[Any]]


class VectorSpaces(NamedTuple):
    """The four spaces of a vector env."""

    single_observation_space: Space[Any]
    observation_space: Space[Any]
    single_action_space: Space[Any]
    action_space: Space[Any]


def check_observation_mode(mode: Any) -> None:
    """Raises ValueError or TypeError unless ``mode`` is "same", "different" or a pair of spaces."""
    if isinstance(mode, tuple) and len(mode) == 2:
        if not all(isinstance(space, Space) for space in mode):
            raise TypeError(
                "observation_mode: expected two spaces (observation_space, single_observation_space), got "
                f"{tuple(type(space).__name__ for space in mode)}"
            )
    elif mode not in ("same", "different"):
        raise ValueError(
            "observation_mode: expected 'same', 'different' or a pair (observation_space, single_observation_space), "
            f"got {mode!r}"
        )


def join_spaces(pairs: Sequence[tuple[Space[Any], Space[Any]]], mode: ObservationMode) -> VectorSpaces:
    """The spaces of a vector env whose sub-envs have the (observation space, action space) ``pairs``.

    Raises:
        RuntimeError: they cannot be batched in that mode.
    """
    first, single_action_space = pairs[0]
    if isinstance(mode, tuple):
        observation_space, single_observation_space = mode
    elif mode == "same":
        single_observation_space, observation_space = first, batch_space(first, len(pairs))
    else:
        single_observation_space, observation_space = first, None
    for index, pair in enumerate(pairs):
        if pair is pairs[0] and not isinstance(mode, tuple):
            continue
        own_observation_space, own_action_space = pair
        if mode == "same" and own_observation_space != single_observation_space:
            raise RuntimeError(
                f"observation_mode='same', but the observation space of sub-env {index}, {own_observation_space}, is "
                f"not that of sub-env 0, {single_observation_space}. If that is meant, pass observation_mode='different'."
            )
        if mode != "same" and not _are_alike(own_observation_space, single_observation_space):
            raise RuntimeError(
                f"the observation space of sub-env {index}, {own_observation_space}, has another shape or dtype than "
                f"the single observation space, {single_observation_space}: they cannot be batched."
            )
        if own_action_space != single_action_space:
            raise RuntimeError(
                f"the action space of sub-env {index}, {own_action_space}, is not that of sub-env 0, "
                f"{single_action_space}: all must be equal for actions to be batched."
            )
    if observation_space is None:
        observation_space = batch_differing_spaces([space for space, _ in pairs])
    return VectorSpaces(
        single_observation_space, observation_space, single_action_space, batch_space(single_action_space, len(pairs))
    )


def _are_alike(one: Space[Any], other: Space[Any]) -> bool:
    try:
        return one == other or bool(is_space_dtype_shape_equiv(one, other))
    except NotImplementedError:
        return type(one) is type(other)
