"""Seeds for the workers' global random generators, derived from the caller's without drawing from it."""

from __future__ import annotations

import hashlib
import random

import numpy as np

__all__ = ["WorkerSeeds"]


class WorkerSeeds:
    """Where the workers of one vector env get their seeds from.

    A forked worker would otherwise repeat the caller's random numbers, and its siblings'. The seeds depend on the state of
    the caller's two generators, which stays as it is, so that a script that seeds them is reproducible under every start
    method and draws the same numbers itself as with Gymnasium's engines.
    """

    def __init__(self) -> None:
        self._state = _digest(repr((random.getstate(), _numpy_state())).encode())

    def seed(self, first: int, num_starts: int) -> int:
        """The seed for ``random`` and ``numpy.random`` of the worker whose first sub-env is ``first``.

        Args:
            first: the index of the worker's first sub-env.
            num_starts: how often the worker was started before.
        """
        return int.from_bytes(_digest(self._state + f"{first} {num_starts}".encode()), "little")


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _numpy_state() -> tuple[str, bytes, int]:
    name, key, position, *_ = np.random.get_state()
    return str(name), np.asarray(key).tobytes(), int(position)
