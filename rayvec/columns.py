"""How the values of a space lie in rows: one column, or a tree of columns, for each Gymnasium space.

A column holds ``num_rows`` values of one space. Where the space has a fixed layout the values lie in arrays over bytes
that somebody else owns (the heap, shared memory); :func:`build_column` takes them from an :class:`Arena`. Graph,
Sequence and custom spaces have no fixed layout: an :class:`ObjectColumn` keeps the values as Python objects, and whoever
moves rows between processes moves those along (:meth:`Column.take_objects`, :meth:`Column.put_objects`).

Assumptions: a row has one writer at a time, and nobody reads it meanwhile; the protocol of requests and replies sees to
that. Guarantee: :meth:`Column.write` stores a value or raises :class:`Mismatch`; it never broadcasts, wraps or cuts. (A Dict or
Tuple that is refused may have left its first parts in the row.)
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from gymnasium import Space, spaces
from gymnasium.vector.utils import create_empty_array

from rayvec.recycling import LARGE, Recycler

__all__ = ["Arena", "Column", "Mismatch", "Quick", "Rows", "build_column", "custom_space_in", "run_of", "snapshot"]

Rows = slice | npt.NDArray[np.int64]
"""Which rows: a slice where they are a run, else their indices."""
_ATOMS = (int, float, bool, str, bytes, complex, type(None), np.generic)


def snapshot(value: Any) -> Any:
    """A copy of ``value`` that nothing can change later; what cannot be copied is returned as it is."""
    if isinstance(value, _ATOMS):
        return value
    if type(value) is np.ndarray and value.dtype != object:
        return value.copy()
    try:
        return copy.deepcopy(value)
    except Exception:
        return value


def run_of(indices: npt.NDArray[np.int64]) -> Rows:
    """The slice of rows that ``indices`` are if they are a run in ascending order, else themselves."""
    first, count = int(indices[0]), len(indices)
    if int(indices[-1]) - first == count - 1 and (count < 3 or bool((np.diff(indices) == 1).all())):
        return slice(first, first + count)
    return indices


class Mismatch(Exception):  # noqa: N818 - never leaves the package: SubEnvs turns it into an InvalidObservationError
    """A value does not fit its space: what came and what was due, in words."""

    def __init__(self, came: str, due: str, path: str = "") -> None:
        super().__init__(f"{path + ': ' if path else ''}got {came}, expected {due}")
        self.came, self.due, self.path = came, due, path

    def under(self, key: object) -> Mismatch:
        """The same, told from one level further up."""
        return Mismatch(self.came, self.due, f"[{key!r}]{self.path}")


class Arena:
    """Hands out arrays, one behind the other, over one buffer; without a buffer it only adds up the size."""

    _ALIGNMENT = 64

    def __init__(self, buffer: Any = None) -> None:
        self.size = 0
        self._buffer = buffer

    def array(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """The next array of that shape."""
        dtype = np.dtype(dtype)
        offset = self.size
        num_bytes = math.prod(shape) * dtype.itemsize
        self.size = offset + num_bytes + -num_bytes % self._ALIGNMENT
        if self._buffer is None:
            return np.empty((0,) * len(shape), dtype)
        array: npt.NDArray[Any] = np.ndarray(shape, dtype, self._buffer, offset)
        return array


class Quick(NamedTuple):
    """An array of that very dtype object and shape may be stored with ``views[row][...] = value``.

    Where a column has no such arrays, ``views`` holds None for each row, and ``dtype`` is None, which no array's is.
    """

    views: Sequence[Any]
    dtype: np.dtype[Any] | None
    shape: tuple[int, ...]


class Column(ABC):
    """``num_rows`` values of one space."""

    @abstractmethod
    def write(self, row: int, value: Any) -> None:
        """Stores ``value``; raises :class:`Mismatch` if it does not fit."""

    @abstractmethod
    def read(self, row: int) -> Any:
        """The value of one row, as a copy."""

    @abstractmethod
    def read_all(self, copy_values: bool) -> Any:
        """All rows in Gymnasium's batched form; arrays are views unless ``copy_values``."""

    def read_some(self, rows: Rows, copy_values: bool) -> Any:
        """Some rows in Gymnasium's batched form; arrays are views if ``rows`` is a slice, unless ``copy_values``."""
        return tuple(self.read(row) for row in _indices(rows))

    @abstractmethod
    def arrays(self) -> list[npt.NDArray[Any]]:
        """The arrays that hold the rows, first axis the row, always in the same order."""

    def objects(self) -> list[ObjectColumn]:
        """The columns of this tree that hold Python objects."""
        return []

    def quick(self, start: int, stop: int) -> Quick:
        """What it takes to store arrays in rows ``start`` to ``stop`` past :meth:`write`."""
        return Quick([None] * (stop - start), None, ())

    def rows(self, start: int, stop: int) -> list[Any]:
        """The values of rows ``start`` to ``stop``; their arrays are one fresh copy, the receiver's to keep."""
        return [self.read(row) for row in range(start, stop)]


class ArrayColumn(Column):
    """Box, Discrete, MultiDiscrete, MultiBinary: one array, a value in each row."""

    def __init__(self, space: Space[Any], num_rows: int, arena: Arena) -> None:
        assert space.shape is not None
        assert space.dtype is not None
        self._shape = tuple(space.shape)
        # NumPy's own object for the dtype, which arrays have and a pickled space has not: `is` is the quick comparison.
        self._dtype = np.dtype(np.dtype(space.dtype).str)
        self._scalar = self._dtype.type if self._shape == () else None
        # The Python integers that a row of a Discrete takes; none where it is no single integer.
        self._least, self._most = 0, -1
        if self._scalar is not None and self._dtype.kind in "iu":
            self._least, self._most = int(np.iinfo(self._dtype).min), int(np.iinfo(self._dtype).max)
        self._array = arena.array((num_rows, *self._shape), self._dtype)
        self._recycler = Recycler() if self._array.nbytes >= LARGE else None
        self._views: dict[int, npt.NDArray[Any]] = {}

    def _view(self, row: int) -> npt.NDArray[Any]:
        """A view of that row, kept: filling it takes half the time of an assignment by index."""
        view = self._views.get(row)
        if view is None:
            view = self._views[row] = self._array[row, ...]
        return view

    def write(self, row: int, value: Any) -> None:
        if type(value) is np.ndarray:
            dtype = value.dtype
            if (dtype is self._dtype or dtype == self._dtype) and value.shape == self._shape:
                self._view(row)[...] = value
                return
        elif type(value) is self._scalar or (type(value) is int and self._least <= value <= self._most):
            self._array[row] = value
            return
        self._array[row] = self._converted(value)

    def quick(self, start: int, stop: int) -> Quick:
        if self._scalar is not None:
            return super().quick(start, stop)
        return Quick([self._view(row) for row in range(start, stop)], self._dtype, self._shape)

    def _converted(self, value: Any) -> npt.NDArray[Any]:
        due = f"shape {self._shape} and dtype {self._dtype}"
        try:
            array = np.asarray(value)
        except Exception as error:
            raise Mismatch(f"{_shown(value)}, which is no array ({error})", due) from None
        came = f"shape {array.shape} and dtype {array.dtype}" + ("" if array.shape else f" ({_shown(value)})")
        if array.shape != self._shape:
            raise Mismatch(came, due)
        # A Python number or list has no dtype of its own: it fits if it fits exactly.
        has_dtype = isinstance(value, np.ndarray | np.generic)
        if not _fits(array, self._dtype) and (has_dtype or not _is_exact(array, self._dtype)):
            beyond = (
                f" with values beyond the range of {self._dtype}" if np.can_cast(array.dtype, self._dtype, "same_kind") else ""
            )
            raise Mismatch(came + beyond, due)
        try:
            with np.errstate(over="raise"):
                return array.astype(self._dtype)
        except FloatingPointError:
            raise Mismatch(f"{came} with values beyond the range of {self._dtype}", due) from None

    def read(self, row: int) -> Any:
        value = self._array[row]
        return value.copy() if self._shape else value

    def read_all(self, copy_values: bool) -> npt.NDArray[Any]:
        # A view, so that what the receiver does to its shape or flags stays with the receiver.
        return self._copied(self._array) if copy_values else self._array[...]

    def read_some(self, rows: Rows, copy_values: bool) -> npt.NDArray[Any]:
        some = self._array[rows]
        # Indices have made a copy already.
        return self._copied(some) if copy_values and isinstance(rows, slice) else some

    def _copied(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return array.copy() if self._recycler is None else self._recycler.copy(array)

    def arrays(self) -> list[npt.NDArray[Any]]:
        return [self._array]

    def rows(self, start: int, stop: int) -> list[Any]:
        if self._scalar is None:
            return list(self._array[start:stop].copy())
        # Items of a flat array are copies already.
        array = self._array
        return [array[start]] if stop - start == 1 else list(array[start:stop])

    def reader(self, row: int) -> Callable[[], Any]:
        """What gives the value of that row at each call, the receiver's to keep, as :meth:`rows` does."""
        return partial(self._array.__getitem__, row) if self._scalar is not None else self._view(row).copy

    def write_all(self, values: Any, rows: Rows | None = None) -> bool:
        """Stores one value for every row (of ``rows``), if no conversion is needed; returns whether it did.

        A list has no dtype that could be lost: it is converted where that is safe.
        """
        if type(values) is not np.ndarray:
            is_list = not hasattr(values, "dtype")
            values = np.asarray(values)
            if is_list and _fits(values, self._dtype):
                values = values.astype(self._dtype)
        if values.dtype is not self._dtype and values.dtype != self._dtype:
            return False
        if rows is None:
            if values.shape != self._array.shape:
                return False
            self._array[...] = values
            return True
        count = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
        if values.shape != (count, *self._shape):
            return False
        self._array[rows] = values
        return True


class TextColumn(Column):
    """Text: the length and the code points of each row."""

    def __init__(self, space: spaces.Text, num_rows: int, arena: Arena) -> None:
        self._max_length = space.max_length
        self._lengths = arena.array((num_rows,), np.int64)
        self._points = arena.array((num_rows, space.max_length), np.uint32)

    def write(self, row: int, value: Any) -> None:
        if not isinstance(value, str) or len(value) > self._max_length:
            came = f"a str of length {len(value)}" if isinstance(value, str) else _shown(value)
            raise Mismatch(came, f"a str of length {self._max_length} at most")
        points = np.frombuffer(value.encode("utf-32-le", "surrogatepass"), np.uint32)
        self._points[row, : len(points)] = points
        self._lengths[row] = len(points)

    def read(self, row: int) -> str:
        return self._points[row, : self._lengths[row]].tobytes().decode("utf-32-le", "surrogatepass")

    def read_all(self, copy_values: bool) -> tuple[str, ...]:
        return tuple(self.rows(0, len(self._lengths)))

    def arrays(self) -> list[npt.NDArray[Any]]:
        return [self._lengths, self._points]


class OneOfColumn(Column):
    """OneOf: which of the spaces a row is of, and a column for each of them side by side."""

    def __init__(self, space: spaces.OneOf[Any], num_rows: int, arena: Arena) -> None:
        self._which = arena.array((num_rows,), np.int64)
        self._parts = [build_column(part, num_rows, arena) for part in space.spaces]

    def write(self, row: int, value: Any) -> None:
        due = f"a pair (index below {len(self._parts)}, value)"
        if not isinstance(value, tuple) or len(value) != 2 or not isinstance(value[0], int | np.integer):
            raise Mismatch(_shown(value), due)
        which = int(value[0])
        if not 0 <= which < len(self._parts):
            raise Mismatch(f"index {which}", due)
        try:
            self._parts[which].write(row, value[1])
        except Mismatch as mismatch:
            raise mismatch.under(1) from None
        self._which[row] = which

    def read(self, row: int) -> tuple[np.int64, Any]:
        which = self._which[row]
        return which, self._parts[which].read(row)

    def read_all(self, copy_values: bool) -> tuple[Any, ...]:
        return tuple(self.rows(0, len(self._which)))

    def arrays(self) -> list[npt.NDArray[Any]]:
        return [self._which, *(array for part in self._parts for array in part.arrays())]

    def objects(self) -> list[ObjectColumn]:
        return [column for part in self._parts for column in part.objects()]


class TupleColumn(Column):
    """Tuple: a column for each part."""

    def __init__(self, space: spaces.Tuple[Any], num_rows: int, arena: Arena) -> None:
        self.parts = [build_column(part, num_rows, arena) for part in space.spaces]

    def write(self, row: int, value: Any) -> None:
        if not isinstance(value, tuple | list) or len(value) != len(self.parts):
            raise Mismatch(_shown(value), f"a tuple of {len(self.parts)}")
        for index, (part, item) in enumerate(zip(self.parts, value, strict=True)):
            try:
                part.write(row, item)
            except Mismatch as mismatch:
                raise mismatch.under(index) from None

    def read(self, row: int) -> tuple[Any, ...]:
        return tuple(part.read(row) for part in self.parts)

    def read_all(self, copy_values: bool) -> tuple[Any, ...]:
        return tuple(part.read_all(copy_values) for part in self.parts)

    def read_some(self, rows: Rows, copy_values: bool) -> tuple[Any, ...]:
        return tuple(part.read_some(rows, copy_values) for part in self.parts)

    def arrays(self) -> list[npt.NDArray[Any]]:
        return [array for part in self.parts for array in part.arrays()]

    def objects(self) -> list[ObjectColumn]:
        return [column for part in self.parts for column in part.objects()]


class DictColumn(Column):
    """Dict: a column for each key, in the space's order."""

    def __init__(self, space: spaces.Dict, num_rows: int, arena: Arena) -> None:
        self.parts = {key: build_column(part, num_rows, arena) for key, part in space.spaces.items()}

    def write(self, row: int, value: Any) -> None:
        if not isinstance(value, Mapping) or value.keys() != self.parts.keys():
            came = f"the keys {list(value)}" if isinstance(value, Mapping) else _shown(value)
            raise Mismatch(came, f"a dict with the keys {list(self.parts)}")
        for key, part in self.parts.items():
            try:
                part.write(row, value[key])
            except Mismatch as mismatch:
                raise mismatch.under(key) from None

    def read(self, row: int) -> dict[Any, Any]:
        return {key: part.read(row) for key, part in self.parts.items()}

    def read_all(self, copy_values: bool) -> dict[Any, Any]:
        return {key: part.read_all(copy_values) for key, part in self.parts.items()}

    def read_some(self, rows: Rows, copy_values: bool) -> dict[Any, Any]:
        return {key: part.read_some(rows, copy_values) for key, part in self.parts.items()}

    def arrays(self) -> list[npt.NDArray[Any]]:
        return [array for part in self.parts.values() for array in part.arrays()]

    def objects(self) -> list[ObjectColumn]:
        return [column for part in self.parts.values() for column in part.objects()]


class ObjectColumn(Column):
    """Graph, Sequence and custom spaces: Python objects, outside the arena."""

    def __init__(self, space: Space[Any], num_rows: int) -> None:
        empty = create_empty_array(space, 1)
        self._values = [copy.deepcopy(empty[0]) if isinstance(empty, tuple) else None for _ in range(num_rows)]
        self._written: set[int] = set()

    def write(self, row: int, value: Any) -> None:
        self._values[row] = snapshot(value)
        self._written.add(row)

    def read(self, row: int) -> Any:
        return snapshot(self._values[row])

    def read_all(self, copy_values: bool) -> tuple[Any, ...]:
        return tuple(snapshot(value) for value in self._values) if copy_values else tuple(self._values)

    def read_some(self, rows: Rows, copy_values: bool) -> tuple[Any, ...]:
        return tuple(self.read(row) if copy_values else self._values[row] for row in _indices(rows))

    def arrays(self) -> list[npt.NDArray[Any]]:
        return []

    def objects(self) -> list[ObjectColumn]:
        return [self]

    def take_written(self) -> dict[int, Any]:
        """The rows that were written since it was last asked, and their values."""
        taken = {row: self._values[row] for row in self._written}
        self._written.clear()
        return taken

    def take_over(self, other: ObjectColumn, rows: Rows) -> None:
        """Holds in these rows what another column of the same space holds; neither changes a value that it has stored."""
        for row in _indices(rows):
            self._values[row] = other._values[row]

    def put(self, values: Mapping[int, Any], shift: int) -> None:
        """Stores what another process took, ``shift`` rows further down."""
        for row, value in values.items():
            self._values[row + shift] = value


def build_column(space: Space[Any], num_rows: int, arena: Arena) -> Column:
    """The column for ``space``; a subclass of a space is laid out as the space it derives from."""
    for kind, column in _LAYOUTS.items():
        if isinstance(space, kind):
            built: Column = column(space, num_rows, arena)
            return built
    return ObjectColumn(space, num_rows)


_LAYOUTS: dict[type[Space[Any]], Any] = {
    spaces.Box: ArrayColumn,
    spaces.Discrete: ArrayColumn,
    spaces.MultiDiscrete: ArrayColumn,
    spaces.MultiBinary: ArrayColumn,
    spaces.Text: TextColumn,
    spaces.OneOf: OneOfColumn,
    spaces.Tuple: TupleColumn,
    spaces.Dict: DictColumn,
}


def custom_space_in(space: Space[Any]) -> Space[Any] | None:
    """The first space in the tree that neither is nor derives from one of Gymnasium's, or None."""
    if isinstance(space, spaces.Dict | spaces.Tuple | spaces.OneOf):
        parts: Sequence[Space[Any]] = list(space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces)
        return next((found for part in parts if (found := custom_space_in(part)) is not None), None)
    known = isinstance(space, (*_LAYOUTS, spaces.Graph, spaces.Sequence))
    return None if known else space


def _indices(rows: Rows) -> Sequence[int]:
    return range(rows.start, rows.stop) if isinstance(rows, slice) else rows.tolist()


def _fits(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> bool:
    """Whether ``array`` may become one of ``dtype``: a safe cast, or one of the same kind that wraps no integer."""
    if not np.can_cast(array.dtype, dtype, "same_kind"):
        return False
    return array.dtype.kind not in "iu" or dtype.kind not in "iu" or _is_exact(array, dtype)


def _is_exact(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> bool:
    """Whether integers (or bools) keep their values in ``dtype``; False for other kinds."""
    if array.dtype.kind not in "iub" or dtype.kind not in "iub":
        return False
    if np.can_cast(array.dtype, dtype, "safe") or not array.size:
        return True
    bounds = (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    return bounds[0] <= int(array.min()) and int(array.max()) <= bounds[1]


def _shown(value: Any, limit: int = 80) -> str:
    text = repr(value)
    if len(text) > limit:
        text = text[: limit - 3] + "..."
    return f"{type(value).__name__} {text}"
