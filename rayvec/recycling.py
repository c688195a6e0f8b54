"""Copies of large arrays without new memory: what was handed out before is used again once nobody holds it any more.

New memory for a large array comes from the system page by page, which takes longer than filling it. A step that hands out
a copy of its observations therefore fills one that it has handed out before, if the caller has let go of that one and of
every view of it: each holds a reference to the array at the bottom, and Python counts these.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["LARGE", "Recycler"]

LARGE = 1 << 16
"""Bytes from which on this pays: smaller arrays come from memory that the process has already."""
_MOST = 4
"""How many to keep: a learner holds the last observations and the ones before; who holds more gets new memory."""


class Recycler:
    """Hands out copies of arrays of one dtype, most of them of one shape."""

    def __init__(self) -> None:
        self._kept: list[npt.NDArray[Any]] = []

    def copy(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A copy that is the receiver's to keep and to change."""
        kept: npt.NDArray[Any]
        for index in range(len(self._kept)):
            if _references(self._kept, index) == _UNHELD:
                kept = self._kept[index]
                if kept.shape != array.shape:
                    kept = self._kept[index] = np.empty_like(array, order="C", subok=False)
                break
        else:
            if len(self._kept) >= _MOST or not _COUNTS_REFERENCES:
                kept = array.copy()
                return kept
            kept = np.empty_like(array, order="C", subok=False)
            self._kept.append(kept)
        kept[...] = array
        # A view, so that what the receiver does to its shape or flags stays with the receiver.
        handed_out: npt.NDArray[Any] = kept[...]
        return handed_out


_COUNTS_REFERENCES = hasattr(sys, "getrefcount") and getattr(sys, "_is_gil_enabled", lambda: True)()


def _references(arrays: list[npt.NDArray[Any]], index: int) -> int:
    return sys.getrefcount(arrays[index]) if _COUNTS_REFERENCES else 0


_UNHELD = _references([np.empty(0)], 0) or -1
"""What is counted for an array that is in a list and nowhere else."""
