"""Steps an env over a Ray cluster, and shows where its sub-envs are, how fast they go, and that the data stays the same.

Where ``RAY_ADDRESS`` names a cluster, or one runs on this machine, its actors are placed there; else in a small local Ray
that is started for it. ``--nodes 3`` starts a cluster of three nodes on this machine instead, to see actors on other
nodes::

    python examples/ray_cluster.py --nodes 3 --num-cpus 1 --strategy SPREAD

A seed gives the same actions and the same data, down to the bit, wherever the actors are and however they are talked to:
compare the checksums at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import gymnasium
import numpy as np
import ray
from gymnasium.error import Error as GymnasiumError
from gymnasium.vector import VectorEnv
from options import natural, positive
from ray.cluster_utils import Cluster
from ray.exceptions import RayError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import rayvec
from rayvec.errors import PlacementError, TransportError, WorkerLostError

CPUS_A_NODE = 2
"""Logical CPUs of each node of a cluster that this script starts; it has to have no cores for them."""


@contextmanager
def cluster(num_nodes: int | None, num_cpus: int) -> Iterator[None]:
    """A cluster of that many nodes on this machine, joined and ended behind; None: whatever rayvec joins or starts."""
    if num_nodes is None:
        yield
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    arguments: dict[str, Any] = {"num_cpus": num_cpus, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=arguments)
    try:
        for _ in range(num_nodes - 1):
            nodes.add_node(**arguments)
        nodes.wait_for_nodes()
        ray.init(address=nodes.address, log_to_driver=False, logging_level=logging.ERROR)
        yield
    finally:
        ray.shutdown()
        nodes.shutdown()


class Checksum:
    """Of all that a vector env has returned, in order."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, *values: Any) -> None:
        """Takes arrays, and dicts and tuples of them, in; anything else by how it prints."""
        for value in values:
            if isinstance(value, dict):
                for key in sorted(value):
                    self.add(key, value[key])
            elif isinstance(value, tuple):
                self.add(*value)
            elif isinstance(value, np.ndarray) and value.dtype != np.object_:
                self._hash.update(f"{value.dtype} {value.shape} ".encode() + value.tobytes())
            elif isinstance(value, np.ndarray):
                self.add(*value.tolist())
            else:
                self._hash.update(f"{value!r} ".encode())

    def __str__(self) -> str:
        return self._hash.hexdigest()[:16]


def table_of(envs: rayvec.RayVectorEnv) -> Table:
    """The actors, as a table to print."""
    here = ray.get_runtime_context().get_node_id()
    num_nodes = len({actor.node_id for actor in envs.actors})
    table = Table(title=f"actors: {len(envs.actors)}, nodes: {num_nodes}")
    table.add_column("sub-envs")
    table.add_column("node")
    table.add_column("pid", justify="right")
    table.add_column("transport")
    for actor in envs.actors:
        first, last = actor.envs[0], actor.envs[-1]
        node = (actor.node_id or "gone")[:8] + (" (the caller's)" if actor.node_id == here else "")
        table.add_row(str(first) if first == last else f"{first} to {last}", node, str(actor.pid), actor.transport)
    return table


def step(envs: VectorEnv[Any, Any, Any], steps: int, seed: int, console: Console) -> tuple[Checksum, float]:
    """Takes random steps; returns the checksum of the data, and env steps a second."""
    checksum = Checksum()
    envs.action_space.seed(seed)
    checksum.add(*envs.reset(seed=seed))
    with Progress(
        TextColumn("stepping"),
        BarColumn(),
        TextColumn("{task.fields[rate]:,.0f} env steps/s"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("stepping", total=steps, rate=0.0)
        spent = 0.0
        for number in range(1, steps + 1):
            actions = envs.action_space.sample()
            started = time.perf_counter()
            results = envs.step(actions)
            spent += time.perf_counter() - started
            checksum.add(*results)
            bar.update(task, completed=number, rate=number * envs.num_envs / spent)
    return checksum, steps * envs.num_envs / spent


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description="Step an env over a Ray cluster.")
    add = parser.add_argument
    add("--env", default="CartPole-v1", metavar="ID", help="what to step (default: %(default)s)")
    add("--num-envs", type=positive, default=16, metavar="N", help="sub-envs (default: %(default)s)")
    add("--num-actors", type=positive, default=4, metavar="N", help="actors that share them (default: %(default)s)")
    add("--nodes", type=positive, metavar="N", help="start a cluster of N nodes here (default: join one, or a local Ray)")
    add("--num-cpus", type=amount, metavar="N", help="logical CPUs that each actor asks for (default: none)")
    add("--strategy", choices=["DEFAULT", "SPREAD"], help="where actors go (default: Ray decides)")
    add("--transport", choices=["auto", "shared_memory", "object_store"], default="auto", help="default: auto")
    add("--steps", type=positive, default=2000, metavar="N", help="of the vector env (default: %(default)s)")
    add("--seed", type=natural, default=0, metavar="N", help="decides actions and data (default: 0)")
    options = parser.parse_args(argv)
    try:
        gymnasium.spec(options.env)
    except (GymnasiumError, ImportError) as error:
        parser.error(f"--env: {error}")
    if options.num_actors > options.num_envs:
        parser.error(f"--num-actors: {options.num_actors} actors cannot share {options.num_envs} sub-envs")
    return options


def amount(text: str) -> float:
    """A finite number from 0 on."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"a number from 0 on is needed, not {text!r}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Places the actors, shows them, steps, and returns the exit code."""
    options = parse(argv)
    console = Console()
    vector_kwargs = {
        "num_actors": options.num_actors,
        "num_cpus": options.num_cpus,
        "scheduling_strategy": options.strategy,
        "transport": options.transport,
        "placement_timeout": 30.0,
    }
    console.print(
        f"placing {options.num_envs} x {options.env} in {options.num_actors} actor{'s' * (options.num_actors > 1)}",
        highlight=False,
    )
    try:
        with (
            cluster(options.nodes, CPUS_A_NODE),
            closing(rayvec.make_vec(options.env, options.num_envs, "ray", vector_kwargs)) as envs,
        ):
            assert isinstance(envs, rayvec.RayVectorEnv)
            console.print(table_of(envs))
            checksum, rate = step(envs, options.steps, options.seed, console)
    except (ConnectionError, PlacementError, TransportError, WorkerLostError, RayError) as error:
        Console(stderr=True).print(f"{type(error).__name__}: {error}", soft_wrap=True, highlight=False, markup=False)
        return 1
    console.print(
        f"{rate:,.0f} env steps a second ({options.steps:,} steps of {options.num_envs} sub-envs)\n"
        f"checksum of the data: {checksum} (the same for seed {options.seed} wherever the actors are)",
        highlight=False,
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
