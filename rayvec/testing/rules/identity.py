"""What a vector env says of itself: spaces, metadata, rendering."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_differing_spaces

from rayvec.testing.comparison import ConformanceError, assert_same
from rayvec.testing.duel import MakeVectorEnv, close_quietly, duel
from rayvec.testing.envs import CountingEnv, SpaceEnv
from rayvec.testing.oracle import EnvFn
from rayvec.testing.rules.common import METADATA, MODES, compare_spaces, counting, take_steps
from rayvec.testing.table import rule

__all__: list[str] = []


@rule
def check_spaces_and_attributes(make: MakeVectorEnv) -> None:
    """``num_envs``, the four spaces, ``metadata["autoreset_mode"]`` and ``render_mode`` are those of its sub-envs, batched."""
    for mode in MODES:
        with duel(make, counting(3, render_mode="rgb_array"), mode) as both:
            compare_spaces(both)
            assert_same("rgb_array", both.envs.render_mode, "render_mode")
            assert_same({**METADATA, "autoreset_mode": mode}, dict(both.envs.metadata), "metadata")


@rule
def check_metadata_of_class(make: MakeVectorEnv) -> None:
    """The env class's own ``metadata`` is not changed."""
    _EnvWithItsOwnMetadata.metadata = dict(METADATA)
    with duel(make, [_EnvWithItsOwnMetadata] * 2) as both:
        both.reset(seed=0)
        assert_same(METADATA, _EnvWithItsOwnMetadata.metadata, "the env class's metadata")


class _EnvWithItsOwnMetadata(CountingEnv):
    """A class whose metadata a vector env may spoil without harm to the next one that is judged."""


@rule
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
            take_steps(both, 5)
    _assert_not_made(make, env_fns, "sub-envs with different spaces under observation_mode='same'", observation_mode="same")


@rule
def check_render(make: MakeVectorEnv) -> None:
    """``render()`` gives a tuple of what the sub-envs render."""
    with duel(make, counting(3, render_mode="rgb_array")) as both:
        both.reset(seed=0)
        both.step()
        assert_same(both.loop.call("render"), both.ask("render"), "render()")


def _assert_not_made(make: MakeVectorEnv, env_fns: Sequence[EnvFn], what: str, **kwargs: Any) -> None:
    try:
        envs = make(list(env_fns), autoreset_mode=AutoresetMode.NEXT_STEP, **kwargs)
    except Exception:
        return
    close_quietly(envs)
    raise ConformanceError(f"a vector env was made of {what}, expected its constructor to raise")
