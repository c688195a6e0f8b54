"""Which wrappers a sub-env wears, told by the names of their classes.

A class that is sent to a worker would be imported there, with all that its module imports; one that is named is not.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym

__all__ = ["class_name", "is_wrapped_in"]


def class_name(kind: type) -> str:
    """A class's module and qualified name; the main module has one name, whatever a spawned process calls it."""
    module = "__main__" if kind.__module__ == "__mp_main__" else kind.__module__
    return f"{module}:{kind.__qualname__}"


def is_wrapped_in(env: gym.Env[Any, Any], name: str) -> bool:
    """Whether a wrapper of ``env`` is of the class with that :func:`class_name`, or of one derived from it."""
    while isinstance(env, gym.Wrapper):
        if any(class_name(kind) == name for kind in type(env).__mro__):
            return True
        env = env.env
    return False
