"""Learns CartPole-v1 with TorchRL's PPO over any engine: collector, advantages and loss are TorchRL's.

::

    ClipPPOLoss, GAE ◀── Collector -- GymWrapper -- AsyncVectorEnv(autoreset_mode="Disabled") -- worker processes

TorchRL resets sub-envs itself, by a mask, so the engine's mode is ``DISABLED``. To import TorchRL makes "spawn" the start
method of all processes to come, and each spawned worker would import this script and TorchRL again: the engine is told to fork.

Run ``python examples/train_torchrl.py --help`` for the options; ``pip install "rayvec[torchrl]"`` has what it needs. The
exit code is 0 if the mean return of the last twenty episodes reaches the goal.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from options import add_engine_options, check_engine_options, natural, number, positive
from tensordict.nn import TensorDictModule
from torch.distributions import Categorical
from torchrl.collectors import Collector
from torchrl.envs import GymWrapper
from torchrl.modules import MLP, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

import rayvec

ENV_ID = "CartPole-v1"
GOAL = 450.0
FRAME_STEPS = 32
MINIBATCH_ROWS = 256
EPOCHS = 20
LEARNING_RATE = 1e-3
CLIP = 0.2
WORKERS_OPTION = {"async": "num_workers", "ray": "num_actors"}
"""What each engine calls the number of its workers."""


def make_actor(env: Any) -> ProbabilisticActor:
    """A policy for CartPole: logits of its two actions."""
    layers = MLP(in_features=4, out_features=2, num_cells=[64, 64], activation_class=torch.nn.Tanh)
    module = TensorDictModule(layers, in_keys=["observation"], out_keys=["logits"])
    return ProbabilisticActor(
        module, spec=env.action_spec, in_keys=["logits"], distribution_class=Categorical, return_log_prob=True
    )


def train(env: Any, seed: int, goal: float, max_steps: int) -> float:
    """Learns until the last twenty episodes reach the goal, or the steps are used up; their mean return."""
    torch.manual_seed(seed)
    env.set_seed(seed)
    actor = make_actor(env)
    critic = ValueOperator(MLP(in_features=4, out_features=1, num_cells=[64, 64], activation_class=torch.nn.Tanh))
    advantages = GAE(gamma=0.98, lmbda=0.8, value_network=critic)
    loss = ClipPPOLoss(actor, critic, clip_epsilon=CLIP, entropy_coeff=0.0, critic_coeff=0.5, normalize_advantage=True)
    optimizer = torch.optim.Adam(loss.parameters(), LEARNING_RATE)
    num_envs = env.batch_size.numel()
    frames = FRAME_STEPS * num_envs
    updates = math.ceil(max_steps / frames)
    collector = Collector(
        env, actor, frames_per_batch=frames, total_frames=frames * updates, auto_register_policy_transforms=False
    )
    returns: deque[float] = deque(maxlen=20)
    so_far = torch.zeros(num_envs)
    begin = told = time.perf_counter()
    mean = 0.0
    for update, batch in enumerate(collector, start=1):
        for rewards, dones in zip(batch["next", "reward"].unbind(1), batch["next", "done"].unbind(1), strict=True):
            so_far += rewards.squeeze(-1)
            ended = dones.squeeze(-1)
            returns.extend(so_far[ended].tolist())
            so_far[ended] = 0.0
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - (update - 1) / updates)
        with torch.no_grad():
            advantages(batch)
        rows = batch.reshape(-1)
        for _ in range(EPOCHS):
            for chosen in torch.randperm(len(rows)).split(MINIBATCH_ROWS):
                losses = loss(rows[chosen])
                optimizer.zero_grad()
                (losses["loss_objective"] + losses["loss_critic"]).backward()
                torch.nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
                optimizer.step()
        mean = float(np.mean(returns)) if returns else 0.0
        is_done = update == updates or (len(returns) == returns.maxlen and mean >= goal)
        now = time.perf_counter()
        if is_done or now - told >= 1.0:
            told = now
            print(
                f"{update * frames:7,} steps | mean return {mean:5.1f} | {update * frames / (now - begin):6,.0f} steps/s",
                flush=True,
            )
        if is_done:
            break
    collector.shutdown(close_env=False)
    return mean


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=f"Learn {ENV_ID} with TorchRL's PPO over an engine of rayvec's.")
    add_engine_options(parser)
    add = parser.add_argument
    add("--seed", type=natural, default=0, metavar="N", help="of policy and envs (default: 0)")
    add("--max-steps", type=positive, default=100_000, metavar="N", help="end learning then (default: %(default)s)")
    add("--goal", type=number, default=GOAL, metavar="R", help="mean return to reach (default: %(default)g)")
    options = parser.parse_args(argv)
    check_engine_options(parser, options)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, reports, and returns the exit code."""
    options = parse(argv)
    torch.set_num_threads(1)  # a small policy: more would only wait for each other
    mode = options.vectorization_mode
    vector_kwargs: dict[str, Any] = {"autoreset_mode": "Disabled"}
    if mode == "async":
        vector_kwargs["context"] = "fork"
    if mode in WORKERS_OPTION:
        vector_kwargs[WORKERS_OPTION[mode]] = options.num_workers or min(2, options.num_envs)
    with closing(rayvec.make_vec(ENV_ID, options.num_envs, mode, vector_kwargs)) as envs:
        mean = train(GymWrapper(envs, categorical_action_encoding=True), options.seed, options.goal, options.max_steps)
    verdict = "reached" if mean >= options.goal else "not reached"
    print(f"mean return of the last episodes: {mean:.1f} (goal of {options.goal:g} {verdict})")
    return 0 if mean >= options.goal else 1


if __name__ == "__main__":
    sys.exit(main())
