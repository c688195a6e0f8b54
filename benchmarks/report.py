"""What the benchmarks say of what they measured: tables, the page, and the plot."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from contestants import (
    ACCOUNTED,
    ASYNC,
    BARE,
    CALLER,
    COPIES,
    GYMNASIUM_ASYNC,
    GYMNASIUM_SYNC,
    LOCKSTEP,
    OURS,
    RAY,
    RUNG_FOR,
    SYNC,
    TUNED,
    WORKERS,
)
from rich.table import Table

from rayvec.measuring import ratio_of

IDEAL = "ideal: bare loop × cores"
BEST = "best of rayvec"


@dataclass(frozen=True)
class Measured:
    """What was measured in a row.

    Attributes:
        work: the env's name.
        num_envs: how many of it.
        cores: that there were.
        rates: env steps a second of each contestant, one for each round.
        starts: seconds until each was built and reset.
        absent: why others could not take part.
        choice: what auto chose, if it took part.
        commit: that was measured.
        rounds: turns that each got.
        seconds: that a turn took.
        parts: what the time of each round of ``ACCOUNTED`` was spent on: :class:`accounting.Parts`.
    """

    work: str
    num_envs: int
    cores: int
    rates: dict[str, list[float]]
    starts: dict[str, float]
    absent: dict[str, str]
    choice: str | None
    commit: str
    rounds: int
    seconds: float
    parts: list[dict[str, float]] = field(default_factory=list)

    def rates_of(self, name: str) -> list[float] | None:
        """Of a contestant, of ``IDEAL`` or of ``BEST``; None: it took no part."""
        if name == IDEAL:
            return [rate * self.cores for rate in self.rates[BARE]]
        if name == BEST:
            ours = [self.rates[engine] for engine in OURS if engine in self.rates]
            return max(ours, key=statistics.median, default=None)
        return self.rates.get(name)

    def ratio(self, name: str, base: str) -> float | None:
        """The median of the rounds' ratios; None: one of them took no part."""
        rates, others = self.rates_of(name), self.rates_of(base)
        return None if rates is None or others is None else ratio_of(rates, others)

    @property
    def step_cost(self) -> float:
        """Microseconds of a step in the bare loop."""
        return 1e6 / statistics.median(self.rates[BARE])


Rows = Mapping[str, Measured]


# --- what is to be shown ------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """A figure beside what it should be.

    Attributes:
        work: what was stepped.
        what: which ratio it is.
        goal: what it should be: at least this, or below it.
        figure: what it is; None: not measured.
        is_met: whether it is what it should be.
        bound: the same figure of bare code that does what any such engine has to; None: not known.
    """

    work: str
    what: str
    goal: str
    figure: str | None
    is_met: bool
    bound: str | None = None


_RATIOS: Sequence[tuple[str, str, str, float]] = [
    ("cartpole-8", BEST, IDEAL, 0.80),
    ("cartpole-64", BEST, IDEAL, 0.92),
    ("cartpole-8", BEST, GYMNASIUM_SYNC, 2.0),
    ("cartpole-64", BEST, GYMNASIUM_SYNC, 2.0),
    ("cartpole-64", ASYNC, GYMNASIUM_ASYNC, 4),
    ("cartpole-64", WORKERS, GYMNASIUM_ASYNC, 10),
    ("cartpole-8", SYNC, GYMNASIUM_SYNC, 1.15),
    ("cartpole-64", SYNC, GYMNASIUM_SYNC, 1.05),
    ("busy-20", BEST, IDEAL, 0.95),
    ("busy-100", BEST, IDEAL, 0.97),
    ("halfcheetah-16", BEST, IDEAL, 0.85),
    ("breakout-16", BEST, IDEAL, 0.92),
    ("wide-16", BEST, GYMNASIUM_SYNC, 2.0),
    ("ray-64", RAY, WORKERS, 0.9),
]
_BOUNDS = {(BEST, IDEAL): LOCKSTEP, (BEST, GYMNASIUM_SYNC): LOCKSTEP, (ASYNC, GYMNASIUM_ASYNC): RUNG_FOR}
"""Whose ratio to the same base bounds that of an engine; for observations so large that they are all the work: COPIES."""


def verdicts_of(rows: Rows) -> list[Verdict]:
    """All figures that are to be shown."""
    verdicts = []
    for name, above, below, goal in _RATIOS:
        row = rows.get(name)
        ratio = None if row is None else row.ratio(above, below)
        work = name if row is None else f"{row.work} × {row.num_envs}"
        base = "ideal" if below == IDEAL else below
        figure = None if ratio is None else f"{ratio:.2f}"
        limit = COPIES if name == "wide-16" else _BOUNDS.get((above, below))
        bound = None if row is None or limit is None else row.ratio(limit, below)
        told = None if bound is None else f"{bound:.2f}"
        verdicts.append(Verdict(work, f"{above} ÷ {base}", f"≥ {goal:g}", figure, ratio is not None and ratio >= goal, told))
    chosen = {name: ratio for name, row in rows.items() if (ratio := row.ratio(TUNED, BEST)) is not None}
    worst = min(chosen.values(), default=None)
    figure = None if worst is None else f"{worst:.2f} ({min(chosen, key=lambda name: chosen[name])})"
    verdicts.append(
        Verdict("every row with auto", f"lowest of {TUNED} ÷ {BEST}", "≥ 0.9", figure, bool(worst and worst >= 0.9))
    )
    cost = crossover(rows)
    figure = None if cost is None else cost[1]
    verdicts.append(
        Verdict(
            "busy env × 64", f"step cost from which {CALLER} is ahead of {SYNC}", "< 3 µs", figure, bool(cost and cost[0] < 3)
        )
    )
    return verdicts


PARTS = ("the envs", "their code, slower than alone", "rows, flags, infos", "the caller alone", "waiting for each other")


def parts_of(row: Measured) -> list[float] | None:
    """What the cores' time in steps of ``CALLER`` goes into, as shares of it, in the order of ``PARTS``; None: not measured."""
    rates, ideal = row.rates_of(ACCOUNTED), row.rates_of(IDEAL)
    if rates is None or ideal is None or not row.parts:
        return None
    rounds = [
        (rate / most, parts["envs"] - rate / most, parts["rows"], parts["caller"], parts["waiting"])
        for rate, most, parts in zip(rates, ideal, row.parts, strict=True)
    ]
    return [statistics.median(shares) for shares in zip(*rounds, strict=True)]


def sweep_of(rows: Rows) -> list[Measured]:
    """The rows of busy envs, the cheapest first."""
    return sorted((row for name, row in rows.items() if name.startswith("busy-")), key=lambda row: row.step_cost)


def crossover(rows: Rows) -> tuple[float, str] | None:
    """The step cost in microseconds from which stepping in caller and workers beats one loop, and the words for it."""
    points = [(row.step_cost, ratio) for row in sweep_of(rows) if (ratio := row.ratio(CALLER, SYNC)) is not None]
    if not points:
        return None
    if all(ratio >= 1 for _, ratio in points):
        return points[0][0], f"below {points[0][0]:.1f} µs, the cheapest measured ({points[0][1]:.2f} × there)"
    last = max(index for index, (_, ratio) in enumerate(points) if ratio < 1)
    if last == len(points) - 1:
        return math.inf, f"above {points[-1][0]:.0f} µs"
    (low, under), (high, over) = points[last], points[last + 1]
    share = math.log(1 / under) / math.log(over / under)
    cost = low * (high / low) ** share
    return cost, f"{cost:.1f} µs"


# --- tables -------------------------------------------------------------------------------------------------

_VERDICT_HEADINGS = ("work", "figure", "goal", "measured", "", "bare code")
_HEADINGS = ("env steps/s", "spread", "of ideal", "× Gymnasium sync", "× Gymnasium async", "start-up")


def spread_of(rates: Sequence[float]) -> float:
    """From the lower quartile to the upper one, as a share of the median."""
    low, middle, high = np.percentile(rates, [25, 50, 75])
    return float((high - low) / middle)


def _lines_of(row: Measured) -> list[tuple[str, ...]]:
    """Contestant by contestant, what the columns hold; the ideal at the end."""
    lines = []
    for name in [*(name for name in row.rates if name not in (BARE, ACCOUNTED)), IDEAL]:
        rates = row.rates_of(name)
        assert rates is not None
        share = row.ratio(name, IDEAL)
        ratios = (row.ratio(name, base) for base in (GYMNASIUM_SYNC, GYMNASIUM_ASYNC))
        lines.append(
            (
                name,
                f"{statistics.median(rates):,.0f}",
                f"{spread_of(rates):.0%}",
                f"{share:.0%}",
                *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
                "" if name == IDEAL else f"{row.starts[name]:.2f} s",
            )
        )
    return lines


def table_of(name: str, row: Measured) -> Table:
    """A row, as a table to print."""
    table = Table(title=f"{name}: {row.work} × {row.num_envs}, {row.step_cost:.1f} µs a step", title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in _HEADINGS:
        table.add_column(heading, justify="right")
    lines = _lines_of(row)
    for line in lines:
        table.add_row(*line, end_section=line in lines[-2:-1])
    told = [f"{absent}: {why}" for absent, why in row.absent.items()]
    if row.choice is not None:
        told.insert(0, f"auto chose {row.choice}")
    table.caption = "\n".join(told)
    table.caption_justify = "left"
    return table


def verdict_table(rows: Rows) -> Table:
    """What is to be shown, as far as it was measured, as a table to print."""
    table = Table(title="what it shows", title_justify="left")
    for heading in _VERDICT_HEADINGS:
        table.add_column(heading)
    for verdict in verdicts_of(rows):
        if verdict.figure is not None:
            table.add_row(*verdict[:3], verdict.figure, "met" if verdict.is_met else "missed", verdict.bound or "")
    return table


def parts_table(rows: Rows) -> Table:
    """What steps are spent on, as far as it was measured, as a table to print."""
    table = Table(title=f"what the time of {CALLER} goes into", title_justify="left")
    for heading in ("work", *PARTS):
        table.add_column(heading, justify="left" if heading == "work" else "right")
    for line in _part_lines(rows):
        table.add_row(*line)
    return table


def _part_lines(rows: Rows) -> list[tuple[str, ...]]:
    lines = []
    for name, below in ((name, below) for name, above, below, _ in _RATIOS if above == BEST):
        parts = parts_of(rows[name]) if below == IDEAL and name in rows else None
        if parts is not None:
            lines.append((f"{rows[name].work} × {rows[name].num_envs}", *(f"{part:.0%}" for part in parts)))
    return lines


# --- the page -----------------------------------------------------------------------------------------------


def page_of(facts: Mapping[str, str], rows: Rows, has_plot: bool) -> str:
    """The whole page, in Markdown."""
    first = next(iter(rows.values()))
    commits = sorted({row.commit for row in rows.values()})
    page = [
        "# Performance",
        "<!-- Written by benchmarks/run.py: run it again rather than change this page. -->",
        "Vector stepping should cost what the environments cost. `ideal` is what a bare loop over the envs does in one "
        "process, times the cores: nothing that steps them in Python can be faster, and one core alone ends at "
        f"{1 / first.cores:.0%} of it on this machine. Rates are of this machine; ratios hold better.",
        _markdown(["", ""], [*facts.items(), ("commit", ", ".join(commits))]),
        "```\npython benchmarks/run.py\n```",
        "## What it shows",
        _markdown(
            _VERDICT_HEADINGS, [(*v[:3], v.figure or "not measured", _judged(v), v.bound or "") for v in verdicts_of(rows)]
        ),
        "*Bare code* is the same figure of loops that move no data, keep nothing and check nothing, and do only what such an "
        "engine has to: meet after each step, one loop on each core; wake a process for each env; or copy each observation "
        "into a row and all rows out. What it misses on a machine no engine reaches there.",
    ]
    lines = _part_lines(rows)
    if lines:
        page += [
            "## Where the time goes",
            f"Of the time of the cores in a step of {CALLER}, by stopwatches within (medians of the rounds):",
            _markdown(["work", *PARTS], lines),
            "*The envs* is the share of the ideal, as in the bare loop of the same round. *Their code, slower than alone*: the "
            "same code in caller and worker, where it finds its memory cold, and beside another core that is busy. *Rows, "
            "flags, infos*: all around each env, the stopwatch (0.3 µs) included. *The caller alone*: checking the call, "
            "placing actions, ringing bells; taking rings, merging infos, handing out copies; all cores have that time. "
            "*Waiting for each other*: a core that has ended its share, or has not heard yet that it may begin; one that the "
            "machine lends to others for a moment, or that has one more env to reset, holds the other up, as it does the loops "
            "that do nothing but meet.",
        ]
    if has_plot:
        page += [
            "## Share of ideal against step cost",
            "![Share of ideal against the step cost of an env, a line for each engine](performance.png)",
            "64 envs that keep a core busy for so long a step; `auto` is what `rayvec.tune` chooses there.",
        ]
    page += ["## Row by row"]
    for name, row in rows.items():
        rounds = f"{row.rounds} rounds of {row.seconds:g} s, commit {row.commit}"
        page += [
            f"### {row.work} × {row.num_envs}",
            f"{row.step_cost:.1f} µs a step in the bare loop; {rounds}: `python benchmarks/run.py --only {name}`.",
            _markdown(["", *_HEADINGS], _lines_of(row)),
        ]
        if row.choice is not None:
            page += [f"auto chose `{row.choice}`."]
        if row.absent:
            page += ["; ".join(f"{absent}: {why}" for absent, why in row.absent.items()) + "."]
    page += [
        "## How it is measured",
        "Each contestant has a fresh process. All of a row are built, then take turns there and back through the list, while "
        "the others sleep. A figure is the median of the rounds; the spread goes from the lower quartile to the upper one, as "
        "a share of the median. Actions are random and the same for all; the engines have their default options but for those "
        'that are named. *A process a core* is `num_workers="auto"`; *with the caller* adds `step_in_caller=True`, so that '
        "the caller is one of them. tianshou leaves resets to the caller, who does them here; EnvPool's envs are in C++, so "
        "that they may pass the ideal of the env in Python. *Bare loops that meet after each step*, one on each core, wait for "
        "each other and do nothing else: what that costs on this machine (a core that was lent to others for a moment holds "
        "the step back, and so does a reset that falls to one of them alone) is in every engine's figures.",
    ]
    return "\n\n".join(page) + "\n"


def _judged(verdict: Verdict) -> str:
    if verdict.figure is None:
        return ""
    return "met" if verdict.is_met else "**missed**"


def _markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


# --- the plot -----------------------------------------------------------------------------------------------

_LINES: Sequence[tuple[str, str, str]] = [
    (TUNED, "black", "o"),
    (CALLER, "#0072b2", "s"),
    (WORKERS, "#56b4e9", "D"),
    (ASYNC, "#009e73", "^"),
    (SYNC, "#cc79a7", "v"),
    (RAY, "#e69f00", "P"),
    (GYMNASIUM_SYNC, "#d55e00", "x"),
    (GYMNASIUM_ASYNC, "#999999", "+"),
    (LOCKSTEP, "0.6", ""),
]


def plot(rows: Rows, file: Path) -> bool:
    """Draws share of ideal against step cost, a line for each engine; False: there are too few rows for it."""
    sweep = sweep_of(rows)
    if len(sweep) < 3:
        return False
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, PercentFormatter

    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    for engine, colour, marker in _LINES:
        points = [(row.step_cost, share) for row in sweep if (share := row.ratio(engine, IDEAL)) is not None]
        if points:
            style = "--" if engine.startswith("Gymnasium") else "-"
            axes.plot(*zip(*points, strict=True), style, color=colour, marker=marker, markersize=5, label=engine)
    cores = sweep[0].cores
    axes.axhline(1, color="0.6", linewidth=0.8)
    if cores > 1:
        axes.axhline(1 / cores, color="0.6", linewidth=0.8, linestyle=":", label="one core")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: f"{cost:g}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylim(0, 1.1)
    axes.set_xlabel("step cost of an env (µs)")
    axes.set_ylabel("env steps a second, share of ideal")
    axes.set_title(f"{sweep[0].num_envs} envs on {cores} cores (ideal: bare loop × cores)")
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(file, dpi=130)
    pyplot.close(figure)
    return True
