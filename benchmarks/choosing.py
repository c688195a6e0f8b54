"""Measures the picture of docs/choosing.md: over a grid of step costs and numbers of envs, which engine is fastest.

::

    step cost × number of envs ── all engines built, in turns ── choosing.json ── choosing.png

As ``rayvec bench`` advises it: the simplest engine that is as fast as the fastest within a few in a hundred. Run it again on
a machine that has other work, too: each number is the best that was ever seen.
See ``README.md`` beside this file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import Progress
from telling import circumstances, open_console, positive, positive_int
from works import BusyEnv, loops_for

import rayvec
from rayvec.local.waiting import usable_cores
from rayvec.measuring import BareLoop, Rated, Turn, random_actions, take_turns

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
COSTS = (1, 5, 20, 100, 500, 2000)
"""Of a step, in microseconds."""
NUMBERS = (1, 2, 4, 8, 16, 64)
"""Of envs."""
AS_GOOD = 0.95
"""A simpler engine is taken where it is as fast as this share of the fastest."""

SYNC, CALLER, WORKERS, EACH = "sync", "workers + caller", "workers", "a process each"
ENGINES: dict[str, dict[str, Any]] = {
    SYNC: {},
    CALLER: {"num_workers": "auto", "step_in_caller": True},
    WORKERS: {"num_workers": "auto"},
    EACH: {},
}
"""The simplest first."""
BARE = "bare"
_COLOURS = {SYNC: "#cc79a7", CALLER: "#0072b2", WORKERS: "#56b4e9", EACH: "#009e73"}
_CODE = {
    SYNC: "SyncVectorEnv",
    CALLER: 'AsyncVectorEnv, num_workers="auto", step_in_caller=True',
    WORKERS: 'AsyncVectorEnv, num_workers="auto"',
    EACH: "AsyncVectorEnv, a process for each sub-env",
}


def measure(loops: int, num_envs: int, rounds: int, seconds: float) -> dict[str, float]:
    """Env steps a second of the bare loop, and of each engine that differs from the others there: the best of the rounds.

    Other work on the machine only ever slows them, and hits one process harder than several; the best round has least of it.
    """
    cores = usable_cores()
    env_fns = [partial(BusyEnv, loops)] * num_envs
    with ExitStack() as stack:
        bare = BareLoop(env_fns)
        stack.callback(bare.close)
        bare.reset(seed=0)
        turns: dict[str, Rated] = {
            BARE: Turn(bare.step, random_actions(bare.envs[0].action_space, num_envs, 99, True), num_envs)
        }
        for name, options in ENGINES.items():
            if (num_envs == 1 and name in (CALLER, WORKERS)) or (name == WORKERS and num_envs <= cores):
                continue  # nothing but another engine of the list
            envs: Any = rayvec.SyncVectorEnv(env_fns) if name == SYNC else rayvec.AsyncVectorEnv(env_fns, **options)
            stack.callback(envs.close)
            envs.reset(seed=0)
            turns[name] = Turn(envs.step, random_actions(envs.single_action_space, num_envs, 99), num_envs)
        rates = take_turns(turns, rounds, seconds, lambda: None)
    return {name: round(max(tried), 1) for name, tried in rates.items()}


def shares_of(rates: Mapping[str, float], cores: int) -> dict[str, float]:
    """The share of the ideal, a bare loop times the cores, that each engine reaches."""
    return {name: rate / rates[BARE] / cores for name, rate in rates.items() if name != BARE}


def best_of(shares: Mapping[str, float]) -> str:
    """The simplest of those that are about as fast as the fastest."""
    most = max(shares.values())
    return next(name for name in ENGINES if shares.get(name, 0.0) >= AS_GOOD * most)


def draw(cells: Sequence[dict[str, Any]], cores: int, file: Path) -> None:
    """A square for each cost and number of envs: its colour is the engine, its text the share of the ideal."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    costs = sorted({cell["cost"] for cell in cells})
    numbers = sorted({cell["num_envs"] for cell in cells})
    figure = Figure(figsize=(9, 0.62 * len(numbers) + 2.4), layout="constrained")
    axes = figure.add_subplot()
    for cell in cells:
        x, y = costs.index(cell["cost"]), numbers.index(cell["num_envs"])
        shares = shares_of(cell["rates"], cores)
        best = best_of(shares)
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=_COLOURS[best], edgecolor="white", linewidth=2))
        times = shares[best] / shares[SYNC]
        told = f"{shares[best]:.0%}" + ("" if best == SYNC else f"\n{times:.1f} × sync")
        axes.text(x, y, told, ha="center", va="center", color="white" if best in (SYNC, CALLER) else "black", fontsize=9.5)
    axes.set_xlim(-0.5, len(costs) - 0.5)
    axes.set_ylim(-0.5, len(numbers) - 0.5)
    axes.set_xticks(range(len(costs)), [f"{cost:,g}" for cost in costs])
    axes.set_yticks(range(len(numbers)), [str(number) for number in numbers])
    axes.set_xlabel("step cost of an env (µs)")
    axes.set_ylabel("number of envs")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(f"The engine to take, on {cores} cores, and the share of the ideal (bare loop × cores) it reaches")
    won = [name for name in ENGINES if any(best_of(shares_of(cell["rates"], cores)) == name for cell in cells)]
    figure.legend(
        handles=[Patch(color=_COLOURS[name], label=_CODE[name]) for name in won],
        loc="outside lower center",
        ncols=1 if len(won) < 3 else 2,
        frameon=False,
    )
    figure.savefig(file, dpi=130)


def _told_before(file: Path) -> dict[str, Any]:
    """What earlier runs have told on the same machine with the same versions: some of it may be better than what comes."""
    told: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return told if told.get("circumstances") == circumstances() else {}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, writes the numbers, draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--costs", nargs="+", type=positive, default=COSTS, metavar="MICROSECONDS")
    parser.add_argument("--numbers", nargs="+", type=positive_int, default=NUMBERS, metavar="ENVS")
    parser.add_argument("--rounds", type=positive_int, default=12)
    parser.add_argument("--seconds", type=positive, default=0.025, help="of a turn")
    parser.add_argument("--out", type=Path, default=PICTURES, help="a folder")
    parser.add_argument("--draw", action="store_true", help="only draw the numbers that are there")
    args = parser.parse_args(argv)
    file = args.out / "choosing.json"
    if not args.draw:
        grid = [(cost, num_envs) for cost in args.costs for num_envs in args.numbers]
        with Progress(console=open_console()) as progress:
            task = progress.add_task("measuring", total=len(grid))
            before = _told_before(file)
            loops = before.get("loops_in_a_microsecond") or loops_for(10_000) / 10_000
            cells = {(cell["cost"], cell["num_envs"]): cell for cell in before.get("cells", [])}
            for cost, num_envs in grid:
                cell = cells.setdefault((cost, num_envs), {"cost": cost, "num_envs": num_envs, "rates": {}})
                for name, rate in measure(max(1, round(cost * loops)), num_envs, args.rounds, args.seconds).items():
                    cell["rates"][name] = max(rate, cell["rates"].get(name, 0.0))
                progress.advance(task)
        told = {
            "cores": usable_cores(),
            "circumstances": circumstances(),
            "loops_in_a_microsecond": loops,
            "cells": [cells[key] for key in sorted(cells)],
        }
        args.out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(told, indent=1) + "\n")
    told = json.loads(file.read_text())
    draw(told["cells"], told["cores"], file.with_suffix(".png"))


if __name__ == "__main__":
    main()
