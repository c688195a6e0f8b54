"""Tiling frames: which pixel comes where, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from rayvec import tile_images

SHAPES = [(2, 3), (2, 3, 1), (4, 2, 3), (3, 3, 4)]


def frames_of(shape: tuple[int, ...], count: int) -> list[npt.NDArray[np.uint8]]:
    """Frames of which no pixel is black and no two frames are alike."""
    return [np.random.default_rng(index).integers(1, 256, shape, np.uint8) for index in range(count)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("columns", [None, 1, 2, 3, 9])
@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_each_frame_has_its_cell(shape: tuple[int, ...], columns: int | None, count: int) -> None:
    """Row by row, pixel by pixel; what is left over is black, and opaque where there is such a thing."""
    frames = frames_of(shape, count)
    kept = [frame.copy() for frame in frames]
    picture = tile_images(frames, columns)
    height, width = shape[:2]
    wide = columns or {1: 1, 2: 2, 5: 3, 6: 3}[count]
    high = -(-count // wide)
    assert picture.shape == (high * height, wide * width, *shape[2:])
    assert picture.dtype == np.uint8
    black = np.zeros(shape, np.uint8)
    if shape[2:] == (4,):
        black[..., 3] = 255
    for cell in range(high * wide):
        top, left = cell // wide * height, cell % wide * width
        due = frames[cell] if cell < count else black
        np.testing.assert_array_equal(picture[top : top + height, left : left + width], due)
    picture[...] = 7
    for frame, before in zip(frames, kept, strict=True):
        np.testing.assert_array_equal(frame, before)


def test_the_grid_is_near_square() -> None:
    """As many columns as rows, or one more; no row is empty."""
    for count in range(1, 40):
        rows, columns = tile_images([np.zeros((1, 1), np.uint8)] * count).shape
        assert columns - rows in (0, 1)
        assert (rows - 1) * columns < count <= rows * columns


def test_what_frames_may_come_in() -> None:
    """A stack, a tuple, a generator, arrays that cannot be written to, and NumPy's numbers give one picture."""
    frames = frames_of((2, 3, 3), 3)
    due = tile_images(frames)
    stack = np.stack(frames)
    stack.flags.writeable = False
    for given in (stack, tuple(frames), iter(frames), [np.asfortranarray(frame) for frame in frames]):
        np.testing.assert_array_equal(tile_images(given), due)
    np.testing.assert_array_equal(tile_images(frames, np.int64(2)), due)


FRAME = np.zeros((4, 5, 3), np.uint8)
RENDERING = 'render_mode="rgb_array"'
REFUSED: dict[str, tuple[Any, type[Exception], list[str]]] = {
    "nothing": ([], ValueError, ["expected one frame at least, got none", RENDERING]),
    "an empty stack": (np.zeros((0, 4, 5, 3), np.uint8), ValueError, ["got none", RENDERING]),
    "None": (None, TypeError, ["images: expected a sequence of frames, got None", RENDERING]),
    "a frame that is None": ([FRAME, None], TypeError, ["images[1]: expected a frame", "got None", RENDERING]),
    "a list of frames": ([[FRAME]], TypeError, ["images[0]", "got a list", RENDERING]),
    "text": (["> <"], TypeError, ["images[0]", "got a str", RENDERING]),
    "floats": ([FRAME / 255], TypeError, ["images[0]", "one of dtype float64", "astype(np.uint8)"]),
    "another dtype": ([FRAME, FRAME.astype(np.int32)], TypeError, ["images[1]", "one of dtype int32"]),
    "another size": ([FRAME, FRAME, FRAME[:3]], ValueError, ["images[2]", "images[0], (4, 5, 3)", "got (3, 5, 3)", "Resize"]),
    "grey among colours": ([FRAME, FRAME[..., 0]], ValueError, ["images[1]", "got (4, 5)"]),
    "channels first": ([FRAME.transpose(2, 0, 1)], ValueError, ["shape (3, 4, 5)", "transpose(1, 2, 0)"]),
    "two channels": ([FRAME[..., :2]], ValueError, ["shape (4, 5, 2)", "1, 3 or 4 channels"]),
    "a stack in a list": ([FRAME[None]], ValueError, ["shape (1, 4, 5, 3)"]),
    "a row of pixels": ([FRAME[0, :, 0]], ValueError, ["shape (5,)"]),
    "no pixels": ([FRAME[:0]], ValueError, ["shape (0, 5, 3)"]),
    "a single frame": (FRAME, ValueError, ["one array of shape (4, 5, 3)", "into a list"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    """What is no frame, and frames that differ: the error says which, what was due, and what to do."""
    images, error, told = REFUSED[case]
    with pytest.raises(error) as caught:
        tile_images(images)
    for words in told:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "error"), [(0, ValueError), (-2, ValueError), (1.5, TypeError), ("2", TypeError), (True, TypeError)]
)
def test_refused_columns(columns: Any, error: type[Exception]) -> None:
    """The number of columns is one from 1 on."""
    with pytest.raises(error, match=re.escape(f"columns: expected None or a whole number from 1 on, got {columns!r}")):
        tile_images([FRAME], columns)
