"""Columns hold the values of every space exactly, and refuse whatever is not one."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gymnasium import Space, spaces
from gymnasium.vector.utils import concatenate, create_empty_array

from rayvec.columns import Arena, Column, Mismatch, build_column, custom_space_in, snapshot
from rayvec.testing.comparison import assert_same
from rayvec.testing.envs import EXAMPLE_SPACES

NUM_ROWS = 4


@pytest.fixture(autouse=True)
def clean_world() -> None:
    """Nothing here reaches the world outside: there is nothing to look for after each test."""


class MyBox(spaces.Box):
    """A space that derives from one with a layout."""


class MySpace(spaces.Space[Any]):
    """A space that nobody knows."""

    def __init__(self) -> None:
        super().__init__()

    def sample(self, mask: Any = None, probability: Any = None) -> Any:
        """A list that holds a number."""
        return [int(self.np_random.integers(100))]

    def contains(self, x: Any) -> bool:
        """Whether it is such a list."""
        return isinstance(x, list)


SPACES: dict[str, Space[Any]] = {
    **EXAMPLE_SPACES,
    "box-empty": spaces.Box(-1.0, 1.0, (0,), np.float32),
    "box-empty-in-the-middle": spaces.Box(-1.0, 1.0, (2, 0, 3), np.float64),
    "box-bool": spaces.Box(0, 1, (3,), np.bool_),
    "box-subclass": MyBox(-1.0, 1.0, (2,), np.float32),
    "discrete-int32": spaces.Discrete(7, start=-2, dtype=np.int32),
    "discrete-large": spaces.Discrete(2**62, start=-(2**61)),
    "multi-discrete-start": spaces.MultiDiscrete([3, 4], start=[-5, 10]),
    "text-empty-only": spaces.Text(min_length=0, max_length=0),
    "custom": MySpace(),
    "tuple-of-tuples": spaces.Tuple([spaces.Tuple([spaces.Discrete(2), spaces.Tuple([spaces.Text(2)])]), MySpace()]),
    "tuple-of-nothing": spaces.Tuple([]),
    "dict-of-empty-boxes": spaces.Dict({"a": spaces.Box(0, 1, (0,)), "b": spaces.Dict({"c": spaces.Box(0, 1, (2, 0))})}),
    "one-of-one-of": spaces.OneOf([spaces.OneOf([spaces.Discrete(2), spaces.Text(3)]), spaces.Tuple([spaces.Discrete(5)])]),
    "one-of-graph": spaces.OneOf([spaces.Graph(spaces.Discrete(3), None), spaces.Sequence(spaces.Discrete(4))]),
}


def column_for(space: Space[Any], num_rows: int = NUM_ROWS) -> Column:
    """A column for ``space`` over bytes that are no zeros."""
    measure = Arena()
    build_column(space, num_rows, measure)
    return build_column(space, num_rows, Arena(np.full(measure.size, 0xA5, np.uint8)))


def samples(space: Space[Any], count: int = NUM_ROWS, seed: int = 3) -> list[Any]:
    """Some values of ``space``, always the same."""
    source = copy.deepcopy(space)
    source.seed(seed)
    return [source.sample() for _ in range(count)]


@pytest.mark.parametrize("name", SPACES)
def test_values_read_back_are_those_written(name: str) -> None:
    """Each row gives back its value, to the bit, in whichever order rows were written."""
    space = SPACES[name]
    column = column_for(space)
    values = samples(space)
    for row in (2, 0, 3, 1):
        column.write(row, values[row])
    for row, value in enumerate(values):
        assert_same(value, column.read(row), f"row {row}")
    assert_same(values[1:3], column.rows(1, 3), "rows(1, 3)")


@pytest.mark.parametrize("copy_values", [True, False])
@pytest.mark.parametrize("name", SPACES)
def test_all_rows_are_what_gymnasium_makes_of_the_values(name: str, copy_values: bool) -> None:
    """The batched form is the one that Gymnasium's own ``concatenate`` builds, in types and bits."""
    space = SPACES[name]
    column = column_for(space)
    values = samples(space)
    for row, value in enumerate(values):
        column.write(row, value)
    empty: Any = create_empty_array(space, NUM_ROWS)
    expected = concatenate(space, values, empty)
    assert_same(expected, column.read_all(copy_values), "read_all")


@pytest.mark.parametrize("name", SPACES)
def test_a_write_touches_its_own_row_only(name: str) -> None:
    """Rewriting one row again and again leaves the others as they were."""
    space = SPACES[name]
    column = column_for(space)
    values = samples(space)
    for row, value in enumerate(values):
        column.write(row, value)
    for value in samples(space, count=8, seed=11):
        column.write(1, value)
        assert_same(value, column.read(1), "the row written")
        for row in (0, 2, 3):
            assert_same(values[row], column.read(row), f"row {row}")


@pytest.mark.parametrize("name", SPACES)
def test_arrays_lie_side_by_side_in_the_arena(name: str) -> None:
    """No two arrays of two columns share a byte, each starts at a multiple of 64, and none leaves the buffer."""
    space = SPACES[name]
    measure = Arena()
    for _ in range(2):
        build_column(space, 3, measure)
    buffer = np.zeros(measure.size + 64, np.uint8)
    buffer = buffer[-buffer.ctypes.data % 64 :][: measure.size]
    arena = Arena(buffer)
    columns = [build_column(space, 3, arena) for _ in range(2)]
    assert arena.size == measure.size
    start = buffer.ctypes.data
    taken = []
    for array in (array for column in columns for array in column.arrays()):
        assert array.flags.c_contiguous
        assert len(array) == 3
        begin = array.__array_interface__["data"][0] - start
        assert begin % 64 == 0
        if array.nbytes:
            taken.append((begin, begin + array.nbytes))
    taken.sort()
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(taken))
    assert not taken or (taken[0][0] >= 0 and taken[-1][1] <= measure.size)


def test_the_bytes_alone_hold_what_has_a_layout() -> None:
    """A second column over the same bytes, as another process has one, reads what the first one wrote."""
    for name, space in SPACES.items():
        measure = Arena()
        build_column(space, NUM_ROWS, measure)
        buffer = np.zeros(measure.size, np.uint8)
        here, there = (build_column(space, NUM_ROWS, Arena(buffer)) for _ in range(2))
        if here.objects():
            continue
        for row, value in enumerate(samples(space)):
            here.write(row, value)
            assert_same(value, there.read(row), name)


@pytest.mark.parametrize("text", ["", "a", "é", "日本語テキ", "𝄞𝄞𝄞𝄞𝄞", "a\0b\0", "\0", "\0\0\0", "\ud800", "e\u0301", "👩‍🚀"])
def test_texts_keep_every_code_point(text: str) -> None:
    """Empty strings, NULs, characters beyond the basic plane and lone surrogates all come back."""
    column = column_for(spaces.Text(min_length=0, max_length=5))
    column.write(0, "fffff")
    column.write(1, "other")
    column.write(0, text)
    assert column.read(0) == text
    assert column.read_all(True)[:2] == (text, "other")


NAN_WITH_PAYLOAD = np.array([0x7FC00001, 0xFFC00002, 0x80000000], np.uint32).view(np.float32)


def test_odd_floats_keep_their_bits() -> None:
    """NaNs with payloads, minus zero and infinities pass as they are, in rows that views or other orders supply too."""
    column = column_for(spaces.Box(-np.inf, np.inf, (3,), np.float32))
    column.write(0, NAN_WITH_PAYLOAD)
    column.write(1, np.array([np.inf, -np.inf, -0.0], np.float32))
    column.write(2, np.arange(6, dtype=np.float32)[::-2])
    stored = column.arrays()[0]
    assert stored[0].view(np.uint32).tolist() == NAN_WITH_PAYLOAD.view(np.uint32).tolist()
    assert_same(np.array([np.inf, -np.inf, -0.0], np.float32), column.read(1), "row 1")
    assert_same(np.array([5, 3, 1], np.float32), column.read(2), "row 2")


def box(dtype: npt.DTypeLike, *shape: int) -> spaces.Box:
    """A box of that type without bounds worth mentioning."""
    limits = np.iinfo(np.dtype(dtype)) if np.dtype(dtype).kind in "iu" else None
    low, high = (limits.min, limits.max) if limits else (-np.inf, np.inf)
    return spaces.Box(low, high, shape, dtype)  # type: ignore[arg-type, misc]


PAIR = spaces.Dict({"left": box(np.float32, 3), "right": spaces.Discrete(3)})
RIGHT = {"left": np.zeros(3, np.float32), "right": np.int64(2)}

REFUSED: dict[str, tuple[Space[Any], Any, Any, str]] = {
    "shape": (box(np.float32, 3), np.ones(3, np.float32), np.zeros(4, np.float32), r"got shape \(4,\)"),
    "number-for-array": (
        box(np.float32, 3),
        np.ones(3, np.float32),
        0.5,
        r"got shape \(\) .*0\.5.*expected shape \(3,\)",
    ),
    "one-for-three": (box(np.float32, 3), np.ones(3, np.float32), np.zeros(1, np.float32), r"got shape \(1,\)"),
    "row-for-matrix": (
        box(np.float32, 2, 3),
        np.ones((2, 3), np.float32),
        np.zeros(3, np.float32),
        r"got shape \(3,\)",
    ),
    "extra-axis": (box(np.float32, 3), np.ones(3, np.float32), np.zeros((1, 3), np.float32), r"got shape \(1, 3\)"),
    "empty-for-one": (box(np.float32, 1), np.ones(1, np.float32), np.zeros(0, np.float32), r"got shape \(0,\)"),
    "one-for-empty": (box(np.float32, 0), np.zeros(0, np.float32), np.zeros(1, np.float32), r"got shape \(1,\)"),
    "one-for-scalar": (box(np.float64), np.float64(1), np.zeros(1), r"got shape \(1,\)"),
    "array-for-discrete": (spaces.Discrete(3), np.int64(1), np.array([1]), r"got shape \(1,\)"),
    "float-into-int": (
        box(np.int64, 2),
        np.ones(2, np.int64),
        np.array([1.0, 2.0]),
        "dtype float64, expected .*dtype int64",
    ),
    "float-into-discrete": (spaces.Discrete(3), np.int64(1), 1.0, r"dtype float64 \(float 1\.0\)"),
    "float-into-binary": (spaces.MultiBinary(2), np.ones(2, np.int8), np.zeros(2, np.float32), "dtype float32"),
    "complex-into-float": (box(np.float64, 1), np.ones(1), np.ones(1, np.complex128), "dtype complex128"),
    "int-above": (box(np.int8, 2), np.ones(2, np.int8), np.array([0, 128], np.int16), "beyond the range of int8"),
    "int-below": (box(np.int8, 2), np.ones(2, np.int8), np.array([0, -129], np.int64), "beyond the range of int8"),
    "uint-above": (box(np.uint8, 1), np.ones(1, np.uint8), np.array([256], np.uint16), "beyond the range of uint8"),
    "uint64-into-int64": (box(np.int64, 1), np.ones(1, np.int64), np.array([2**63], np.uint64), "dtype uint64"),
    "negative-into-uint": (box(np.uint8, 1), np.ones(1, np.uint8), np.array([-1], np.int8), "dtype int8"),
    "negative-into-uint64": (box(np.uint64, 1), np.ones(1, np.uint64), np.array([-1], np.int64), "dtype int64"),
    "list-above": (box(np.uint8, 2), np.ones(2, np.uint8), [0, 256], "dtype int64"),
    "list-below": (box(np.uint8, 2), np.ones(2, np.uint8), [0, -1], "dtype int64"),
    "huge-python-int": (spaces.Discrete(3), np.int64(1), 2**70, "dtype object"),
    "ragged-list": (box(np.float32, 2), np.ones(2, np.float32), [[1.0], [1.0, 2.0]], "no array"),
    "none": (box(np.float32, 2), np.ones(2, np.float32), None, "None"),
    "text-for-number": (spaces.Discrete(3), np.int64(1), "1", "str '1'"),
    "too-long-text": (spaces.Text(3), "abc", "abcd", "a str of length 4, expected a str of length 3 at most"),
    "long-in-code-points": (spaces.Text(3), "abc", "e\u0301e\u0301", "a str of length 4"),
    "bytes-for-text": (spaces.Text(3), "abc", b"abc", "bytes b'abc'"),
    "number-for-text": (spaces.Text(3), "abc", 7, "int 7"),
    "missing-key": (
        PAIR,
        RIGHT,
        {"left": np.ones(3, np.float32)},
        r"got the keys \['left'\], expected a dict with the keys",
    ),
    "unknown-key": (PAIR, RIGHT, RIGHT | {"more": 1}, r"got the keys \['left', 'right', 'more'\]"),
    "pairs-for-dict": (PAIR, RIGHT, list(RIGHT.items()), "list .*expected a dict"),
    "wrong-in-dict": (PAIR, RIGHT, RIGHT | {"left": np.ones(2, np.float32)}, r"^\['left'\]: got shape \(2,\)"),
    "short-tuple": (spaces.Tuple([PAIR, spaces.Text(3)]), (RIGHT, "abc"), (RIGHT,), "expected a tuple of 2"),
    "long-tuple": (spaces.Tuple([spaces.Text(3)]), ("abc",), ("abc", "abc"), "expected a tuple of 1"),
    "text-for-tuple": (spaces.Tuple([spaces.Text(3)] * 2), ("a", "b"), "ab", "str 'ab', expected a tuple"),
    "deep": (
        spaces.Tuple([PAIR, spaces.OneOf([PAIR])]),
        (RIGHT, (0, RIGHT)),
        (RIGHT, (0, RIGHT | {"right": 0.5})),
        r"^\[1\]\[1\]\['right'\]: got .*0\.5",
    ),
    "choice-above": (spaces.OneOf([spaces.Discrete(2)] * 2), (1, 1), (2, 1), "got index 2, expected a pair"),
    "choice-below": (spaces.OneOf([spaces.Discrete(2)] * 2), (1, 1), (-1, 1), "got index -1"),
    "choice-of-no-index": (spaces.OneOf([spaces.Discrete(2)] * 2), (1, 1), (0.0, 1), "expected a pair"),
    "no-pair": (spaces.OneOf([spaces.Discrete(2)] * 2), (1, 1), 1, "int 1, expected a pair"),
    "wrong-chosen": (
        spaces.OneOf([spaces.Discrete(2), spaces.Text(2)]),
        (0, 1),
        (1, 1),
        r"^\[1\]: got int 1, expected a str",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name: str) -> None:
    """The error tells where, what came and what was due; nothing is broadcast, wrapped or cut."""
    space, fits, wrong, told = REFUSED[name]
    column = column_for(space, 2)
    column.write(0, fits)
    column.write(1, fits)
    before = copy.deepcopy(column.read_all(True))
    with pytest.raises(Mismatch, match=told):
        column.write(0, wrong)
    if len(column.arrays()) == 1:
        assert_same(before, column.read_all(True), "the rows after a refusal")
    assert_same(column.rows(1, 2), [column.read(1)], "the other row")


TAKEN: dict[str, tuple[Space[Any], Any, Any]] = {
    "python-int": (spaces.Discrete(5, start=-2), -1, np.int64(-1)),
    "bool-as-int": (spaces.Discrete(2), True, np.int64(1)),
    "small-int": (spaces.Discrete(3), np.int8(2), np.int64(2)),
    "unsigned-int": (spaces.Discrete(3), np.uint8(2), np.int64(2)),
    "array-without-axes": (spaces.Discrete(3), np.array(2), np.int64(2)),
    "python-float": (box(np.float32), 0.5, np.float32(0.5)),
    "float64-into-float32": (box(np.float32, 2), np.array([0.1, -0.2]), np.array([0.1, -0.2]).astype(np.float32)),
    "float32-into-float16": (box(np.float16, 1), np.array([0.1], np.float32), np.array([0.1], np.float16)),
    "int-into-float": (box(np.float32, 2), np.array([1, 2]), np.array([1, 2], np.float32)),
    "list-of-floats": (box(np.float32, 2), [0.5, 1], np.array([0.5, 1], np.float32)),
    "list-of-ints-into-uint8": (box(np.uint8, 2), [0, 255], np.array([0, 255], np.uint8)),
    "int64-into-int8": (box(np.int8, 2), np.array([-128, 127]), np.array([-128, 127], np.int8)),
    "list-into-binary": (spaces.MultiBinary(3), [0, 1, 1], np.array([0, 1, 1], np.int8)),
    "bools-into-binary": (spaces.MultiBinary(2), np.array([True, False]), np.array([1, 0], np.int8)),
    "big-endian": (box(np.float32, 2), np.array([1.5, 2.5], ">f4"), np.array([1.5, 2.5], np.float32)),
    "array-subclass": (box(np.int64, 1), np.ma.masked_array([4]), np.array([4])),
    "list-for-tuple": (spaces.Tuple([spaces.Discrete(2), spaces.Text(1)]), [1, "a"], (np.int64(1), "a")),
    "python-index": (spaces.OneOf([spaces.Discrete(2), spaces.Text(1)]), (1, "a"), (np.int64(1), "a")),
    "dict-in-another-order": (
        PAIR,
        {"right": 1, "left": [1, 2, 3]},
        {"left": np.array([1, 2, 3], np.float32), "right": np.int64(1)},
    ),
    "str-subclass": (spaces.Text(4), np.str_("abc"), "abc"),
}


@pytest.mark.parametrize("name", TAKEN)
def test_safe_conversions_are_made(name: str) -> None:
    """A value of another type is stored as the space's own where nothing is lost in kind."""
    space, value, due = TAKEN[name]
    column = column_for(space)
    column.write(2, value)
    assert_same(due, column.read(2), name)


@pytest.mark.parametrize("name", SPACES)
def test_what_was_read_never_changes(name: str) -> None:
    """Copies stay as they were read, whatever is written later, and whatever a reader does to them stays his own."""
    space = SPACES[name]
    column = column_for(space)
    values = samples(space)
    for row, value in enumerate(values):
        column.write(row, value)
    one, some, batched = column.read(0), column.rows(0, 2), column.read_all(True)
    kept = copy.deepcopy((one, some, batched))
    for row, value in enumerate(samples(space, seed=8)):
        column.write(row, value)
    assert_same(kept, (one, some, batched), "what was read")
    again = column.read(0)
    for mine in arrays_in((one, some, batched)):
        mine[...] = 1
    assert_same(again, column.read(0), "the column")


def arrays_in(value: Any) -> list[npt.NDArray[Any]]:
    """Every array somewhere in ``value``."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [array for item in value for array in arrays_in(item)]
    return [value] if isinstance(value, np.ndarray) else []


def test_views_follow_the_rows() -> None:
    """Without copying, arrays are the column's own memory."""
    column = column_for(PAIR)
    column.write(0, RIGHT)
    view = column.read_all(False)
    column.write(0, RIGHT | {"right": np.int64(1)})
    assert view["right"][0] == 1
    assert np.shares_memory(view["left"], column.arrays()[0])
    assert not np.shares_memory(column.read_all(True)["left"], column.arrays()[0])


def test_objects_are_snapshots() -> None:
    """A value without a fixed layout is copied when it is written: its env may reuse it."""
    space = spaces.Dict({"graph": spaces.Graph(box(np.float32, 1), None), "mine": MySpace()})
    column = column_for(space)
    nodes = np.zeros((1, 1), np.float32)
    graph = spaces.GraphInstance(nodes, None, None)
    mine = [1]
    column.write(1, {"graph": graph, "mine": mine})
    nodes[...] = 7
    mine.append(2)
    read = column.read(1)
    assert read["mine"] == [1]
    assert read["graph"].nodes.tolist() == [[0]]
    read["mine"].append(3)
    assert column.read(1)["mine"] == [1]


def test_objects_written_are_taken_once_and_put_elsewhere() -> None:
    """What moves rows between processes takes the objects written since it last asked, and puts them some rows down."""
    space = spaces.Tuple([MySpace(), spaces.Discrete(2), spaces.Sequence(spaces.Discrete(3))])
    here, there = column_for(space, 2), column_for(space, 5)
    assert len(here.objects()) == 2
    here.write(1, ([4], 1, (np.int64(2),)))
    taken = [column.take_written() for column in here.objects()]
    assert [list(values) for values in taken] == [[1], [1]]
    assert [column.take_written() for column in here.objects()] == [{}, {}]
    for column, values in zip(there.objects(), taken, strict=True):
        column.put(values, 3)
    assert there.read(4)[0] == [4]
    assert_same((np.int64(2),), there.read(4)[2], "the sequence")
    assert there.read_all(True)[0][:4] == (None,) * 4


def test_subclasses_lie_as_the_space_they_derive_from() -> None:
    """A custom space that derives from a Gymnasium one has its layout; another one is named."""
    assert column_for(MyBox(-1, 1, (2,))).arrays()
    assert column_for(MySpace()).arrays() == []
    custom = MySpace()
    nested = spaces.Dict({"a": spaces.Tuple([MyBox(-1, 1, (2,)), spaces.OneOf([spaces.Discrete(2), custom])])})
    assert custom_space_in(nested) is custom
    for name, space in EXAMPLE_SPACES.items():
        assert custom_space_in(space) is None, name


def test_snapshots_cannot_be_changed_later() -> None:
    """A snapshot is as deep as the value; what refuses to be copied is passed on as it is."""
    inner = np.zeros(2)
    value: Any = {"list": [inner], "objects": np.array([[1], None], object), "array": inner}
    taken = snapshot(value)
    inner += 1
    value["list"].append(2)
    value["objects"][0].append(2)
    due = {"list": [np.zeros(2)], "objects": np.array([[1], None], object), "array": np.zeros(2)}
    assert_same(due, taken, "snapshot")
    uncopiable = (item for item in [1])
    assert snapshot(uncopiable) is uncopiable
