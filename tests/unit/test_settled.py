"""Rows of settled infos say what gathering and merging the same infos says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayvec.infos import gather, merge
from rayvec.settled import ROOM, InfoRows, layout_of

INFO: dict[str, Any] = {
    "float": 0.1,
    "int": -(2**63),
    "flag": True,
    "half": np.float16(0.5),
    "complex": np.complex128(1 + 2j),
    "array": np.arange(6, dtype=">i4").reshape(2, 3),
    "scalar": np.array(2.5),
    "empty": np.zeros((0, 2)),
    "_float": 3,
}


def rows_for(infos: list[dict[str, Any]]) -> InfoRows:
    """Rows in the layout of ``infos``, with nothing in them."""
    layout = layout_of(gather(enumerate(infos)), len(infos))
    assert layout is not None
    return InfoRows(layout, np.full((len(infos), ROOM), 255, np.uint8), np.zeros(len(infos), np.bool_))


def assert_equal_infos(given: dict[Any, Any], due: dict[Any, Any]) -> None:
    """The same keys with the same arrays of the same dtypes."""
    assert given.keys() == due.keys()
    for key, value in due.items():
        np.testing.assert_array_equal(given[key], value)
        assert given[key].dtype == value.dtype


@pytest.mark.parametrize("count", [1, 3])
def test_what_was_written_is_what_merging_gives(count: int) -> None:
    """As a whole, by columns, and one by one with the types that the envs gave."""
    infos = [{**INFO, "float": index / 7} for index in range(count)]
    rows = rows_for(infos)
    assert all(rows.write(index, info) for index, info in enumerate(infos))
    due = merge([(0, gather(enumerate(infos)))], count)
    assert_equal_infos(rows.merged(), due)
    assert_equal_infos(merge([(0, rows.columns())], count), due)
    for (index, read), info in zip(rows.read(), infos, strict=True):
        assert read.keys() == info.keys()
        assert [type(value) for value in read.values()] == [type(value) for value in info.values()]
        np.testing.assert_array_equal(read["array"], info["array"])
        assert read["float"] == infos[index]["float"]


def test_rows_without_an_info_are_zero() -> None:
    """However full of old values the memory is."""
    infos = [{"a": 1.0, "b": np.ones(2), "name": np.array("text")} for _ in range(4)]
    rows = rows_for(infos)
    for index in (0, 2):
        rows.write(index, infos[index])
    present = [(0, infos[0]), (2, infos[2])]
    assert_equal_infos(rows.merged(), merge([(0, gather(present))], 4))
    assert [index for index, _ in rows.read()] == [0, 2]
    rows.clear()
    assert rows.merged() == {} == rows.columns()
    assert rows.read() == []


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"a": 1.0},
        {"a": 1.0, "b": 2, "c": 3},
        {"a": 1.0, "c": 2},
        {"a": 1, "b": 2},
        {"a": np.float64(1.0), "b": 2},
        {"a": 1.0, "b": True},
        {"a": 1.0, "b": 2**63},
        {"a": None, "b": 2},
    ],
)
def test_another_form_is_refused(odd: dict[str, Any]) -> None:
    """And nothing lies there then."""
    rows = rows_for([{"a": 1.0, "b": 2}])
    assert not rows.write(0, odd)
    assert rows.read() == []


@pytest.mark.parametrize(
    "info",
    [
        {"a": "text"},
        {"a": None},
        {"a": np.array([None])},
        {"a": {"nested": 1}},
        {"a": [1, 2]},
        {"a": np.bool_(True)},
        {"a": 2**63},
        {"a": np.zeros(ROOM + 1, np.uint8)},
        {"final_obs": np.zeros(2)},
    ],
)
def test_what_has_no_layout(info: dict[str, Any]) -> None:
    """Objects, nested infos, and what takes more room than there is."""
    assert layout_of(gather([(0, info)]), 1) is None


def test_no_layout_unless_all_agree() -> None:
    """A key that one sub-env lacks, or a value of another type."""
    assert layout_of(gather([(0, {"a": 1.0}), (1, {})]), 2) is None
    assert layout_of(gather([(0, {"a": 1.0}), (1, {"a": 1})]), 2) is None
    assert layout_of(gather([(0, {"a": np.zeros(2)}), (1, {"a": np.zeros(3)})]), 2) is None
