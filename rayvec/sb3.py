"""rayvec's vector envs as stable-baselines3's ``VecEnv`` (extra ``sb3``).

::

    PPO("MlpPolicy", make_sb3_vec_env("CartPole-v1", 8, "async", {"num_workers": 2}))

    SB3:     observations, rewards, dones, [info of each]      dones = terminations | truncations
                     │                        │
    rayvec:  observations (SAME_STEP),   infos["final_obs"]  ──▶ info["terminal_observation"]
             the next episode's first    infos["final_info"] ──▶ info of the step that ended the episode
                                         all other infos     ──▶ info of a step, or reset_infos where an episode begins
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.envs.registration import EnvSpec, VectorizeMode
from gymnasium.vector import AutoresetMode

try:
    from stable_baselines3.common.vec_env import VecEnv, VecMonitor
except ImportError as error:
    raise ImportError('rayvec.sb3 needs stable-baselines3: pip install "rayvec[sb3]"') from error

from rayvec.contract import ContractVectorEnv, check_autoreset_mode
from rayvec.registration import make_vec
from rayvec.wrapping import class_name, is_wrapped_in

__all__ = ["SB3VecEnv", "make_sb3_vec_env"]

_FINAL = ("final_obs", "final_info", "_final_obs", "_final_info")


class SB3VecEnv(VecEnv):
    """A rayvec vector env, of any engine, as stable-baselines3 wants it.

    What it gives is what ``DummyVecEnv`` gives for the same envs, seeds and actions: observations as arrays, or dicts or
    tuples of arrays, ``(num_envs, ...)``; rewards float32 ``(num_envs,)``; dones bool ``(num_envs,)``; a list of infos. Numbers
    in infos are NumPy's. Errors, timeouts and restarts are the engine's: see its class.

    Args:
        envs: the vector env, with ``autoreset_mode="SameStep"`` and ``copy=True``; closed with this one.

    Attributes:
        envs: the vector env.

    Raises:
        TypeError: it is no vector env of rayvec's.
        ValueError: it has another autoreset mode, or ``copy=False``.

    Example:
        >>> import gymnasium as gym
        >>> import rayvec
        >>> from rayvec.sb3 import SB3VecEnv  # doctest: +SKIP
        >>> envs = rayvec.AsyncVectorEnv([lambda: gym.make("CartPole-v1")] * 4, autoreset_mode="SameStep")  # doctest: +SKIP
        >>> venv = SB3VecEnv(envs)  # doctest: +SKIP
    """

    def __init__(self, envs: ContractVectorEnv) -> None:
        if not isinstance(envs, ContractVectorEnv):
            raise TypeError(
                f"envs: expected a vector env of rayvec's, got {envs!r}. What wraps the whole vector env is left to "
                "stable-baselines3's own wrappers, as VecNormalize or VecMonitor."
            )
        if envs.autoreset_mode is not AutoresetMode.SAME_STEP:
            raise ValueError(
                f"envs: expected autoreset_mode={AutoresetMode.SAME_STEP.value!r}, as stable-baselines3 begins the next "
                f"episode in the step that ends one, got {envs.autoreset_mode.value!r}. Make it with "
                "autoreset_mode='SameStep', or use make_sb3_vec_env."
            )
        if not envs.copy:
            raise ValueError(
                "envs: expected copy=True, as stable-baselines3 keeps observations beyond the next step, got copy=False."
            )
        self.envs = envs
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> Any:
        """Resets all sub-envs, with what ``seed`` and ``set_options`` have set for this once; the first observations.

        Where options differ, a sub-env that has none is given ``{}``; where nobody has any, None.
        """
        seeds, options = list(self._seeds), list(self._options)
        if all(own == options[0] for own in options[1:]):
            observations, infos = self.envs.reset(seed=seeds, options=options[0] or None)
            self.reset_infos = self._listed(infos)
        else:
            for index, own in enumerate(options):
                mask = np.arange(self.num_envs) == index
                observations, infos = self.envs.reset(seed=seeds, options={**own, "reset_mask": mask})
                self.reset_infos[index] = self._listed(infos)[index]
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Starts a step; ``step_wait`` gives its result."""
        self.envs.step_async(actions)

    def step_wait(self) -> Any:
        """Waits for a step: observations, rewards, dones and infos."""
        observations, rewards, terminations, truncations, infos = self.envs.step_wait()
        dones = terminations | truncations
        listed = self._listed({key: infos[key] for key in infos if key not in _FINAL})
        if dones.any():
            final_infos = self._listed(infos.get("final_info", {}))
            for index in np.flatnonzero(dones).tolist():
                self.reset_infos[index] = listed[index]
                listed[index] = final_infos[index]
                listed[index]["terminal_observation"] = infos["final_obs"][index]
        for info, is_cut in zip(listed, (truncations & ~terminations).tolist(), strict=True):
            info["TimeLimit.truncated"] = is_cut
        return observations, rewards.astype(np.float32), dones, listed

    def close(self) -> None:
        """Closes the vector env."""
        self.envs.close()

    def has_attr(self, attr_name: str) -> bool:
        """Whether every sub-env, or a wrapper of it, has this attribute."""
        return all(self.envs.call("has_wrapper_attr", attr_name))

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The attribute of the sub-envs ``indices`` (None: of all), from the outermost wrapper that has it."""
        return self.env_method("get_wrapper_attr", attr_name, indices=indices)

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Sets the attribute of the sub-envs ``indices`` (None: of all); on the outermost wrapper, as SB3's own do."""
        self.envs._call_at(self._checked(indices), setattr, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Calls a method of the sub-envs ``indices`` (None: of all), and of no others; what it gives for each."""
        return self.envs._call_at(self._checked(indices), method_name, *method_args, **method_kwargs)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Any = None) -> list[bool]:
        """Whether the sub-envs ``indices`` (None: all) wear a wrapper of this class."""
        return self.envs._call_at(self._checked(indices), is_wrapped_in, class_name(wrapper_class))

    def get_images(self) -> list[Any]:
        """A picture of each sub-env, ``(height, width, 3)``; None of each unless they render ``"rgb_array"``."""
        if self.render_mode != "rgb_array":
            gym.logger.warn(f"get_images: expected sub-envs with render_mode='rgb_array', got {self.render_mode!r}.")
            return [None] * self.num_envs
        return list(self.envs.render())

    def _checked(self, indices: Any) -> list[int]:
        """The indices as a list; negative ones count from the end."""
        return [range(self.num_envs)[index] for index in self._get_indices(indices)]

    def _listed(self, infos: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Gymnasium's columns of infos as one dict for each sub-env."""
        listed: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for key, column in infos.items():
            mask = infos.get(f"_{key}")
            if mask is None:
                continue
            rows = self._listed(column) if isinstance(column, dict) else column
            for index in np.flatnonzero(mask).tolist():
                listed[index][key] = rows[index]
        return listed


def make_sb3_vec_env(
    id: str | EnvSpec,  # noqa: A002 - Gymnasium's name for it
    num_envs: int = 1,
    vectorization_mode: VectorizeMode | str | None = None,
    vector_kwargs: Mapping[str, Any] | None = None,
    wrappers: Sequence[Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]] | None = None,
    *,
    seed: int | None = None,
    monitor: bool = True,
    **kwargs: Any,
) -> VecEnv:
    """Makes a ``VecEnv`` by an env's id: :func:`rayvec.make_vec` for stable-baselines3.

    Args:
        id: as for :func:`rayvec.make_vec`.
        num_envs: how many sub-envs.
        vectorization_mode: ``"sync"``, ``"async"``, ``"ray"`` or ``"auto"``; None: ``"sync"``.
        vector_kwargs: the engine's options.
        wrappers: applied in order to each sub-env.
        seed: of the first reset, one more for each next sub-env.
        monitor: whether to wrap it in SB3's ``VecMonitor``, which gives SB3's log the returns and lengths of episodes.
        **kwargs: arguments of ``gymnasium.make`` and the env.

    Raises:
        ValueError: ``vector_kwargs`` ask for another autoreset mode than SB3's, or for ``copy=False``.
        Exception: as :func:`rayvec.make_vec`.
    """
    options = {"autoreset_mode": AutoresetMode.SAME_STEP, **(vector_kwargs or {})}
    options["autoreset_mode"] = check_autoreset_mode(options["autoreset_mode"])
    envs: Any = make_vec(id, num_envs, vectorization_mode or "sync", options, wrappers, **kwargs)
    try:
        venv: VecEnv = SB3VecEnv(envs)
        if seed is not None:
            venv.seed(seed)
        return VecMonitor(venv) if monitor else venv
    except BaseException:
        envs.close()
        raise
