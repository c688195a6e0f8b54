"""Frames of sub-envs, side by side in one picture.

::

    tile_images(envs.render(env_ids=[0, 1, 2, 3, 4]))        0 1 2
                                                             3 4 ·     an empty cell is black
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["tile_images"]

_CHANNELS = (1, 3, 4)
_EXPECTED = "expected a frame: a uint8 array (height, width, channels) with 1, 3 or 4 channels, or (height, width)"
_RENDERING = 'Frames come from render() of envs that are made with render_mode="rgb_array".'


def tile_images(images: Iterable[npt.ArrayLike], columns: int | None = None) -> npt.NDArray[np.uint8]:
    """Tiles frames into one picture, row by row.

    Args:
        images: the frames, all alike: uint8 ``(height, width, channels)`` with 1, 3 or 4 channels, or grey ``(height, width)``;
            what :meth:`render` of a vector env gives.
        columns: how many stand side by side; None: as many as make the grid square, or one more than it has rows.

    Returns:
        A new array, uint8 ``(rows * height, columns * width, channels)``, without channels where the frames have none. Cells
        that are left over are black (and opaque).

    Raises:
        TypeError: a frame is None, or no array of uint8; or ``columns`` is no whole number.
        ValueError: there are no frames, they differ in shape, or one is no frame by its shape; or ``columns`` is below 1.

    Example:
        >>> import numpy as np
        >>> import rayvec
        >>> frames = [np.full((2, 3), shade, np.uint8) for shade in (10, 20, 30)]
        >>> rayvec.tile_images(frames)
        array([[10, 10, 10, 20, 20, 20],
               [10, 10, 10, 20, 20, 20],
               [30, 30, 30,  0,  0,  0],
               [30, 30, 30,  0,  0,  0]], dtype=uint8)
    """
    frames = _checked_frames(images)
    columns = _checked_columns(columns, len(frames))
    rows = math.ceil(len(frames) / columns)
    height, width, *channels = frames[0].shape
    picture = np.zeros((rows * height, columns * width, *channels), np.uint8)
    cells = picture.reshape(rows, height, columns, width, *channels).swapaxes(1, 2)
    if channels == [4]:
        cells[-1, ..., 3] = 255
    for position, frame in enumerate(frames):
        cells[divmod(position, columns)] = frame
    return picture


def _checked_frames(images: Any) -> list[npt.NDArray[np.uint8]]:
    if isinstance(images, np.ndarray) and images.ndim < 4:
        raise ValueError(
            f"images: expected a sequence of frames, got one array of shape {images.shape}. Put a single frame into a list, "
            "and pass grey frames that are stacked as list(images)."
        )
    if not isinstance(images, Iterable):
        raise TypeError(f"images: expected a sequence of frames, got {_told(images)}. {_RENDERING}")
    frames = [_checked_frame(position, image) for position, image in enumerate(images)]
    if not frames:
        raise ValueError(f"images: expected one frame at least, got none. {_RENDERING}")
    for position, frame in enumerate(frames):
        if frame.shape != frames[0].shape:
            raise ValueError(
                f"images[{position}]: expected the shape of images[0], {frames[0].shape}, as frames in one picture are all of "
                f"one size, got {frame.shape}. Resize them, or tile those of each size for themselves."
            )
    return frames


def _checked_frame(position: int, image: Any) -> npt.NDArray[np.uint8]:
    due = f"images[{position}]: {_EXPECTED}, got"
    if not hasattr(image, "__array__"):
        raise TypeError(f"{due} {_told(image)}. {_RENDERING}")
    frame = np.asarray(image)
    if frame.dtype != np.uint8:
        raise TypeError(
            f"{due} one of dtype {frame.dtype}. Convert it: floats from 0 to 1 with (frame * 255).astype(np.uint8)."
        )
    is_coloured = frame.ndim == 3 and frame.shape[2] in _CHANNELS
    if not (is_coloured or frame.ndim == 2) or not frame.size:
        hint = (
            "Channels come last: frame.transpose(1, 2, 0)." if frame.ndim == 3 and frame.shape[0] in _CHANNELS else _RENDERING
        )
        raise ValueError(f"{due} one of shape {frame.shape}. {hint}")
    return frame


def _told(image: Any) -> str:
    """Something that is no frame, in few words."""
    return "None" if image is None else f"a {type(image).__name__}"


def _checked_columns(columns: int | None, num_images: int) -> int:
    if columns is None:
        return math.ceil(math.sqrt(num_images))
    due = "columns: expected None or a whole number from 1 on, got"
    if isinstance(columns, bool):
        raise TypeError(f"{due} {columns!r}")
    try:
        number = operator.index(columns)
    except TypeError:
        raise TypeError(f"{due} {columns!r}") from None
    if number < 1:
        raise ValueError(f"{due} {number}")
    return number
