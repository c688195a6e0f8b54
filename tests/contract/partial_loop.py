"""What partial batches are due to give, from a plain loop over bare envs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector.utils import iterate

from rayvec.testing import PlainLoop, assert_same, batch_infos, batch_observations

__all__ = ["PartialLoop"]


class _Row(NamedTuple):
    observation: Any
    reward: float
    terminated: bool
    truncated: bool
    info: Mapping[Any, Any]


class PartialLoop(PlainLoop):
    """Steps some of its envs at a time, when they are sent, and keeps what each gave until it is asked."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._given: dict[int, _Row] = {}

    def async_reset(self, seeds: Sequence[int | None], reset: Sequence[int], idle: Sequence[int] = ()) -> None:
        """Resets some; those that are ``idle`` share a worker with them and come along."""
        for index in reset:
            self._ended[index] = False
            info = self._reset_env(index, seed=seeds[index], options=None)
            self._given[index] = _Row(self._observations[index], 0.0, False, False, info)
        for index in idle:
            self._given[index] = _Row(self._observations[index], 0.0, False, False, {})

    def send(self, actions: Any, env_ids: Sequence[int]) -> None:
        """Steps some."""
        for index, action in zip(env_ids, iterate(self.action_space, actions), strict=True):
            self._given[index] = _Row(self._observations[index], *self._step_env(index, action))
            self._given[index] = self._given[index]._replace(observation=self._observations[index])

    def check(self, received: Any) -> list[int]:
        """Checks what ``recv`` has given, and returns which sub-envs it is of."""
        ids: list[int] = received[4]["env_id"].tolist()
        rows = [self._given.pop(index) for index in ids]
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
