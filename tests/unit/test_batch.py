"""A batch lays actions and results over any bytes, and carries rows from one to another without changing a bit."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gymnasium import Space, spaces
from gymnasium.vector.utils import batch_space, iterate

from rayvec.batch import Batch
from rayvec.testing.comparison import assert_same
from rayvec.testing.envs import EXAMPLE_SPACES

OBSERVATIONS = spaces.Dict(
    {
        "position": spaces.Box(-1.0, 1.0, (3,), np.float32),
        "name": spaces.Text(4, min_length=0, charset="aé𝄞"),
        "choice": spaces.OneOf([spaces.Discrete(3), spaces.Box(0, 255, (2,), np.uint8)]),
        "path": spaces.Sequence(spaces.Discrete(4)),
    }
)
DEEP = spaces.Tuple(
    [
        spaces.Discrete(3, start=-1),
        spaces.Dict({"b": spaces.MultiBinary(3), "a": spaces.Tuple([spaces.MultiDiscrete([2, 9])])}),
        spaces.Box(-1.0, 1.0, (2, 0), np.float64),
    ]
)
NATIVE: dict[str, Space[Any]] = {
    "discrete": spaces.Discrete(4),
    "box": spaces.Box(-1.0, 1.0, (2,), np.float32),
    "box-float16": spaces.Box(-1.0, 1.0, (2, 2), np.float16),
    "box-scalar": spaces.Box(-1.0, 1.0, (), np.float64),
    "box-empty": spaces.Box(-1.0, 1.0, (0,), np.float32),
    "multi-discrete": spaces.MultiDiscrete([3, 4]),
    "multi-binary": spaces.MultiBinary(3),
    "deep": DEEP,
}


@pytest.fixture(autouse=True)
def clean_world() -> None:
    """Nothing here reaches the world outside: there is nothing to look for after each test."""


def batch(action_space: Space[Any], num_rows: int = 3, observation_space: Space[Any] = OBSERVATIONS) -> Batch:
    """A batch on the heap."""
    return Batch(observation_space, action_space, num_rows)


def sampled(space: Space[Any], count: int = 3, seed: int = 4) -> Any:
    """A batch of samples, always the same."""
    batched = batch_space(space, count)
    batched.seed(seed)
    return batched.sample()


def one_by_one(space: Space[Any], actions: Any, count: int = 3) -> list[Any]:
    """What Gymnasium's engines give each sub-env of a batch of actions."""
    items: Iterable[Any] = iterate(batch_space(space, count), actions)
    return list(items)


def arrays_in(value: Any) -> list[npt.NDArray[Any]]:
    """Every array somewhere in ``value``."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [array for item in value for array in arrays_in(item)]
    return [value] if isinstance(value, np.ndarray) else []


def fill(target: Batch, seed: int) -> None:
    """Writes results that ``seed`` decides into every row."""
    source = copy.deepcopy(target.observation_space)
    source.seed(seed)
    for row in range(target.num_rows):
        target.observations.write(row, source.sample())
    rng = np.random.default_rng(seed)
    target.rewards[:] = rng.normal(size=target.num_rows)
    target.terminations[:] = rng.random(target.num_rows) < 0.5
    target.truncations[:] = rng.random(target.num_rows) < 0.5


def contents(source: Batch, start: int, stop: int) -> Any:
    """All results in those rows."""
    flags = (source.rewards[start:stop].copy(), source.terminations[start:stop].copy(), source.truncations[start:stop].copy())
    return source.observations.rows(start, stop), flags


# Layout


@pytest.mark.parametrize("name", EXAMPLE_SPACES)
def test_the_size_is_what_the_rows_need(name: str) -> None:
    """A buffer of ``size`` bytes takes the rows; one byte less does not."""
    space = EXAMPLE_SPACES[name]
    size = Batch.size(space, spaces.Discrete(2), 5)
    assert size % 64 == 0
    assert size >= 5 * (8 + 8 + 1 + 1)
    Batch(space, spaces.Discrete(2), 5, np.zeros(size, np.uint8))
    with pytest.raises((TypeError, ValueError)):
        Batch(space, spaces.Discrete(2), 5, np.zeros(size - 64, np.uint8))


def test_results_start_at_zero() -> None:
    """A new batch has no reward and no episode that has ended, and the types that Gymnasium gives."""
    new = batch(spaces.Discrete(2))
    assert_same(np.zeros(3, np.float64), new.rewards, "rewards")
    assert_same(np.zeros(3, np.bool_), new.terminations, "terminations")
    assert_same(np.zeros(3, np.bool_), new.truncations, "truncations")


def test_two_batches_over_the_same_bytes_are_one() -> None:
    """What one process writes into shared bytes, another one reads; actions, results and their neighbours do not overlap."""
    space = spaces.Dict({key: part for key, part in OBSERVATIONS.items() if key != "path"})
    buffer = np.zeros(Batch.size(space, DEEP, 4), np.uint8)
    here, there = Batch(space, DEEP, 4, buffer), Batch(space, DEEP, 4, buffer)
    actions = sampled(DEEP, 4)
    assert here.place_actions(actions) is None
    fill(here, 1)
    assert_same(one_by_one(DEEP, actions, 4), there.action_rows(0, 4), "actions")
    assert_same(contents(here, 0, 4), contents(there, 0, 4), "results")
    fill(there, 2)
    assert_same(contents(there, 0, 4), contents(here, 0, 4), "results")
    assert_same(one_by_one(DEEP, actions, 4), here.action_rows(0, 4), "actions")


# Actions


@pytest.mark.parametrize("name", NATIVE)
def test_native_actions_go_into_the_rows(name: str) -> None:
    """Actions of the space's own types and shapes are placed as they are; each sub-env gets what Gymnasium gives it."""
    space = NATIVE[name]
    actions = sampled(space)
    target = batch(space)
    assert target.place_actions(actions) is None
    assert_same(one_by_one(space, actions), target.action_rows(0, 3), "all rows")
    assert_same(one_by_one(space, actions)[1:], target.action_rows(1, 3), "rows 1 to 3")


FALLBACK: dict[str, tuple[Space[Any], Any]] = {
    "float64-for-float32": (NATIVE["box"], np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])),
    "int32-for-int64": (NATIVE["discrete"], np.array([0, 1, 3], np.int32)),
    "float-for-discrete": (NATIVE["discrete"], np.array([0.0, 1.0, 2.5])),
    "another-shape": (NATIVE["box"], np.zeros((3, 5), np.float32)),
    "column": (NATIVE["discrete"], np.zeros((3, 1), np.int64)),
    "big-endian": (NATIVE["box"], np.zeros((3, 2), ">f4")),
    "strings": (NATIVE["discrete"], np.array(["left", "right", "up"])),
    "part-of-another-type": (
        spaces.Tuple([spaces.Discrete(2), spaces.Box(-1, 1, (1,), np.float32)]),
        (np.array([0, 1, 1]), np.array([[0.1], [0.2], [0.3]])),
    ),
}


@pytest.mark.parametrize("name", FALLBACK)
def test_other_actions_keep_their_type(name: str) -> None:
    """An array of another type or shape is not converted: its items travel one by one, as Gymnasium would hand them out."""
    space, actions = FALLBACK[name]
    placed = batch(space).place_actions(actions)
    assert placed is not None
    assert_same(one_by_one(space, actions), placed, "placed")


OBJECTS: dict[str, tuple[Space[Any], Any]] = {
    name: (EXAMPLE_SPACES[name], sampled(EXAMPLE_SPACES[name]))
    for name in ["text", "one-of", "graph", "sequence", "sequence-stacked", "nested", "dict-with-graph-and-sequence"]
}


@pytest.mark.parametrize("name", OBJECTS)
def test_actions_without_a_layout_travel_one_by_one(name: str) -> None:
    """Text, OneOf, Graph and Sequence actions reach each sub-env as they came."""
    space, actions = OBJECTS[name]
    placed = batch(space).place_actions(actions)
    assert placed is not None
    assert_same(one_by_one(space, actions), placed, "placed")


def test_lists_of_numbers_are_taken() -> None:
    """A list has no type of its own: it is placed where each of its numbers has its place in the space's type."""
    for space, actions, due in [
        (NATIVE["discrete"], [0, 3, 1], [np.int64(0), np.int64(3), np.int64(1)]),
        (NATIVE["box"], [[0.5, 1], [2, 3], [4, 5]], list(np.array([[0.5, 1], [2, 3], [4, 5]], np.float32))),
        (NATIVE["discrete"], (np.int64(1), np.int64(2), np.int64(0)), [np.int64(1), np.int64(2), np.int64(0)]),
    ]:
        target = batch(space)
        assert target.place_actions(actions) is None
        assert_same(due, target.action_rows(0, 3), f"{actions}")


def test_numbers_that_do_not_fit_are_not_wrapped() -> None:
    """A list with a number beyond the space's type reaches the envs as it came; 300 must not become 44."""
    space = spaces.Box(-100, 100, (1,), np.int8)
    target = batch(space)
    placed = target.place_actions([[300], [1], [-200]])
    actions = target.action_rows(0, 3) if placed is None else placed
    assert [int(action[0]) for action in actions] == [300, 1, -200]


def test_ints_beyond_64_bits_arrive() -> None:
    """Python numbers that no array type holds are handed on as they are."""
    assert batch(NATIVE["discrete"]).place_actions([0, 2**70, 1]) == [0, 2**70, 1]


WRONG: dict[str, tuple[Space[Any], Any, str]] = {
    "too-few": (NATIVE["discrete"], np.zeros(2, np.int64), r"actions: got shape \(2,\), expected one action for each of 3"),
    "too-many": (NATIVE["discrete"], np.zeros(4, np.int64), r"got shape \(4,\), expected one action for each of 3"),
    "none-at-all": (NATIVE["discrete"], np.zeros(0, np.int64), r"got shape \(0,\)"),
    "a-number": (NATIVE["discrete"], 1, r"got shape \(\)"),
    "nothing": (NATIVE["discrete"], None, r"got shape \(\)"),
    "too-few-of-another-type": (NATIVE["box"], np.zeros((2, 2), np.float64), r"got shape \(2, 2\)"),
    "flat": (NATIVE["box"], np.zeros(6, np.float32), r"got shape \(6,\)"),
    "ragged": (NATIVE["box"], [[0.0], [0.0, 1.0], [0.0, 1.0]], "expected an array with one action for each of 3"),
    "too-few-texts": (spaces.Text(3), ("a", "b"), r"got tuple of 2, expected one action for each of 3"),
    "no-texts": (spaces.Text(3), 3, r"got int of 0, expected one action for each of 3"),
    "too-few-in-a-dict": (
        spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Discrete(2)}),
        {"a": np.zeros(3, np.int64), "b": np.zeros(2, np.int64)},
        r"actions\['b'\]: got shape \(2,\)",
    ),
    "missing-key": (
        spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Discrete(2)}),
        {"a": np.zeros(3, np.int64)},
        r"actions: got the keys \['a'\], expected a dict with the keys \['a', 'b'\]",
    ),
    "list-for-dict": (spaces.Dict({"a": spaces.Discrete(2)}), [{"a": 1}] * 3, "actions: got list, expected a dict"),
    "short-tuple": (
        spaces.Tuple([spaces.Discrete(2), spaces.Discrete(2)]),
        (np.zeros(3, np.int64),),
        "actions: got tuple of 1, expected a tuple of 2 parts",
    ),
    "number-for-tuple": (spaces.Tuple([spaces.Discrete(2)]), 1, "actions: got int of no length, expected a tuple of 1"),
    "too-few-deep-down": (
        DEEP,
        (np.zeros(3, np.int64), {"a": (np.zeros((2, 2), np.int64),), "b": np.zeros((3, 3), np.int8)}, np.zeros((3, 2, 0))),
        r"actions\[1\]\['a'\]\[0\]: got shape \(2, 2\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_batches_of_actions_are_refused(name: str) -> None:
    """A batch of the wrong length or structure raises ValueError, which tells which part of it, what came and what was due."""
    space, actions, told = WRONG[name]
    with pytest.raises(ValueError, match=told):
        batch(space).place_actions(actions)


@pytest.mark.parametrize("name", [*NATIVE, *FALLBACK, *OBJECTS])
def test_an_env_may_change_its_action(name: str) -> None:
    """Whatever a sub-env does to the action that it is given, the caller's arrays and its neighbours' actions stay."""
    space, actions = (FALLBACK | OBJECTS)[name] if name in FALLBACK | OBJECTS else (NATIVE[name], sampled(NATIVE[name]))
    before = copy.deepcopy(actions)
    target = batch(space)
    placed = target.place_actions(actions)
    handed = target.action_rows(0, 3) if placed is None else placed
    others = copy.deepcopy(handed[1:])
    for array in arrays_in(handed[0]):
        assert array.flags.writeable
        array[...] = np.zeros((), array.dtype)
    assert_same(before, actions, "the caller's actions")
    assert_same(others, handed[1:], "the others' actions")
    if placed is None:
        assert_same(one_by_one(space, before), target.action_rows(0, 3), "the rows")


def test_an_env_may_change_an_action_out_of_an_object_array() -> None:
    """Arrays within an object array are copied too, not only the references to them."""
    actions = np.empty(3, object)
    for index in range(3):
        actions[index] = np.full(2, index, np.float32)
    before = copy.deepcopy(actions)
    target = batch(NATIVE["box"])
    placed = target.place_actions(actions)
    handed = target.action_rows(0, 3) if placed is None else placed
    for action in handed:
        action += 100
    assert_same(before, actions, "the caller's actions")


def test_actions_may_be_read_only_or_strided() -> None:
    """Any memory order will do, and the caller's flags stay."""
    actions = np.arange(12, dtype=np.float32).reshape(2, 6)[:, ::2].T
    actions.flags.writeable = False
    target = batch(NATIVE["box"])
    assert target.place_actions(actions) is None
    assert_same(list(np.array(actions)), target.action_rows(0, 3), "actions")
    assert not actions.flags.writeable


def test_a_refused_batch_leaves_the_next_one_whole() -> None:
    """After a batch that was refused half-way, the next one is placed as if nothing had been."""
    target = batch(DEEP)
    with pytest.raises(ValueError, match="expected one action"):
        target.place_actions((np.ones(3, np.int64), {"a": (np.zeros((1, 2), np.int64),), "b": np.zeros((3, 3))}, np.zeros(3)))
    actions = sampled(DEEP, seed=9)
    assert target.place_actions(actions) is None
    assert_same(one_by_one(DEEP, actions), target.action_rows(0, 3), "actions")


# Rows as bytes


def joined(parts: Iterable[memoryview]) -> memoryview:
    """The parts as they arrive at the other end: one run of bytes, at an odd address."""
    return memoryview(b"?" + b"".join(parts))[1:]


@pytest.mark.parametrize("name", NATIVE)
def test_packed_actions_arrive_in_a_smaller_batch(name: str) -> None:
    """Rows 1 to 3 of four, packed in the caller, are all rows of the worker's own batch."""
    space = NATIVE[name]
    actions = sampled(space, 4)
    whole, own = batch(space, 4), batch(space, 2)
    assert whole.place_actions(actions) is None
    own.unpack_actions(joined(whole.pack_actions(1, 3)))
    assert_same(one_by_one(space, actions, 4)[1:3], own.action_rows(0, 2), "actions")


@pytest.mark.parametrize("name", EXAMPLE_SPACES)
def test_packed_results_arrive_in_their_rows(name: str) -> None:
    """What a worker packs lands in its rows of the caller's batch, to the bit, and in no others; objects follow beside it."""
    space = EXAMPLE_SPACES[name]
    whole, own = batch(spaces.Discrete(2), 5, space), batch(spaces.Discrete(2), 2, space)
    fill(whole, 1)
    whole.take_objects()
    fill(own, 2)
    before = copy.deepcopy((contents(whole, 0, 1), contents(whole, 3, 5)))
    whole.unpack_results(1, 3, [joined(own.pack_results(0, 2))])
    objects = own.take_objects()
    if objects is not None:
        whole.put_objects(objects, 1)
    assert_same(contents(own, 0, 2), contents(whole, 1, 3), "the worker's rows")
    assert_same(before, (contents(whole, 0, 1), contents(whole, 3, 5)), "the others' rows")


def test_objects_are_none_where_there_can_be_none() -> None:
    """A batch of fixed layout says None at once; the other kind gives each column's values written since it was last asked."""
    assert batch(spaces.Discrete(2), 3, spaces.Discrete(2)).take_objects() is None
    target = batch(spaces.Discrete(2))
    fill(target, 1)
    (first,) = target.take_objects() or [{}]
    assert sorted(first) == [0, 1, 2]
    assert not any(target.take_objects() or [])
