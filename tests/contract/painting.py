"""An env whose frames tell whose they are."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rayvec.testing import CountingEnv

__all__ = ["PaintingEnv"]


class PaintingEnv(CountingEnv):
    """A CountingEnv whose frame is filled with its index, its step and how often it was drawn: uint8 ``(2, 3, 3)``.

    Args:
        level: what ``render`` does first: ``("raise", error)``, ``("die", exit code)`` or ``("wait", path)``, for a file;
            ``set_attr`` can change it.
        **kwargs: CountingEnv's.

    Attributes:
        drawn: how often it was drawn.
    """

    def __init__(self, level: Any = None, **kwargs: Any) -> None:
        super().__init__(render_mode="rgb_array", **kwargs)
        self.level = level
        self.drawn = 0

    def render(self) -> npt.NDArray[np.uint8]:
        """The frame."""
        match self.level:
            case ("raise", error):
                raise error
            case ("die", code):
                os._exit(code)
            case ("wait", path):
                while not Path(path).exists():
                    time.sleep(0.002)
        self.drawn += 1
        return np.full((2, 3, 3), [1 + self.index, self._step, self.drawn], np.uint8)
