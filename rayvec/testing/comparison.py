"""Exact comparison of what came with what was due, and the error that tells the difference."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ConformanceError", "assert_same"]


class ConformanceError(AssertionError):
    """A vector env does not do what the contract says.

    Attributes:
        problem: what came and what was due.
        rule: the name of the check and its rule in words.
        mode: the autoreset mode it happened in.
        step: how many calls of ``reset`` and ``step`` had been made, this one included.
        env_index: the sub-env whose data differ.
        key: where in the data, for example ``"infos['nested']['step']"``.
        position: the index of the first element that differs, where an array differs.
    """

    def __init__(
        self,
        problem: str,
        *,
        rule: str | None = None,
        mode: str | None = None,
        step: int | None = None,
        env_index: int | None = None,
        key: str | None = None,
        position: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.rule = rule
        self.mode = mode
        self.step = step
        self.env_index = env_index
        self.key = key
        self.position = position

    def locate(
        self,
        *,
        rule: str | None = None,
        mode: str | None = None,
        step: int | None = None,
        env_index: int | None = None,
    ) -> None:
        """Adds what the place that raised could not know; what is known already stays."""
        self.rule = self.rule if self.rule is not None else rule
        self.mode = self.mode if self.mode is not None else mode
        self.step = self.step if self.step is not None else step
        self.env_index = self.env_index if self.env_index is not None else env_index

    def __str__(self) -> str:
        lines = [] if self.rule is None else [f"broken rule: {self.rule}"]
        places = [
            ("autoreset_mode", self.mode),
            ("call", self.step),
            ("sub-env", self.env_index),
            ("key", self.key),
        ]
        known = [f"{name} {value}" for name, value in places if value is not None]
        if known:
            lines.append(f"where: {', '.join(known)}")
        return "\n".join([*lines, self.problem])


def assert_same(expected: Any, actual: Any, where: str) -> None:
    """Checks that two values are the same down to types, dtypes, shapes and bits.

    Dicts, tuples (named ones included), lists and object arrays are compared part by part. NaN is the same as NaN, -0.0
    is not the same as 0.0. A numpy scalar and an array without axes are the same kind of thing; a numpy scalar and a
    Python number are not. The order of a dict's keys does not matter.

    Args:
        expected: what is due.
        actual: what came.
        where: what to call the value in an error's text.

    Raises:
        ConformanceError: they differ; its ``key`` says where.
    """
    if isinstance(expected, dict):
        if not isinstance(actual, dict) or expected.keys() != actual.keys():
            came = f"the keys {_keys(actual)}" if isinstance(actual, dict) else _shown(actual)
            raise _difference(where, came, f"the keys {_keys(expected)}")
        for key, value in expected.items():
            assert_same(value, actual[key], f"{where}[{key!r}]")
    elif isinstance(expected, tuple | list):
        if type(actual) is not type(expected) or len(actual) != len(expected):
            raise _difference(where, _shown(actual), _shown(expected))
        for index, value in enumerate(expected):
            assert_same(value, actual[index], f"{where}[{index}]")
    elif isinstance(expected, np.ndarray | np.generic):
        _assert_same_array(expected, actual, where)
    elif isinstance(expected, np.random.Generator):
        if not isinstance(actual, np.random.Generator):
            raise _difference(where, _shown(actual), "a numpy.random.Generator")
        assert_same(expected.bit_generator.state, actual.bit_generator.state, f"{where}.bit_generator.state")
    elif type(actual) is not type(expected) or not _is_equal(expected, actual):
        raise _difference(where, _shown(actual), _shown(expected))


def _assert_same_array(expected: npt.NDArray[Any] | np.generic, actual: Any, where: str) -> None:
    if not isinstance(actual, np.ndarray | np.generic):
        raise _difference(where, _shown(actual), _shown(expected))
    due, came = np.asarray(expected), np.asarray(actual)
    if due.dtype != came.dtype or due.shape != came.shape:
        raise _difference(
            where,
            f"an array of dtype {came.dtype} and shape {came.shape}: {_shown(came)}",
            f"dtype {due.dtype} and shape {due.shape}: {_shown(due)}",
        )
    if due.dtype == object:
        for position in np.ndindex(due.shape):
            try:
                assert_same(due[position], came[position], f"{where}[{', '.join(map(str, position))}]")
            except ConformanceError as error:
                error.position = position
                raise
        return
    different = np.argwhere(~_same_bits(due, came))
    if len(different):
        position = tuple(int(index) for index in different[0])
        at = f" at {list(position)}" if position else ""
        raise _difference(
            where,
            f"{came[position]!r}{at} ({_shown(came)})",
            f"{due[position]!r}{at} ({_shown(due)})",
            position,
        )


def _same_bits(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Element by element; NaN (and NaT) is the same as itself, and zeros have signs."""
    if one.dtype.kind == "c":
        return np.asarray(_same_bits(one.real, other.real) & _same_bits(one.imag, other.imag))
    if one.dtype.kind == "f":
        both_nan = np.isnan(one) & np.isnan(other)
        return np.asarray(((one == other) & (np.signbit(one) == np.signbit(other))) | both_nan)
    if one.dtype.kind in "mM":
        return np.asarray((one == other) | (np.isnat(one) & np.isnat(other)))
    return np.asarray(one == other)


def _is_equal(expected: Any, actual: Any) -> bool:
    if isinstance(expected, float | complex):
        return bool(_same_bits(np.asarray(expected), np.asarray(actual)))
    return bool(expected == actual)


def _difference(where: str, came: str, due: str, position: tuple[int, ...] | None = None) -> ConformanceError:
    return ConformanceError(f"{where}: got {came}, expected {due}", key=where, position=position)


def _keys(mapping: dict[Any, Any]) -> list[Any]:
    return sorted(mapping, key=repr)


def _shown(value: Any, limit: int = 200) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
