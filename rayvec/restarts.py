"""What happens to a sub-env that has failed when training is to go on: the options, the bound, the seeds, the orders.

Pure data, for both sides: the caller decides with it (:mod:`rayvec.recovery`), and the sub-envs carry out what it orders
(:meth:`rayvec.sub_envs.SubEnvs.restart`).
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

__all__ = ["Bound", "FailurePolicy", "Goal", "RestartOrder", "restart_seed"]


@dataclass(frozen=True)
class FailurePolicy:
    """What becomes of a sub-env that fails.

    Attributes:
        on_failure: ``"raise"``: the caller is told by an exception; ``"restart"``: it is built anew and the step goes on.
        max_restarts: how often each sub-env may be restarted within ``restart_window``; None: as often as it fails.
        restart_window: seconds.

    Raises:
        ValueError, TypeError: one of them is wrong.
    """

    on_failure: str = "raise"
    max_restarts: int | None = 10
    restart_window: float = 60.0

    def __post_init__(self) -> None:
        if self.on_failure not in ("raise", "restart"):
            raise ValueError(f"on_failure: expected 'raise' or 'restart', got {self.on_failure!r}")
        most, window = self.max_restarts, self.restart_window
        if most is not None and (isinstance(most, bool) or not hasattr(most, "__index__")):
            raise TypeError(f"max_restarts: expected None or a number of restarts, got {most!r}")
        if most is not None and most < 0:
            raise ValueError(f"max_restarts: expected 0 or more, got {most}")
        if isinstance(window, bool) or not hasattr(window, "__float__"):
            raise TypeError(f"restart_window: expected a number of seconds, got {window!r}")
        if not window > 0 or math.isnan(window):
            raise ValueError(f"restart_window: expected more than 0 seconds, got {window}")

    @property
    def restarts(self) -> bool:
        """Whether a sub-env that fails is restarted."""
        return self.on_failure == "restart"


class Bound:
    """Counts the restarts of each sub-env, and says when they are too many.

    Args:
        policy: how many are allowed.
        num_envs: how many sub-envs there are.

    Attributes:
        counts: how often each was restarted, ever.
    """

    def __init__(self, policy: FailurePolicy, num_envs: int) -> None:
        self.counts = [0] * num_envs
        self._policy = policy
        self._times: list[deque[float]] = [deque() for _ in range(num_envs)]

    def refuses(self, env_index: int) -> str | None:
        """Why this sub-env may not be restarted now; None: it may."""
        policy, times = self._policy, self._times[env_index]
        if policy.max_restarts is None:
            return None
        since = time.monotonic() - policy.restart_window
        while times and times[0] <= since:
            times.popleft()
        if len(times) < policy.max_restarts:
            return None
        return (
            f"sub-env {env_index} was restarted {len(times)} times within restart_window={policy.restart_window:g} s "
            f"({self.counts[env_index]} times in all), and max_restarts={policy.max_restarts}"
        )

    def add(self, env_indices: Iterable[int]) -> None:
        """Counts a restart of each of these."""
        now = time.monotonic()
        for index in env_indices:
            self.counts[index] += 1
            if self._policy.max_restarts is not None:
                self._times[index].append(now)


def restart_seed(seed: int | None, num_restarts: int) -> int | None:
    """The seed of a sub-env that was restarted.

    Args:
        seed: the last one that ``reset`` gave it; None: it never got one, and none is made up.
        num_restarts: how often it was restarted since it got that, this time included.

    Returns:
        A number below 2**31 that these two decide, on every machine alike; None where there was no seed.
    """
    if seed is None:
        return None
    digest = hashlib.blake2b(f"rayvec restart {seed} {num_restarts}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % 2**31


class Goal(IntEnum):
    """How a sub-env that was built anew goes on."""

    BEGIN = 1
    """An episode begins now: a reset has failed."""
    END = 2
    """The step in which it failed ends the episode."""
    END_LATER = 3
    """Its next step ends the episode: it was lost outside a step."""
    WAIT = 4
    """Its episode had ended; whatever would have reset it does."""


class RestartOrder(NamedTuple):
    """What a sub-env that has failed is to do.

    Attributes:
        env_index: which one.
        goal: how it goes on.
        seed: of its first reset, unless the caller gives it another.
        observation: the one that was handed out last; None where none was.
        reason: why it was restarted.
        is_new: it has been built anew already, with all of its worker's.
    """

    env_index: int
    goal: Goal
    seed: int | None
    observation: Any
    reason: str
    is_new: bool

    def told(self) -> dict[str, Any]:
        """What the infos say of it."""
        return {"restarted": True, "failure": self.reason}
