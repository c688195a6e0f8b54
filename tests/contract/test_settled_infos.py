"""Infos whose form has settled lie in shared memory; whatever form comes next, no value is lost or changed."""

from __future__ import annotations

import copy
from contextlib import closing
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from engines import ENGINES, Engine, each
from gymnasium.vector import AutoresetMode

from rayvec.testing.comparison import assert_same
from rayvec.testing.duel import duel

NUM_ENVS = 5


class FormsEnv(gym.Env[Any, Any]):
    """Gives infos of one form for some steps, then of another, and so on; each sub-env departs at a step of its own."""

    observation_space = gym.spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, index: int) -> None:
        self._index = index
        self._step = 0
        self._in_episode = 0
        self._shared = np.zeros(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins an episode; with an info of its own at times."""
        super().reset(seed=seed)
        self._in_episode = 0
        return np.zeros(1, np.float32), {"begun": 1.5} if self._index % 2 else {}

    def step(self, action: Any) -> Any:
        """The form that is due."""
        self._step += 1
        self._in_episode += 1
        ended = self._in_episode == 9 + self._index
        return np.full(1, self._step / 100, np.float32), 1.0, ended, False, self._info()

    def _info(self) -> dict[str, Any]:
        step = self._step
        # The env's own array, which it goes on writing to.
        self._shared += step
        plain: dict[str, Any] = {
            "float": step / 3,
            "int": step,
            "flag": step % 2 == 0,
            "single": np.float32(step),
            "small": np.uint8(step),
            "array": self._shared,
            "_float": -1.0,
        }
        if step < 12:
            return plain
        odd = {
            12: {**plain, "int": 2**70},
            13: {**plain, "float": step},
            14: {key: plain[key] for key in ("float", "int")},
            15: {**plain, "array": np.zeros((2, 2))},
            16: {},
            17: {**plain, "more": "text"},
            18: {**plain, "array": self._shared.astype(np.float32)},
        }
        if step in odd and (step + self._index) % 2:
            return odd[step]
        return plain if step < 22 else {"other": np.arange(4) + step, "float": float(step), "flag": np.bool_(True)}


class FailsEnv(FormsEnv):
    """Raises once its infos have settled."""

    def step(self, action: Any) -> Any:
        """As FormsEnv's; action 1 raises."""
        if action:
            raise RuntimeError("as asked")
        return super().step(action)


@pytest.mark.parametrize("mode", list(AutoresetMode))
@each(ENGINES)
def test_forms_come_and_go(engine: Engine, mode: AutoresetMode) -> None:
    """Every info of every step is what a plain loop gives, and stays what it was."""
    env_fns = [partial(FormsEnv, index) for index in range(NUM_ENVS)]
    given = []
    with duel(partial(engine.make), env_fns, autoreset_mode=mode) as both:
        both.reset(seed=3)
        for _ in range(40):
            *_, infos = both.step()
            given.append((infos, copy.deepcopy(infos)))
            if mode is AutoresetMode.DISABLED and both.ended.any():
                both.reset(options={"reset_mask": both.ended.copy()})
    for infos, then in given:
        assert_same(then, infos, "infos of an earlier step")


@each(ENGINES)
def test_a_failure_among_settled_infos(engine: Engine) -> None:
    """The sub-env is reset, infos settle anew, and the step after it is right."""
    env_fns = [partial(FailsEnv, index) for index in range(NUM_ENVS)]
    calm, raising = np.zeros(NUM_ENVS, np.int64), np.eye(NUM_ENVS, dtype=np.int64)[3]
    with closing(engine.make(env_fns)) as envs:
        envs.reset(seed=1)
        for step in range(1, 5):
            infos = envs.step(calm)[4]
            np.testing.assert_array_equal(infos["int"], np.full(NUM_ENVS, step))
        with pytest.raises(RuntimeError, match="as asked"):
            envs.step(raising)
        envs.reset(options={"reset_mask": raising.astype(np.bool_)})
        for step in range(1, 4):
            infos = envs.step(calm)[4]
            np.testing.assert_array_equal(infos["int"], np.where(raising, step, 5 + step))
            assert infos["_int"].all()
