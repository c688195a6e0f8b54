"""Training that can be killed at any time and goes on as if nothing had happened, over any engine, in NumPy.

A linear policy learns CartPole-v1 by REINFORCE. Every so many vector steps, most of them in the middle of episodes, the
learner and the state of the vector env are written to one file, which replaces the last one in a single step: whenever
the script is killed, a whole checkpoint is there. Started again with the same options it goes on from there, on
another engine as well. The digest that it prints at the end is of all data and of the weights::

    python examples/resume_training.py --checkpoint whole.ckpt
    python examples/resume_training.py --checkpoint killed.ckpt --kill-after 1500; echo "exit code $?"
    python examples/resume_training.py --checkpoint killed.ckpt --vectorization-mode async

The first and the last of these print the same digest. Only read a checkpoint that you trust: unpickling runs code.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import signal
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import rayvec

ENV_ID = "CartPole-v1"
LEARNING_RATE = 0.1
# Returns that the mean of what an episode is worth is taken over, and that are told.
RECENT = 100

Floats = NDArray[np.float64]


class Learner:
    """A linear policy, what it has gathered of the episodes that are going on, and where it is.

    Attributes:
        observations: the last ones; a restored vector env does not hand them out again.
        num_steps: vector steps made.
        returns: of the last episodes.
        digest: of all data so far.
    """

    def __init__(self, seed: int, observations: Any) -> None:
        self.observations = observations
        self.num_steps = 0
        self.returns: list[float] = []
        self.digest = b""
        self._rng = np.random.default_rng(seed)
        self._weights = np.zeros(4)
        self._gradients = np.zeros(observations.shape)
        self._rewards = np.zeros(len(observations))

    def act(self) -> NDArray[np.int64]:
        """Draws an action for each sub-env."""
        rights: Floats = 1.0 / (1.0 + np.exp(-(self.observations * self._weights).sum(axis=1)))
        actions = (self._rng.random(len(rights)) < rights).astype(np.int64)
        self._gradients += (actions - rights)[:, None] * self.observations
        return actions

    def learn(
        self, observations: Any, rewards: Floats, terminations: NDArray[np.bool_], truncations: NDArray[np.bool_]
    ) -> None:
        """Takes in what a step gave, and learns from each episode that it has ended."""
        self._rewards += rewards
        for index in np.flatnonzero(terminations | truncations):
            recent = self.returns or [0.0]
            advantage = (self._rewards[index] - np.mean(recent)) / (np.std(recent) + 1.0)
            self._weights += LEARNING_RATE * np.clip(advantage, -3.0, 3.0) * self._gradients[index]
            self.returns = [*self.returns, float(self._rewards[index])][-RECENT:]
            self._rewards[index] = 0.0
            self._gradients[index] = 0.0
        self.observations = observations
        self.num_steps += 1
        parts = (observations, rewards, terminations, truncations, self._weights)
        self.digest = hashlib.sha256(self.digest + b"".join(part.tobytes() for part in parts)).digest()


def save(file: Path, learner: Learner, envs: Any) -> None:
    """Replaces the checkpoint in ``file``, or leaves it as it is: no half of one is ever there."""
    written = file.with_name(file.name + ".new")
    with written.open("wb") as stream:
        pickle.dump((learner, envs.get_state()), stream)
        stream.flush()
        os.fsync(stream.fileno())
    written.replace(file)


def begin(file: Path, seed: int, envs: Any) -> Learner:
    """The learner as the checkpoint has it, and the sub-envs too; both as they are at first where there is none."""
    if not file.exists():
        observations, _ = envs.reset(seed=seed)
        return Learner(seed, observations)
    with file.open("rb") as stream:
        learner, state = pickle.load(stream)
    envs.set_state(state)
    return learner  # type: ignore[no-any-return]


def train(envs: Any, learner: Learner, options: argparse.Namespace) -> None:
    """Trains to the end, or to where the script is to be killed."""
    while learner.num_steps < options.steps:
        observations, rewards, terminations, truncations, _ = envs.step(learner.act())
        learner.learn(observations, rewards, terminations, truncations)
        if learner.num_steps % options.every == 0:
            save(options.checkpoint, learner, envs)
            print(f"step {learner.num_steps}: mean return {mean_return(learner):.1f}", flush=True)
        if learner.num_steps == options.kill_after:
            print(f"step {learner.num_steps}: killed", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)


def mean_return(learner: Learner) -> float:
    """Over the last episodes."""
    return float(np.mean(learner.returns or [0.0]))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=f"Learn {ENV_ID} so that it can be killed and resumed.")
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="FILE", help="is resumed if it is there, and written")
    add("--every", type=int, default=400, metavar="N", help="vector steps between two checkpoints (default: 400)")
    add("--steps", type=int, default=4000, metavar="N", help="vector steps in all (default: 4000)")
    add("--kill-after", type=int, metavar="N", help="kill this script by SIGKILL after that vector step")
    add("--vectorization-mode", choices=["sync", "async", "ray"], default="sync", help="the engine (default: sync)")
    add("--num-envs", type=int, default=8, metavar="N", help="sub-envs (default: 8)")
    add("--seed", type=int, default=0, metavar="N", help="decides the result (default: 0)")
    options = parser.parse_args(argv)
    for name in ("every", "steps", "num_envs"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: a whole number from 1 on is needed, not {getattr(options, name)}")
    if not options.checkpoint.resolve().parent.is_dir():
        parser.error(f"--checkpoint: there is no folder {options.checkpoint.resolve().parent}")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Trains and tells."""
    options = parse(argv)
    # An episode's first observation comes with the step that has ended the last one: every step counts.
    vector_kwargs = {"autoreset_mode": "SameStep"}
    with closing(rayvec.make_vec(ENV_ID, options.num_envs, options.vectorization_mode, vector_kwargs)) as envs:
        learner = begin(options.checkpoint, options.seed, envs)
        print(f"{'resumed' if learner.num_steps else 'began'} at step {learner.num_steps}, {options.vectorization_mode}")
        train(envs, learner, options)
    print(f"mean return {mean_return(learner):.1f} over the last {len(learner.returns)} episodes")
    print(f"digest {learner.digest.hex()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
