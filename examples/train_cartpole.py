"""Learns CartPole-v1 over any engine with the cross-entropy method, in NumPy.

A policy is five numbers: it pushes right when ``observation @ policy[:4] + policy[4]`` is positive. Each
generation draws 64 policies around the best so far and plays an episode with each, one policy to a sub-env,
so that one vector step moves ``num_envs`` of them. The quarter that did best gives mean and spread of the
next generation; the mean policy is tried in episodes of its own, and when it does well there, training ends.

Run ``python examples/train_cartpole.py --help`` for the options. The exit code is 0 if the last policy's mean
return over 100 fresh episodes reaches 475. A seed gives the same curve with every engine and ``--num-envs``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from options import natural, positive
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

import rayvec

ENV_ID = "CartPole-v1"
GOAL = 475.0
POPULATION = 64
ELITE = POPULATION // 4
FRESH_EPISODES = 100
# What a trial must give for training to stop: above the goal, as fresh episodes may turn out a little worse.
GOOD_ENOUGH = 490.0
# Added to the spread, less in each generation, so that it does not shrink before the right policy is found.
EXTRA_SPREAD = 0.1

Floats = NDArray[np.float64]


class Generation(NamedTuple):
    """One point of the learning curve.

    Attributes:
        steps: env steps played up to its end.
        returns: one for each policy of the population, sorted.
        trial: the mean return of their mean policy in fresh episodes.
    """

    steps: int
    returns: tuple[float, ...]
    trial: float

    @property
    def mean(self) -> float:
        """The population's mean return."""
        return float(np.mean(self.returns))


class Player:
    """Plays episodes on a vector env, as many at a time as it has sub-envs, and keeps count.

    Attributes:
        steps: env steps of the episodes played.
        stepped: env steps that the engine made, with those of sub-envs that waited for longer episodes.
        seconds: time spent in playing.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        self.envs = envs
        self.steps = 0
        self.stepped = 0
        self.seconds = 0.0

    def play(self, policies: Floats, rng: np.random.Generator) -> Floats:
        """The return of one episode with each of ``policies``; start states are drawn from ``rng``."""
        seeds = rng.integers(2**31, size=len(policies))
        returns = np.empty(len(policies))
        started = time.perf_counter()
        for first in range(0, len(policies), self.envs.num_envs):
            rows = slice(first, first + self.envs.num_envs)
            returns[rows] = self._play_together(policies[rows], seeds[rows])
        self.seconds += time.perf_counter() - started
        self.steps += int(returns.sum())  # CartPole pays 1 for each step
        return returns

    def _play_together(self, policies: Floats, seeds: NDArray[np.int64]) -> Floats:
        spare = self.envs.num_envs - len(policies)  # in the last round, sub-envs left over play along unheard
        weights = np.pad(policies, ((0, spare), (0, 0)), mode="edge")
        observations, _ = self.envs.reset(seed=np.pad(seeds, (0, spare), mode="edge").tolist())
        returns = np.zeros(self.envs.num_envs)
        playing = np.ones(self.envs.num_envs, dtype=np.bool_)
        while playing[: len(policies)].any():
            sides = np.einsum("ij,ij->i", observations, weights[:, :4]) + weights[:, 4]
            observations, rewards, terminations, truncations, _ = self.envs.step((sides > 0).astype(np.int64))
            returns += rewards * playing
            playing &= ~(terminations | truncations)
            self.stepped += self.envs.num_envs
        return returns[: len(policies)]


@dataclass(frozen=True)
class Result:
    """What training gives: its curve, and the last policy's returns over fresh episodes."""

    curve: list[Generation]
    policy: Floats
    fresh_returns: Floats

    @property
    def reached(self) -> bool:
        """Whether the goal was reached."""
        return bool(self.fresh_returns.mean() >= GOAL)


class Reporter:
    """Shows how far training has come: a line for each generation, and a bar below them in a terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("mean return {task.completed:.0f} of {task.total:.0f}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("learning", total=GOAL)

    def generation(self, number: int, generation: Generation) -> None:
        """Tells of a generation that has been played."""
        *_, best = generation.returns
        self.console.print(
            f"generation {number:2} | population mean {generation.mean:5.1f}, best {best:3.0f}"
            f" | trial {generation.trial:5.1f} | {generation.steps:7,} steps",
            highlight=False,
        )
        self.bar.update(self.task, completed=generation.trial)


def train(
    player: Player,
    seed: int,
    max_seconds: float,
    max_generations: int | None = None,
    reporter: Reporter | None = None,
) -> Result:
    """Trains until the mean policy does well in a trial or time is up, then plays the fresh episodes."""
    rng = np.random.default_rng(seed)
    mean, spread = np.zeros(5), np.ones(5)
    curve: list[Generation] = []
    deadline = time.monotonic() + max_seconds
    while not curve or (time.monotonic() < deadline and len(curve) != max_generations):
        policies = mean + spread * rng.standard_normal((POPULATION, 5))
        returns = player.play(policies, rng)
        elite = np.argsort(returns, kind="stable")[-ELITE:]
        mean = policies[elite].mean(axis=0)
        spread = policies[elite].std(axis=0) + EXTRA_SPREAD / (len(curve) + 1)
        trial = player.play(np.tile(mean, (POPULATION, 1)), rng).mean()
        curve.append(Generation(player.steps, tuple(np.sort(returns).tolist()), float(trial)))
        if reporter is not None:
            reporter.generation(len(curve), curve[-1])
        if trial >= GOOD_ENOUGH:
            break
    return Result(curve, mean, player.play(np.tile(mean, (FRESH_EPISODES, 1)), rng))


def plot(curve: Sequence[Generation], title: str, file: Path) -> None:
    """Draws the learning curve into a file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    steps = [generation.steps / 1000 for generation in curve]
    quartiles = np.percentile([generation.returns for generation in curve], [25, 75], axis=1)
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.fill_between(steps, *quartiles, alpha=0.2, label="middle half of the population")
    axes.plot(steps, [generation.mean for generation in curve], marker="o", label="mean of the population")
    axes.plot(steps, [generation.trial for generation in curve], marker="s", label="their mean policy")
    axes.axhline(GOAL, color="gray", linestyle="--", label=f"goal: {GOAL:.0f}")
    axes.set(xlabel="env steps (thousands)", ylabel="return of an episode", title=title, ylim=(0, 525))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=f"Learn {ENV_ID} with the cross-entropy method, in NumPy.")
    add = parser.add_argument
    add("--vectorization-mode", choices=["sync", "async"], default="async", help="the engine (default: async)")
    add("--num-envs", type=positive, default=POPULATION, metavar="N", help="sub-envs (default: %(default)s)")
    add("--num-workers", type=workers, metavar="N|auto", help="processes of the async engine (default: auto)")
    add("--seed", type=natural, default=0, metavar="N", help="decides the learning curve (default: 0)")
    add("--max-seconds", type=seconds, default=50.0, metavar="S", help="end learning then (default: 50)")
    add("--plot", type=Path, metavar="FILE.png", help="draw the learning curve into this file")
    options = parser.parse_args(argv)
    if options.vectorization_mode == "sync" and options.num_workers is not None:
        parser.error("--num-workers needs --vectorization-mode async: the sync engine has no processes")
    if options.plot is not None:
        if options.plot.suffix not in (".pdf", ".png", ".svg"):
            parser.error(f"--plot: cannot draw a {options.plot.suffix!r} file; .png, .pdf and .svg are known")
        if not options.plot.resolve().parent.is_dir():
            parser.error(f"--plot: there is no folder {options.plot.resolve().parent}")
    return options


def workers(text: str) -> int | str:
    """A number of processes, or "auto" for one for each core."""
    return text if text == "auto" else positive(text)


def seconds(text: str) -> float:
    """A time above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"a number of seconds above 0 is needed, not {text!r}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, reports, and returns the exit code."""
    options = parse(argv)
    console = Console()
    vector_kwargs: dict[str, Any] = {}
    if options.vectorization_mode == "async":
        vector_kwargs["num_workers"] = options.num_workers or "auto"
    reporter = Reporter(console)
    setup = f"{ENV_ID} with {options.num_envs} sub-envs, {options.vectorization_mode}, seed {options.seed}"
    console.print(f"learning {setup}", highlight=False)
    with closing(rayvec.make_vec(ENV_ID, options.num_envs, options.vectorization_mode, vector_kwargs)) as envs:
        player = Player(envs)
        with reporter.bar:
            result = train(player, options.seed, options.max_seconds, reporter=reporter)
    verdict = "reached" if result.reached else "not reached"
    console.print(
        f"mean return over {FRESH_EPISODES} fresh episodes: {result.fresh_returns.mean():.1f} "
        f"(goal of {GOAL:.0f} {verdict})\n"
        f"{player.stepped / player.seconds:,.0f} env steps a second "
        f"({player.stepped:,} in {player.seconds:.1f} s)",
        highlight=False,
    )
    if options.plot is not None:
        plot(result.curve, f"Learning {setup}", options.plot)
        console.print(f"learning curve drawn into {options.plot}", highlight=False)
    return 0 if result.reached else 1


if __name__ == "__main__":
    sys.exit(main())
