"""Infos that come in the same form at every step, in memory that the caller and the worker share: nothing to pickle.

MuJoCo and Atari envs return the same few numbers at every step. Once all sub-envs of a worker have given infos of one form,
the worker settles on a :class:`Layout`, tells the caller about it with its next reply, and from then on writes values into
:class:`InfoRows`. Each row says for itself, at each step, whether its info lies there: one that is of another form, or comes
with the end of an episode, travels as it always has, and so the form may change at any step.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from rayvec.infos import Column, Columns

__all__ = ["ROOM", "InfoRows", "Layout", "layout_of"]

ROOM = 1024
"""Bytes that each row has for its info; one that needs more travels as it always has."""
_ALIGNMENT = 16

Layout = tuple[tuple[Any, tuple[Any, ...]], ...]
"""Keys, in their order, each with the form of its values: type, dtype, shape."""


def layout_of(columns: Columns, num_envs: int) -> Layout | None:
    """The layout of infos that all of ``num_envs`` sub-envs have given; None where they have none in common."""
    for column in columns.values():
        if len(column.rows) != num_envs or not isinstance(column.form[0], type) or column.form[1].hasobject:
            return None
    layout = tuple((key, column.form) for key, column in columns.items())
    return layout if sum(_size(form) for _, form in layout) <= ROOM else None


def _size(form: tuple[Any, ...]) -> int:
    _, dtype, shape = form
    size: int = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    return size + -size % _ALIGNMENT


class InfoRows:
    """The infos of some rows.

    Args:
        layout: what they are.
        room: uint8 ``(num_rows, ROOM)``, the memory of these rows.
        present: bool ``(num_rows,)``, which of them lie there.
    """

    def __init__(self, layout: Layout, room: npt.NDArray[np.uint8], present: npt.NDArray[np.bool_]) -> None:
        self.layout = layout
        self._present = present
        self._flags: Any = present.data
        self._all_present = b"\1" * len(room)
        self._slots: list[tuple[Any, Any, npt.NDArray[Any]]] = []
        self._runs: list[tuple[list[Any], npt.NDArray[Any]]] = []
        """Keys one behind the other whose arrays are of one dtype and shape, and the array of all their values."""
        self._mask_keys = [f"_{key}" for key, _ in layout]
        offset = 0
        for (dtype, shape), alike in itertools.groupby(layout, lambda slot: slot[1][1:]):
            run = list(alike)
            inner = np.empty(shape, np.uint8).strides
            step = _size(run[0][1])
            strides = (step, ROOM, *(stride * dtype.itemsize for stride in inner))
            columns: npt.NDArray[Any] = np.ndarray((len(run), len(room), *shape), dtype, room.data, offset, strides)
            self._slots += [(key, form[0], column) for (key, form), column in zip(run, columns, strict=True)]
            self._runs.append(([key for key, _ in run], columns))
            offset += step * len(run)

    def clear(self) -> None:
        """Notes that no info lies here."""
        self._present[:] = False

    def write(self, index: int, info: Mapping[Any, Any]) -> bool:
        """Stores the info of one row, if it is of this layout; returns whether it was."""
        if len(info) != len(self._slots):
            return False
        for key, kind, column in self._slots:
            value: Any = info.get(key)
            if type(value) is not kind:
                return False
            if kind is np.ndarray and (value.dtype != column.dtype or value.shape != column.shape[1:]):
                return False
            try:
                column[index] = value
            except OverflowError:
                return False
        self._flags[index] = True
        return True

    def read(self) -> list[tuple[int, dict[Any, Any]]]:
        """What lies here, with its row, as the envs gave it."""
        infos = []
        for index in np.flatnonzero(self._present).tolist():
            info = {}
            for key, kind, column in self._slots:
                value = column[index, ...].copy()
                info[key] = value if kind is np.ndarray else kind(value[()])
            infos.append((index, info))
        return infos

    def columns(self) -> Columns:
        """Copies of what lies here, as :func:`rayvec.infos.gather` would have it."""
        rows = np.flatnonzero(self._present)
        if not len(rows):
            return {}
        listed: list[int] = rows.tolist()
        return {key: Column(form, listed, slot[2][rows]) for (key, form), slot in zip(self.layout, self._slots, strict=True)}

    def merged(self) -> dict[Any, Any]:
        """Copies of what lies here, as :func:`rayvec.infos.merge` would have it if these rows were all."""
        present = self._present
        merged: dict[Any, Any] = {}
        told = present.tobytes()
        if not any(told):
            return merged
        absent = None if told == self._all_present else ~present
        # Few calls, rather than some for each key: behind a step of the envs they run on cold caches.
        for keys, columns in self._runs:
            values = columns.copy()
            if absent is not None:
                values[:, absent] = np.zeros((), values.dtype)
            merged.update(zip(keys, values, strict=True))
        masks = np.empty((len(self._mask_keys), len(told)), np.bool_)
        masks[:] = present
        for key, mask in zip(self._mask_keys, masks, strict=True):
            merged.setdefault(key, mask)
        return merged
