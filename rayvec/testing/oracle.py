"""The plain loop: what the contract says a vector env gives, written down as slowly and plainly as it can be.

::

    actions ─▶ one for each ─▶ env 0: step, or reset ─▶ observation, reward, flags, info ─┐
                               env 1: step, or reset ─▶ observation, reward, flags, info ─┼─▶ lists, then batched
                               ...                                                        ─┘

It shares no code with any engine, keeps every observation as the separate value that an env gave, and copies whatever
crosses a border, so that there is nothing in it to get out of step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import Space, spaces
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

__all__ = ["PlainLoop", "batch_infos", "batch_observations"]

EnvFn = Callable[[], gym.Env[Any, Any]]
StepResult = tuple[Any, npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[Any, Any]]

_ARRAY_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class PlainLoop:
    """Steps bare envs one after the other and gives exactly what a vector env over them is due to give.

    It has the methods of a vector env but is none: nothing in it is fast, parallel or clever.

    Args:
        env_fns: a function for each env; each is called once, and again where a failed env is built anew.
        autoreset_mode: what happens at the end of an episode.

    Attributes:
        num_envs: how many envs.
        envs: the envs themselves.
        autoreset_mode: what happens at the end of an episode.
        single_observation_space: of the first env.
        single_action_space: of the first env.
        observation_space: the batched one.
        action_space: the batched one.
        closed: whether :meth:`close` was called.
    """

    def __init__(self, env_fns: Sequence[EnvFn], autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP) -> None:
        self._env_fns = list(env_fns)
        self.num_envs = len(self._env_fns)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.envs: list[gym.Env[Any, Any]] = []
        self.closed = False
        try:
            for env_fn in self._env_fns:
                self.envs.append(env_fn())
        except BaseException:
            self.close()
            raise
        self.single_observation_space: Space[Any] = self.envs[0].observation_space
        self.single_action_space: Space[Any] = self.envs[0].action_space
        self.observation_space: Space[Any] = batch_space(self.single_observation_space, self.num_envs)
        self.action_space: Space[Any] = batch_space(self.single_action_space, self.num_envs)
        self._observations = [_zero(self.single_observation_space) for _ in range(self.num_envs)]
        self._ended = [False] * self.num_envs
        self._failed = [False] * self.num_envs

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[Any, Any]]:
        """Resets all envs, or those that ``options["reset_mask"]`` names; an env that failed is built anew first.

        Args:
            seed: None; or an int for env 0, one more for each next one; or one int or None for each.
            options: for each ``env.reset``, without ``"reset_mask"``: a bool array ``(num_envs,)``.

        Returns:
            The batched observations of all envs and the batched infos of those that were reset.

        Raises:
            ValueError, TypeError: seed or mask are wrong; nothing was reset.
            Exception: what an env raised, that of the lowest index; the others were reset.
        """
        self._check_open()
        seeds = self._checked_seeds(seed)
        mask, options = self._checked_mask(options)
        infos: list[Mapping[Any, Any]] = [{} for _ in self.envs]
        errors: dict[int, Exception] = {}
        for index in range(self.num_envs):
            if mask[index]:
                try:
                    if self._failed[index]:
                        self._build_anew(index)
                    self._ended[index] = False
                    infos[index] = self._reset_env(index, seed=seeds[index], options=copy.deepcopy(options))
                except Exception as error:
                    errors[index] = error
        self._raise(errors, "reset")
        return batch_observations(self.single_observation_space, self._observations), batch_infos(infos)

    def step(self, actions: Any) -> StepResult:
        """Steps every env once; under ``NEXT_STEP`` an env whose episode has ended is reset instead.

        Args:
            actions: one for each env, as :attr:`action_space` has them.

        Returns:
            Batched observations; rewards, float64 ``(num_envs,)``; terminations and truncations, bool ``(num_envs,)``;
            batched infos.

        Raises:
            ValueError: there is not one action for each env; nothing was stepped.
            ResetNeeded: some envs have failed, or ended under ``DISABLED``; nothing was stepped.
            Exception: what an env raised, that of the lowest index; the others were stepped.
        """
        self._check_open()
        single_actions = _split(self.single_action_space, actions, self.num_envs)
        needing = [index for index in range(self.num_envs) if self._failed[index] or self._is_over(index)]
        if needing:
            raise ResetNeeded(f"sub-envs {needing} have to be reset before they can be stepped again")
        rewards = np.zeros(self.num_envs, np.float64)
        terminations = np.zeros(self.num_envs, np.bool_)
        truncations = np.zeros(self.num_envs, np.bool_)
        infos: list[Mapping[Any, Any]] = [{} for _ in self.envs]
        errors: dict[int, Exception] = {}
        for index, action in enumerate(single_actions):
            try:
                rewards[index], terminations[index], truncations[index], infos[index] = self._step_env(index, action)
            except Exception as error:
                errors[index] = error
        self._raise(errors, "step")
        observations = batch_observations(self.single_observation_space, self._observations)
        return observations, rewards, terminations, truncations, batch_infos(infos)

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """What the method ``name`` of each env returns, or its attribute of that name.

        Raises:
            Exception: what an env raised, that of the lowest index; all were called.
        """
        self._check_open()
        results: list[Any] = [None] * self.num_envs
        errors: dict[int, Exception] = {}
        for index, env in enumerate(self.envs):
            try:
                found = env.get_wrapper_attr(name)
                results[index] = found(*copy.deepcopy(args), **copy.deepcopy(kwargs)) if callable(found) else found
            except Exception as error:
                errors[index] = error
        self._raise(errors, "call", failed=False)
        return tuple(copy.deepcopy(results))

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """The same as :meth:`call`."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Sets an attribute of each env: a list or tuple holds one value for each, anything else is for all.

        Raises:
            ValueError: a list or tuple of another length; nothing was set.
            Exception: what an env raised, that of the lowest index; the others were set.
        """
        self._check_open()
        each = values if isinstance(values, list | tuple) else [values] * self.num_envs
        if len(each) != self.num_envs:
            raise ValueError(f"expected one value for each of {self.num_envs} sub-envs, got {len(each)}")
        errors: dict[int, Exception] = {}
        for index, (env, value) in enumerate(zip(self.envs, each, strict=True)):
            try:
                env.set_wrapper_attr(name, copy.deepcopy(value))
            except Exception as error:
                errors[index] = error
        self._raise(errors, "set_attr", failed=False)

    def close(self) -> None:
        """Closes every env, once."""
        if not self.closed:
            self.closed = True
            for env in self.envs:
                env.close()

    def _step_env(self, index: int, action: Any) -> tuple[float, bool, bool, Mapping[Any, Any]]:
        if self._ended[index]:
            self._ended[index] = False
            return 0.0, False, False, self._reset_env(index)
        observation, reward, terminated, truncated, info = self.envs[index].step(action)
        self._observations[index] = self._checked_observation(index, "step", observation)
        number = _one_number(index, reward)
        info = _snapshot(info)
        if terminated or truncated:
            if self.autoreset_mode is AutoresetMode.SAME_STEP:
                final = {"final_obs": self._observations[index], "final_info": info}
                info = {**final, **self._reset_env(index)}
            else:
                self._ended[index] = True
        return number, bool(terminated), bool(truncated), info

    def _reset_env(self, index: int, **kwargs: Any) -> dict[Any, Any]:
        observation, info = self.envs[index].reset(**kwargs)
        self._observations[index] = self._checked_observation(index, "reset", observation)
        return cast("dict[Any, Any]", _snapshot(info))

    def _is_over(self, index: int) -> bool:
        """Whether the env waits for a reset that nobody but the caller makes."""
        return self._ended[index] and self.autoreset_mode is AutoresetMode.DISABLED

    def _build_anew(self, index: int) -> None:
        try:
            self.envs[index].close()
        except Exception:
            # A broken env may be broken here too.
            pass
        self.envs[index] = self._env_fns[index]()
        self._failed[index] = False

    def _raise(self, errors: Mapping[int, Exception], call: str, failed: bool = True) -> None:
        """Raises the error of the lowest index, if there is any, with notes on all."""
        if not errors:
            return
        for index in errors:
            self._failed[index] = self._failed[index] or failed
        lowest = min(errors)
        notes = [f"raised by sub-env {lowest} in {call}"]
        notes += [f"sub-env {index} raised {errors[index]!r} too" for index in sorted(errors) if index != lowest]
        error = errors[lowest]
        # As add_note does, which Python 3.10 has not.
        error.__dict__["__notes__"] = [*getattr(error, "__notes__", []), *notes]
        raise error

    def _checked_observation(self, index: int, call: str, observation: Any) -> Any:
        try:
            return _normalised(self.single_observation_space, observation)
        except (TypeError, ValueError) as error:
            raise ValueError(f"sub-env {index}: the observation of {call} does not fit its space: {error}") from None

    def _checked_seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return [int(seed) + index for index in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(f"expected one seed for each of {self.num_envs} sub-envs, got {len(seed)}")
        return list(seed)

    def _checked_mask(self, options: dict[str, Any] | None) -> tuple[list[bool], dict[str, Any] | None]:
        if options is None or "reset_mask" not in options:
            return [True] * self.num_envs, options
        mask = options["reset_mask"]
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            raise TypeError(f"expected reset_mask to be a bool array, got {mask!r}")
        if mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(f"expected a reset_mask of shape ({self.num_envs},) with a True in it, got {mask!r}")
        return mask.tolist(), {key: value for key, value in options.items() if key != "reset_mask"}

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError("the loop was closed")


def batch_observations(space: Space[Any], observations: Sequence[Any]) -> Any:
    """Batches observations of one space as Gymnasium lays them out.

    Args:
        space: of one observation.
        observations: one for each env, each in ``space``.

    Returns:
        Box, Discrete, MultiDiscrete, MultiBinary: an array ``(num_envs, *space.shape)`` of the space's dtype; Dict and
        Tuple: a dict or tuple of such; any other space: a tuple of the observations. All copied.
    """
    if isinstance(space, spaces.Dict):
        return {
            key: batch_observations(part, [observation[key] for observation in observations])
            for key, part in space.spaces.items()
        }
    if isinstance(space, spaces.Tuple):
        return tuple(
            batch_observations(part, [observation[position] for observation in observations])
            for position, part in enumerate(space.spaces)
        )
    if isinstance(space, _ARRAY_SPACES):
        batch = np.zeros((len(observations), *_shape(space)), space.dtype)
        for index, observation in enumerate(observations):
            batch[index] = observation
        return batch
    return tuple(_snapshot(observation) for observation in observations)


def batch_infos(infos: Sequence[Mapping[Any, Any]]) -> dict[Any, Any]:
    """Batches info dicts as Gymnasium lays them out, but promotes numbers of different types and loses nothing.

    Args:
        infos: one for each env; an env that has none gives an empty one.

    Returns:
        For each key its values, one row for each env (0, False or None where an env has none), and under ``"_" + key`` a
        bool array ``(num_envs,)``, True where an env has one. The values are a dict, batched alike, where all are dicts;
        an array of the promoted dtype where all are numbers or arrays of one shape; an object array otherwise, and for
        ``final_obs``.
    """
    batched: dict[Any, Any] = {}
    keys = dict.fromkeys(key for info in infos for key in info)
    for key in keys:
        values = {index: info[key] for index, info in enumerate(infos) if key in info}
        batched[key] = _batch_values(key, values, len(infos))
        batched[f"_{key}"] = np.array([index in values for index in range(len(infos))], np.bool_)
    return batched


def _batch_values(key: Any, values: Mapping[int, Any], num_envs: int) -> Any:
    if key != "final_obs":
        if all(isinstance(value, dict) for value in values.values()):
            return batch_infos([values.get(index, {}) for index in range(num_envs)])
        layout = _common_layout(list(values.values()))
        if layout is not None:
            dtype, shape = layout
            numbers = np.zeros((num_envs, *shape), dtype)
            for index, value in values.items():
                numbers[index] = _snapshot(value)
            return numbers
    objects = np.full(num_envs, None, object)
    for index, value in values.items():
        # A slice, since to assign an array without axes to an element would unpack it.
        objects[index : index + 1] = _boxed(_snapshot(value))
    return objects


def _common_layout(values: Sequence[Any]) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
    """The dtype and shape of an array element that holds each of ``values``, or None if there is none."""
    if not all(_is_number(value) or isinstance(value, np.ndarray) for value in values):
        return None
    # A Python int counts as int64 whatever its size, as in Gymnasium; one that does not fit stays as it is.
    if any(type(value) is int and not -(2**63) <= value < 2**63 for value in values):
        return None
    dtypes = [value.dtype if isinstance(value, np.ndarray) else np.dtype(type(value)) for value in values]
    shapes = {np.shape(value) for value in values}
    kinds = {dtype.kind for dtype in dtypes}
    if len(shapes) > 1 or (len(kinds) > 1 and not kinds <= set("biufc")):
        return None
    return np.result_type(*dtypes), shapes.pop()


def _is_number(value: Any) -> bool:
    if isinstance(value, np.timedelta64):
        return False
    return type(value) in (bool, int, float) or isinstance(value, np.number)


def _boxed(value: Any) -> npt.NDArray[np.object_]:
    box = np.empty(1, object)
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    box[0] = value
    return box


def _normalised(space: Space[Any], value: Any) -> Any:
    """A copy of an observation in the dtype of its space. Raises ValueError or TypeError where it does not fit."""
    if isinstance(space, spaces.Dict):
        if not isinstance(value, Mapping) or not space.spaces.keys() <= value.keys():
            raise ValueError(f"got {value!r}, expected a dict with the keys {list(space.spaces)}")
        return {key: _normalised(part, value[key]) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        if not isinstance(value, tuple | list) or len(value) != len(space.spaces):
            raise ValueError(f"got {value!r}, expected a tuple of {len(space.spaces)}")
        return tuple(_normalised(part, item) for part, item in zip(space.spaces, value, strict=True))
    if isinstance(space, spaces.OneOf):
        if not isinstance(value, tuple) or len(value) != 2 or not 0 <= value[0] < len(space.spaces):
            raise ValueError(f"got {value!r}, expected a pair of an index below {len(space.spaces)} and a value")
        return np.int64(value[0]), _normalised(space.spaces[value[0]], value[1])
    if isinstance(space, spaces.Text):
        if not isinstance(value, str) or len(value) > space.max_length:
            raise ValueError(f"got {value!r}, expected a str of length {space.max_length} at most")
        return value
    if not isinstance(space, _ARRAY_SPACES):
        return _snapshot(value)
    array = np.asarray(value)
    if array.shape != _shape(space):
        raise ValueError(f"got shape {array.shape}, expected shape {_shape(space)}")
    dtype = np.dtype(cast("Any", space.dtype))
    if isinstance(value, np.ndarray | np.generic) and not np.can_cast(array.dtype, dtype, "same_kind"):
        raise TypeError(f"got dtype {array.dtype}, expected one that can be cast safely to {dtype}")
    cast_array = array.astype(dtype)
    if dtype.kind in "biu" and not np.array_equal(cast_array, array):
        raise ValueError(f"got {value!r}, which does not fit {dtype}")
    return cast_array[()] if cast_array.ndim == 0 else cast_array


def _one_number(index: int, reward: Any) -> float:
    """The single number that a reward is, in whatever form. Raises ValueError where it is none."""
    array = np.asarray(reward)
    if array.size == 1 and array.dtype.kind in "biufO":
        number = array.reshape(-1)[0]
        if hasattr(number, "__float__"):
            return float(number)
    raise ValueError(f"sub-env {index}: got the reward {reward!r}, expected one number")


def _split(space: Space[Any], actions: Any, num_envs: int) -> list[Any]:
    """The action of each env, its own copy. Raises ValueError where there is not one for each."""
    if isinstance(space, spaces.Dict):
        if not isinstance(actions, Mapping) or not space.spaces.keys() <= actions.keys():
            raise ValueError(f"expected actions to be a dict with the keys {list(space.spaces)}, got {actions!r}")
        parts = {key: _split(part, actions[key], num_envs) for key, part in space.spaces.items()}
        return [{key: part[index] for key, part in parts.items()} for index in range(num_envs)]
    if isinstance(space, spaces.Tuple):
        if not isinstance(actions, tuple | list) or len(actions) != len(space.spaces):
            raise ValueError(f"expected actions to be a tuple of {len(space.spaces)}, got {actions!r}")
        columns = [_split(part, item, num_envs) for part, item in zip(space.spaces, actions, strict=True)]
        return [tuple(column[index] for column in columns) for index in range(num_envs)]
    items = np.array(actions) if isinstance(space, _ARRAY_SPACES) else actions
    if np.ndim(items) == 0 if isinstance(items, np.ndarray) else not isinstance(items, tuple | list):
        raise ValueError(f"expected one action for each of {num_envs} sub-envs, got {actions!r}")
    if len(items) != num_envs:
        raise ValueError(f"expected one action for each of {num_envs} sub-envs, got {len(items)}")
    return [_snapshot(item) for item in items]


def _zero(space: Space[Any]) -> Any:
    """What stands for an observation before the first reset: zeros; None for a space without a fixed layout."""
    if isinstance(space, spaces.Dict):
        return {key: _zero(part) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_zero(part) for part in space.spaces)
    return np.zeros(_shape(space), space.dtype) if isinstance(space, _ARRAY_SPACES) else None


def _shape(space: Space[Any]) -> tuple[int, ...]:
    return tuple(space.shape or ())


def _snapshot(value: Any) -> Any:
    """A copy that nobody else holds; what cannot be copied is returned as it is."""
    try:
        return copy.deepcopy(value)
    except Exception:
        return value
