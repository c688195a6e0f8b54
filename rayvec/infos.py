"""Merging the info dicts of sub-envs into one dict of arrays, wherever the sub-envs live.

Merging has two halves, so that it gives the same result however sub-envs are grouped:

1. :func:`gather`, where the sub-envs live: the info dicts of some sub-envs become one :class:`Column` a key, an array
   where all values of the key are of one form, and the values one by one where they are not.
2. :func:`merge`, in the caller: the columns of all groups become Gymnasium's layout, ``infos[key]`` with a row for each
   sub-env and ``infos["_" + key]``, a bool mask of those that gave the key. Columns of one form are put in place as
   whole arrays; where forms differ every value is looked at again, as if all sub-envs had been one group.

What a key's values become:

=====================================================  ==========================================================
all are numbers, or arrays of one shape                an array, of the type that NumPy promotes theirs to
all are dicts                                          a dict, merged in the same way
``final_obs``                                          an object array
anything else: strings, None, ``np.bool_``, ragged     an object array with the values intact
arrays, integers beyond 64 bits, a mixture
=====================================================  ==========================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rayvec.columns import snapshot

__all__ = ["Columns", "copied", "gather", "merge"]


class Column(NamedTuple):
    """The values of one key that some sub-envs gave.

    Attributes:
        form: what they have in common: ``(type, dtype, shape)`` where they fit into one array, ``_DICT``, ``_OBJECT``
            where each stays as it is, ``_MIXED`` where they differ.
        rows: the indices of the sub-envs, within their group, in increasing order.
        data: a row for each of them: an array, :data:`Columns` (for dicts), or a list.
    """

    form: tuple[Any, ...]
    rows: list[int]
    data: Any


Columns = dict[Any, Column]

_DICT: tuple[Any, ...] = ("dict",)
_OBJECT: tuple[Any, ...] = ("object",)
_MIXED: tuple[Any, ...] = ("mixed",)


def copied(info: Mapping[Any, Any]) -> dict[Any, Any]:
    """A copy of an info dict that the env cannot change any more."""
    return {key: copied(value) if isinstance(value, dict) else snapshot(value) for key, value in info.items()}


def gather(infos: Iterable[tuple[int, Mapping[Any, Any]]]) -> Columns:
    """Turns the info dicts of sub-envs, with their indices, into columns."""
    values: dict[Any, tuple[list[int], list[Any]]] = {}
    for row, info in infos:
        for key, value in info.items():
            rows, items = values.setdefault(key, ([], []))
            rows.append(row)
            items.append(value)
    return {key: _column(key, rows, items) for key, (rows, items) in values.items()}


def merge(groups: Sequence[tuple[int, Columns]], num_envs: int) -> dict[Any, Any]:
    """Merges the columns of groups of sub-envs; each comes with the index of its first sub-env."""
    parts: dict[Any, list[tuple[int, Column]]] = {}
    for first, columns in groups:
        for key, column in columns.items():
            parts.setdefault(key, []).append((first, column))
    merged: dict[Any, Any] = {}
    masks: dict[Any, Any] = {}
    for key, columns_of_key in parts.items():
        forms = {column.form for _, column in columns_of_key}
        if len(forms) > 1:
            columns_of_key = [(0, _regathered(columns_of_key))]
        merged[key], masks[f"_{key}"] = _placed(columns_of_key, num_envs)
    # A key of an env that reads like another one's mask is the env's own.
    return {**masks, **merged} if masks.keys() & merged.keys() else {**merged, **masks}


def _column(key: Any, rows: list[int], values: list[Any]) -> Column:
    forms = {_OBJECT} if key == "final_obs" else {_form(value) for value in values}
    form = forms.pop() if len(forms) == 1 else _MIXED
    if form == _DICT:
        return Column(form, rows, gather(zip(rows, values, strict=True)))
    if form in (_OBJECT, _MIXED):
        return Column(form, rows, values)
    return Column(form, rows, _stacked(range(len(rows)), values, len(rows), *form[1:]))


def _form(value: Any) -> tuple[Any, ...]:
    """What ``value`` can be batched with: the same for two values that fit into one array."""
    kind = type(value)
    if kind is int:
        return (int, np.dtype(np.int64), ()) if -(2**63) <= value < 2**63 else _OBJECT
    if kind is float or kind is bool or (issubclass(kind, np.number) and kind is not np.timedelta64):
        return (kind, np.dtype(kind), ())
    if kind is np.ndarray:
        return (np.ndarray, value.dtype, value.shape)
    return _DICT if isinstance(value, dict) else _OBJECT


def _stacked(
    rows: Iterable[int], values: Sequence[Any], num_rows: int, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    array = np.zeros((num_rows, *shape), dtype)
    for row, value in zip(rows, values, strict=True):
        array[row] = value
    return array


def _placed(columns: Sequence[tuple[int, Column]], num_envs: int) -> tuple[Any, npt.NDArray[np.bool_]]:
    """The merged values and the mask of columns of one form."""
    mask = np.zeros(num_envs, np.bool_)
    for first, column in columns:
        mask[[first + row for row in column.rows]] = True
    form = columns[0][1].form
    if form == _DICT:
        return merge([(first, column.data) for first, column in columns], num_envs), mask
    if form in (_OBJECT, _MIXED):
        rows = [first + row for first, column in columns for row in column.rows]
        values = [value for _, column in columns for value in column.data]
        common = _common(values) if form == _MIXED else None
        if common is not None:
            return _stacked(rows, values, num_envs, *common), mask
        objects = np.full(num_envs, None, object)
        for row, value in zip(rows, values, strict=True):
            objects[row] = value
        return objects, mask
    _, dtype, shape = form
    array = np.zeros((num_envs, *shape), dtype)
    for first, column in columns:
        array[[first + row for row in column.rows]] = column.data
    return array, mask


def _common(values: Iterable[Any]) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
    """The dtype and shape of an array that takes values of several forms without loss of meaning; None if there is none."""
    forms = {_form(value) for value in values}
    if _DICT in forms or _OBJECT in forms:
        return None
    dtypes = {form[1] for form in forms}
    shapes = {form[2] for form in forms}
    kinds = {dtype.kind for dtype in dtypes}
    if len(shapes) > 1 or (len(kinds) > 1 and not kinds <= set("biufc")):
        return None
    try:
        return np.result_type(*sorted(dtypes, key=str)), shapes.pop()
    except TypeError:
        return None


def _regathered(columns: Sequence[tuple[int, Column]]) -> Column:
    """The columns of one key as one column of single values, each as its env gave it."""
    pairs = [pair for first, column in columns for pair in _values(first, column)]
    return Column(_MIXED, [row for row, _ in pairs], [value for _, value in pairs])


def _values(first: int, column: Column) -> list[tuple[int, Any]]:
    form, rows, data = column
    if form == _DICT:
        dicts: dict[int, dict[Any, Any]] = {first + row: {} for row in rows}
        for key, part in data.items():
            for row, value in _values(first, part):
                dicts[row][key] = value
        return list(dicts.items())
    if form[0] in (int, float, bool):
        data = data.tolist()
    elif form[0] is np.ndarray:
        data = [data[position, ...] for position in range(len(rows))]
    return [(first + row, value) for row, value in zip(rows, data, strict=True)]
