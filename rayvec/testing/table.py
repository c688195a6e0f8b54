"""The table of checks, which rules enter themselves."""

from __future__ import annotations

import functools
from collections.abc import Callable

from rayvec.testing.comparison import ConformanceError
from rayvec.testing.duel import MakeVectorEnv

__all__ = ["CHECKS", "Check", "rule"]

Check = Callable[[MakeVectorEnv], None]

CHECKS: dict[str, Check] = {}
"""Every check by its name."""


def rule(function: Check) -> Check:
    """Puts a check into the table, and its name and rule into what it raises."""
    name = function.__name__.removeprefix("check_")
    words = f"{name}: {(function.__doc__ or '').splitlines()[0]}"

    @functools.wraps(function)
    def run(make: MakeVectorEnv) -> None:
        try:
            function(make)
        except ConformanceError as error:
            error.locate(rule=words)
            raise

    CHECKS[name] = run
    return run
