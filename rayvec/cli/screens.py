"""What the commands print, as rich renderables made of plain values."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from rayvec.cli.bench import ENGINES, Report
from rayvec.cli.check import CheckReport
from rayvec.cli.doctor import Fact

__all__ = ["bench_screen", "check_screen", "doctor_screen", "open_console"]

_WIDTH = 110


def open_console() -> Console:
    """Standard output; of a fixed width where it is no terminal, so that tables keep their lines in a file."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def bench_screen(report: Report, advice: str, code: str) -> RenderableType:
    """The table of a bench, what was not measured and why, and the advice."""
    cores = f"{report.cores} usable core{'s' * (report.cores != 1)}"
    table = Table(title=f"{report.target}, {report.num_envs} sub-envs, {cores}", title_justify="left")
    table.add_column("engine", no_wrap=True)
    for heading in ["env steps/s", "spread", "of ideal", "x Gymnasium sync", "x Gymnasium async"]:
        table.add_column(heading, justify="right")
    measured = [row for row in report.rows if not row.failure]
    best = max((row.of_ideal for row in measured), default=0.0)
    for row in measured:
        table.add_row(
            row.engine,
            f"{row.median:,.0f}",
            f"{row.spread:.0%}",
            f"{row.of_ideal:.0%}",
            _ratio(row.to_sync),
            _ratio(row.to_async),
            style="bold green" if row.of_ideal == best else "dim" if ENGINES[row.key].mode is None else "",
            end_section=row is measured[-1],
        )
    table.add_row(f"ideal: bare loop x {report.cores}", f"{report.ideal:,.0f}", "", "100%", "", "", style="dim")
    failed = [Text(f"{row.engine} failed: {row.failure}", style="red") for row in report.rows if row.failure]
    left_out = [Text(f"not measured: {name} ({why})", style="dim") for name, why in report.left_out.items()]
    shown: list[RenderableType] = [table, *failed, *left_out, Text(), Text(advice, style="bold")]
    if code:
        shown.append(
            Padding(Syntax(code, "python", theme="ansi_dark", background_color="default", word_wrap=True), (1, 0, 1, 4))
        )
    return Group(*shown)


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def check_screen(report: CheckReport) -> RenderableType:
    """What was probed, each finding with its remedy, and how the engines agree."""
    probes = Table.grid(padding=(0, 2))
    for outcome in report.outcomes:
        mark = (
            Text("skipped", "yellow")
            if outcome.skipped
            else Text("finding", "bold red")
            if outcome.findings
            else Text("ok", "green")
        )
        probes.add_row(mark, outcome.about, Text(outcome.skipped, "dim"))
    shown: list[RenderableType] = [Text(f"{report.target}\n", "bold"), probes]
    for number, finding in enumerate(report.findings, 1):
        told = Table.grid(padding=(0, 2))
        told.add_column(style="dim", no_wrap=True)
        told.add_row("what", finding.what)
        told.add_row("then", finding.consequence)
        told.add_row("mend", Text(finding.remedy, "green"))
        shown += [Text(f"\n{number}. {finding.name}", "bold red"), Padding(told, (0, 0, 0, 3))]
    shown.append(Text(f"\n{_verdict(report)}", "bold red" if report.findings else "bold green"))
    return Group(*shown)


def _verdict(report: CheckReport) -> str:
    count = len(report.findings)
    if count:
        return f"{count} finding{'s' * (count != 1)}."
    return "No findings: every engine that was tried gives what a plain loop over this env gives."


def doctor_screen(facts: Sequence[Fact]) -> RenderableType:
    """A row for each fact: what it is, and what it means for vector envs."""
    table = Table(show_lines=True)
    table.add_column("", no_wrap=True)
    table.add_column("what", no_wrap=True)
    table.add_column("here", overflow="fold", ratio=2)
    table.add_column("what it means for vector envs", overflow="fold", ratio=3)
    for fact in facts:
        mark = Text("ok", "green") if fact.is_well else Text("look", "bold yellow")
        table.add_row(mark, fact.about, fact.value, fact.meaning)
    return table
