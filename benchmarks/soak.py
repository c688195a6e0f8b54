"""A soak of ``on_failure="restart"``: sub-envs raise, die and get stuck at random, and every datum is still the right one.

Each engine in turn steps 8 sub-envs for its share of the time. Its sub-envs draw from their own seeded generators whether
a step or a reset raises, kills their process or never returns; now and then the script itself kills a worker that is
idle, and now and then it resets some sub-envs. Whatever comes back is compared, bit for bit, with a plain loop over the
same envs without trouble, which is told nothing but which sub-envs the infos say were restarted. In the end nothing may
be left behind, the caller may not have grown, and steps may not have become slower.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from rich.table import Table
from telling import circumstances, command_of, commit, open_console, positive, positive_int

import rayvec
from rayvec.testing import CountingEnv, RestartedLoop, assert_same

NUM_ENVS = 8
EPISODE_LENGTH = 50
STEP_TIMEOUT = 1.0
RAISE, DIE, STUCK = 1 / 500, 1 / 4000, 1 / 12000
"""How likely one sub-env's step, or its reset, ends so."""
KILL, MASKED_RESET = 1 / 800, 1 / 100
"""How likely the script kills an idle worker before a step, or resets some sub-envs after it."""
WARM_UP = 0.25
"""The share of an engine's time before which growth is not looked at."""
MEGABYTE = 2**20
MAX_GROWTH = 8 * MEGABYTE
MAX_SLOWER = 1.5
RAYS_OWN = 4
"""Descriptors that Ray may open for itself meanwhile: far fewer than there are restarts, each of which opens several."""


class TroubledEnv(CountingEnv):
    """Fails at random, as its own generator says.

    Args:
        caller: the process that it may not end or hold up.
        **kwargs: CountingEnv's.
    """

    def __init__(self, caller: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._caller = caller

    def reset(self, **kwargs: Any) -> Any:
        """As CountingEnv, unless it fails."""
        result = super().reset(**kwargs)
        self._meet_trouble()
        return result

    def step(self, action: np.int64) -> Any:
        """As CountingEnv, unless it fails."""
        self._meet_trouble()
        return super().step(action)

    def _meet_trouble(self) -> None:
        fate = self.np_random.random()
        if fate < RAISE:
            raise RuntimeError("bad luck")
        if os.getpid() == self._caller:
            return
        if fate < RAISE + DIE:
            os.kill(os.getpid(), signal.SIGKILL)
        while fate < RAISE + DIE + STUCK:
            time.sleep(3600)


@dataclass(frozen=True)
class Contestant:
    """What is soaked."""

    name: str
    make: Callable[..., Any]
    mode: AutoresetMode


def contestants(with_ray: bool) -> list[Contestant]:
    """All of them; those over Ray where Ray runs."""
    pool = [
        Contestant("async", rayvec.AsyncVectorEnv, AutoresetMode.NEXT_STEP),
        Contestant(
            "async, 3 workers, pipes",
            partial(rayvec.AsyncVectorEnv, num_workers=3, shared_memory=False),
            AutoresetMode.SAME_STEP,
        ),
        Contestant(
            "async, 2 workers + caller",
            partial(rayvec.AsyncVectorEnv, num_workers=3, step_in_caller=True),
            AutoresetMode.DISABLED,
        ),
    ]
    if with_ray:
        for transport in ("shared_memory", "object_store"):
            make = partial(_ray_vector_env, num_actors=2, transport=transport)
            pool.append(Contestant(f"ray, 2 actors, {transport}", make, AutoresetMode.SAME_STEP))
    return pool


def _ray_vector_env(env_fns: Any, **options: Any) -> Any:
    # A step of an actor takes longer, and placing one more so.
    return rayvec.RayVectorEnv(env_fns, **{**options, "step_timeout": 3.0, "reset_timeout": 3.0})


@dataclass(frozen=True)
class Report:
    """What one of them did.

    Attributes:
        engine: its name.
        steps: of the vector env, each of which was compared.
        restarts: of sub-envs.
        reasons: how often each kind of trouble was given as the reason.
        first: median seconds of a step that met no trouble, in the first third of the time.
        last: the same in the last third.
        growth: of the caller's memory after the warm-up, in bytes.
        descriptors: more than there were after the warm-up.
        left: processes and descriptors that close() left behind.
        allowed: how many of either are not the engine's.
    """

    engine: str
    steps: int
    restarts: int
    reasons: dict[str, int]
    first: float
    last: float
    growth: int
    descriptors: int
    left: int
    allowed: int

    def faults(self) -> list[str]:
        """What is wrong with it; wrong data have raised before."""
        found = []
        if self.growth > MAX_GROWTH:
            found.append(f"the caller has grown by {self.growth / MEGABYTE:.1f} MB")
        if self.descriptors > self.allowed:
            found.append(f"{self.descriptors} more descriptors than after the warm-up")
        if self.left > self.allowed:
            found.append(f"{self.left} processes or descriptors left behind")
        if self.last > MAX_SLOWER * self.first:
            found.append(f"a step took {self.first * 1e6:.0f} us at first and {self.last * 1e6:.0f} us at last")
        return found


def soak(contestant: Contestant, seconds: float, seed: int) -> Report:
    """Steps it for so long. Raises ConformanceError at the first wrong datum."""
    gc.collect()
    before = world()
    generator = np.random.default_rng(seed)
    kwargs: dict[str, Any] = {"episode_length": EPISODE_LENGTH, "infos": "numbers"}
    troubled = [partial(TroubledEnv, os.getpid(), index=index, **kwargs) for index in range(NUM_ENVS)]
    calm = [partial(CountingEnv, index=index, **kwargs) for index in range(NUM_ENVS)]
    options: dict[str, Any] = {"step_timeout": STEP_TIMEOUT, "reset_timeout": STEP_TIMEOUT, "start_timeout": 30.0}
    times: list[tuple[float, float]] = []
    reasons: Counter[str] = Counter()
    envs = contestant.make(troubled, autoreset_mode=contestant.mode, on_failure="restart", max_restarts=None, **options)
    with closing(envs), closing(RestartedLoop(calm, contestant.mode)) as loop:

        def reset(mask: Any, own_seed: int | None) -> None:
            given: dict[str, Any] = {"seed": own_seed, "options": None if mask is None else {"reset_mask": mask}}
            result = envs.reset(**given)
            assert_same(loop.follow_reset(result[-1], envs.num_restarts, **given), result, f"reset {len(times)}")
            reasons.update(told_in(result[-1]))

        reset(None, seed)
        begin = time.monotonic()
        settled = None
        is_quiet = False
        # What is held is counted where the call before was a step without trouble: a restart drops what the next step makes.
        while (since := time.monotonic() - begin) < seconds or not is_quiet:
            if settled is None and is_quiet and since > WARM_UP * seconds:
                gc.collect()
                settled = (resident_bytes(), num_descriptors())
            if generator.random() < KILL:
                kill_one(envs, generator)
            actions = generator.integers(0, 2, NUM_ENVS)
            started = time.perf_counter()
            result = envs.step(actions)
            taken = time.perf_counter() - started
            assert_same(loop.follow_step(list(actions), result[-1], envs.num_restarts), result, f"step {len(times)}")
            reasons.update(told_in(result[-1]))
            is_quiet = "restarted" not in result[-1]
            if is_quiet:
                times.append((since, taken))
            ended = result[2] | result[3]
            if contestant.mode is AutoresetMode.DISABLED and ended.any():
                reset(ended, None)
                is_quiet = False
            elif generator.random() < MASKED_RESET:
                is_quiet = False
                mask = generator.random(NUM_ENVS) < 0.5
                reset(mask if mask.any() else None, None)
        gc.collect()
        settled = settled or (resident_bytes(), num_descriptors())
        growth, descriptors = resident_bytes() - settled[0], num_descriptors() - settled[1]
        restarts = int(envs.num_restarts.sum())
    thirds = [[taken for since, taken in times if low <= 3 * since / seconds < low + 1] for low in range(3)]
    return Report(
        contestant.name,
        len(times),
        restarts,
        dict(reasons),
        statistics.median(thirds[0] or [0.0]),
        statistics.median(thirds[2] or [0.0]),
        growth,
        descriptors,
        sum(left_since(before)),
        RAYS_OWN if hasattr(envs, "actors") else 0,
    )


def told_in(infos: dict[str, Any]) -> list[str]:
    """The kinds of trouble that infos tell of."""
    kinds = {"bad luck": "raised", "has died": "died", "took longer": "stuck"}
    reasons = [reason for reason in infos.get("failure", ()) if reason is not None]
    return [next((kind for text, kind in kinds.items() if text in reason), reason) for reason in reasons]


def kill_one(envs: Any, generator: np.random.Generator) -> None:
    """Kills one of the workers, all of which are idle."""
    pids = [actor.pid for actor in envs.actors] if hasattr(envs, "actors") else [child.pid for child in envs.processes if child]
    if pids:
        os.kill(pids[generator.integers(len(pids))], signal.SIGKILL)


def world() -> tuple[int, int]:
    """How many child processes and open descriptors this process has."""
    mine = str(os.getpid())
    return sum(parent_of(entry) == mine for entry in Path("/proc").iterdir() if entry.name.isdigit()), num_descriptors()


def parent_of(entry: Path) -> str:
    """The parent of a process; of one that has ended, none."""
    try:
        return (entry / "stat").read_text().rpartition(")")[2].split()[1]
    except OSError:
        return ""


def left_since(before: tuple[int, int], patience: float = 5.0) -> list[int]:
    """How many more there are than before; waits a little for what is about to go."""
    deadline = time.monotonic() + patience
    while True:
        gc.collect()
        more = [max(now - then, 0) for now, then in zip(world(), before, strict=True)]
        if not any(more) or time.monotonic() > deadline:
            return more
        time.sleep(0.05)


def num_descriptors() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - no paths


def resident_bytes() -> int:
    """This process's own memory."""
    pages = [int(word) for word in Path("/proc/self/statm").read_text().split()]
    return (pages[1] - pages[2]) * os.sysconf("SC_PAGE_SIZE")


def table_of(reports: Sequence[Report]) -> Table:
    """A row for each engine."""
    table = Table(title=f"{NUM_ENVS} sub-envs; every datum compared, none wrong", title_justify="left")
    table.add_column("engine")
    for name in ("steps", "restarts", "raised", "died", "stuck", "us a step, first", "last", "growth MB"):
        table.add_column(name, justify="right")
    for report in reports:
        kinds = [str(report.reasons.get(kind, 0)) for kind in ("raised", "died", "stuck")]
        rates = [f"{1e6 * report.first:.0f}", f"{1e6 * report.last:.0f}", f"{report.growth / MEGABYTE:.1f}"]
        table.add_row(report.engine, f"{report.steps:,}", f"{report.restarts:,}", *kinds, *rates)
    return table


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=positive, default=600.0, help="in all, for all engines together (600)")
    parser.add_argument("--seed", type=positive_int, default=1, help="of the trouble (1)")
    parser.add_argument("--no-ray", action="store_true", help="leave out the engines over Ray")
    parser.add_argument("--json", type=Path, help="write all of this to a file")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Soaks, prints a table, writes the file that was asked for; 1 where something is wrong."""
    options = parse(argv)
    # Each restart is logged, which is too much here.
    logging.getLogger("rayvec").setLevel(logging.CRITICAL)
    console = open_console()
    facts = {**circumstances(), "commit": commit(), "command": command_of("soak.py", argv)}
    told = ", ".join(f"{name} {value}" for name, value in facts.items() if name != "command")
    console.print(told, soft_wrap=True, highlight=False)
    with ExitStack() as stack:
        if not options.no_ray:
            from cost_model import ray_running

            stack.enter_context(ray_running())
        pool = contestants(not options.no_ray)
        reports = [soak(contestant, options.seconds / len(pool), options.seed) for contestant in pool]
    console.print(table_of(reports))
    faults = [f"{report.engine}: {fault}" for report in reports for fault in report.faults()]
    for fault in faults:
        console.print(fault, highlight=False)
    console.print(facts["command"], soft_wrap=True, highlight=False)
    if options.json is not None:
        report = {"circumstances": facts, "engines": [asdict(report) for report in reports], "faults": faults}
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
