"""The env that a command is about: found by what was typed, with an error of one line where it is not there.

::

    CartPole-v1                an id that Gymnasium knows
    ale_py:ALE/Pong-v5         an id, after importing the module that registers it
    my_project.envs:make_env   a function or class of a module; called with the env's keyword arguments
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import json
import operator
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium
from gymnasium import error as gymnasium_error

from rayvec.registration import EnvFactory, find_spec
from rayvec.sub_envs import EnvFn

__all__ = ["Target", "TargetError", "build", "find_target", "parse_kwargs"]

Env: TypeAlias = gymnasium.Env[Any, Any]

_PACKAGES = {
    "ALE": ("ale-py", "ale_py"),
    "MiniGrid": ("minigrid", "minigrid"),
    "BabyAI": ("minigrid", "minigrid"),
    "procgen": ("procgen", "procgen"),
    "metaworld": ("metaworld", "metaworld"),
    "highway": ("highway-env", "highway_env"),
    "Adroit": ("gymnasium-robotics", "gymnasium_robotics"),
    "Fetch": ("gymnasium-robotics", "gymnasium_robotics"),
}
"""Namespaces and first words of ids that other packages register: what to install, and which module registers them."""


class TargetError(Exception):
    """There is no such env, or it cannot be built here: one line, with what to do."""


@dataclass(frozen=True)
class Target:
    """An env to bench or check.

    Attributes:
        name: as it was typed.
        env_fn: makes one.
        kwargs: of the env.
        function: for ``module:function``, its module and name; None for an id.
    """

    name: str
    env_fn: EnvFn
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    function: tuple[str, str] | None = None


def find_target(name: str, kwargs: Mapping[str, Any], **make_kwargs: Any) -> Target:
    """The env that ``name`` stands for. Modules of the current folder are found, too.

    Args:
        name: an id, ``module:id`` or ``module:function``.
        kwargs: of the env.
        **make_kwargs: for ``gymnasium.make``, if it is an id.

    Raises:
        TargetError: there is none.
    """
    module_name, colon, attribute = name.partition(":")
    if colon:
        module = _imported(module_name)
        try:
            function = operator.attrgetter(attribute)(module)
        except AttributeError:
            function = None
        if callable(function):
            return Target(name, partial(function, **kwargs) if kwargs else function, kwargs, (module_name, attribute))
    try:
        spec, module_to_import = find_spec(name)
    except gymnasium_error.Error as error:
        if colon and attribute.isidentifier():
            near = difflib.get_close_matches(attribute, [name for name, value in vars(module).items() if callable(value)], 1)
            hint = f"; did you mean {module_name}:{near[0]}?" if near else ""
            raise TargetError(
                f"module {module_name!r} has no function or class {attribute!r}, and registers no such id{hint}"
            ) from None
        told = _sentence(error)
        hint = "" if "Did you mean" in told else f"; {_advice(name)}"
        raise TargetError(told.rstrip("?") + hint if hint else told) from None
    return Target(name, EnvFactory(spec, {**make_kwargs, **kwargs}, module=module_to_import), kwargs)


def build(target: Target) -> Env:
    """One env of ``target``.

    Raises:
        TargetError: something that it needs is missing, or it cannot be built with these arguments.
    """
    try:
        env = target.env_fn()
    except gymnasium_error.DependencyNotInstalled as error:
        raise TargetError(f"{target.name} needs what is not installed: {_sentence(error)}") from None
    except ModuleNotFoundError as error:
        raise TargetError(
            f"{target.name} needs the module {error.name!r}, which is not installed: {_install(error.name)}"
        ) from None
    except TypeError as error:
        if target.kwargs:
            given = ", ".join(target.kwargs)
            raise TargetError(f"{target.name} cannot be built with {given} (-k, --env-kwargs): {_sentence(error)}") from None
        raise TargetError(f"{target.name} cannot be built: TypeError: {_sentence(error)}") from None
    except Exception as error:
        raise TargetError(f"{target.name} cannot be built: {type(error).__name__}: {_sentence(error)}") from None
    if not isinstance(env, gymnasium.Env):
        raise TargetError(f"{target.name} gives a {type(env).__name__}; a function that returns a gymnasium.Env is needed")
    return env


def parse_kwargs(text: str | None, pairs: tuple[str, ...]) -> dict[str, Any]:
    """Keyword arguments out of a JSON object and of ``key=value`` pairs, whose values are JSON, or text where they are not.

    Raises:
        TargetError: they cannot be read.
    """
    kwargs: dict[str, Any] = {}
    if text is not None:
        try:
            kwargs = json.loads(text)
        except ValueError as error:
            raise TargetError(f"--env-kwargs: a JSON object is needed, such as '{{\"size\": 3}}': {error}") from None
        if not isinstance(kwargs, dict):
            raise TargetError(f"--env-kwargs: a JSON object is needed, such as '{{\"size\": 3}}', not {text!r}")
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise TargetError(f"-k: key=value is needed, such as size=3, not {pair!r}")
        try:
            kwargs[key] = _PYTHON[value] if value in _PYTHON else json.loads(value)
        except ValueError:
            kwargs[key] = value
    return kwargs


_PYTHON: dict[str, Any] = {"True": True, "False": False, "None": None}
"""Python's words for what JSON writes otherwise."""


def _imported(name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (error.name == name or name.startswith(f"{error.name}.")):
            raise TargetError(f"there is no module {name!r}: {_install(error.name)}, or run where {_file(name)} is") from None
        raise TargetError(f"importing {name!r} needs the module {error.name!r}: {_install(error.name)}") from None
    except Exception as error:
        raise TargetError(f"importing {name!r} raised {type(error).__name__}: {_sentence(error)}") from None


def _file(module: str) -> str:
    return f"{module.replace('.', '/')}.py"


def _install(module: str | None) -> str:
    """How to install the package that has a module."""
    root = (module or "").partition(".")[0]
    known = {import_name: package for package, import_name in _PACKAGES.values()}
    return f"pip install {known.get(root, root.replace('_', '-'))}"


def _advice(name: str) -> str:
    """What to do about an id that Gymnasium does not know."""
    named = name.partition(":")[2] or name
    for word, (package, module) in _PACKAGES.items():
        if named.startswith(word) and not name.startswith(f"{module}:"):
            if importlib.util.find_spec(module) is None:
                return f"run: pip install {package}, then ask for {module}:{named}"
            return f"ask for {module}:{named}, which imports the package first"
    return "an id of another package is written module:Env-v0, a function module:function"


def _sentence(error: BaseException) -> str:
    """An error's text on one line, without a stop at its end."""
    return " ".join(str(error).split()).rstrip(".") or repr(error)
