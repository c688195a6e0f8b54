"""Pickling across process borders: by reference where that works, by value (cloudpickle) where it does not."""

from __future__ import annotations

import pickle
from typing import Any

import cloudpickle

__all__ = ["dumps", "loads"]

loads = pickle.loads


def dumps(value: Any) -> bytes:
    """Pickles ``value``; classes and functions that no import reaches travel by value.

    Raises:
        Exception: whatever pickling raised, when neither way works.
    """
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception:
        pickled: bytes = cloudpickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        return pickled
