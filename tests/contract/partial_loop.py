"""What partial batches are due to give, from a plain loop over bare envs; and how both are driven."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from engines import Engine
from gymnasium.vector.utils import iterate

import rayvec
from rayvec.testing import CountingEnv, RestartedLoop, assert_same, batch_infos, batch_observations
from rayvec.testing.restarted import _reasons, _signs

__all__ = ["LAST", "NUM_ENVS", "PartialLoop", "batch_size_of", "counting", "go_on", "share_of", "with_last", "zeros"]

NUM_ENVS = 6
LAST = NUM_ENVS - 1
INFOS: list[Any] = ["alternating", "numbers"]


class _Asked(NamedTuple):
    """What an env was asked, and will do when its row is due: envs know nothing of each other."""

    call: str
    argument: Any = None


class _Row(NamedTuple):
    observation: Any
    reward: float
    terminated: bool
    truncated: bool
    info: Mapping[Any, Any]


class PartialLoop(RestartedLoop):
    """Steps each of its envs when it is known that it was sent, and what was handed out of it.

    Args:
        env_fns: a function for each env: what the vector env has, without what makes it fail where that is restarted.
        autoreset_mode: what happens at the end of an episode.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._asked: dict[int, _Asked] = {}

    def async_reset(
        self,
        seeds: Sequence[int | None],
        reset: Sequence[int],
        idle: Sequence[int] = (),
        num_restarts: Sequence[int] | None = None,
    ) -> None:
        """Resets some; those that are ``idle`` share a worker with them and come along.

        Args:
            seeds: one for each sub-env.
            reset: which.
            idle: which come along.
            num_restarts: of each sub-env, behind the call that has asked for it; None: none.
        """
        for index in reset:
            if seeds[index] is not None:
                self._seeds[index] = seeds[index]
                self._unseeded[index] = 0 if num_restarts is None else int(num_restarts[index])
            self._asked[index] = _Asked("reset", seeds[index])
        self._asked.update((index, _Asked("nothing")) for index in idle)

    def send(self, actions: Any, env_ids: Sequence[int]) -> None:
        """Steps some."""
        for index, action in zip(env_ids, iterate(self.action_space, actions), strict=True):
            self._asked[index] = _Asked("step", action)

    def check(self, received: Any, num_restarts: Sequence[int] | None = None) -> list[int]:
        """Checks what ``recv`` has given, and returns which sub-envs it is of.

        Args:
            received: all of it.
            num_restarts: of each sub-env, behind it; None: none was restarted.
        """
        ids: list[int] = received[4]["env_id"].tolist()
        reasons = {ids[row]: reason for row, reason in _reasons(received[4]).items()}
        rows = [self._row(index, reasons, num_restarts) for index in ids]
        due = (
            batch_observations(self.single_observation_space, [row.observation for row in rows]),
            np.array([row.reward for row in rows]),
            np.array([row.terminated for row in rows]),
            np.array([row.truncated for row in rows]),
            batch_infos([row.info for row in rows])
            | {"env_id": np.array(ids, np.int64), "_env_id": np.ones(len(ids), np.bool_)},
        )
        names = ("observations", "rewards", "terminations", "truncations", "infos")
        for name, expected, actual in zip(names, due, received, strict=True):
            assert_same(expected, actual, name)
        return ids

    def _row(self, index: int, reasons: Mapping[int, str], num_restarts: Sequence[int] | None) -> _Row:
        asked = self._asked.pop(index)
        reward, terminated, truncated = 0.0, False, False
        info: Mapping[Any, Any] = {}
        if index in reasons:
            assert num_restarts is not None
            assert asked.call != "nothing"
            if asked.call == "reset":
                seed = self._build_restarted(index, num_restarts)
                self._ended[index] = False
                info = self._reset_env(index, seed=seed, options=None)
            else:
                truncated, info = self._restart(index, num_restarts)
        elif asked.call == "reset":
            self._ended[index] = False
            info = self._reset_env(index, seed=asked.argument, options=None)
        elif asked.call == "step":
            reward, terminated, truncated, info = self._step_env(index, asked.argument)
        return _Row(self._observations[index], reward, terminated, truncated, {**info, **_signs(reasons, index)})


def counting(**kwargs: Any) -> list[Any]:
    """Counting envs whose episodes differ in length, and infos in kind."""
    return [
        partial(CountingEnv, index=index, episode_length=3 + index % 3, infos=INFOS[index % 2], **kwargs)
        for index in range(NUM_ENVS)
    ]


def with_last(env_fn: Callable[..., Any], **kwargs: Any) -> list[Any]:
    """The same, the last of another kind."""
    return [*counting()[:LAST], partial(env_fn, index=LAST, episode_length=5, infos=INFOS[LAST % 2], **kwargs)]


def batch_size_of(engine: Engine) -> int:
    """Some sub-envs, if those of one worker can come without the others."""
    return max(2, len(engine.shares(NUM_ENVS)[0])) if engine.base is not rayvec.SyncVectorEnv else 2


def zeros(count: int) -> npt.NDArray[np.int64]:
    """Actions."""
    return np.zeros(count, np.int64)


def share_of(engine: Engine, index: int) -> list[int]:
    """The sub-envs that come together with that one."""
    return [index] if engine.base is rayvec.SyncVectorEnv else engine.together_with(index, NUM_ENVS)


def go_on(envs: Any, loop: PartialLoop, ids: list[int], engine: Engine) -> None:
    """Sends those that came, those at the end of their episode to a reset if nobody else does that."""
    over = [index for index in ids if loop._is_over(index)]
    if not over:
        ids = ids[::-1]
        actions = np.arange(len(ids)) % 2
        envs.send(actions, ids)
        loop.send(actions, ids)
        return
    workers = {index: tuple(share_of(engine, index)) for index in ids}
    idle = [index for index in ids if index not in over and any(workers[other] == workers[index] for other in over)]
    mask = np.isin(np.arange(NUM_ENVS), over)
    envs.async_reset(seed=70, options={"reset_mask": mask})
    loop.async_reset(range(70, 70 + NUM_ENVS), over, idle, envs.num_restarts)
    rest = [index for index in ids if index not in over + idle]
    if rest:
        envs.send(zeros(len(rest)), np.array(rest))
        loop.send(zeros(len(rest)), rest)
