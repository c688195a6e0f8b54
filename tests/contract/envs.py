"""Environments of the contract tests that the public kit has no use for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rayvec.testing import CountingEnv

__all__ = ["bad_once"]


def bad_once(note: Path, env_fn: Callable[..., Any], **kwargs: Any) -> Any:
    """Builds ``env_fn(**kwargs)`` the first time, and a CountingEnv ever after: one that has learnt.

    Args:
        note: a file that tells the first time from the others.
        env_fn: makes the env that is bad.
        **kwargs: for either.
    """
    if note.exists():
        return CountingEnv(**kwargs)
    note.touch()
    return env_fn(**kwargs)
