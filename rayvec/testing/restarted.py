"""The plain loop of ``on_failure="restart"``: what is due once it is known which sub-envs were restarted."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from rayvec.restarts import restart_seed
from rayvec.testing.oracle import EnvFn, PlainLoop, StepResult, batch_infos, batch_observations

__all__ = ["RestartedLoop"]


class RestartedLoop(PlainLoop):
    """Gives what a vector env under ``on_failure="restart"`` is due to give, over envs that do not fail themselves.

    It is told which sub-envs the vector env says it has restarted, and why, by that one's infos; and how often, by its
    ``num_restarts``. All else (seeds, rows, flags, the other sub-envs) it works out itself.

    Args:
        env_fns: a function for each env: what the vector env has, without what makes it fail.
        autoreset_mode: what happens at the end of an episode.
    """

    def __init__(self, env_fns: Sequence[EnvFn], autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP) -> None:
        super().__init__(env_fns, autoreset_mode)
        self._seeds: list[int | None] = [None] * self.num_envs
        self._unseeded = [0] * self.num_envs
        """How often each had been restarted when it got its seed."""
        self._counts = [0] * self.num_envs
        self._next_seeds: dict[int, int | None] = {}

    def follow_reset(
        self,
        told: Mapping[str, Any],
        num_restarts: Sequence[int],
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[Any, Any]]:
        """What a reset is due to give.

        Args:
            told: the infos that it has given.
            num_restarts: of each sub-env, behind it.
            seed: that it was given.
            options: that it was given.
        """
        reasons = _reasons(told)
        seeds = self._checked_seeds(seed)
        mask, options = self._checked_mask(options)
        infos: list[Mapping[Any, Any]] = [{} for _ in self.envs]
        for index in (index for index in range(self.num_envs) if mask[index]):
            own = seeds[index]
            if own is not None:
                self._seeds[index], self._unseeded[index] = own, self._counts[index]
            if index in reasons:
                own = self._build_restarted(index, num_restarts)
            self._ended[index] = False
            info = self._reset_env(index, seed=own, options=copy.deepcopy(options))
            infos[index] = {**info, **_signs(reasons, index)}
        self._counts = list(num_restarts)
        return batch_observations(self.single_observation_space, self._observations), batch_infos(infos)

    def follow_step(self, actions: Sequence[Any], told: Mapping[str, Any], num_restarts: Sequence[int]) -> StepResult:
        """What a step is due to give.

        Args:
            actions: one for each sub-env.
            told: the infos that it has given.
            num_restarts: of each sub-env, behind it.
        """
        reasons = _reasons(told)
        rewards = np.zeros(self.num_envs, np.float64)
        flags = np.zeros((2, self.num_envs), np.bool_)
        infos: list[Mapping[Any, Any]] = [{} for _ in self.envs]
        for index, action in enumerate(actions):
            if index in reasons:
                flags[1, index], infos[index] = self._restart(index, num_restarts)
                infos[index] = {**infos[index], **_signs(reasons, index)}
            else:
                rewards[index], *flags[:, index], infos[index] = self._step_env(index, action)
        self._counts = list(num_restarts)
        observations = batch_observations(self.single_observation_space, self._observations)
        return observations, rewards, flags[0], flags[1], batch_infos(infos)

    def _restart(self, index: int, num_restarts: Sequence[int]) -> tuple[bool, dict[Any, Any]]:
        """Whether its episode ends with that, and the infos."""
        seed = self._build_restarted(index, num_restarts)
        if self._ended[index]:
            # It was its turn to be reset.
            self._ended[index] = False
            return False, self._reset_env(index, seed=seed)
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            final = {"final_obs": self._observations[index], "final_info": {}}
            return True, {**final, **self._reset_env(index, seed=seed)}
        self._ended[index] = True
        self._next_seeds[index] = seed
        return True, {}

    def _build_restarted(self, index: int, num_restarts: Sequence[int]) -> int | None:
        """Builds it anew; returns the seed of its first reset."""
        self._build_anew(index)
        return restart_seed(self._seeds[index], int(num_restarts[index]) - self._unseeded[index])

    def _reset_env(self, index: int, **kwargs: Any) -> dict[Any, Any]:
        pending = self._next_seeds.pop(index, None)
        if kwargs.get("seed") is None:
            kwargs["seed"] = pending
        return super()._reset_env(index, **kwargs)


def _reasons(told: Mapping[str, Any]) -> dict[int, str]:
    """Which sub-envs were restarted, and why."""
    if "restarted" not in told:
        return {}
    return {int(index): told["failure"][index] for index in np.flatnonzero(told["_restarted"])}


def _signs(reasons: Mapping[int, str], index: int) -> dict[str, Any]:
    return {"restarted": True, "failure": reasons[index]} if index in reasons else {}
