"""Learns CartPole-v1 with PPO in one file of PyTorch, over any engine.

::

                 actions                                   advantages
    policy ──────────────────▶ vector env ──▶ rollout ──────────────────▶ minibatches ──▶ policy
           ◀──────────────────             32 steps of each
              observations

The engine is left in its default mode, ``NEXT_STEP``: the step that ends an episode gives its last observation, and the
step after it resets the sub-env and steps nothing. So ``observations[t + 1]`` is what truly followed ``observations[t]``,
at the end of an episode too: where it was truncated, the value of that last observation stands for the rewards that were
cut off, where it was terminated nothing follows. The reset that comes next is no step of the policy's, and not learnt from.

Run ``python examples/train_ppo.py --help`` for the options; ``pip install "rayvec[torch]"`` has what it needs. The exit
code is 0 if the mean return over 100 fresh episodes reaches the goal. A seed gives the same policy with every engine.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from options import add_engine_options, check_engine_options, natural, number, positive
from torch import Tensor, nn
from torch.distributions import Categorical

import rayvec

ENV_ID = "CartPole-v1"
GOAL = 475.0
FRESH_EPISODES = 100
ROLLOUT_STEPS = 32
MINIBATCH_ROWS = 256
EPOCHS = 20
LEARNING_RATE = 1e-3
GAMMA, GAE_LAMBDA = 0.98, 0.8
CLIP = 0.2
VALUE_WEIGHT, MAX_GRADIENT = 0.5, 0.5
WORKERS_OPTION = {"async": "num_workers", "ray": "num_actors"}
"""What each engine calls the number of its workers."""


class Agent(nn.Module):
    """A policy, and the value of being where it is."""

    def __init__(self, observation_size: int, num_actions: int) -> None:
        super().__init__()
        self.actor = self._layers(observation_size, num_actions, last_gain=0.01)
        self.critic = self._layers(observation_size, 1, last_gain=1.0)

    @staticmethod
    def _layers(inputs: int, outputs: int, last_gain: float) -> nn.Sequential:
        layers: list[nn.Module] = []
        for size, following, gain in ((inputs, 64, math.sqrt(2)), (64, 64, math.sqrt(2)), (64, outputs, last_gain)):
            linear = nn.Linear(size, following)
            nn.init.orthogonal_(linear.weight, gain)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.Tanh()]
        return nn.Sequential(*layers[:-1])

    def policy(self, observations: Tensor) -> Categorical:
        """The distribution of the actions."""
        return Categorical(logits=self.actor(observations))

    def value(self, observations: Tensor) -> Tensor:
        """The discounted rewards that are expected."""
        values: Tensor = self.critic(observations).squeeze(-1)
        return values


@dataclass(frozen=True)
class Rollout:
    """Consecutive steps of all sub-envs; each array is ``(ROLLOUT_STEPS, num_envs)``, observations have one step more.

    Attributes:
        observations: before each step, and after the last one.
        actions: of each step.
        rewards: of each step.
        terminations: whether the step ended an episode.
        truncations: whether it was cut there.
        resets: whether it was a reset, in place of a step of the policy's.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    terminations: Tensor
    truncations: Tensor
    resets: Tensor

    @classmethod
    def empty(cls, num_envs: int, observation_size: int) -> Rollout:
        """One to be filled."""
        shape = (ROLLOUT_STEPS, num_envs)
        flags = [torch.zeros(shape, dtype=torch.bool) for _ in range(3)]
        observations = torch.zeros(ROLLOUT_STEPS + 1, num_envs, observation_size)
        return cls(observations, torch.zeros(shape, dtype=torch.int64), torch.zeros(shape), *flags)


class Sampler:
    """Steps the vector env with the policy, and keeps count.

    Attributes:
        steps: env steps made, resets among them.
        returns: of the last twenty episodes that have ended.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any], seed: int) -> None:
        self.envs = envs
        self.steps = 0
        self.returns: deque[float] = deque(maxlen=20)
        # With copy=False the arrays are the engine's own, and valid until the next step: the rollout copies what it keeps.
        self._observations = torch.from_numpy(envs.reset(seed=seed)[0]).clone()
        self._have_ended = torch.zeros(envs.num_envs, dtype=torch.bool)
        self._returns = np.zeros(envs.num_envs)

    @torch.no_grad()
    def sample(self, agent: Agent, rollout: Rollout) -> None:
        """Fills the rollout, from where the last one ended."""
        rollout.observations[0] = self._observations
        for step in range(ROLLOUT_STEPS):
            actions = agent.policy(rollout.observations[step]).sample()
            observations, rewards, terminations, truncations, _ = self.envs.step(actions.numpy())
            rollout.resets[step] = self._have_ended
            rollout.actions[step] = actions
            rollout.rewards[step] = torch.from_numpy(rewards)
            rollout.terminations[step] = torch.from_numpy(terminations)
            rollout.truncations[step] = torch.from_numpy(truncations)
            rollout.observations[step + 1] = torch.from_numpy(observations)
            self._have_ended = rollout.terminations[step] | rollout.truncations[step]
            self._count(rewards)
        self._observations = rollout.observations[-1]

    def _count(self, rewards: Any) -> None:
        self.steps += self.envs.num_envs
        self._returns += rewards
        for index in self._have_ended.nonzero().flatten().tolist():
            self.returns.append(float(self._returns[index]))
            self._returns[index] = 0.0


def advantages_of(rollout: Rollout, values: Tensor) -> Tensor:
    """How much better each step was than expected (generalised advantage estimates); those of resets mean nothing.

    Args:
        rollout: the steps.
        values: of its observations, ``(ROLLOUT_STEPS + 1, num_envs)``.
    """
    following = values[1:] * ~rollout.terminations
    errors = rollout.rewards + GAMMA * following - values[:-1]
    goes_on = ~(rollout.terminations | rollout.truncations)
    advantages = torch.zeros_like(errors)
    later = torch.zeros_like(errors[0])
    for step in reversed(range(ROLLOUT_STEPS)):
        advantages[step] = later = errors[step] + GAMMA * GAE_LAMBDA * goes_on[step] * later
    return advantages


def learn(agent: Agent, optimizer: torch.optim.Optimizer, rollout: Rollout, clip: float) -> None:
    """Improves the policy with one rollout."""
    with torch.no_grad():
        values = agent.value(rollout.observations)
        log_probs = agent.policy(rollout.observations[:-1]).log_prob(rollout.actions)
    advantages = advantages_of(rollout, values)
    was_stepped = ~rollout.resets
    columns = (rollout.observations[:-1], rollout.actions, log_probs, advantages, advantages + values[:-1])
    rows = [column[was_stepped] for column in columns]
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(rows[0])).split(MINIBATCH_ROWS):
            observations, actions, old_log_probs, gains, targets = (column[chosen] for column in rows)
            gains = (gains - gains.mean()) / (gains.std(correction=0) + 1e-8)
            ratios = (agent.policy(observations).log_prob(actions) - old_log_probs).exp()
            policy_loss = -torch.min(ratios * gains, ratios.clamp(1 - clip, 1 + clip) * gains).mean()
            value_loss = (agent.value(observations) - targets).square().mean()
            optimizer.zero_grad()
            (policy_loss + VALUE_WEIGHT * value_loss).backward()
            nn.utils.clip_grad_norm_(agent.parameters(), MAX_GRADIENT)
            optimizer.step()


def train(envs: VectorEnv[Any, Any, Any], seed: int, goal: float, max_steps: int) -> Agent:
    """Learns until the last twenty episodes reach the goal, or the steps are used up; tells of it every second or so."""
    torch.manual_seed(seed)
    size = math.prod(envs.single_observation_space.shape or ())
    actions: Any = envs.single_action_space
    agent = Agent(size, int(actions.n))
    optimizer = torch.optim.Adam(agent.parameters(), eps=1e-5)
    sampler, rollout = Sampler(envs, seed), Rollout.empty(envs.num_envs, size)
    begin = told = time.perf_counter()
    sampling = 0.0
    mean, is_done = 0.0, False
    while not is_done:
        left = 1.0 - sampler.steps / max_steps
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * left
        started = time.perf_counter()
        sampler.sample(agent, rollout)
        sampling += time.perf_counter() - started
        learn(agent, optimizer, rollout, CLIP * left)
        mean = float(np.mean(sampler.returns)) if sampler.returns else 0.0
        is_done = sampler.steps >= max_steps or (mean >= goal and len(sampler.returns) == sampler.returns.maxlen)
        now = time.perf_counter()
        if is_done or now - told >= 1.0:
            told = now
            print(
                f"{sampler.steps:7,} steps | mean return {mean:5.1f} | {sampler.steps / (now - begin):6,.0f} steps/s, "
                f"{sampler.steps / sampling:6,.0f} without learning",
                flush=True,
            )
    return agent


@torch.no_grad()
def fresh_return(agent: Agent, envs: VectorEnv[Any, Any, Any], seed: int) -> float:
    """The mean return of fresh episodes, as many of each sub-env, with the policy's best actions."""
    episodes_each = math.ceil(FRESH_EPISODES / envs.num_envs)
    observations, _ = envs.reset(seed=seed)
    ended, returns = np.zeros(envs.num_envs, np.int64), np.zeros(envs.num_envs)
    while (ended < episodes_each).any():
        actions = agent.policy(torch.from_numpy(observations)).probs.argmax(-1)
        observations, rewards, terminations, truncations, _ = envs.step(actions.numpy())
        returns += rewards * (ended < episodes_each)
        ended += terminations | truncations
    return float(returns.mean() / episodes_each)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=f"Learn {ENV_ID} with PPO in PyTorch.")
    add_engine_options(parser)
    add = parser.add_argument
    add("--seed", type=natural, default=0, metavar="N", help="decides what is learnt (default: 0)")
    add("--max-steps", type=positive, default=200_000, metavar="N", help="end learning then (default: %(default)s)")
    add("--goal", type=number, default=GOAL, metavar="R", help="mean return to reach (default: %(default)g)")
    options = parser.parse_args(argv)
    check_engine_options(parser, options)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, reports, and returns the exit code."""
    options = parse(argv)
    torch.set_num_threads(1)  # a small policy: more would only wait for each other
    mode = options.vectorization_mode
    vector_kwargs: dict[str, Any] = {"copy": False}
    if mode in WORKERS_OPTION:
        vector_kwargs[WORKERS_OPTION[mode]] = options.num_workers or min(2, options.num_envs)
    with closing(rayvec.make_vec(ENV_ID, options.num_envs, mode, vector_kwargs)) as envs:
        begin = time.perf_counter()
        agent = train(envs, options.seed, options.goal, options.max_steps)
        seconds = time.perf_counter() - begin
        mean = fresh_return(agent, envs, options.seed + 1_000_000)
    verdict = "reached" if mean >= options.goal else "not reached"
    print(f"mean return over fresh episodes: {mean:.1f} (goal of {options.goal:g} {verdict}); learnt for {seconds:.0f} s")
    return 0 if mean >= options.goal else 1


if __name__ == "__main__":
    sys.exit(main())
