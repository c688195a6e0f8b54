"""How much a long tail costs: 16 sub-envs that sleep, 1 ms a step and 20 ms at one step in fifty.

``step`` waits for the slowest of all; ``recv`` takes the first 8. tianshou's ``SubprocVectorEnv(wait_num=8)`` takes part if it
is installed. All take turns in one run. See ``README.md`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import rayvec
from rayvec.measuring import Turn, ratio_of, spread_of, take_turns

STEP, RECV, TIANSHOU = "step", "recv", "tianshou, wait_num"
FLOOR = 2.0
"""Times that ``recv`` has to be faster than ``step``; ahead of tianshou is enough."""


class SleepingEnv(gym.Env[NDArray[np.float32], np.int64]):
    """Sleeps at each step, at times long, as an env waiting on a simulator does.

    Args:
        index: decides when.
        usual: seconds of most steps.
        long: seconds of the others.
        one_in: steps of which one is long.
    """

    def __init__(self, index: int, usual: float = 0.001, long: float = 0.02, one_in: int = 50) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (8,), np.float32)
        self.action_space = spaces.Discrete(2)
        self._times = (usual, long)
        self._one_in = one_in
        self._random = np.random.default_rng(index)
        self._observation = np.zeros(8, np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Takes no time."""
        return self._observation, {}

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Sleeps."""
        time.sleep(self._times[int(self._random.integers(self._one_in) == 0)])
        return self._observation, 1.0, False, False, {}


def in_step(stack: ExitStack, env_fns: list[Callable[[], SleepingEnv]]) -> Turn:
    """All at each step."""
    envs = rayvec.AsyncVectorEnv(env_fns)
    stack.callback(envs.close)
    envs.reset(seed=0)
    return Turn(envs.step, [np.zeros(len(env_fns), np.int64)], len(env_fns))


def first_come(stack: ExitStack, env_fns: list[Callable[[], SleepingEnv]], batch_size: int) -> Turn:
    """The first ``batch_size`` at each step."""
    envs = rayvec.AsyncVectorEnv(env_fns, batch_size=batch_size)
    stack.callback(envs.close)
    envs.async_reset(seed=0)

    def step(actions: NDArray[np.int64]) -> None:
        envs.send(actions, envs.recv()[4]["env_id"])

    return Turn(step, [np.zeros(batch_size, np.int64)], batch_size)


def in_tianshou(stack: ExitStack, env_fns: list[Callable[[], SleepingEnv]], batch_size: int) -> Turn | None:
    """The same in tianshou; None where it is not installed."""
    try:
        from tianshou.env import SubprocVectorEnv  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return None
    envs = SubprocVectorEnv(env_fns, wait_num=batch_size)
    stack.callback(envs.close)
    envs.reset()
    ready = [np.arange(len(env_fns))]

    def step(_: object) -> None:
        infos = envs.step(np.zeros(len(ready[0]), np.int64), ready[0])[4]
        ready[0] = np.array([info["env_id"] for info in infos])

    step(None)
    return Turn(step, [None], batch_size)


def main() -> int:
    """Measures, prints, and says whether the floors hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn")
    parser.add_argument("--json", type=Path, help="write the rates to this file")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a floor does not hold")
    arguments = parser.parse_args()
    env_fns: list[Callable[[], SleepingEnv]] = [partial(SleepingEnv, index) for index in range(arguments.num_envs)]
    with ExitStack() as stack:
        turns = {
            STEP: in_step(stack, env_fns),
            RECV: first_come(stack, env_fns, arguments.batch_size),
            TIANSHOU: in_tianshou(stack, env_fns, arguments.batch_size),
        }
        present = {name: turn for name, turn in turns.items() if turn is not None}
        rates = take_turns(present, arguments.rounds, arguments.seconds, lambda: None)
    table = Table(title=f"{arguments.num_envs} sleeping envs, batches of {arguments.batch_size}")
    for heading in ("", "env steps/s", "spread", f"{RECV} is times as fast"):
        table.add_column(heading, justify="left" if not heading else "right")
    ratios = {name: ratio_of(rates[RECV], own) for name, own in rates.items()}
    for name, own in rates.items():
        table.add_row(name, f"{float(np.median(own)):,.0f}", f"{spread_of(own):.0%}", f"{ratios[name]:.2f}")
    console = Console()
    console.print(table)
    if TIANSHOU not in rates:
        console.print("tianshou is not installed: not measured")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"rates": rates, "ratios": ratios}))
    holds = ratios[STEP] >= FLOOR and ratios.get(TIANSHOU, 2.0) > 1.0
    return int(arguments.check and not holds)


if __name__ == "__main__":
    sys.exit(main())
