"""Infos merge into Gymnasium's layout, the same however sub-envs are grouped."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import VectorEnv

from rayvec.infos import copied, gather, merge
from rayvec.serialise import dumps, loads
from rayvec.testing.comparison import assert_same

Infos = Sequence[Mapping[Any, Any] | None]


@pytest.fixture(autouse=True)
def clean_world() -> None:
    """Nothing here reaches the world outside: there is nothing to look for after each test."""


def merged(infos: Infos, bounds: Sequence[int] = (), travels: bool = False) -> dict[Any, Any]:
    """What ``infos``, one for each sub-env (None: it gave none), merge into with groups that end at ``bounds``."""
    edges = [0, *bounds, len(infos)]
    groups = []
    for first, stop in zip(edges, edges[1:], strict=False):  # noqa: RUF007 - empty groups are meant
        rows = [(row, copied(info)) for row, info in enumerate(infos[first:stop]) if info]
        columns = gather(rows)
        if columns:
            groups.append((first, loads(dumps(columns)) if travels else columns))
    return merge(groups, len(infos))


def gymnasiums(infos: Infos) -> dict[Any, Any]:
    """What Gymnasium's own engines merge them into."""
    env: VectorEnv[Any, Any, Any] = VectorEnv()
    env.num_envs = len(infos)
    whole: dict[str, Any] = {}
    for index, info in enumerate(infos):
        if info:
            whole = env._add_info(whole, dict(info), index)
    return whole


def objects(*values: Any) -> Any:
    """An object array of those values."""
    array = np.empty(len(values), object)
    for index, value in enumerate(values):
        array[index] = value
    return array


def mask(*values: int) -> Any:
    """A bool array."""
    return np.array(values, np.bool_)


def assert_merges(infos: Infos, due: dict[Any, Any]) -> None:
    """``infos`` merge into ``due``, in one group, in many, and over a process border."""
    for bounds in [(), (1,), tuple(range(1, len(infos))), (len(infos) - 1,)]:
        for travels in [False, True]:
            assert_same(due, merged(infos, bounds, travels), f"infos in groups that end at {bounds}")


# Gymnasium's layout

AS_GYMNASIUM_HAS_THEM: dict[str, Infos] = {
    "nothing": [{}, None, {}],
    "ints": [{"a": 1}, {"a": -2}, {"a": 3}],
    "some": [None, {"a": 1.5}, {}],
    "floats-and-bools": [{"a": 1.5, "b": True}, {"a": np.nan, "b": False}, {"b": True}],
    "numpy-scalars": [{"a": np.float32(0.1), "b": np.int8(3)}, {"a": np.float32(0.2)}, {"b": np.int8(-3)}],
    "arrays": [{"a": np.array([1, 2], np.int16)}, None, {"a": np.array([3, 4], np.int16)}],
    "arrays-without-axes": [{"a": np.array(2.5)}, {"a": np.array(3.5)}, None],
    "strings": [{"a": "x"}, {"a": "yy"}, {}],
    "none": [{"a": None}, {}, {"a": None}],
    "lists": [{"a": [1, 2]}, {"a": []}, {}],
    "nested": [{"a": {"b": 1, "c": {"d": 2.0}}}, {"a": {"b": 2}}, {"a": {"c": {"d": 3.0}}}],
    "empty-dicts": [{"a": {}}, {}, {"a": {}}],
    "different-keys": [{"a": 1}, {"b": "x"}, {"c": np.zeros(2)}],
    "final": [
        {"final_obs": np.arange(3), "final_info": {"score": 1, "words": "x"}},
        None,
        {"final_obs": np.arange(3), "final_info": {"score": 2, "words": "y"}, "more": 1},
    ],
    "final-dict": [{"final_obs": {"a": np.zeros(2)}}, {"final_obs": {"a": np.ones(2)}}, None],
    "final-text": [{"final_obs": "abc"}, {"final_obs": "d"}, {"final_obs": ""}],
    "complex": [{"a": np.complex64(1j)}, {"a": np.complex64(2)}, {}],
}


@pytest.mark.parametrize("name", AS_GYMNASIUM_HAS_THEM)
def test_the_layout_is_gymnasiums(name: str) -> None:
    """Where Gymnasium keeps infos whole, rayvec's are the same: keys, masks, types, fillings."""
    infos = AS_GYMNASIUM_HAS_THEM[name]
    assert_merges(infos, gymnasiums(infos))


# Where Gymnasium loses something


def test_numbers_are_promoted() -> None:
    """The type is the one that NumPy promotes all to, not the first one's."""
    assert_merges(
        [{"a": 1, "b": True, "c": np.int8(-1)}, {"a": 2.5, "b": 3, "c": np.uint8(200)}, {"a": False}],
        {
            "a": np.array([1.0, 2.5, 0.0]),
            "_a": mask(1, 1, 1),
            "b": np.array([1, 3, 0], np.int64),
            "_b": mask(1, 1, 0),
            "c": np.array([-1, 200, 0], np.int16),
            "_c": mask(1, 1, 0),
        },
    )


def test_arrays_of_one_shape_are_promoted() -> None:
    """The same for arrays, of texts too."""
    assert_merges(
        [
            {"a": np.array([1, 2], np.int32), "b": np.array(["a"])},
            {},
            {"a": np.array([0.1, 0.2], np.float32), "b": np.array(["bcd"])},
        ],
        {
            "a": np.array([[1, 2], [0, 0], np.array([0.1, 0.2], np.float32)], np.float64),
            "_a": mask(1, 0, 1),
            "b": np.array([["a"], [""], ["bcd"]]),
            "_b": mask(1, 0, 1),
        },
    )


UNBATCHABLE: dict[str, list[Any]] = {
    "ragged-arrays": [np.arange(2), np.arange(3), np.arange(0)],
    "other-ranks": [np.zeros(2), np.zeros((2, 2)), np.zeros(())],
    "dict-beside-number": [{"a": 1, "b": [2]}, 3, {"a": {"deep": np.arange(2)}}],
    "dict-beside-none": [{"a": np.int8(1)}, None, {"a": 2.5}],
    "empty-dict-beside-text": [{}, "x", {"x": {}}],
    "number-beside-text": [1, "1", 1.0],
    "number-beside-array": [1, np.zeros(2), 2],
    "big-ints": [2**63, -(2**63) - 1, 2**70],
    "big-beside-small": [1, 2**63, -1],
    "bool-beside-text": [True, "x", False],
    "numpy-bools": [np.bool_(True), np.bool_(False), np.bool_(True)],
    "numpy-bool-beside-bool": [np.bool_(True), True, 1],
    "times": [np.timedelta64(1, "s"), np.datetime64("2024-01-01"), np.timedelta64(2, "D")],
    "text-array-beside-number-array": [np.array(["a"]), np.array([1]), np.array([b"x"])],
    "sequences": [[1], (1,), {1}],
    "bytes": [b"", b"\0", b"x"],
    "types": [int, None, dict],
    "structured": [np.zeros(1, [("a", "i4")]), np.zeros(1, [("b", "f8")]), np.zeros(1, [("a", "i4"), ("b", "i4")])],
}


@pytest.mark.parametrize("name", UNBATCHABLE)
def test_what_does_not_batch_arrives_intact(name: str) -> None:
    """Values that fit no array come one by one, of their own type, in an object array."""
    values = UNBATCHABLE[name]
    assert_merges(
        [{"a": values[0]}, {"a": values[1]}, None, {"a": values[2]}],
        {"a": objects(values[0], values[1], None, values[2]), "_a": mask(1, 1, 0, 1)},
    )


def test_the_limits_of_64_bits() -> None:
    """The smallest and the largest int64 are still numbers of an array."""
    assert_merges(
        [{"a": -(2**63)}, {"a": 2**63 - 1}],
        {"a": np.array([-(2**63), 2**63 - 1], np.int64), "_a": mask(1, 1)},
    )


def test_a_key_that_reads_like_a_mask_is_kept() -> None:
    """An env's own key "_a" beside its "a" is data; it is not overwritten by the mask of "a"."""
    for infos in [[{"a": 1, "_a": 5}, {"a": 2, "_a": 6}], [{"_a": 5, "a": 1}, {"_a": 6, "a": 2}]]:
        for bounds in [(), (1,)]:
            result = merged(infos, bounds)
            assert_same(np.array([1, 2]), result["a"], "a")
            assert_same(np.array([5, 6]), result["_a"], "_a")
            assert_same(mask(1, 1), result["__a"], "__a")


def test_final_obs_is_an_object_array_whatever_it_is() -> None:
    """Final observations are never stacked, numbers and dicts neither, however deep their key lies."""
    assert_merges(
        [{"final_obs": 1, "final_info": {"final_obs": {"a": 1}}}, {"final_obs": 2}],
        {
            "final_obs": objects(1, 2),
            "_final_obs": mask(1, 1),
            "final_info": {"final_obs": objects({"a": 1}, None), "_final_obs": mask(1, 0)},
            "_final_info": mask(1, 0),
        },
    )


def test_keys_need_not_be_text() -> None:
    """A number as a key works as it does in Gymnasium."""
    infos: Infos = [{3: 1}, {3: 2}]
    assert_merges(infos, {3: np.array([1, 2]), "_3": mask(1, 1)})


# Grouping

PIECES: list[Any] = [
    0,
    -7,
    2**62,
    2**70,
    1.5,
    float("nan"),
    True,
    None,
    "text",
    "",
    b"x",
    np.bool_(True),
    np.float32(0.1),
    np.float64(0.1),
    np.int8(-3),
    np.uint64(2**63),
    np.complex64(1 + 2j),
    np.timedelta64(3, "s"),
    np.arange(3),
    np.arange(3, dtype=np.float32),
    np.arange(2),
    np.zeros((2, 0)),
    np.array(7),
    np.array(["a", "bc"]),
    np.array([None, 1], object),
    [1, [2]],
    (1,),
]


def random_value(rng: np.random.Generator, depth: int, allowed: list[int]) -> Any:
    """A value that may be a dict of further ones."""
    if depth and rng.random() < 0.3:
        return {f"k{rng.integers(3)}": random_value(rng, depth - 1, allowed) for _ in range(rng.integers(3))}
    return copy.deepcopy(PIECES[allowed[rng.integers(len(allowed))]])


@pytest.mark.parametrize("seed", range(150))
def test_grouping_makes_no_difference(seed: int) -> None:
    """Random infos of mixed types merge the same in any consecutive groups, in one process and across processes."""
    rng = np.random.default_rng(seed)
    num_envs = int(rng.integers(1, 8))
    allowed = [int(index) for index in rng.choice(len(PIECES), rng.integers(1, 5), replace=False)]
    # An env's own "_a" takes the place of the mask of "a".
    keys = ["a", "b", "c", "final_obs", *(["_a"] if seed % 3 == 0 else [])]
    infos = [
        {key: random_value(rng, 3, allowed) for key in rng.permutation(keys)[: rng.integers(len(keys) + 1)].tolist()}
        for _ in range(num_envs)
    ]
    whole = merged(infos)
    before = copy.deepcopy(whole)
    for _ in range(4):
        bounds = sorted(int(bound) for bound in rng.integers(0, num_envs + 1, rng.integers(0, num_envs + 1)))
        travels = bool(rng.random() < 0.5)
        assert_same(whole, merged(infos, bounds, travels), f"groups that end at {bounds}")
    assert_same(before, whole, "the first result, later")
    if "_a" not in keys:
        for row, info in enumerate(infos):
            assert_holds(whole, row, info)


def assert_holds(whole: dict[Any, Any], row: int, info: Mapping[Any, Any]) -> None:
    """Row ``row`` of the merged infos says what the sub-env said; by value where numbers were promoted."""
    for key, value in info.items():
        assert whole[f"_{key}"][row]
        if isinstance(whole[key], dict):
            assert isinstance(value, dict)
            assert_holds(whole[key], row, value)
            continue
        found = whole[key][row]
        if whole[key].dtype == object and not (isinstance(value, np.ndarray) and value.dtype == object):
            assert_same(value, found, f"{key} of {row}")
        elif isinstance(value, np.ndarray):
            assert found.shape == value.shape
            assert_same(value.astype(found.dtype), np.asarray(found), f"{key} of {row}")
        else:
            assert found == value or (found != found and value != value) or isinstance(value, int)


# Snapshots


def test_infos_are_snapshots() -> None:
    """What was copied does not change with the env's own lists, arrays and dicts, at any depth."""
    inner: Any = {"list": [1, [2]], "array": np.zeros(2), "dict": {"array": np.zeros(1), "set": {1}}}
    info = {"inner": inner, "objects": np.array([[1], 2], object)}
    taken = copied(info)
    before = copy.deepcopy(taken)
    inner["list"][1].append(3)
    inner["array"] += 1
    inner["dict"]["array"] += 1
    inner["dict"]["set"].add(2)
    inner["more"] = 1
    info["objects"][0].append(2)
    assert_same(before, taken, "the copy")


def test_merged_infos_are_nobody_elses() -> None:
    """The arrays that are handed out share no memory with those that came from the workers."""
    first = gather([(0, {"a": np.zeros(3), "b": {"c": np.ones(2)}})])
    result = merge([(0, first)], 1)
    result["a"] += 1
    result["b"]["c"] += 1
    assert_same(
        {"a": np.zeros((1, 3)), "c": np.ones((1, 2))}, {"a": first["a"].data, "c": first["b"].data["c"].data}, "columns"
    )
