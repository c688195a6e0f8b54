"""What ``rayvec bench`` measured, as a picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter

from rayvec.cli.bench import ENGINES, Report

__all__ = ["FORMATS", "draw", "save"]

FORMATS = ("png", "pdf", "svg")
_OURS, _THEIRS, _LINE = "#1f77b4", "#b0b0b0", "#333333"


def draw(report: Report) -> Figure:
    """A bar for each engine, from its slowest round to its fastest a whisker, and the ideal as a line."""
    rows = [row for row in report.rows if not row.failure]
    figure = Figure(figsize=(9.0, 2.0 + 0.45 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    medians = [row.median for row in rows]
    colours = [_THEIRS if ENGINES[row.key].mode is None else _OURS for row in rows]
    whiskers = [[row.median - min(row.rates) for row in rows], [max(row.rates) - row.median for row in rows]]
    axes.barh([row.engine for row in rows], medians, color=colours, xerr=whiskers, ecolor=_LINE, capsize=3)
    axes.axvline(report.ideal, color=_LINE, linestyle="--", linewidth=1)
    for position, row in enumerate(rows):
        told = f"{row.median:,.0f} ({row.of_ideal:.0%})"
        axes.annotate(
            told,
            (max(row.rates), position),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    # The labels begin where the whiskers end, so there has to be room for them behind the longest one.
    axes.set_xlim(0, 1.3 * max([report.ideal, *(max(row.rates) for row in rows)]))
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("env steps per second, median of the rounds (share of the ideal)")
    axes.set_title(f"{report.target}: {report.num_envs} sub-envs on {report.cores} core{'s' * (report.cores != 1)}")
    axes.spines[["top", "right"]].set_visible(False)
    legend = [
        Patch(color=_OURS, label="rayvec"),
        Patch(color=_THEIRS, label="Gymnasium"),
        Line2D([], [], color=_LINE, label="slowest to fastest round"),
        Line2D([], [], color=_LINE, linestyle="--", linewidth=1, label=f"ideal: bare loop x cores, {report.ideal:,.0f}"),
    ]
    figure.legend(handles=legend, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def save(report: Report, path: Path) -> None:
    """Draws into a file, whose ending tells the format."""
    draw(report).savefig(path, dpi=150)
