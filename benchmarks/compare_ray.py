"""How fast CartPole-v1 steps in Ray actors, in one run, in turns: RayVectorEnv, plain actor calls, local processes.

Everything is built first; then, round after round, each is stepped for a short while, one at a time, as
``compare_engines.py`` does, whose parts this script uses. See ``README.md`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np
import ray
from compare_engines import (
    BareLoop,
    EnvFn,
    Turn,
    circumstances,
    complete,
    open_console,
    positive,
    positive_int,
    ratio_of,
    spread_of,
    take_turns,
    tell_circumstances,
    usable_cores,
)
from numpy.typing import NDArray
from rich.progress import Progress
from rich.table import Table

import rayvec

ENV_ID = "CartPole-v1"
RAY_CPUS = 4
LOCAL, PLAIN, BARE = "AsyncVectorEnv, 2 workers", "plain actor calls, 1 an env", "bare loop"


class Stepped(Protocol):
    """Whatever steps a number of envs."""

    def step(self, actions: NDArray[np.int64], /) -> Any:
        """Steps each env once."""

    def close(self) -> Any:
        """Closes them."""


class PlainActors:
    """An actor for each env and a call for each step of it: what one writes with Ray alone."""

    def __init__(self, env_fns: Sequence[EnvFn]) -> None:
        actor: Any = ray.remote(BareLoop)
        self._actors = [actor.options(num_cpus=0).remote([env_fn]) for env_fn in env_fns]
        ray.get([handle.step.remote(np.zeros(1, np.int64)) for handle in self._actors])

    def step(self, actions: NDArray[np.int64]) -> None:
        """Asks all, then waits for all."""
        ray.get([handle.step.remote(actions[row : row + 1]) for row, handle in enumerate(self._actors)])

    def close(self) -> None:
        """Ends the actors."""
        for handle in self._actors:
            ray.kill(handle)


class Contestant(NamedTuple):
    """What takes its turn.

    Attributes:
        build: makes it of env_fns.
        num_envs: how many.
        needs_ray: whether Ray has to run. The others are built before it starts: a process that forks has no threads then.
    """

    build: Callable[[Sequence[EnvFn]], Stepped]
    num_envs: int
    needs_ray: bool = True


def contestants(num_envs: int, num_alone: int) -> dict[str, Contestant]:
    """All of them, in the order in which they are shown.

    Args:
        num_envs: where two processes or actors share the envs.
        num_alone: where each env has an actor of its own.
    """
    in_store = partial(rayvec.RayVectorEnv, num_actors=2, transport="object_store")
    return {
        LOCAL: Contestant(partial(rayvec.AsyncVectorEnv, num_workers=2), num_envs, needs_ray=False),
        "RayVectorEnv, 2 actors": Contestant(partial(rayvec.RayVectorEnv, num_actors=2), num_envs),
        "RayVectorEnv, 2 actors, object store": Contestant(in_store, num_envs),
        "RayVectorEnv, an actor each": Contestant(rayvec.RayVectorEnv, num_alone),
        PLAIN: Contestant(PlainActors, num_alone),
        BARE: Contestant(BareLoop, num_envs, needs_ray=False),
    }


# --- measuring ----------------------------------------------------------------------------------------------


@contextmanager
def ray_running() -> Iterator[float]:
    """A small Ray of this script's own; gives the seconds that it took to start."""
    started = time.perf_counter()
    ray.init(address="local", num_cpus=RAY_CPUS, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield time.perf_counter() - started
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Row:
    """What one of them did.

    Attributes:
        engine: its name.
        num_envs: how many envs it stepped.
        start: seconds until it was built and all of its envs reset.
        rates: env steps a second, one for each round.
        median: of the rates.
        spread: from the lowest rate to the highest, as a share of the median.
        to_plain: median of the rounds' ratios to plain actor calls.
        to_local: the same to AsyncVectorEnv with two workers.
    """

    engine: str
    num_envs: int
    start: float
    rates: list[float]
    median: float
    spread: float
    to_plain: float
    to_local: float


def measure(
    entered: Mapping[str, Contestant], rounds: int, seconds: float, tick: Callable[[], None]
) -> tuple[float, list[Row]]:
    """The seconds that Ray took to start, and a row for each contestant."""
    env_fn = partial(gymnasium.make, ENV_ID)
    turns: dict[str, Turn] = {}
    starts: dict[str, float] = {}
    with ExitStack() as stack:

        def build(name: str, contestant: Contestant) -> None:
            started = time.perf_counter()
            built = stack.enter_context(closing(contestant.build([env_fn] * contestant.num_envs)))
            if isinstance(built, gymnasium.vector.VectorEnv):
                built.reset(seed=0)
            starts[name] = time.perf_counter() - started
            turns[name] = Turn(built.step, np.random.default_rng(0).integers(2, size=(997, contestant.num_envs)))

        in_order = sorted(entered.items(), key=lambda item: item[1].needs_ray)
        for name, contestant in in_order:
            if not contestant.needs_ray:
                build(name, contestant)
        ray_start = stack.enter_context(ray_running())
        for name, contestant in in_order:
            if contestant.needs_ray:
                build(name, contestant)
        rates = take_turns({name: turns[name] for name in entered}, rounds, seconds, tick)
    return ray_start, summarise(entered, rates, starts)


def summarise(entered: Mapping[str, Contestant], rates: Mapping[str, list[float]], starts: Mapping[str, float]) -> list[Row]:
    """A row for each contestant; the bare loop's, times the cores, as the ideal at the end."""
    rows = []
    for name, contestant in entered.items():
        own = rates[name]
        if name == BARE:
            name, own = "ideal: bare loop x cores", [rate * usable_cores() for rate in own]
        ratios = [ratio_of(own, rates[base]) for base in (PLAIN, LOCAL)]
        rows.append(Row(name, contestant.num_envs, starts.get(name, 0.0), own, statistics.median(own), spread_of(own), *ratios))
    return rows


# --- telling ------------------------------------------------------------------------------------------------


def table_of(rows: Sequence[Row]) -> Table:
    """The rows, as a table to print."""
    table = Table(title=ENV_ID, title_justify="left")
    table.add_column("engine", no_wrap=True)
    for heading in ["envs", "start-up", "env steps/s", "spread", "x plain calls", "x async"]:
        table.add_column(heading, justify="right")
    for row in rows:
        is_ideal = row is rows[-1]
        table.add_row(
            row.engine,
            str(row.num_envs),
            "" if is_ideal else f"{row.start:.2f} s",
            f"{row.median:,.0f}",
            f"{row.spread:.0%}",
            f"{row.to_plain:.1f}",
            f"{row.to_local:.2f}",
            end_section=row is rows[-2],
        )
    return table


# --- the command line ---------------------------------------------------------------------------------------

USUAL = {"num_envs": 64, "num_alone": 8, "rounds": 15, "seconds": 0.3}
QUICK = {"num_envs": 64, "num_alone": 2, "rounds": 3, "seconds": 0.1}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked; those not given are the usual ones or, with ``--quick``, the quick ones."""
    parser = argparse.ArgumentParser(description="Compare ways to step CartPole-v1 in Ray actors.")
    add = parser.add_argument
    add("--num-envs", type=positive_int, metavar="N", help="envs that two actors or processes share (default: 64)")
    add("--num-alone", type=positive_int, metavar="N", help="envs that have an actor each (default: 8)")
    add("--rounds", type=positive_int, metavar="N", help="turns that each engine gets (default: 15)")
    add("--seconds", type=positive, metavar="S", help="that each turn takes (default: 0.3)")
    add("--quick", action="store_true", help="3 rounds of 0.1 s each, and 2 actors for an env each")
    add("--json", type=Path, metavar="FILE", help="write all that was measured into this file, too")
    return complete(parser, parser.parse_args(argv), QUICK, USUAL)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints the table, and writes the file that was asked for."""
    options = parse(argv)
    console = open_console()
    facts = circumstances("compare_ray.py", sys.argv[1:] if argv is None else argv) | {"ray": ray.__version__}
    tell_circumstances(console, facts)
    with Progress(console=console, auto_refresh=False, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("measuring", total=options.rounds)
        bar.refresh()
        tick = partial(bar.update, task, advance=1, refresh=True)
        entered = contestants(options.num_envs, options.num_alone)
        ray_start, rows = measure(entered, options.rounds, options.seconds, tick)
    console.print(table_of(rows), f"Ray itself started in {ray_start:.2f} s (with {RAY_CPUS} CPUs).", "", highlight=False)
    console.print(facts["command"], soft_wrap=True, highlight=False)
    if options.json is not None:
        settings = {"rounds": options.rounds, "seconds": options.seconds, "ray_start": ray_start}
        report = {"circumstances": facts, "settings": settings, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
