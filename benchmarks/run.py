"""Measures what docs/performance.md says, and writes it: one command for all engines, envs and peers.

::

    ROWS ── for each contestant a fresh process (contestants.py) ── turns ── performance.json ── performance.md, .png

A row is an env and a number of sub-envs. All of a row's contestants are built, each in a process of its own; then they
take turns. What slows the machine down for a while slows all of them down, so ratios hold where rates do not.
See ``README.md`` beside this file.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium  # noqa: F401 - fails here, and not in every process, where it is missing
from contestants import (
    ACCOUNTED,
    BARE,
    COPIES,
    GYMNASIUM_ASYNC,
    GYMNASIUM_SYNC,
    LOCKSTEP,
    OURS,
    RAY,
    RAY_EACH,
    RAY_PLAIN,
    RAY_STORE,
    RUNG_FOR,
    TUNED,
    WORKERS,
)
from contestants import contestants as all_contestants
from report import Measured, page_of, parts_table, plot, table_of, verdict_table
from rich.progress import Progress
from telling import circumstances, command_of, commit, open_console, positive, positive_int
from works import Work, loops_for

import rayvec
from rayvec.local.waiting import usable_cores
from rayvec.measuring import take_turns

DOCS = Path(__file__).parents[1] / "docs"
CLOSING = 60.0
"""Seconds that a contestant has to close its envs."""

MEASURES = (BARE, LOCKSTEP, GYMNASIUM_SYNC, GYMNASIUM_ASYNC)
PEERS = ("SB3 DummyVecEnv", "SB3 SubprocVecEnv", "tianshou DummyVectorEnv", "tianshou ShmemVectorEnv", "EnvPool (C++)")
SWEEP = (0, 1, 2, 3, 5, 10, 20, 50, 100, 300, 1000)
"""Step costs of the busy env, in microseconds."""
SWEEP_ROWS = tuple(f"busy-{cost:g}" for cost in SWEEP)


# --- what is measured ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """An env, how many of it, and who steps it."""

    work: Work
    num_envs: int
    entered: tuple[str, ...]


def rows_of(costs: Iterable[float]) -> dict[str, Row]:
    """All rows by name; the busy envs are made for this machine."""
    cart_pole = Work("CartPole-v1", "CartPole-v1", envpool=("CartPole-v1", {}))
    cheetah = Work("HalfCheetah-v5", "HalfCheetah-v5", needs="mujoco", envpool=("HalfCheetah-v5", {}))
    as_it_is = {"img_height": 210, "img_width": 160, "stack_num": 1, "gray_scale": False}
    breakout = Work("ALE/Breakout-v5", "ale_py:ALE/Breakout-v5", needs="ale_py", envpool=("Breakout-v5", as_it_is))
    wide = Work("210×160×3 observation, no work", kwargs={"loops": 0, "shape": (210, 160, 3), "dtype": "uint8"})
    everyone = (*MEASURES, *OURS, TUNED, *PEERS)
    rows = {
        "cartpole-8": Row(cart_pole, 8, (RUNG_FOR, ACCOUNTED, *everyone)),
        "cartpole-64": Row(cart_pole, 64, (RUNG_FOR, ACCOUNTED, *everyone)),
        "halfcheetah-16": Row(cheetah, 16, (ACCOUNTED, *everyone)),
        "breakout-16": Row(breakout, 16, (ACCOUNTED, *everyone)),
        "wide-16": Row(wide, 16, (COPIES, *everyone)),
        "ray-64": Row(cart_pole, 64, (*MEASURES, WORKERS, RAY, RAY_STORE)),
        "ray-8": Row(cart_pole, 8, (*MEASURES, WORKERS, RAY_EACH, RAY_PLAIN)),
    }
    for cost in costs:
        busy = Work(f"busy env, {cost:g} µs a step" if cost else "env without work", kwargs={"loops": loops_for(cost)})
        rows[f"busy-{cost:g}"] = Row(busy, 64, (ACCOUNTED, *MEASURES, *OURS, TUNED, RAY))
    return rows


# --- measuring ----------------------------------------------------------------------------------------------


class Process:
    """One contestant in its own process. It takes turns.

    Args:
        name: of the contestant.
        row: that it steps in.
        cores: that it is told there are.

    Attributes:
        choice: what it has chosen, if it had to; known once it has started.
        parts: what the time of each turn was spent on, if it knows.
    """

    def __init__(self, name: str, row: Row, cores: int) -> None:
        self._name = name
        self.choice: str | None = None
        self.parts: list[dict[str, float]] = []
        self._folder = tempfile.TemporaryDirectory(prefix="rayvec-benchmark-", ignore_cleanup_errors=True)
        self._errors = Path(self._folder.name, "errors").open("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("contestants.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            # Found wherever this one has found them; what envs write (MuJoCo a log) goes where it is removed.
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(rayvec.__file__).parents[1]), *filter(None, sys.path)])},
            cwd=self._folder.name,
        )
        self._tell(json.dumps({"contestant": name, "work": asdict(row.work), "num_envs": row.num_envs, "cores": cores}))

    def start(self) -> float:
        """Waits until it is built and reset; the seconds that this took it, without its imports."""
        told = self._answer("start")
        self.choice = told.get("choice")
        return float(told["start"])

    def rate(self, seconds: float) -> float:
        """Env steps a second over about so many seconds."""
        self._tell(f"{seconds}")
        told = self._answer("rate")
        if "parts" in told:
            self.parts.append(told["parts"])
        return float(told["rate"])

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self._process.wait(CLOSING)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()
            self._errors.close()
            self._folder.cleanup()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # the answer says why
            pass

    def _answer(self, wanted: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        told: dict[str, Any] = json.loads(self._process.stdout.readline() or "{}")
        if wanted not in told:
            self._errors.seek(0)
            print(self._errors.read()[-4000:], file=sys.stderr)
            raise RuntimeError(f"{self._name}: {told.get('error', 'it ended without a word')}")
        return told


def absence_of(name: str, row: Row, cores: int) -> str | None:
    """Why a contestant cannot take part in a row; None: it can."""
    modules = [all_contestants(cores)[name].module, *([row.work.needs] if row.work.needs else [])]
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    if name.startswith("EnvPool") and row.work.envpool is None:
        return "it has no such env"
    return None


def measure(row: Row, rounds: int, seconds: float, tick: Callable[[], None]) -> Measured:
    """What each contestant that can be had did in a row."""
    cores = usable_cores()
    absent = {name: why for name in row.entered if (why := absence_of(name, row, cores)) is not None}
    with ExitStack() as stack:
        processes: dict[str, Process] = {}
        starts: dict[str, float] = {}
        # The others start together; one that measures while it starts does so when they are quiet.
        for together in ([name for name in row.entered if name != TUNED], [TUNED] if TUNED in row.entered else []):
            for name in together:
                if name not in absent:
                    processes[name] = Process(name, row, cores)
                    stack.callback(processes[name].close)
            starts |= {name: processes[name].start() for name in together if name in processes}
        rates = take_turns({name: processes[name] for name in row.entered if name in processes}, rounds, seconds, tick)
        choice = processes[TUNED].choice if TUNED in processes else None
        parts = processes[ACCOUNTED].parts[-rounds:] if ACCOUNTED in processes else []
    return Measured(row.work.name, row.num_envs, cores, rates, starts, absent, choice, commit(), rounds, seconds, parts)


# --- the command line ---------------------------------------------------------------------------------------

USUAL: dict[str, Any] = {"rounds": 25, "seconds": 0.12}
QUICK: dict[str, Any] = {"rounds": 5, "seconds": 0.05, "only": ["cartpole-8", "busy-0", "busy-20", "busy-100"]}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked; those not given are the usual ones or, with ``--quick``, the quick ones."""
    parser = argparse.ArgumentParser(description="Measure how fast vector envs step, and write docs/performance.md.")
    add = parser.add_argument
    add("--only", nargs="+", metavar="ROW", help=f"measure these rows alone, of {' '.join(rows_of(()))} {' '.join(SWEEP_ROWS)}")
    add("--contestants", nargs="+", metavar="NAME", help="let these alone take part, and the bare loop")
    add("--rounds", type=positive_int, metavar="N", help="turns that each contestant gets (default: 25)")
    add("--seconds", type=positive, metavar="S", help="that each turn takes (default: 0.12)")
    add("--quick", action="store_true", help="a minute: four rows, 5 rounds of 0.05 s each; nothing is written without --out")
    add("--out", type=Path, metavar="FOLDER", help="where performance.md, .png and .json go (default: docs)")
    options = parser.parse_args(argv)
    for name, value in (USUAL | QUICK if options.quick else USUAL | {"out": DOCS}).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    known = [*rows_of(()), *SWEEP_ROWS]
    for name in options.only or ():
        if name not in known:
            parser.error(f"--only: there is no row {name!r}; there are {', '.join(known)}")
    for name in options.contestants or ():
        if name not in all_contestants(1):
            parser.error(f"--contestants: there is no {name!r}; there are {', '.join(all_contestants(1))}")
    if options.out is not None and not options.out.is_dir():
        parser.error(f"--out: there is no folder {options.out}")
    return options


def chosen_rows(options: argparse.Namespace) -> dict[str, Row]:
    """The rows to measure, by name."""
    rows = rows_of(cost for cost in SWEEP if options.only is None or f"busy-{cost:g}" in options.only)
    rows = {name: row for name, row in rows.items() if options.only is None or name in options.only}
    if options.contestants is not None:
        wanted = {BARE, *options.contestants}
        rows = {name: replace(row, entered=tuple(c for c in row.entered if c in wanted)) for name, row in rows.items()}
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints tables, and writes page, plot and data."""
    options = parse(argv)
    console = open_console()
    facts = circumstances()
    told = {**facts, "commit": commit()}
    console.print(", ".join(f"{name} {value}" for name, value in told.items()), soft_wrap=True, highlight=False)
    rows = chosen_rows(options)
    measured: dict[str, Measured] = {}
    # Redrawn by hand: a thread that draws would take part in what is measured.
    with Progress(console=console, auto_refresh=False, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("measuring", total=len(rows) * options.rounds)
        for name, row in rows.items():
            bar.update(task, description=name, refresh=True)
            if row.work.needs is not None and importlib.util.find_spec(row.work.needs) is None:
                console.print(f"{name}: left out, {row.work.needs} is not installed")
                continue
            measured[name] = measure(row, options.rounds, options.seconds, partial(bar.update, task, advance=1, refresh=True))
            console.print(table_of(name, measured[name]), "")
    if options.out is None:
        console.print(verdict_table(measured), parts_table(measured))
    else:
        kept = kept_rows(options.out / "performance.json", facts)
        measured = {name: {**kept, **measured}[name] for name in (*rows_of(()), *SWEEP_ROWS) if name in {**kept, **measured}}
        console.print(verdict_table(measured), parts_table(measured))
        write(options.out, facts, measured)
    console.print(command_of("run.py", argv), soft_wrap=True, highlight=False)
    return 0


def kept_rows(file: Path, facts: Mapping[str, str]) -> dict[str, Measured]:
    """The rows that were measured before under the same circumstances."""
    if not file.exists():
        return {}
    told = json.loads(file.read_text())
    if told["circumstances"] != facts:
        return {}
    return {name: Measured(**row) for name, row in told["rows"].items()}


def write(folder: Path, facts: Mapping[str, str], measured: Mapping[str, Measured]) -> None:
    """Data, page and plot."""
    told = {"circumstances": facts, "rows": {name: asdict(row) for name, row in measured.items()}}
    (folder / "performance.json").write_text(json.dumps(told, indent=1) + "\n")
    has_plot = plot(measured, folder / "performance.png")
    (folder / "performance.md").write_text(page_of(facts, measured, has_plot), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
