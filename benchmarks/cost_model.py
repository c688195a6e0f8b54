"""A model of how fast a RayVectorEnv steps: its constants, measured on this machine, and its word against measurements.

One step of the vector env is taken to last ::

    round trip + (actors - 1) x another actor + rows of an actor x (row + env) x crowd + bytes of all rows x byte

where the crowd is how many actors share a core: actors / cores of a node, at least 1. The constants are measured with
envs that do nothing, for each transport; ``docs/cluster.md`` tells how to use them. Cores that are busy all at once, with
this or with anything else, are slower than one alone: how much, is measured in turns with each setup, and an env's cost
is taken to be that much more.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import ray
from rich.progress import Progress
from rich.table import Table
from telling import circumstances, command_of, commit, open_console, positive
from works import BusyEnv, loops_for

import rayvec
from rayvec.local.waiting import usable_cores
from rayvec.measuring import Turn, take_turns

SHARED, STORE = "shared_memory", "object_store"
TURNS = 12
ROWS = 32
LARGE = 1 << 18
"""Bytes of one observation where the cost of bytes is measured."""


# --- the model ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Constants:
    """What the parts of a vector step take, in microseconds.

    Attributes:
        round_trip: a step of one actor with one env that does nothing, from call to result.
        actor: each further actor.
        row: what comes to an env's own cost, in its actor.
        byte: each byte of the observations.
    """

    round_trip: float
    actor: float
    row: float
    byte: float


@dataclass(frozen=True)
class Setup:
    """What is to be predicted.

    Attributes:
        transport: how actors are talked to.
        num_actors: how many share the envs, as many on each node.
        rows: envs of each actor.
        env_cost: what a step of an env takes, in microseconds.
        env_bytes: of one observation, where that is much.
        num_nodes: that the actors are on.
        network: a round trip of the network between the nodes, in microseconds.
    """

    transport: str
    num_actors: int
    rows: int
    env_cost: float = 0.0
    env_bytes: int = 0
    num_nodes: int = 1
    network: float = 0.0


def predict(setup: Setup, constants: Constants, cores: int) -> float:
    """Env steps a second, where each node has this many cores."""
    crowd = max(1.0, setup.num_actors / setup.num_nodes / cores)
    step = constants.round_trip + setup.network + (setup.num_actors - 1) * constants.actor
    step += setup.rows * (constants.row + setup.env_cost) * crowd
    step += setup.num_actors * setup.rows * setup.env_bytes * constants.byte
    return setup.num_actors * setup.rows / step * 1e6


# --- measuring ----------------------------------------------------------------------------------------------


@contextmanager
def ray_running() -> Iterator[None]:
    """A small Ray of this script's own."""
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


class Gauge:
    """How much slower a core is while all are busy, by two local processes or as many as there are cores.

    Args:
        envs: busy envs over these processes.
    """

    COST = 1000.0
    EACH = 4

    def __init__(self, envs: rayvec.AsyncVectorEnv, cores: int) -> None:
        self._cores = cores
        envs.reset(seed=0)
        self.turn = Turn(envs.step, np.zeros((1, envs.num_envs), np.int64), envs.num_envs)

    @classmethod
    def built(cls, cores: int) -> rayvec.AsyncVectorEnv:
        """The busy envs; to be built before Ray runs, as a process that forks should have no threads."""
        env_fn = partial(BusyEnv, loops_for(cls.COST))
        return rayvec.AsyncVectorEnv([env_fn] * (cls.EACH * cores), num_workers=cores)

    def slowdown(self, rate: float) -> float:
        """What a rate of these envs says."""
        return self._cores / self.COST * 1e6 / rate


def measured(setup: Setup, gauge: Gauge, seconds: float, tick: Callable[[], None]) -> tuple[float, float]:
    """Env steps a second and the slowdown meanwhile: medians of turns."""
    loops = loops_for(setup.env_cost)
    env_fn = partial(BusyEnv, loops, (setup.env_bytes // 4,)) if setup.env_bytes else partial(BusyEnv, loops)
    num_envs = setup.num_actors * setup.rows
    with closing(rayvec.RayVectorEnv([env_fn] * num_envs, num_actors=setup.num_actors, transport=setup.transport)) as envs:
        envs.reset(seed=0)
        turn = Turn(envs.step, np.random.default_rng(0).integers(2, size=(97, num_envs)), num_envs)
        rates = take_turns({"envs": turn, "gauge": gauge.turn}, TURNS, seconds / TURNS / 2, lambda: None)
    tick()
    return statistics.median(rates["envs"]), gauge.slowdown(statistics.median(rates["gauge"]))


def constants_of(transport: str, gauge: Gauge, cores: int, seconds: float, tick: Callable[[], None]) -> Constants:
    """Of this machine."""

    def step(num_actors: int, rows: int, env_bytes: int = 0) -> float:
        setup = Setup(transport, num_actors, rows, env_bytes=env_bytes)
        return num_actors * rows / measured(setup, gauge, seconds, tick)[0] * 1e6

    one, many, long = step(1, 1), step(4, 1), step(1, ROWS)
    row = max(0.0, (long - one) / (ROWS - 1))
    wide = step(1, 4, LARGE)
    return Constants(
        round_trip=max(0.0, one - row),
        actor=max(0.0, (many - one - row * (max(1.0, 4 / cores) - 1)) / 3),
        row=row,
        byte=max(0.0, (wide - one - 3 * row) / (4 * LARGE)),
    )


NUM_CONSTANTS = 4
"""How many measurements :func:`constants_of` makes."""


# --- telling ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """A prediction beside what was measured, both in env steps a second; how much slower than one alone all cores were."""

    setup: Setup
    slowdown: float
    predicted: float
    measured: float


def table_of_constants(constants: dict[str, Constants]) -> Table:
    """The constants, as a table to print."""
    table = Table(title="constants, in µs", title_justify="left")
    table.add_column("transport", no_wrap=True)
    for heading in ["round trip", "another actor", "row", "MB of observations"]:
        table.add_column(heading, justify="right")
    for transport, known in constants.items():
        table.add_row(
            transport, f"{known.round_trip:,.0f}", f"{known.actor:,.0f}", f"{known.row:.1f}", f"{known.byte * 1e6:,.0f}"
        )
    return table


def table_of(verdicts: Sequence[Verdict]) -> Table:
    """The verdicts, as a table to print."""
    table = Table(title="env steps/s", title_justify="left")
    table.add_column("transport", no_wrap=True)
    for heading in ["actors", "envs each", "env cost", "slowdown", "predicted", "measured", "ratio"]:
        table.add_column(heading, justify="right")
    for verdict in verdicts:
        setup = verdict.setup
        table.add_row(
            setup.transport,
            str(setup.num_actors),
            str(setup.rows),
            f"{setup.env_cost:g} µs",
            f"{verdict.slowdown:.2f}",
            f"{verdict.predicted:,.0f}",
            f"{verdict.measured:,.0f}",
            f"{verdict.predicted / verdict.measured:.2f}",
        )
    return table


# --- the command line ---------------------------------------------------------------------------------------

SETUPS = [
    Setup(transport, num_actors, rows, cost)
    for transport in (SHARED, STORE)
    for num_actors, rows, cost in [(2, 32, 20.0), (2, 4, 100.0), (4, 16, 100.0), (8, 1, 1000.0), (2, 4, 1000.0)]
]
USUAL = {"seconds": 4.0, "setups": SETUPS}
QUICK = {"seconds": 0.2, "setups": [Setup(SHARED, 2, 4, 100.0)]}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description="Predict the speed of RayVectorEnv, and hold it against measurements.")
    add = parser.add_argument
    add("--seconds", type=positive, metavar="S", help="that each measurement takes (default: 4)")
    add("--quick", action="store_true", help="measurements of 0.2 s, and one prediction")
    add("--json", type=Path, metavar="FILE", help="write all that was measured into this file, too")
    parser.set_defaults(setups=None)
    options = parser.parse_args(argv)
    for name, value in (QUICK if options.quick else USUAL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.json is not None and not options.json.resolve().parent.is_dir():
        parser.error(f"--json: there is no folder {options.json.resolve().parent}")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, predicts, prints the tables, and writes the file that was asked for."""
    options = parse(argv)
    command = command_of("cost_model.py", argv)
    console = open_console()
    facts = {**circumstances(), "commit": commit()}
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()), soft_wrap=True, highlight=False)
    setups: list[Setup] = options.setups
    transports = list(dict.fromkeys(setup.transport for setup in setups))
    cores = usable_cores()
    total = len(transports) * NUM_CONSTANTS + len(setups)
    with (
        closing(Gauge.built(cores)) as busy,
        ray_running(),
        Progress(console=console, auto_refresh=False, transient=True, disable=not console.is_terminal) as bar,
    ):
        tick = partial(bar.update, bar.add_task("measuring", total=total), advance=1, refresh=True)
        gauge = Gauge(busy, cores)
        constants = {transport: constants_of(transport, gauge, cores, options.seconds, tick) for transport in transports}
        verdicts = []
        for setup in setups:
            rate, slowdown = measured(setup, gauge, options.seconds, tick)
            felt = replace(setup, env_cost=setup.env_cost * slowdown)
            verdicts.append(Verdict(setup, slowdown, predict(felt, constants[setup.transport], cores), rate))
    console.print(table_of_constants(constants), table_of(verdicts), "")
    console.print(command, soft_wrap=True, highlight=False)
    if options.json is not None:
        report = {
            "circumstances": {**facts, "command": command},
            "constants": {transport: asdict(known) for transport, known in constants.items()},
            "verdicts": [asdict(verdict) for verdict in verdicts],
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
