"""Copies use old memory again, and only when nobody can see it any more."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from rayvec.recycling import LARGE, Recycler


def address(array: npt.NDArray[Any]) -> int:
    """Where its first byte is."""
    return int(array.__array_interface__["data"][0])


def source(value: int) -> npt.NDArray[Any]:
    """An array to copy."""
    return np.full((4, LARGE), value, np.uint8)


HOLDERS = {
    "itself": lambda array: array,
    "a view": lambda array: array[1:, ::7],
    "a view of a view": lambda array: array[1:].reshape(-1)[5:][::2].T,
    "a memoryview": memoryview,
    "an iterator": iter,
    "a transposed view of another dtype": lambda array: array.view(np.int16).T,
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=list(HOLDERS))
def test_what_is_held_never_changes(hold: Any) -> None:
    """However it is held, and however many copies come later."""
    recycler = Recycler()
    held = hold(recycler.copy(source(0)))
    later = [recycler.copy(source(value)) for value in range(1, 9)]
    assert not any((array != value).any() for value, array in enumerate(later, 1))
    for _ in range(9):
        recycler.copy(source(99))
    assert not np.asarray(list(held) if hold is iter else held).any()
    assert not any((array != value).any() for value, array in enumerate(later, 1))


def test_what_is_let_go_of_is_used_again() -> None:
    """A loop that holds the last one and the one before needs three."""
    recycler = Recycler()
    before, last = None, None
    seen = set()
    for value in range(50):
        before, last = last, recycler.copy(source(value))
        seen.add(address(last))
        assert (last == value).all()
    assert before is not None
    assert len(seen) == 3


def test_a_copy_is_the_receivers() -> None:
    """It may be changed in every way; the next copy is whole."""
    recycler = Recycler()
    for value in range(5):
        copied = recycler.copy(source(value))
        assert (copied == value).all()
        copied[...] = 77
        copied.flags.writeable = False
        assert (pickle.loads(pickle.dumps(copied)) == 77).all()


def test_a_copy_is_contiguous_whatever_it_copies() -> None:
    """Rows of shared memory may lie apart."""
    apart = np.zeros((8, 2 * LARGE), np.uint8)[:, ::2]
    copied = Recycler().copy(apart)
    assert copied.flags.c_contiguous
    assert copied.flags.writeable
