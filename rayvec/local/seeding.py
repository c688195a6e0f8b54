"""Seeds for the workers' global random generators, derived from the caller's without drawing from it."""

from __future__ import annotations

import hashlib
import random

import numpy as np

__all__ = ["worker_seed"]


def worker_seed(first: int, num_starts: int) -> int:
    """The seed for ``random`` and ``numpy.random`` of the worker whose first sub-env is ``first``.

    A forked worker would otherwise repeat the caller's random numbers, and its siblings'. The seed depends on the state of
    the caller's two generators, which stays as it is, so that a script that seeds them is reproducible under every start
    method and draws the same numbers itself as with Gymnasium's engines.

    Args:
        first: the index of the worker's first sub-env.
        num_starts: how often the worker was started before.
    """
    state = (random.getstate(), _numpy_state(), first, num_starts)
    return int.from_bytes(hashlib.blake2b(repr(state).encode(), digest_size=16).digest(), "little")


def _numpy_state() -> tuple[str, bytes, int]:
    name, key, position, *_ = np.random.get_state()
    return str(name), np.asarray(key).tobytes(), int(position)
