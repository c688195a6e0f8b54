"""SyncVectorEnv: the caller steps all sub-envs itself, one after the other.

::

    step(actions) ─▶ Batch (heap) ─▶ InlineWorker ─▶ SubEnvs ─▶ env 0, env 1, ... ─▶ Batch ─▶ results

It is the engine to debug with, and the measure for the others: the same contract, checks and data, with nothing between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode

from rayvec.contract import check_autoreset_mode, check_env_fns
from rayvec.partial import PartialVectorEnv, check_batch_size
from rayvec.restarts import FailurePolicy
from rayvec.spaces import ObservationMode
from rayvec.sub_envs import EnvFn
from rayvec.worker import InlineWorker, shares

__all__ = ["SyncVectorEnv"]


class SyncVectorEnv(PartialVectorEnv):
    """Steps sub-envs one after the other in the calling process.

    Args:
        env_fns: functions that each make an env; each is called once.
        copy: whether observations are handed out as copies; else as views, valid until the next call.
        observation_mode: "same"; "different" for spaces of one shape and dtype with other bounds; or a pair
            (observation_space, single_observation_space).
        autoreset_mode: what happens at the end of an episode.
        on_failure: what becomes of a sub-env that fails in ``reset`` or ``step``: "raise", the caller is told by an exception;
            "restart", it is built anew and the call goes on (docs/failures.md).
        max_restarts: under "restart", how often each sub-env may be restarted within ``restart_window`` before its failure
            is raised; None: as often as it fails.
        restart_window: seconds.
        batch_size: how many sub-envs ``recv`` hands out; None: all. See ``docs/partial_batches.md``.

    Raises:
        ValueError, TypeError: an argument is wrong.
        RuntimeError: the spaces of the sub-envs cannot be batched.
        Exception: what an env_fn raised; nothing is left behind.

    Example:
        >>> import gymnasium as gym
        >>> import rayvec
        >>> envs = rayvec.SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2)
        >>> observations, infos = envs.reset(seed=7)
        >>> observations.shape
        (2, 4)
        >>> envs.close()
    """

    def __init__(
        self,
        env_fns: Sequence[EnvFn],
        copy: bool = True,
        observation_mode: ObservationMode = "same",
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        *,
        on_failure: str = "raise",
        max_restarts: int | None = 10,
        restart_window: float = 60.0,
        batch_size: int | None = None,
    ) -> None:
        policy = FailurePolicy(on_failure, max_restarts, restart_window)
        self.env_fns = check_env_fns(env_fns)
        autoreset_mode = check_autoreset_mode(autoreset_mode)
        num_envs = len(self.env_fns)
        batch_size = check_batch_size(batch_size, num_envs)
        # For partial batches each sub-env has to answer by itself.
        self._inline = [
            InlineWorker([self.env_fns[index] for index in envs], envs.start, autoreset_mode)
            for envs in shares(num_envs, 1 if batch_size is None else num_envs)
        ]
        super().__init__(
            self._inline,
            batch_size=batch_size,
            copy=copy,
            observation_mode=observation_mode,
            autoreset_mode=autoreset_mode,
            failure_policy=policy,
        )

    @property
    def envs(self) -> list[gym.Env[Any, Any] | None]:
        """The sub-envs themselves; None in place of one that failed and could not be built anew."""
        return [env for worker in self._inline if worker.sub_envs is not None for env in worker.sub_envs.envs]
