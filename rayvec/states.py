"""Snapshots of sub-envs: what they hold, how they are taken and put back.

An env's state is taken layer by layer, from the outermost wrapper inwards::

    TimeLimit        its attributes (elapsed steps)      ┐
    OrderEnforcing   its attributes                      ├─ pickled together: what layers share stays shared
    CartPoleEnv      its own get_state(), or attributes  ┘

and is put into a living env of the same layers. So it is the attributes that travel, not the env: it keeps its identity,
and an env that is pickled as the arguments of its constructor (``gymnasium.utils.EzPickle``) keeps its state.

Assumption: an env's future depends on its attributes, or on what its own ``get_state`` gives, alone.
"""

from __future__ import annotations

import copyreg
import inspect
import io
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cloudpickle
import gymnasium as gym
import numpy as np
from gymnasium.utils import EzPickle
from gymnasium.vector import AutoresetMode

from rayvec.batch import Batch
from rayvec.errors import SnapshotError
from rayvec.restarts import RestartOrder

__all__ = ["SubEnvState", "VectorEnvState", "check_env_ids", "check_state", "layout_of", "restore_env", "save_env"]

VERSION = 1
"""Of the states that this version of rayvec takes and understands."""

Env = gym.Env[Any, Any]


class SubEnvState(NamedTuple):
    """What one sub-env needs to go on.

    Attributes:
        env: what :func:`save_env` gave; None: it has failed, and a reset builds it anew.
        ended: the next step resets it.
        observation: the last one.
        reward: the last one.
        terminated: whether the last step did.
        truncated: whether the last step did.
        order: what it was told when it was restarted, if it has not been reset since.
    """

    env: bytes | None
    ended: bool
    observation: Any
    reward: float
    terminated: bool
    truncated: bool
    order: RestartOrder | None


@dataclass(frozen=True)
class VectorEnvState:
    """What ``get_state()`` of a vector env gives and ``set_state()`` takes: for pickling, and for nothing else.

    Unpickling one, and setting one, runs whatever code it names: take none from where you would take no program.

    Attributes:
        version: of this layout.
        num_envs: how many sub-envs the vector env has.
        autoreset_mode: the value of its ``AutoresetMode``.
        layout: how its actions and observations lie in rows.
        env_ids: the sub-envs that it is of, ascending.
        needs_reset: for each of them, whether ``step`` demands a reset first.
        sub_envs: the state of each of them.
        restarts: of each of them the last seed and the number of restarts since, where ``on_failure`` is ``"restart"``.
    """

    version: int
    num_envs: int
    autoreset_mode: str
    layout: tuple[Any, ...] = field(repr=False)
    env_ids: tuple[int, ...]
    needs_reset: tuple[bool, ...] = field(repr=False)
    sub_envs: tuple[SubEnvState, ...] = field(repr=False)
    restarts: tuple[tuple[int | None, int], ...] | None = field(repr=False)


def layout_of(batch: Batch) -> tuple[Any, ...]:
    """How actions and observations lie in the rows of ``batch``, to be compared with another's."""
    columns = (batch.action_arrays(), batch.observations.arrays())
    arrays = (tuple((array.shape[1:], array.dtype.str) for array in column) for column in columns)
    return (*arrays, len(batch.observations.objects()))


def check_env_ids(env_ids: Any, num_envs: int) -> list[int]:
    """The sub-envs that ``env_ids`` names, in that order; all of them for None.

    Raises:
        TypeError: they are no integers.
        ValueError: there are none, or one is named twice or does not exist.
    """
    if env_ids is None:
        return list(range(num_envs))
    due = f"env_ids: expected None or different indices of sub-envs from 0 to {num_envs - 1}, got"
    array = np.asarray(env_ids)
    if array.dtype == np.bool_:
        raise TypeError(f"{due} {env_ids!r} of dtype bool: np.flatnonzero(mask) gives the indices of a mask.")
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"{due} {env_ids!r} of dtype {array.dtype}")
    if array.ndim == 0:
        raise ValueError(f"{due} {env_ids!r}: put a single one into a list.")
    chosen: list[int] = array.ravel().tolist()
    is_known = all(0 <= index < num_envs for index in chosen)
    if array.ndim != 1 or not chosen or len(set(chosen)) != len(chosen) or not is_known:
        raise ValueError(f"{due} {env_ids!r}")
    return chosen


def check_state(state: Any, num_envs: int, autoreset_mode: AutoresetMode, layout: tuple[Any, ...]) -> VectorEnvState:
    """``state``, if a vector env of that kind can go on from it. Raises TypeError or ValueError otherwise."""
    if not isinstance(state, VectorEnvState):
        raise TypeError(f"state: expected what get_state() of a rayvec env gave, got {type(state).__name__}")
    if state.version != VERSION:
        raise ValueError(f"state: of version {state.version}; this rayvec reads version {VERSION}")
    if state.num_envs != num_envs:
        raise ValueError(f"state: of a vector env of {state.num_envs} sub-envs; this one has {num_envs}")
    if state.autoreset_mode != autoreset_mode.value:
        raise ValueError(
            f"state: of a vector env with autoreset_mode {state.autoreset_mode!r}, this one has {autoreset_mode.value!r}: "
            "what follows would not be the same"
        )
    if state.layout != layout:
        raise ValueError(f"state: of actions and observations that lie as {state.layout}; these envs' lie as {layout}")
    check_env_ids(state.env_ids, num_envs)
    if not len(state.env_ids) == len(state.needs_reset) == len(state.sub_envs):
        raise ValueError(f"state: has {len(state.sub_envs)} states for {len(state.env_ids)} sub-envs")
    return state


# --- one env ------------------------------------------------------------------------------------------------


class _OwnMethods(NamedTuple):
    """Names under which an env gives its state and takes it back, and what the former may be told."""

    get: str
    set: str
    options: dict[str, Any]


_OWN_METHODS = (
    _OwnMethods("get_state", "set_state", {}),
    # ALE's; without its random generator it would not go on the same.
    _OwnMethods("clone_state", "restore_state", {"include_rng": True}),
)


class _Own(NamedTuple):
    """A layer that has given its state itself, for all that lies below it."""

    state: Any
    np_random: np.random.Generator | None
    np_random_seed: int | None


class _Attributes(NamedTuple):
    """A layer of which Python knows the state: its attributes, or what its ``__getstate__`` gives."""

    state: Any


class _Whole(NamedTuple):
    """A layer that says itself how it is to be pickled, with all that lies below it."""

    env: Env


_Part = _Own | _Attributes | _Whole


class _Saved(NamedTuple):
    names: tuple[str, ...]
    """The layers' classes."""
    parts: bytes


def save_env(env: Env, where: str) -> bytes:
    """What it takes to put another env of the same layers where ``env`` is now.

    Args:
        env: in any wrappers.
        where: names it in errors.

    Raises:
        SnapshotError: some layer has no methods of its own for it and holds what cannot be pickled.
        Exception: what such methods raised.
    """
    layers = _layers(env)
    parts: list[_Part] = []
    for layer in layers:
        parts.append(_part_of(layer, where))
        if not isinstance(parts[-1], _Attributes):
            break
    # One that is pickled whole, and what is below it, is no longer there when it is made anew.
    known = layers[: len(parts) - 1] if isinstance(parts[-1], _Whole) else layers
    try:
        pickled = _dumps(parts, known)
    except Exception as error:
        raise SnapshotError(f"{where}: {_culprit(layers, parts, known)} {_ADVICE}") from error
    return pickle.dumps(tuple(_Saved(_names(layers), pickled)))


def restore_env(env: Env, saved: bytes, where: str) -> Env:
    """Puts ``env`` where another was when :func:`save_env` gave ``saved``.

    Returns:
        The env that is to be used from now on: ``env``, as a rule.

    Raises:
        SnapshotError: ``env`` consists of other layers, or what was saved cannot be unpickled here.
        Exception: what the env's own methods raised.
    """
    names, pickled = _Saved(*pickle.loads(saved))
    layers = _layers(env)
    if names != _names(layers):
        raise SnapshotError(
            f"{where}: the state is of {' > '.join(names)}, this env is {' > '.join(_names(layers))}: make the vector env of "
            "the same envs in the same wrappers"
        )
    try:
        parts: Sequence[_Part] = _Unpickler(pickled, layers).load()
    except Exception as error:
        raise SnapshotError(
            f"{where}: its state cannot be unpickled here ({type(error).__name__}: {error}). Classes that an env's attributes "
            "are of have to be importable wherever the env lives."
        ) from error
    for layer, part in zip(layers, parts, strict=False):
        if isinstance(part, _Whole):
            layer.close()
            # The wrapper around it, if there is one, holds it already.
            return part.env if layer is env else env
        if isinstance(part, _Own):
            _restore_own(layer, part)
        else:
            _restore_attributes(layer, part.state)
    return env


_ADVICE = (
    "Give the env get_state() and set_state(state), or leave out of its pickle what cannot be pickled "
    "(__getstate__ and __setstate__)."
)


def _layers(env: Env) -> list[Env]:
    """The wrappers from the outermost inwards, and the env in them."""
    found = [env]
    while isinstance(found[-1], gym.Wrapper):
        found.append(found[-1].env)
    return found


def _names(layers: Sequence[Env]) -> tuple[str, ...]:
    return tuple(type(layer).__qualname__ for layer in layers)


def _part_of(layer: Env, where: str) -> _Part:
    own = _own_methods(layer)
    if own is not None:
        base = layer.unwrapped
        return _Own(getattr(layer, own.get)(**own.options), base._np_random, base._np_random_seed)
    if _is_pickled_as_arguments(type(layer)):
        return _Attributes(vars(layer))
    try:
        reduced = layer.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        raise SnapshotError(f"{where}: {type(layer).__qualname__} cannot be pickled: {error}. {_ADVICE}") from error
    if reduced[:2] != (copyreg.__newobj__, (type(layer),)):  # type: ignore[attr-defined]
        return _Whole(layer)
    return _Attributes(reduced[2] if len(reduced) > 2 else None)


def _own_methods(layer: Env) -> _OwnMethods | None:
    """The pair of methods that this layer has for its state. MuJoCo's ``set_state(qpos, qvel)`` is none of a pair."""
    for own in _OWN_METHODS:
        get, put = (getattr(type(layer), name, None) for name in (own.get, own.set))
        if callable(get) and callable(put) and _takes(get, layer, **own.options) and _takes(put, layer, None):
            return own
    return None


def _takes(function: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:
        # Written in C: nobody knows.
        return True
    return True


def _is_pickled_as_arguments(kind: type) -> bool:
    return issubclass(kind, EzPickle) and kind.__getstate__ is EzPickle.__getstate__


def _restore_own(layer: Env, part: _Own) -> None:
    own = _own_methods(layer)
    assert own is not None
    getattr(layer, own.set)(part.state)
    base = layer.unwrapped
    current, saved = base._np_random, part.np_random
    if current is not None and saved is not None and type(current.bit_generator) is type(saved.bit_generator):
        # The env may hold it under another name too.
        current.bit_generator.state = saved.bit_generator.state
    else:
        base._np_random = saved
    base._np_random_seed = part.np_random_seed


def _restore_attributes(layer: Env, state: Any) -> None:
    """Does what unpickling does with a new object."""
    attributes = vars(layer)
    attributes.clear()
    kind = type(layer)
    if hasattr(kind, "__setstate__") and not _is_pickled_as_arguments(kind):
        kind.__setstate__(layer, state)
        return
    state, slots = state if isinstance(state, tuple) else (state, None)
    attributes.update(state or {})
    for name, value in (slots or {}).items():
        setattr(layer, name, value)


# --- pickling -----------------------------------------------------------------------------------------------


class _KnowingLayers:
    """What the two picklers below have in common: a layer is pickled as its number."""

    def know(self, layers: Sequence[Env]) -> None:
        self._numbers = {id(layer): number for number, layer in enumerate(layers)}

    def persistent_id(self, obj: Any) -> int | None:
        return self._numbers.get(id(obj))

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, EzPickle) and _is_pickled_as_arguments(type(obj)):
            return copyreg.__newobj__, (type(obj),), vars(obj), None, None, _set_attributes  # type: ignore[attr-defined]
        return super().reducer_override(obj)  # type: ignore[misc]


class _ByReference:
    def reducer_override(self, obj: Any) -> Any:
        return NotImplemented


class _PlainPickler(_KnowingLayers, _ByReference, pickle.Pickler):
    """Pickles classes and functions by reference, as an env's must be that is to meet its own again."""


class _ByValuePickler(_KnowingLayers, cloudpickle.Pickler):  # type: ignore[misc]
    """The same, where some cannot be: lambdas among a wrapper's arguments."""


def _set_attributes(obj: Any, attributes: dict[str, Any]) -> None:
    vars(obj).update(attributes)


def _dumps(value: Any, layers: Sequence[Env]) -> bytes:
    for kind in (_PlainPickler, _ByValuePickler):
        stream = io.BytesIO()
        pickler = kind(stream, pickle.HIGHEST_PROTOCOL)
        pickler.know(layers)
        try:
            pickler.dump(value)
        except Exception:
            if kind is _ByValuePickler:
                raise
        else:
            break
    return stream.getvalue()


class _Unpickler(pickle.Unpickler):
    def __init__(self, pickled: bytes, layers: Sequence[Env]) -> None:
        super().__init__(io.BytesIO(pickled))
        self._layers = layers

    def persistent_load(self, pid: Any) -> Env:
        layer: Env = self._layers[pid]
        return layer

    def find_class(self, module: str, name: str) -> Any:
        # The caller's main module goes by this name in a process that was spawned.
        if module == "__mp_main__" and module not in sys.modules:
            module = "__main__"
        return super().find_class(module, name)


def _culprit(layers: Sequence[Env], parts: Sequence[_Part], known: Sequence[Env]) -> str:
    """Which part of an env cannot be pickled, in words."""
    for layer, part in zip(layers, parts, strict=False):
        for name, value in _pieces(part):
            try:
                _dumps(value, known)
            except Exception as error:
                told = f"{type(layer).__qualname__}{name} ({type(value).__name__}) cannot be pickled"
                return f"{told}: {type(error).__name__}: {error}."
    return "its state cannot be pickled."


def _pieces(part: _Part) -> Iterator[tuple[str, Any]]:
    if isinstance(part, _Attributes) and isinstance(part.state, dict):
        yield from ((f".{name}", value) for name, value in part.state.items())
    elif isinstance(part, _Own):
        yield "'s own state", part.state
    else:
        yield "", part[0]
