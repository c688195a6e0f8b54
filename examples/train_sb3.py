"""Learns CartPole-v1 with stable-baselines3's PPO over a rayvec engine, and prints its rate beside SubprocVecEnv's.

::

    PPO -- VecMonitor -- rayvec.sb3.SB3VecEnv -- AsyncVectorEnv -- worker processes

Run ``python examples/train_sb3.py --help`` for the options; ``pip install "rayvec[sb3]"`` has what it needs. The exit code
is 0 if the mean return over fresh episodes reaches the goal.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from options import add_engine_options, check_engine_options, natural, number, positive
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecMonitor

from rayvec.sb3 import make_sb3_vec_env

ENV_ID = "CartPole-v1"
FRESH_EPISODES = 100
WORKERS_OPTION = {"async": "num_workers", "ray": "num_actors"}
"""What each engine calls the number of its workers."""


def make_ours(options: argparse.Namespace) -> VecEnv:
    """CartPole over the engine that was asked for."""
    mode = options.vectorization_mode
    num_workers = options.num_workers or min(2, options.num_envs)
    vector_kwargs = {WORKERS_OPTION[mode]: num_workers} if mode in WORKERS_OPTION else {}
    return make_sb3_vec_env(ENV_ID, options.num_envs, mode, vector_kwargs)


def make_theirs(options: argparse.Namespace) -> VecEnv:
    """CartPole over SB3's own processes, one for each sub-env."""
    return VecMonitor(SubprocVecEnv([lambda: gym.make(ENV_ID)] * options.num_envs))


def make_model(venv: VecEnv, seed: int) -> PPO:
    """PPO that learns CartPole in some 100,000 steps."""
    return PPO(
        "MlpPolicy",
        venv,
        n_steps=max(1, 2048 // venv.num_envs),
        batch_size=256,
        n_epochs=10,
        learning_rate=1e-3,
        gae_lambda=0.95,
        gamma=0.99,
        seed=seed,
        device="cpu",
    )


def step_rate(make: Callable[[], VecEnv], seconds: float) -> float:
    """Env steps a second with random actions, nothing learnt."""
    with closing(make()) as venv:
        venv.seed(0)
        venv.reset()
        rng = np.random.default_rng(0)
        steps, begin = 0, time.perf_counter()
        while (taken := time.perf_counter() - begin) < seconds:
            venv.step(rng.integers(2, size=venv.num_envs))
            steps += venv.num_envs
    return steps / taken


def learning_rate(make: Callable[[], VecEnv], seed: int, steps: int) -> float:
    """Env steps a second while PPO learns from them."""
    with closing(make()) as venv:
        model = make_model(venv, seed)
        begin = time.perf_counter()
        model.learn(steps)
        return float(model.num_timesteps / (time.perf_counter() - begin))


def compare(options: argparse.Namespace) -> None:
    """Prints our rates and SubprocVecEnv's, measured in turns; each is the median of three."""
    makers = {"rayvec": lambda: make_ours(options), "SubprocVecEnv": lambda: make_theirs(options)}
    measures: dict[str, Callable[[Any], float]] = {
        "stepping alone": lambda make: step_rate(make, options.seconds),
        "learning": lambda make: learning_rate(make, options.seed, options.compared_steps),
    }
    for what, measure in measures.items():
        rates: dict[str, list[float]] = {name: [] for name in makers}
        for _ in range(3):
            for name, make in makers.items():
                rates[name].append(measure(make))
        ours, theirs = (statistics.median(rates[name]) for name in makers)
        print(f"{what}: rayvec {ours:,.0f} env steps/s, SubprocVecEnv {theirs:,.0f}: {ours / theirs:.2f} times as many")


def train(options: argparse.Namespace) -> float:
    """Learns until the goal is reached on other sub-envs, or the steps are used up; the mean return over fresh episodes."""
    with closing(make_ours(options)) as venv, closing(make_sb3_vec_env(ENV_ID, 10)) as fresh:
        fresh.seed(options.seed + 10_000)
        evaluation = EvalCallback(
            fresh,
            callback_on_new_best=StopTrainingOnRewardThreshold(options.goal),
            n_eval_episodes=20,
            eval_freq=max(1, 10_240 // options.num_envs),
            verbose=1,
        )
        model = make_model(venv, options.seed)
        begin = time.perf_counter()
        model.learn(options.max_steps, callback=evaluation)
        seconds = time.perf_counter() - begin
        print(f"{model.num_timesteps:,} steps in {seconds:.0f} s: {model.num_timesteps / seconds:,.0f} env steps/s", flush=True)
        fresh.seed(options.seed + 1_000_000)
        return float(np.mean(evaluate_policy(model, fresh, n_eval_episodes=FRESH_EPISODES)[0]))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=f"Learn {ENV_ID} with stable-baselines3's PPO over rayvec.")
    add_engine_options(parser)
    add = parser.add_argument
    add("--seed", type=natural, default=0, metavar="N", help="of policy and envs (default: 0)")
    add("--max-steps", type=positive, default=300_000, metavar="N", help="end learning then (default: %(default)s)")
    add("--goal", type=number, default=450.0, metavar="R", help="mean return to reach (default: %(default)g)")
    add("--seconds", type=number, default=3.0, metavar="S", help="of each measurement; 0: none (default: %(default)g)")
    add("--compared-steps", type=positive, default=8192, metavar="N", help="to learn in each (default: %(default)s)")
    options = parser.parse_args(argv)
    check_engine_options(parser, options)
    if options.seconds < 0:
        parser.error(f"--seconds: a number from 0 on is needed, not {options.seconds:g}")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, compares, and returns the exit code."""
    options = parse(argv)
    torch.set_num_threads(1)  # a small policy: more would only wait for each other
    mean = train(options)
    verdict = "reached" if mean >= options.goal else "not reached"
    print(f"mean return over {FRESH_EPISODES} fresh episodes: {mean:.1f} (goal of {options.goal:.0f} {verdict})")
    if options.seconds > 0:
        compare(options)
    return 0 if mean >= options.goal else 1


if __name__ == "__main__":
    sys.exit(main())
