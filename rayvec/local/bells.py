"""Bells between the caller and a worker on the same machine: the quickest way to say "step" and "done".

A bell is an eventfd, a counter of the kernel: ringing adds to it; listening takes all that was added, and waits where that
is nothing. It costs a third of what a byte on a socket does, and can be waited for together with other descriptors.

::

             asked: a step, or for each frame on the socket FRAME
    caller ───────────────────────────────────────────────────────▶ worker
           ◀───────────────────────────────────────────────────────
             done: the step is done, and the batch says everything
                   (SETTLED: of infos too)

All else goes over the socket (:mod:`rayvec.local.channel`). Of what was added before anybody listened a step comes first:
the caller asks for one only when nothing else is owed.
"""

from __future__ import annotations

import os
import sys
from typing import NamedTuple

__all__ = ["FRAME", "HANG_UP", "SETTLED", "STEP", "Bells", "frames_and_steps"]

_FRAME = 1 << 20
_HANG_UP = 1 << 50

# What is written to a bell.
STEP, SETTLED, FRAME, HANG_UP = (count.to_bytes(8, sys.byteorder) for count in (1, 2, _FRAME, _HANG_UP))


def frames_and_steps(data: bytes) -> tuple[int, int]:
    """How many of each were rung, of what was read from a bell. Raises EOFError where the other side has hung up."""
    count = int.from_bytes(data, sys.byteorder)
    if count >= _HANG_UP:
        raise EOFError
    return divmod(count, _FRAME)


class Bells(NamedTuple):
    """Two descriptors.

    Attributes:
        asked: rung by the caller; the worker blocks on it.
        done: rung by the worker; the caller never blocks on it.
    """

    asked: int
    done: int

    @classmethod
    def make(cls) -> Bells | None:
        """A new pair; None where the platform has none, or no descriptors are left: the socket does as well."""
        if not hasattr(os, "eventfd"):
            return None
        try:
            asked = os.eventfd(0, os.EFD_CLOEXEC)
        except OSError:
            return None
        try:
            return cls(asked, os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        except OSError:
            os.close(asked)
            return None

    def close(self) -> None:
        """Closes this process's descriptors."""
        os.close(self.asked)
        os.close(self.done)
