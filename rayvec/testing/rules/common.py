"""What several rules need: sub-envs of different lengths, comparisons, random agreement."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode

from rayvec.testing.comparison import ConformanceError, assert_same
from rayvec.testing.duel import Duel, MakeVectorEnv, duel
from rayvec.testing.envs import CountingEnv, InfoKind, read_log
from rayvec.testing.oracle import EnvFn

__all__ = [
    "METADATA",
    "MODES",
    "assert_all_closed",
    "assert_names",
    "check_agreement",
    "compare_spaces",
    "counting",
    "mask_of",
    "take_steps",
    "text_of",
]

MODES = tuple(AutoresetMode)
METADATA = {"render_modes": ["rgb_array"], "render_fps": 50}
"""What the class CountingEnv has as its metadata."""


def check_agreement(
    make: MakeVectorEnv,
    env_fns: Sequence[EnvFn],
    *,
    num_steps: int = 200,
    seed: int = 0,
    autoreset_modes: Iterable[AutoresetMode] = MODES,
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
            compare_spaces(both)
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


def compare_spaces(both: Duel) -> None:
    """Checks the number of sub-envs, the four spaces and the mode of a vector env against those of the loop."""
    loop, envs = both.loop, both.envs
    assert_same(loop.num_envs, envs.num_envs, "num_envs")
    for name in ("single_observation_space", "observation_space", "single_action_space", "action_space"):
        due, came = getattr(loop, name), getattr(envs, name)
        if due != came:
            raise ConformanceError(f"{name}: got {came}, expected {due}", key=name)
    assert_same(loop.autoreset_mode, envs.metadata.get("autoreset_mode"), "metadata['autoreset_mode']")


def counting(count: int = 3, *, infos: InfoKind = "none", lengths: Sequence[int] = (3, 4, 6), **kwargs: Any) -> list[EnvFn]:
    """Counting envs whose episodes end at different steps."""
    return [
        partial(CountingEnv, index=index, episode_length=lengths[index % len(lengths)], infos=infos, **kwargs)
        for index in range(count)
    ]


def mask_of(*flags: int) -> npt.NDArray[np.bool_]:
    """A reset mask."""
    return np.array(flags, np.bool_)


def take_steps(both: Duel, count: int) -> None:
    """Steps both with random actions."""
    for _ in range(count):
        both.step()


def assert_all_closed(log: Path) -> None:
    """Checks that each sub-env that was built was closed once, in the same process."""
    lines = read_log(log)
    built = sorted((line.env_index, line.pid) for line in lines if line.event == "built")
    closed = sorted((line.env_index, line.pid) for line in lines if line.event == "closed")
    assert_same(built, closed, "(index, pid) of the sub-envs closed")


def assert_names(error: BaseException, *indices: int) -> None:
    """Checks that an error's text or notes name sub-envs."""
    for index in indices:
        if not re.search(rf"(?<!\d){index}(?!\d)", text_of(error)):
            problem = f"got {type(error).__name__} with the text {text_of(error)!r}, expected one that names sub-env {index}"
            raise ConformanceError(problem)


def text_of(error: BaseException) -> str:
    """All that an error tells: its text and its notes."""
    return "\n".join([str(error), *getattr(error, "__notes__", [])])
