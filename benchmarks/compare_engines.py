"""How fast the engines step, side by side: Gymnasium's and rayvec's, in one run, in turns.

For each env and number of sub-envs all engines are built; then, round after round, each is stepped for a short
while, one at a time, and a plain loop over bare envs with them. What slows the machine down for a while slows all
of them down, so the ratios hold where the rates do not. See ``README.md`` beside this file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import rayvec

Env: TypeAlias = gymnasium.Env[Any, Any]
EnvFn: TypeAlias = Callable[[], Env]
AnyVectorEnv: TypeAlias = gymnasium.vector.VectorEnv[Any, Any, Any]
Step: TypeAlias = Callable[[NDArray[np.int64]], Any]

SYNC, ASYNC = "Gymnasium sync", "Gymnasium async"
BARE = "bare loop"

ENGINES: dict[str, Callable[[Sequence[EnvFn]], AnyVectorEnv]] = {
    SYNC: gymnasium.vector.SyncVectorEnv,
    ASYNC: gymnasium.vector.AsyncVectorEnv,
    "rayvec sync": rayvec.SyncVectorEnv,
    "rayvec async": rayvec.AsyncVectorEnv,
    "rayvec async, 2 workers": partial(rayvec.AsyncVectorEnv, num_workers=2),
    "rayvec async, 1 worker + caller": partial(rayvec.AsyncVectorEnv, num_workers=2, step_in_caller=True),
}


# --- what is stepped ----------------------------------------------------------------------------------------


class BusyEnv(gymnasium.Env[NDArray[np.float32], np.int64]):
    """An env whose step keeps a core busy for a number of loops, and whose episodes never end."""

    observation_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, loops: int) -> None:
        self.loops = loops
        self.observation = np.zeros(4, np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Starts an episode."""
        super().reset(seed=seed)
        return self.observation, {}

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Works for a while."""
        keep_busy(self.loops)
        return self.observation, 1.0, False, False, {}


def keep_busy(loops: int) -> None:
    """Counts to ``loops``: time spent on a core, unlike a wait for the clock, which also passes off it."""
    for _ in range(loops):
        pass


def loops_for(microseconds: float) -> int:
    """How many loops take this long when nothing else is in the way."""
    tried = 100_000
    taken = []
    for _ in range(10):
        started = time.perf_counter()
        keep_busy(tried)
        taken.append(time.perf_counter() - started)
    return max(1, round(tried * microseconds / 1e6 / min(taken)))


class BareLoop:
    """Steps envs one after the other, as an engine does in ``AutoresetMode.NEXT_STEP``, and keeps nothing."""

    def __init__(self, env_fns: Sequence[EnvFn]) -> None:
        self.envs = [env_fn() for env_fn in env_fns]
        self.ended = [True] * len(self.envs)

    def step(self, actions: NDArray[np.int64]) -> None:
        """Steps each env, or resets it where its episode has ended."""
        for index, (env, action) in enumerate(zip(self.envs, actions, strict=True)):
            if self.ended[index]:
                env.reset()
                self.ended[index] = False
            else:
                _, _, terminated, truncated, _ = env.step(action)
                self.ended[index] = terminated or truncated

    def close(self) -> None:
        """Closes the envs."""
        for env in self.envs:
            env.close()


# --- measuring ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """One table: an env, and how many of it."""

    name: str
    env_fn: EnvFn
    num_envs: int


@dataclass(frozen=True)
class Row:
    """What one engine did in a scenario.

    Attributes:
        engine: its name.
        rates: env steps a second, one for each round.
        median: of the rates.
        spread: from the lowest rate to the highest, as a share of the median.
        to_sync: median of the rounds' ratios to Gymnasium's SyncVectorEnv.
        to_async: the same to Gymnasium's AsyncVectorEnv.
        of_ideal: the same to the bare loop times the cores.
    """

    engine: str
    rates: list[float]
    median: float
    spread: float
    to_sync: float
    to_async: float
    of_ideal: float


def measure(scenario: Scenario, rounds: int, seconds: float, tick: Callable[[], None]) -> dict[str, list[float]]:
    """Env steps a second of each engine and of the bare loop, for each round."""
    env_fns = [scenario.env_fn] * scenario.num_envs
    table = np.random.default_rng(0).integers(2, size=(997, scenario.num_envs))
    with ExitStack() as stack:
        steps: dict[str, Step] = {}
        for name, engine in ENGINES.items():
            envs = stack.enter_context(closing(engine(env_fns)))
            envs.reset(seed=0)
            steps[name] = envs.step
        steps[BARE] = stack.enter_context(closing(BareLoop(env_fns))).step

        turns = {name: Turn(step, table) for name, step in steps.items()}
        return take_turns(turns, rounds, seconds, tick)


class Turn:
    """One engine's part in a round.

    Args:
        step: its step.
        table: of actions, a row for each step; begun anew at its end.
    """

    def __init__(self, step: Step, table: NDArray[np.int64]) -> None:
        self._step = step
        self._num_envs: int = table.shape[1]
        self._actions = itertools.cycle(table)

    def rate(self, seconds: float) -> float:
        """Env steps a second over at least ``seconds``."""
        clock = time.perf_counter
        step, actions = self._step, self._actions
        count = 0
        started = clock()
        deadline = started + seconds
        while True:
            step(next(actions))
            count += 1
            now = clock()
            if now >= deadline:
                return count * self._num_envs / (now - started)


def take_turns(turns: Mapping[str, Turn], rounds: int, seconds: float, tick: Callable[[], None]) -> dict[str, list[float]]:
    """Env steps a second of each, for each round."""
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


def summarise(rates: dict[str, list[float]], cores: int) -> list[Row]:
    """A row for each engine, and one for the ideal at the end."""
    ideal = {"ideal: bare loop x cores": [rate * cores for rate in rates[BARE]]}
    baselines = [rates[SYNC], rates[ASYNC], *ideal.values()]
    rows = []
    for name, own in {**{name: rates[name] for name in ENGINES}, **ideal}.items():
        ratios = [ratio_of(own, base) for base in baselines]
        rows.append(Row(name, own, statistics.median(own), spread_of(own), *ratios))
    return rows


# --- telling ------------------------------------------------------------------------------------------------


def circumstances(script: str, argv: Sequence[str]) -> dict[str, str | int]:
    """What a reader needs to know to compare numbers, and to get them again by calling ``script`` with ``argv``."""
    return {
        "cores": usable_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "gymnasium": gymnasium.__version__,
        "rayvec": rayvec.__version__,
        "commit": commit(),
        "command": shlex.join(["python", f"benchmarks/{script}", *argv]),
    }


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit() -> str:
    """The commit that is measured, with "+" where files have changed since; "unknown" outside of a repository."""
    here = Path(rayvec.__file__).parent
    try:
        head = _git("rev-parse", "--short", "HEAD", at=here)
        return head + ("+" if _git("status", "--porcelain", "--", ".", at=here) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str, at: Path) -> str:
    return subprocess.run(["git", *arguments], cwd=at, capture_output=True, text=True, check=True).stdout.strip()


def open_console() -> Console:
    """Standard output; 100 columns wide where it is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=100)


def tell_circumstances(console: Console, facts: Mapping[str, str | int]) -> None:
    """Prints them in a line, without the command, which comes last of all."""
    told = ", ".join(f"{name} {value}" for name, value in facts.items() if name != "command")
    console.print(told, soft_wrap=True, highlight=False)


def table_of(scenario: Scenario, rows: Sequence[Row]) -> Table:
    """A scenario's rows, as a table to print."""
    table = Table(title=f"{scenario.name}, {scenario.num_envs} envs", title_justify="left")
    table.add_column("engine", no_wrap=True)
    for heading in ["env steps/s", "spread", "x Gymnasium sync", "x Gymnasium async", "of ideal"]:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.engine,
            f"{row.median:,.0f}",
            f"{row.spread:.0%}",
            f"{row.to_sync:.2f}",
            f"{row.to_async:.2f}",
            f"{row.of_ideal:.0%}",
            end_section=row is rows[-2],
        )
    return table


# --- the command line ---------------------------------------------------------------------------------------

USUAL = {"num_envs": [8, 64], "rounds": 15, "seconds": 0.2}
QUICK = {"num_envs": [8], "rounds": 3, "seconds": 0.1}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked; those not given are the usual ones or, with ``--quick``, the quick ones."""
    parser = argparse.ArgumentParser(description="Compare the speed of Gymnasium's and rayvec's vector engines.")
    add = parser.add_argument
    add("--num-envs", type=positive_int, nargs="+", metavar="N", help="sub-envs (default: 8 64)")
    add("--step-cost", type=positive, default=100.0, metavar="US", help="of the busy env, in µs (default: 100)")
    add("--rounds", type=positive_int, metavar="N", help="turns that each engine gets (default: 15)")
    add("--seconds", type=positive, metavar="S", help="that each turn takes (default: 0.2)")
    add("--quick", action="store_true", help="a few seconds in all: 8 sub-envs, 3 rounds of 0.1 s each")
    add("--json", type=Path, metavar="FILE", help="write all that was measured into this file, too")
    return complete(parser, parser.parse_args(argv), QUICK, USUAL)


def complete(
    parser: argparse.ArgumentParser, options: argparse.Namespace, quick: Mapping[str, Any], usual: Mapping[str, Any]
) -> argparse.Namespace:
    """Fills in those of ``options`` that were not given, and checks the file to write."""
    for name, value in (quick if options.quick else usual).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.json is not None and not options.json.resolve().parent.is_dir():
        parser.error(f"--json: there is no folder {options.json.resolve().parent}")
    return options


def positive_int(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on is needed, not {text!r}")
    return int(text)


def positive(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"a number above 0 is needed, not {text!r}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints the tables, and writes the file that was asked for."""
    options = parse(argv)
    console = open_console()
    facts = circumstances("compare_engines.py", sys.argv[1:] if argv is None else argv)
    tell_circumstances(console, facts)

    envs: dict[str, EnvFn] = {
        "CartPole-v1": partial(gymnasium.make, "CartPole-v1"),
        f"busy env, {options.step_cost:g} µs a step": partial(BusyEnv, loops_for(options.step_cost)),
    }
    scenarios = [Scenario(name, env_fn, num_envs) for name, env_fn in envs.items() for num_envs in options.num_envs]
    results: list[dict[str, Any]] = []
    # Redrawn by hand: a thread that draws would take part in what is measured, and be there when engines fork.
    with Progress(console=console, auto_refresh=False, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("measuring", total=len(scenarios) * options.rounds)
        for scenario in scenarios:
            bar.update(task, description=f"{scenario.name}, {scenario.num_envs} envs", refresh=True)
            tick = partial(bar.update, task, advance=1, refresh=True)
            rows = summarise(measure(scenario, options.rounds, options.seconds, tick), usable_cores())
            console.print(table_of(scenario, rows), "")
            results.append({"env": scenario.name, "num_envs": scenario.num_envs, "rows": [asdict(row) for row in rows]})
    console.print(facts["command"], soft_wrap=True, highlight=False)
    if options.json is not None:
        settings = {"rounds": options.rounds, "seconds": options.seconds, "step_cost": options.step_cost}
        report = {"circumstances": facts, "settings": settings, "results": results}
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
