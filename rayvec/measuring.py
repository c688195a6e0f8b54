"""How fast envs step: what ``rayvec.tune`` and the benchmarks measure with.

Rates depend on what else a machine does; ratios of rates that were taken in turns hold far better. So whatever is compared
takes its turns, round after round, each for a short while, there and back through the list ::

    round 0   a  b  c        rate of each: env steps a second
    round 1   c  b  a        ratio of two: the median of the rounds' ratios
    round 2   a  b  c

The ideal is a :class:`BareLoop` in one process times the cores: what the cores could do if nothing but the envs' own code
ran.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from gymnasium import Space
from gymnasium.vector.utils import batch_space, iterate

from rayvec.sub_envs import EnvFn

__all__ = ["BareLoop", "Rated", "Turn", "random_actions", "ratio_of", "spread_of", "take_turns"]


_WAKING_SHARE = 0.1
"""Of a turn, what is stepped before it and not counted."""


class BareLoop:
    """Steps envs one after the other in this process, resets them at the step after an episode's end, and keeps nothing.

    Args:
        env_fns: functions that each make an env.
    """

    def __init__(self, env_fns: Sequence[EnvFn]) -> None:
        self.envs = [env_fn() for env_fn in env_fns]
        self._ended = [False] * len(self.envs)

    def reset(self, *, seed: int | None = None) -> None:
        """Resets all, seeded with ``seed``, ``seed + 1`` and so on."""
        for index, env in enumerate(self.envs):
            env.reset(seed=None if seed is None else seed + index)
        self._ended = [False] * len(self.envs)

    def step(self, actions: Sequence[Any]) -> None:
        """Steps each env with its action, or resets it where its episode has ended."""
        ended = self._ended
        for index, env in enumerate(self.envs):
            if ended[index]:
                env.reset()
                ended[index] = False
            else:
                _, _, terminated, truncated, _ = env.step(actions[index])
                ended[index] = terminated or truncated

    def close(self) -> None:
        """Closes the envs."""
        for env in self.envs:
            env.close()


def random_actions(space: Space[Any], num_envs: int, steps: int, bare: bool = False) -> list[Any]:
    """Actions for some steps, the same at each call.

    Args:
        space: of one env's actions.
        num_envs: how many envs.
        steps: how many steps.
        bare: for a :class:`BareLoop`: a list of single actions for each step, rather than one batch.
    """
    batched = batch_space(space, num_envs)
    batched.seed(0)
    table = [batched.sample() for _ in range(steps)]
    return [list(iterate(batched, actions)) for actions in table] if bare else table


class Rated(Protocol):
    """What takes turns."""

    def rate(self, seconds: float) -> float:
        """Env steps a second over about so many seconds."""


class Turn:
    """The turns of whatever steps envs in this process.

    Args:
        step: steps all of them.
        actions: for each step; begun anew at their end.
        num_envs: how many envs a step is worth.
    """

    def __init__(self, step: Callable[[Any], Any], actions: Iterable[Any], num_envs: int) -> None:
        self._step = step
        self._actions = itertools.cycle(actions)
        self._num_envs = num_envs
        self._step_seconds = float("inf")

    def rate(self, seconds: float) -> float:
        """Env steps a second over at least ``seconds``, and one step.

        Where steps are short some go before that are not counted: processes that have slept while others had their turns are
        awake then.
        """
        clock = time.perf_counter
        step, actions = self._step, self._actions
        waking = _WAKING_SHARE * seconds
        if self._step_seconds < waking:
            awake = clock() + waking
            while clock() < awake:
                step(next(actions))
        count = 0
        started = clock()
        deadline = started + seconds
        while True:
            step(next(actions))
            count += 1
            now = clock()
            if now >= deadline:
                self._step_seconds = (now - started) / count
                return count * self._num_envs / (now - started)


def take_turns(turns: Mapping[str, Rated], rounds: int, seconds: float, tick: Callable[[], None]) -> dict[str, list[float]]:
    """Env steps a second of each, for each round.

    Args:
        turns: what takes part.
        rounds: how many turns each gets.
        seconds: that a turn takes.
        tick: called after each round.
    """
    for turn in turns.values():  # the first steps of all are slower
        turn.rate(seconds / 4)
    rates: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds):
        # There and back, so that none always comes behind the same other.
        for name in list(turns) if number % 2 == 0 else reversed(list(turns)):
            rates[name].append(turns[name].rate(seconds))
        tick()
    return rates


def spread_of(rates: Sequence[float]) -> float:
    """From the lowest to the highest, as a share of the median."""
    return (max(rates) - min(rates)) / statistics.median(rates)


def ratio_of(rates: Sequence[float], base: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(rates, base, strict=True))
