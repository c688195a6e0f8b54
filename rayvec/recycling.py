"""Large arrays are handed out in memory that was handed out before, once nobody holds it any more.

New memory for a large array comes from the system page by page, which takes longer than filling it. A step that hands out
a copy of its observations therefore fills one that it has handed out before, if the caller has let go of that one and of
every view of it: each holds a reference to the array at the bottom, and Python counts these.

:class:`Recycler` has the caller fill it. Where workers share memory with the caller, :class:`Outputs` has each of them fill
its rows of it, right behind those of the batch and while it has them at hand, so that nobody copies them in the caller,
whom rows that another core has written cost several times as much.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["LARGE", "LARGE_SHARE", "MOST", "Outputs", "Recycler"]

LARGE = 1 << 16
"""Bytes from which on this pays: smaller arrays come from memory that the process has already."""
LARGE_SHARE = 1 << 18
"""Bytes of a worker's rows from which on it pays that the worker copies them: less is done before its code for it is warm."""
MOST = 4
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
            if len(self._kept) >= MOST or not _COUNTS_REFERENCES:
                kept = array.copy()
                return kept
            kept = np.empty_like(array, order="C", subok=False)
            self._kept.append(kept)
        kept[...] = array
        # A view, so that what the receiver does to its shape or flags stays with the receiver.
        handed_out: npt.NDArray[Any] = kept[...]
        return handed_out


_COUNTS_REFERENCES = hasattr(sys, "getrefcount") and getattr(sys, "_is_gil_enabled", lambda: True)()


def _references(arrays: Sequence[npt.NDArray[Any]], index: int) -> int:
    return sys.getrefcount(arrays[index]) if _COUNTS_REFERENCES else 0


_UNHELD = _references([np.empty(0)], 0) or -1
"""What is counted for an array that is in a list and nowhere else."""


class Outputs:
    """Several copies of all rows in shared memory, of which workers fill one with a step's results.

    Who forks a process while it holds one shares it with that process, where no reference is counted: such a one is never
    filled again.

    Args:
        rows: the arrays that are copied, first axis the row.
        copies: for each copy, arrays of the same shapes, which nobody holds yet.
        chosen: int8 ``(1,)`` in shared memory, zero at first: which copy is filled, counted from 1.
        filled: int8 ``(num_rows,)`` in shared memory: with which copy each row was filled last.
    """

    def __init__(
        self,
        rows: Sequence[npt.NDArray[Any]],
        copies: Sequence[Sequence[npt.NDArray[Any]]],
        chosen: npt.NDArray[np.int8],
        filled: npt.NDArray[np.int8],
    ) -> None:
        self._rows = rows
        self._copies = copies
        self._chosen: Any = chosen.data
        self._filled = filled
        self._unheld = {index: _all_references(arrays) for index, arrays in enumerate(copies)} if _COUNTS_REFERENCES else {}
        """What is counted for each copy that may be filled when nobody holds it."""
        _all_outputs.append(weakref.ref(self, _all_outputs.remove))

    def choose(self) -> None:
        """Has one filled from now on that nobody holds; none where there is none."""
        self._filled[:] = 0
        self._chosen[0] = next((1 + index for index in self._unheld if not self._is_held(index)), 0)

    def take(self) -> int | None:
        """Which one was filled in all rows since it was chosen, if one was: it is the receiver's. None is chosen then."""
        chosen: int = self._chosen[0]
        self._chosen[0] = 0
        return chosen - 1 if chosen and not _forking and bool((self._filled == chosen).all()) else None

    def fill(self, start: int, stop: int) -> None:
        """Copies rows ``start`` to ``stop`` as they are now, if one is chosen."""
        chosen: int = self._chosen[0]
        if chosen:
            for rows, copied in zip(self._rows, self._copies[chosen - 1], strict=True):
                copied[start:stop] = rows[start:stop]
            self._filled[start:stop] = chosen

    def give_away(self) -> None:
        """Never fills again what somebody holds now."""
        self._unheld = {index: count for index, count in self._unheld.items() if not self._is_held(index)}

    def _is_held(self, index: int) -> bool:
        return _all_references(self._copies[index]) != self._unheld[index]


def _all_references(arrays: Sequence[npt.NDArray[Any]]) -> list[int]:
    return [_references(arrays, index) for index in range(len(arrays))]


_all_outputs: list[weakref.ref[Outputs]] = []
_forking: list[bool] = []
"""Not empty while some thread forks: what is handed out then may be let go of again before it could be given away."""


def _begin_fork() -> None:
    _forking.append(True)
    for reference in list(_all_outputs):
        outputs = reference()
        if outputs is not None:
            outputs.give_away()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_begin_fork, after_in_parent=_forking.pop, after_in_child=_forking.clear)
