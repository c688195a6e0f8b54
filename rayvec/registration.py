"""Vector envs by name: ``make_vec`` builds one, ``register`` puts one into Gymnasium's registry.

::

    make_vec("CartPole-v1", 8, "async")                 register("CartPole-v1", engine="async")
          |                                                    |
          |  id -> EnvSpec                                     |  id -> EnvSpec -> VectorEntryPoint
          v                                                    v
    8 x EnvFactory --> ENGINES["async"] <-- make_vec <-- gymnasium.make_vec("rayvec/CartPole-v1", 8)

A factory carries the env's whole spec rather than its id: a spawned worker, whose registry holds only what
it imported itself, can build it too. What a vector env was made of is kept in ``envs.spec``, and
``make_vec(envs.spec)`` makes it again.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import importlib
import inspect
import json
import operator
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import gymnasium
from gymnasium import error, logger
from gymnasium.envs import registration as registry
from gymnasium.envs.registration import EnvSpec, VectorizeMode
from gymnasium.vector import AutoresetMode, VectorEnv

from rayvec import tuning

__all__ = ["ENGINES", "EnvFactory", "VectorEntryPoint", "make_vec", "register"]

Env: TypeAlias = gymnasium.Env[Any, Any]
EnvWrapper: TypeAlias = Callable[[Env], Env]
AnyVectorEnv: TypeAlias = VectorEnv[Any, Any, Any]

#: Where each engine's class is. Looked up when it is asked for, so that no engine costs anything before.
ENGINES: dict[str, str] = {
    "sync": "rayvec:SyncVectorEnv",
    "async": "rayvec:AsyncVectorEnv",
    "ray": "rayvec.vector:RayVectorEnv",
}

#: What stands for the engine that is the fastest, where it is asked for.
AUTO = "auto"

_CHOICES = (*ENGINES, AUTO)

_ENTRY_POINT = VectorizeMode.VECTOR_ENTRY_POINT.value

#: What a vector env's spec records beside the env's own kwargs.
_RECORDED = ("num_envs", "vectorization_mode", "vector_kwargs", "wrappers")

#: What ``gymnasium.make`` takes itself; all other kwargs are the env's.
_MAKE_ARGUMENTS = ("max_episode_steps", "disable_env_checker")


@dataclasses.dataclass(frozen=True)
class EnvFactory:
    """Builds one env at each call. It can be pickled whenever the env's own parts can.

    Attributes:
        spec: the env's spec.
        kwargs: what ``gymnasium.make`` is called with, over the spec's own.
        wrappers: applied in order to what ``gymnasium.make`` gives.
        module: imported before, for envs named ``"module:Env-v0"``: it may register what the env needs.
    """

    spec: EnvSpec
    kwargs: Mapping[str, Any]
    wrappers: tuple[EnvWrapper, ...] = ()
    module: str | None = None

    def __call__(self) -> Env:
        """Builds the env."""
        if self.module is not None:
            importlib.import_module(self.module)
        env: Env = gymnasium.make(self.spec, **self.kwargs)
        try:
            for wrapper in self.wrappers:
                env = wrapper(env)
        except BaseException:
            env.close()
            raise
        return env


@dataclasses.dataclass(frozen=True)
class VectorEntryPoint:
    """What Gymnasium calls when a vector env of a registered id is wanted.

    Attributes:
        engine: a key of ``ENGINES``, or ``AUTO``.
        spec: the single env's spec.
        options: the engine's options, unless a call gives others.
        module: as in :class:`EnvFactory`.
    """

    engine: str
    spec: EnvSpec
    options: Mapping[str, Any]
    module: str | None = None

    def __call__(self, num_envs: int = 1, **kwargs: Any) -> AnyVectorEnv:
        """Builds the vector env: ``kwargs`` are options if the engine knows them, else the env's arguments.

        A name that the env was registered with stays the env's.
        """
        names = [name for name in kwargs if name in _options_of(self.engine) and name not in self.spec.kwargs]
        options = {**self.options, **{name: kwargs.pop(name) for name in names}}
        return _make_engine(self.engine, self.spec, self.module, num_envs, options, (), kwargs)

    def as_string(self) -> str | None:
        """A ``"module:attribute"`` that loads as an equal of this one, for JSON's sake; None if none does."""
        try:
            told = json.dumps(vars(self) | {"spec": json.loads(self.spec.to_json())})
            # Gymnasium splits at the colon, so there may be only one.
            attribute = told.replace("%", "%25").replace(":", "%3A")
            return f"{__name__}:{attribute}" if self.from_attribute(attribute) == self else None
        except (TypeError, ValueError):
            return None

    @classmethod
    def from_attribute(cls, attribute: str) -> VectorEntryPoint:
        """The other direction: from the attribute's name."""
        fields = json.loads(attribute.replace("%3A", ":").replace("%25", "%"))
        return cls(**fields | {"spec": EnvSpec.from_json(json.dumps(fields["spec"]))})

    def __deepcopy__(self, memo: dict[int, Any]) -> VectorEntryPoint:
        """Itself: Gymnasium copies specs deeply, nothing changes this one, and options may forbid it."""
        return self


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Entry points written as strings are attributes of this module, named by what they say."""
        if name.startswith("{"):
            return VectorEntryPoint.from_attribute(name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def make_vec(
    id: str | EnvSpec,  # noqa: A002 - Gymnasium's name for it
    num_envs: int = 1,
    vectorization_mode: VectorizeMode | str | None = None,
    vector_kwargs: Mapping[str, Any] | None = None,
    wrappers: Sequence[EnvWrapper] | None = None,
    **kwargs: Any,
) -> AnyVectorEnv:
    """Makes a vector env: Gymnasium's ``make_vec`` over rayvec's engines.

    Args:
        id: an env's id, ``"module:Env-v0"`` to import the module first, or a spec. A vector env's own spec
            makes such a vector env again; what is given beside it (a ``num_envs`` above 1, what is not None)
            goes before what it was made with.
        num_envs: how many sub-envs.
        vectorization_mode: ``"sync"``, ``"async"``, ``"ray"``, ``"auto"`` or ``"vector_entry_point"``. None: the env's
            vector entry point if it has one, else ``"sync"``. ``"auto"`` is what :func:`rayvec.tune` finds the fastest of
            those that ``vector_kwargs`` allow, once in this process for the same arguments; it may take seconds and builds
            envs in other processes. The vector env's ``tuning`` then says why.
        vector_kwargs: the engine's options.
        wrappers: applied in order to each sub-env.
        **kwargs: arguments of ``gymnasium.make`` and the env, as ``max_episode_steps`` or ``render_mode``.

    Returns:
        The vector env; its ``spec`` holds all of these arguments.

    Raises:
        ValueError: for a mode or a ``num_envs`` that cannot be.
        TypeError: for an option that the engine does not have.
        gymnasium.error.Error: for an unknown id, or one that has no entry point for the mode.
    """
    spec, module = find_spec(id)
    recorded = {name: spec.kwargs[name] for name in _RECORDED if name in spec.kwargs}
    if recorded:
        spec = dataclasses.replace(spec, kwargs={k: v for k, v in spec.kwargs.items() if k not in recorded})
    if num_envs == 1:
        num_envs = recorded.get("num_envs", 1)
    if vectorization_mode is None:
        vectorization_mode = recorded.get("vectorization_mode")
    if vector_kwargs is None:
        vector_kwargs = recorded.get("vector_kwargs")
    if wrappers is None:
        wrappers = recorded.get("wrappers")

    mode = _mode(vectorization_mode, spec)
    num_envs = _checked_num_envs(num_envs)
    if mode != _ENTRY_POINT:
        return _make_engine(mode, spec, module, num_envs, vector_kwargs or {}, wrappers or (), kwargs)
    if spec.vector_entry_point is None:
        raise error.Error(
            f"{spec.id} has no vector entry point: give it one when registering it, or use "
            f"vectorization_mode={_either(_CHOICES)}"
        )
    no_wrappers: list[Any] = list(wrappers or ())  # Gymnasium raises for any, and for any vector_kwargs
    return gymnasium.make_vec(spec, num_envs, mode, dict(vector_kwargs or {}), no_wrappers, **kwargs)


def register(
    id: str | EnvSpec,  # noqa: A002
    *,
    engine: str,
    namespace: str = "rayvec",
    **vector_kwargs: Any,
) -> str:
    """Registers an env once more with Gymnasium, with a rayvec engine as its vector entry point.

    After ``register("CartPole-v1", engine="async", num_workers=2)``, an ``AsyncVectorEnv`` is what
    ``gymnasium.make_vec("rayvec/CartPole-v1", 8)`` gives; ``gymnasium.make("rayvec/CartPole-v1")`` gives the
    single env as before. A call's own kwargs go to the engine where it has such an option, else to the env.

    Args:
        id: an env's id, ``"module:Env-v0"`` to import the module first, or the spec of a single env.
        engine: ``"sync"``, ``"async"``, ``"ray"`` or ``"auto"``: see :func:`make_vec`.
        namespace: what the new id begins with, in place of the env's own namespace. Registering the same env
            again replaces it.
        **vector_kwargs: the engine's options.

    Returns:
        The new id.

    Raises:
        ValueError: for an engine that does not exist, or the spec of a vector env.
        TypeError: for an option that the engine does not have.
        gymnasium.error.Error: for an unknown id, one that has no entry point, or a spec that lists wrappers.
    """
    _check_choice("engine", engine, _CHOICES)
    _check_options(engine, vector_kwargs)
    spec, module = find_spec(id)
    registered = _entry_point_of(spec)
    if registered is not None:
        spec, module = registered.spec, registered.module
    _check_single(spec)
    if spec.additional_wrappers:
        raise error.Error(
            f"this spec of {spec.id} lists additional_wrappers, with which Gymnasium calls no vector entry "
            f"point; use rayvec.make_vec(spec, vectorization_mode={engine!r})"
        )

    base = dataclasses.replace(spec, kwargs=copy.deepcopy(spec.kwargs), vector_entry_point=None)
    entry_point = VectorEntryPoint(engine, base, _plain(vector_kwargs), module)
    named = dataclasses.replace(
        base,
        id=registry.get_env_id(namespace, spec.name, spec.version),
        kwargs=copy.deepcopy(spec.kwargs),
        vector_entry_point=entry_point.as_string() or entry_point,
    )
    existing = registry.registry.get(named.id)
    if existing is not None and _env_of(existing) != base.id:
        logger.warn(f"{named.id} stood for {_env_of(existing)} so far; now it stands for {base.id}.")
    registry.registry[named.id] = named
    return named.id


# --- building -----------------------------------------------------------------------------------------------


def _make_engine(
    engine: str,
    spec: EnvSpec,
    module: str | None,
    num_envs: int,
    options: Mapping[str, Any],
    wrappers: Sequence[EnvWrapper],
    kwargs: Mapping[str, Any],
) -> AnyVectorEnv:
    _check_options(engine, options)
    _check_single(spec)
    # Kwargs that are registered stay in the spec: from there, gymnasium.make gives each env its own copy.
    ours = {name: spec.kwargs[name] for name in _MAKE_ARGUMENTS if name in spec.kwargs}
    own_spec = dataclasses.replace(spec, kwargs={k: v for k, v in spec.kwargs.items() if k not in ours})
    factory = EnvFactory(own_spec, {**ours, **kwargs}, tuple(wrappers), module)
    record = _record(engine, spec, num_envs, options, wrappers, kwargs)
    env_fns = [factory] * num_envs
    if engine == AUTO:
        report = tuning.remembered(factory, num_envs, options)
        envs = report.build(env_fns)
        cast(Any, envs).tuning = report
    else:
        envs = _engine_class(engine)(env_fns, **options)
    envs.unwrapped.spec = record
    return envs


def _record(
    mode: str,
    spec: EnvSpec,
    num_envs: int,
    options: Mapping[str, Any],
    wrappers: Sequence[EnvWrapper],
    kwargs: Mapping[str, Any],
) -> EnvSpec:
    """The vector env's spec: the env's, with all that it was made of in the kwargs, as Gymnasium has it."""
    record = {**copy.deepcopy(spec.kwargs), **kwargs}
    if num_envs != 1:
        record["num_envs"] = num_envs
    record["vectorization_mode"] = mode
    if options:
        record["vector_kwargs"] = _plain(options)
    if wrappers:
        record["wrappers"] = list(wrappers)
    return dataclasses.replace(spec, kwargs=record)


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """A copy whose autoreset mode is a string, as JSON can hold it."""
    return {k: v.value if isinstance(v, AutoresetMode) else v for k, v in options.items()}


# --- looking up ---------------------------------------------------------------------------------------------


def find_spec(id: str | EnvSpec) -> tuple[EnvSpec, str | None]:  # noqa: A002
    """The spec, and the module that ``id`` names, if it does."""
    if isinstance(id, EnvSpec):
        return id, None
    if not isinstance(id, str):
        raise error.Error(f"id must be a str or an EnvSpec; got {id!r}, a {type(id).__name__}")
    module, colon, _ = id.partition(":")
    return registry._find_spec(id), module if colon else None


def _entry_point_of(spec: EnvSpec) -> VectorEntryPoint | None:
    """The entry point that ``register`` has given to ``spec``, if it did."""
    found = spec.vector_entry_point
    if isinstance(found, str) and found.startswith(f"{__name__}:{{"):
        return VectorEntryPoint.from_attribute(found.partition(":")[2])
    return found if isinstance(found, VectorEntryPoint) else None


def _env_of(spec: EnvSpec) -> str:
    """The id of the single env behind ``spec``."""
    registered = _entry_point_of(spec)
    return spec.id if registered is None else registered.spec.id


def _engine_class(engine: str) -> Callable[..., AnyVectorEnv]:
    return cast(Callable[..., AnyVectorEnv], pkgutil.resolve_name(ENGINES[engine]))


def _options_of(engine: str) -> list[str]:
    if engine == AUTO:
        # Those of the Ray engine by name, as asking it would import Ray.
        return [*_options_of("async"), *tuning.RAY_OPTIONS]
    return [name for name in inspect.signature(_engine_class(engine)).parameters if name != "env_fns"]


# --- checking -----------------------------------------------------------------------------------------------


def _mode(given: VectorizeMode | str | None, spec: EnvSpec) -> str:
    if given is None:
        return "sync" if spec.vector_entry_point is None else _ENTRY_POINT
    mode = given.value if isinstance(given, VectorizeMode) else given
    _check_choice("vectorization_mode", mode, (*_CHOICES, _ENTRY_POINT))
    return mode


def _check_choice(argument: str, given: Any, valid: Sequence[str]) -> None:
    if isinstance(given, str) and given in valid:
        return
    raise ValueError(f"{argument} must be {_either(valid)}; got {given!r}")


def _check_options(engine: str, options: Mapping[str, Any]) -> None:
    known = _options_of(engine)
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
            raise TypeError(f"the {engine} engine has no option {name!r}; {hint}")
    if engine == AUTO:
        tuning.engine_with(options)


def _check_single(spec: EnvSpec) -> None:
    """An engine needs the spec of one env, and one that says how to build it."""
    recorded = [name for name in _RECORDED if name in spec.kwargs]
    if recorded:
        raise ValueError(
            f"this spec of {spec.id} is a vector env's (its kwargs hold {', '.join(recorded)}); "
            f"give the env's id or gymnasium.spec({spec.id!r})"
        )
    if spec.entry_point is None:
        raise error.Error(f"{spec.id} has no entry point for a single env, which an engine needs")


def _checked_num_envs(num_envs: Any) -> int:
    try:
        checked = operator.index(num_envs)
    except TypeError:
        checked = 0
    if checked < 1:
        raise ValueError(f"num_envs must be a whole number from 1 on; got {num_envs!r}")
    return checked


def _either(names: Sequence[str]) -> str:
    *most, last = map(repr, names)
    return f"{', '.join(most)} or {last}"
