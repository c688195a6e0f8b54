"""The memory of one vector step: actions in, observations, rewards and flags out.

A :class:`Batch` lays ``num_rows`` rows over whatever bytes it is given. The engine has one with a row for each sub-env. A
worker that shares its memory has another over the same bytes; one that does not has a small one with its own rows only,
and :meth:`Batch.pack` / :meth:`Batch.unpack` carry rows between the two as raw bytes, without pickling.

::

    ┌─ actions ─┬─ observations ─┬─ rewards ─┬─ terminations ─┬─ truncations ─┬─ tallies ─┐
    │ row 0..n  │ row 0..n       │ float64   │ bool           │ bool          │ float64   │   each aligned to 64 bytes
    └───────────┴────────────────┴───────────┴────────────────┴───────────────┴───────────┘
      (behind large observations in shared memory: four copies, see rayvec.recycling; memory that nobody touches costs nothing)

Rows ``[first, first + k)`` belong to one worker between a request and its reply and to the caller otherwise: that order,
kept by the protocol, is all that prevents a torn read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import Space, spaces

from rayvec import serialise
from rayvec.columns import Arena, ArrayColumn, Column, DictColumn, Rows, TupleColumn, build_column, run_of, snapshot
from rayvec.local.waiting import Lamp
from rayvec.recycling import LARGE_SHARE, MOST, Outputs
from rayvec.settled import ROOM, InfoRows, Layout
from rayvec.stats import NUM_SLOTS

__all__ = ["Batch"]


class Batch:
    """Rows of actions, observations, rewards and flags.

    Args:
        observation_space: of one sub-env.
        action_space: of one sub-env.
        num_rows: how many rows.
        buffer: shared bytes to lay them over, :meth:`size` of them at least; None: new ones on the heap.

    Attributes:
        num_rows: how many.
        observation_space: of one sub-env.
        action_space: of one sub-env.
        is_as_told: whether each worker that was started has told these very spaces, so that they need not be sent to it.
        observations: the column of observations.
        actions_version: how many batches of actions were placed.
        rewards: float64 ``(num_rows,)``.
        terminations: bool ``(num_rows,)``.
        truncations: bool ``(num_rows,)``.
        tallies: float64 ``(num_rows, NUM_SLOTS)``, what :mod:`rayvec.stats` counts.
        outputs: what may be handed out in place of copies of the observations; None: there is nothing.
    """

    def __init__(self, observation_space: Space[Any], action_space: Space[Any], num_rows: int, buffer: Any = None) -> None:
        is_shared = buffer is not None
        if buffer is None:
            buffer = np.zeros(self._measured(observation_space, action_space, num_rows, is_shared), np.uint8)
        self._lay_out(observation_space, action_space, num_rows, Arena(buffer), is_shared)

    def _lay_out(
        self, observation_space: Space[Any], action_space: Space[Any], num_rows: int, arena: Arena, is_shared: bool
    ) -> None:
        self.num_rows = num_rows
        self.is_as_told = False
        self.observation_space = observation_space
        self.action_space = action_space
        self._actions = build_column(action_space, num_rows, arena) if _only_arrays(action_space) else None
        before = arena.size
        self.observations: Column = build_column(observation_space, num_rows, arena)
        self._num_observation_bytes = arena.size - before
        self.rewards: npt.NDArray[np.float64] = arena.array((num_rows,), np.float64)
        self.terminations: npt.NDArray[np.bool_] = arena.array((num_rows,), np.bool_)
        self.truncations: npt.NDArray[np.bool_] = arena.array((num_rows,), np.bool_)
        self.tallies: npt.NDArray[np.float64] = arena.array((num_rows, NUM_SLOTS), np.float64)
        # On cache lines of their own, one for each direction.
        self._asked_lamps: npt.NDArray[np.uint8] = arena.array((num_rows,), np.uint8)
        self._done_lamps: npt.NDArray[np.uint8] = arena.array((num_rows,), np.uint8)
        self._info_room: npt.NDArray[np.uint8] = arena.array((num_rows, ROOM), np.uint8)
        self._info_present: npt.NDArray[np.bool_] = arena.array((num_rows,), np.bool_)
        self.actions_version = 0
        self._objects = self.observations.objects()
        self._results = [*self.observations.arrays(), self.rewards, self.terminations, self.truncations, self.tallies]
        self.outputs: Outputs | None = None
        if is_shared and self._num_observation_bytes >= LARGE_SHARE and not self._objects:
            self._output_columns = [build_column(observation_space, num_rows, arena) for _ in range(MOST)]
            copies = [column.arrays() for column in self._output_columns]
            chosen, filled = arena.array((1,), np.int8), arena.array((num_rows,), np.int8)
            self.outputs = Outputs(self.observations.arrays(), copies, chosen, filled)

    @classmethod
    def size(cls, observation_space: Space[Any], action_space: Space[Any], num_rows: int) -> int:
        """How many shared bytes the rows take."""
        return cls._measured(observation_space, action_space, num_rows, is_shared=True)

    @classmethod
    def _measured(cls, observation_space: Space[Any], action_space: Space[Any], num_rows: int, is_shared: bool) -> int:
        measure = Arena()
        cls.__new__(cls)._lay_out(observation_space, action_space, num_rows, measure, is_shared)
        return measure.size

    def outputs_for(self, num_workers: int) -> Outputs | None:
        """What so many workers are to fill at a step; None where that does not pay."""
        return self.outputs if self._num_observation_bytes >= num_workers * LARGE_SHARE else None

    def take_observations(self, copy_values: bool) -> Any:
        """All observations, batched: the receiver's if ``copy_values``, else views of the rows."""
        if self.outputs is not None and copy_values:
            filled = self.outputs.take()
            if filled is not None:
                return self._output_columns[filled].read_all(False)
        return self.observations.read_all(copy_values)

    @functools.cached_property
    def pickled_spaces(self) -> bytes:
        """The observation space and the action space, for a worker that lays a batch of its own."""
        return serialise.dumps((self.observation_space, self.action_space))

    def darken(self, row: int) -> None:
        """Sets those lamps to zero, for a worker that begins."""
        self._asked_lamps[row] = self._done_lamps[row] = 0

    def lamps(self, row: int) -> tuple[Lamp, Lamp]:
        """What the caller and the worker whose first row that is watch each other by, the one for requests first."""
        return Lamp(self._asked_lamps, row), Lamp(self._done_lamps, row)

    def clear_infos(self, start: int, stop: int) -> None:
        """Notes that those rows have no settled infos."""
        self._info_present[start:stop] = False

    def info_rows(self, layout: Layout, start: int, stop: int) -> InfoRows:
        """The infos of rows ``start`` to ``stop``, in that layout."""
        return InfoRows(layout, self._info_room[start:stop], self._info_present[start:stop])

    # Actions

    def place_actions(self, actions: Any) -> list[Any] | None:
        """Checks a batch of actions and keeps a copy of it, for :meth:`action_rows` to read.

        Returns:
            None where they lie in the rows now. Otherwise (another dtype than the space's, or a space without a fixed
            layout) the actions one by one, copied, exactly as they came: they have to travel beside the rows.

        Raises:
            ValueError: there is not one action for each row, or a part of them is missing.
        """
        self.actions_version += 1
        if self._actions is not None and _write_all(self._actions, actions):
            return None
        return _split(self.action_space, actions, self.num_rows, "actions")

    def place_some_actions(self, actions: Any, indices: npt.NDArray[np.int64]) -> list[Any] | None:
        """The same for some rows only, in the order of ``indices``."""
        self.actions_version += 1
        if self._actions is not None and _write_all(self._actions, actions, run_of(indices)):
            return None
        return _split(self.action_space, actions, len(indices), "actions")

    def action_rows(self, start: int, stop: int) -> list[Any]:
        """The actions of rows ``start`` to ``stop``, one for each sub-env, which may keep and change them."""
        assert self._actions is not None
        return self._actions.rows(start, stop)

    def action_reader(self, row: int) -> Callable[[], Any] | None:
        """What gives that row's action at each call, the sub-env's to keep; None where it does not lie in one array."""
        return self._actions.reader(row) if isinstance(self._actions, ArrayColumn) else None

    def action_arrays(self) -> list[npt.NDArray[Any]]:
        """The arrays that hold the actions, first axis the row; none where actions have no fixed layout."""
        return self._actions.arrays() if self._actions is not None else []

    @property
    def num_action_bytes(self) -> int:
        """The size of all actions that lie in rows."""
        return sum(array.nbytes for array in self.action_arrays())

    # Rows as bytes

    def pack_actions(self, start: int, stop: int) -> list[memoryview]:
        """The bytes of the actions in those rows."""
        assert self._actions is not None
        return _pack(self._actions.arrays(), start, stop)

    def unpack_actions(self, data: memoryview) -> None:
        """Fills all rows with actions that were packed elsewhere."""
        assert self._actions is not None
        _unpack(self._actions.arrays(), 0, self.num_rows, [data])

    def pack_results(self, start: int, stop: int) -> list[memoryview]:
        """The bytes of everything that a step fills in, in those rows."""
        return _pack(self._results, start, stop)

    def unpack_results(self, start: int, stop: int, parts: Sequence[memoryview]) -> None:
        """Fills rows ``start`` to ``stop`` with results that were packed elsewhere; ``parts`` may have been joined to one."""
        _unpack(self._results, start, stop, parts)
        if self.outputs is not None:
            self.outputs.fill(start, stop)

    def take_over(self, other: Batch, rows: Rows) -> None:
        """Fills these rows with the results in another batch of the same spaces and size."""
        for array, source in zip(self._results, other._results, strict=True):
            array[rows] = source[rows]
        for column, values in zip(self._objects, other._objects, strict=True):
            column.take_over(values, rows)

    @property
    def has_objects(self) -> bool:
        """Whether part of an observation has no fixed layout and is kept beside the rows."""
        return bool(self._objects)

    def take_objects(self) -> list[dict[int, Any]] | None:
        """The observations without a fixed layout that were written since it was last asked; None if there are none."""
        return [column.take_written() for column in self._objects] or None

    def put_objects(self, taken: Sequence[Mapping[int, Any]], shift: int) -> None:
        """Stores what another process took, ``shift`` rows further down."""
        for column, values in zip(self._objects, taken, strict=True):
            column.put(values, shift)


def _only_arrays(space: Space[Any]) -> bool:
    if isinstance(space, spaces.Dict):
        return all(_only_arrays(part) for part in space.spaces.values())
    if isinstance(space, spaces.Tuple):
        return all(_only_arrays(part) for part in space.spaces)
    return isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary)


def _write_all(column: Column, actions: Any, rows: Rows | None = None) -> bool:
    """Writes a batch of actions (for ``rows``; None: all) if each of its arrays lies in memory as the column does."""
    if isinstance(column, ArrayColumn):
        try:
            return column.write_all(actions, rows)
        except (TypeError, ValueError):
            return False
    if isinstance(column, DictColumn):
        if not isinstance(actions, Mapping) or not column.parts.keys() <= actions.keys():
            return False
        return all(_write_all(part, actions[key], rows) for key, part in column.parts.items())
    if isinstance(column, TupleColumn):
        if not isinstance(actions, tuple | list) or len(actions) != len(column.parts):
            return False
        return all(_write_all(part, item, rows) for part, item in zip(column.parts, actions, strict=True))
    return False


def _split(space: Space[Any], actions: Any, count: int, where: str) -> list[Any]:
    """The actions of ``count`` sub-envs, one by one, as copies that keep their dtype."""
    if isinstance(space, spaces.Dict):
        if not isinstance(actions, Mapping) or not space.spaces.keys() <= actions.keys():
            due = f"a dict with the keys {list(space.spaces)}"
            came = f"the keys {list(actions)}" if isinstance(actions, Mapping) else type(actions).__name__
            raise ValueError(f"{where}: got {came}, expected {due}, each holding one entry for each sub-env")
        parts = {key: _split(part, actions[key], count, f"{where}[{key!r}]") for key, part in space.spaces.items()}
        return [{key: part[index] for key, part in parts.items()} for index in range(count)]
    if isinstance(space, spaces.Tuple):
        if not isinstance(actions, tuple | list) or len(actions) != len(space.spaces):
            due = f"a tuple of {len(space.spaces)} parts, each holding one entry for each sub-env"
            came = f"{type(actions).__name__} of {len(actions) if hasattr(actions, '__len__') else 'no length'}"
            raise ValueError(f"{where}: got {came}, expected {due}")
        columns = [
            _split(part, item, count, f"{where}[{index}]")
            for index, (part, item) in enumerate(zip(space.spaces, actions, strict=True))
        ]
        return [tuple(column[index] for column in columns) for index in range(count)]
    if _only_arrays(space):
        try:
            actions = snapshot(np.array(actions))
        except ValueError as error:
            raise ValueError(f"{where}: expected an array with one action for each of {count} sub-envs: {error}") from None
        came = f"shape {actions.shape}"
        items = list(actions) if actions.ndim else []
    else:
        try:
            items = [snapshot(item) for item in actions]
        except TypeError:
            items = []
        came = f"{type(actions).__name__} of {len(items)}"
    if len(items) != count:
        raise ValueError(
            f"{where}: got {came}, expected one action for each of {count} sub-envs; nothing was sent to any of them"
        )
    return items


def _pack(arrays: Sequence[npt.NDArray[Any]], start: int, stop: int) -> list[memoryview]:
    return [np.ascontiguousarray(array[start:stop]).reshape(-1).view(np.uint8).data for array in arrays]


def _unpack(arrays: Sequence[npt.NDArray[Any]], start: int, stop: int, parts: Sequence[memoryview]) -> None:
    offset = 0
    for index, array in enumerate(arrays):
        rows = array[start:stop]
        data, at = (parts[0], offset) if len(parts) == 1 else (parts[index], 0)
        rows[...] = np.frombuffer(data, array.dtype, rows.size, at).reshape(rows.shape)
        offset += rows.nbytes
