"""Learns CartPole-v1 with RLlib's PPO, whose env runners step a vector env of rayvec's.

RLlib asks Gymnasium for a vector env by its id, so it is enough that ``rayvec.register`` has put the id into
Gymnasium's registry, in each process that asks. Env runners may be processes of their own: Ray is told to
register the id wherever it starts one.

::

    PPO -- env runner -- gymnasium.make_vec("rayvec/CartPole-v1") -- AsyncVectorEnv -- worker processes
       +-- env runner -- ...

Run ``python examples/train_rllib.py --help`` for the options; ``pip install "rayvec[rllib]"`` has what it needs.
The exit code is 0 if the mean return of the last hundred episodes reaches the goal.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from options import natural, number, positive
from rich.console import Console

import rayvec

ENV_ID = "CartPole-v1"
GOAL = 450.0
# What each engine calls the number of its workers.
WORKERS_OPTION = {"async": "num_workers", "ray": "num_actors"}


class Iteration(NamedTuple):
    """One iteration of PPO: env runners sample a batch of steps, from which the policy learns.

    Attributes:
        steps: env steps sampled up to its end.
        mean_return: of the last hundred episodes that have ended; nan if none has.
        rate: env steps sampled a second, learning included.
    """

    steps: int
    mean_return: float
    rate: float


def registration(engine: str, num_workers: int) -> Callable[[], str]:
    """A function that registers the env for RLlib in the process that calls it, and returns the id."""
    options: dict[str, Any] = {WORKERS_OPTION[engine]: num_workers} if engine in WORKERS_OPTION else {}

    def register() -> str:
        return rayvec.register(ENV_ID, engine=engine, **options)

    return register


@contextmanager
def running_ray(num_env_runners: int, setup: Callable[[], Any]) -> Iterator[None]:
    """Ray on this machine alone, with room for the env runners; its processes begin with a call of ``setup``."""
    import ray

    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, num_env_runners + 1),
        runtime_env={"worker_process_setup_hook": setup},
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    try:
        yield
    finally:
        ray.shutdown()


def build(env_id: str, num_envs: int, num_env_runners: int, seed: int) -> Any:
    """RLlib's PPO for ``env_id``, ready to train."""
    import torch
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    logging.getLogger("ray.rllib").setLevel(logging.ERROR)  # it warns of its own defaults
    torch.set_num_threads(1)  # a small policy: more would only wait for each other, the longer the busier the cores are
    return (
        PPOConfig()
        .environment(env_id)
        .env_runners(
            gym_env_vectorize_mode="vector_entry_point",
            num_envs_per_env_runner=num_envs,
            num_env_runners=num_env_runners,
        )
        .training(
            train_batch_size_per_learner=2048,
            minibatch_size=256,
            num_epochs=10,
            lr=1e-3,
            lambda_=0.95,
            vf_loss_coeff=0.01,
            use_kl_loss=False,
        )
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[64, 64], vf_share_layers=True))
        # A lost worker then costs its env runner the episodes at hand; otherwise RLlib waits a minute and starts that anew.
        .fault_tolerance(restart_failed_sub_environments=True)
        .debugging(seed=seed, log_level="ERROR")
        .build_algo()
    )


def vector_envs_of(algorithm: Any) -> list[str]:
    """What the env runners step, by the name of its class."""

    def name_of_class(runner: Any) -> str | None:
        if runner.env is None:  # RLlib's own one, where there are others
            return None
        kind = type(runner.env.unwrapped)
        return f"{kind.__module__}.{kind.__qualname__}"

    return [name for name in algorithm.env_runner_group.foreach_env_runner(name_of_class) if name is not None]


def train(algorithm: Any, goal: float, max_iterations: int) -> Iterator[Iteration]:
    """Trains until the mean return reaches ``goal``, or for as many iterations as there may be."""
    steps = 0
    for _ in range(max_iterations):
        started = time.perf_counter()
        result = algorithm.train()
        seconds = time.perf_counter() - started
        before, steps = steps, int(result["num_env_steps_sampled_lifetime"])
        mean_return = float(result["env_runners"].get("episode_return_mean", math.nan))
        yield Iteration(steps, mean_return, (steps - before) / seconds)
        if mean_return >= goal:
            return


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=f"Learn {ENV_ID} with RLlib's PPO over an engine of rayvec's.")
    add = parser.add_argument
    add("--engine", choices=["async", "sync", "ray"], default="async", help="the engine (default: async)")
    add("--num-envs", type=positive, default=8, metavar="N", help="sub-envs of each env runner (default: %(default)s)")
    add("--num-workers", type=positive, metavar="N", help="its processes or actors for each env runner (default: 2)")
    add("--num-env-runners", type=natural, default=1, metavar="N", help="0: RLlib samples itself (default: %(default)s)")
    add("--iterations", type=positive, default=50, metavar="N", help="end then at the latest (default: %(default)s)")
    add("--goal", type=number, default=GOAL, metavar="R", help="end at this mean return (default: %(default)g)")
    add("--seed", type=natural, default=0, metavar="N", help="of the env, the policy and PPO (default: 0)")
    options = parser.parse_args(argv)
    if options.engine == "sync" and options.num_workers is not None:
        parser.error("--num-workers needs --engine async or ray: the sync engine steps in the env runner itself")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, reports, and returns the exit code."""
    options = parse(argv)
    missing = [name for name in ("torch", "tree") if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f'RLlib needs {" and ".join(missing)}: pip install "rayvec[rllib]"')
    console = Console(highlight=False, soft_wrap=True)
    register = registration(options.engine, options.num_workers or 2)
    with running_ray(options.num_env_runners, setup=register):
        env_id = register()
        algorithm = build(env_id, options.num_envs, options.num_env_runners, options.seed)
        try:
            for name in vector_envs_of(algorithm):
                console.print(f"an env runner steps {options.num_envs} sub-envs of {env_id} in a {name}")
            started = time.perf_counter()
            for count, iteration in enumerate(train(algorithm, options.goal, options.iterations), start=1):
                console.print(
                    f"iteration {count:2} | {iteration.steps:7,} steps | mean return {iteration.mean_return:5.1f}"
                    f" | {iteration.rate:5,.0f} steps a second"
                )
            seconds = time.perf_counter() - started
        finally:
            algorithm.stop()
    reached = iteration.mean_return >= options.goal
    console.print(
        f"mean return {iteration.mean_return:.1f} after {iteration.steps:,} steps in {seconds:.0f} s "
        f"(goal of {options.goal:g} {'reached' if reached else 'not reached'})"
    )
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
