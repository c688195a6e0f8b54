"""Copies use old memory again, and only when nobody can see it any more."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from rayvec.recycling import LARGE, Outputs, Recycler


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


def outputs(num_copies: int = 2) -> tuple[Outputs, list[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]:
    """Outputs of four rows; what they may hand out; the rows."""
    rows = np.zeros((4, 8), np.uint8)
    copies = [np.zeros((4, 8), np.uint8) for _ in range(num_copies)]
    # As copies of shared memory are: none is held but here, and by the outputs.
    return Outputs([rows], [[array] for array in copies], np.zeros(1, np.int8), np.zeros(4, np.int8)), copies, rows


def filled_by(some: Outputs, num_rows: int = 4) -> int | None:
    """Which is handed out when so many rows were filled."""
    some.choose()
    some.fill(0, num_rows)
    return some.take()


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=list(HOLDERS))
def test_outputs_that_are_held_are_not_filled(hold: Any) -> None:
    """The other one is, until somebody holds that too; then none is."""
    some, copies, rows = outputs()
    held = []
    for value in range(1, 5):
        some.choose()
        rows[...] = value
        some.fill(0, 2)
        some.fill(2, 4)
        filled = some.take()
        assert some.take() is None
        if value < 3:
            assert filled is not None
            assert (copies[filled] == value).all()
            held.append(hold(copies[filled][...]))
        else:
            assert filled is None
    del held[0]
    assert filled_by(some) is not None


def test_outputs_that_a_forked_process_may_hold_are_never_filled_again() -> None:
    """Also once they are held by nobody here."""
    some, copies, _ = outputs()
    first = filled_by(some)
    assert first is not None
    held = copies[first][...]
    some.give_away()
    del held
    for _ in range(3):
        assert filled_by(some) == 1 - first
    held = copies[1 - first][...]
    some.give_away()
    del held
    assert filled_by(some) is None


def test_nothing_is_filled_unless_one_is_chosen() -> None:
    """A reset, say, fills none."""
    some, copies, rows = outputs()
    rows[...] = 9
    some.fill(0, 4)
    assert not any(array.any() for array in copies)


def test_what_was_not_filled_whole_is_not_handed_out() -> None:
    """Rows of a worker that has died hold what was there before."""
    some, *_ = outputs()
    assert filled_by(some, 4) is not None
    assert filled_by(some, 3) is None
