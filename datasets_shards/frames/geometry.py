"""How the pixels that a video stores become the picture that a player shows: square, upright, not mirrored."""

from fractions import Fraction
from typing import Any

import numpy as np

NEARLY_SQUARE = Fraction(1, 100)
"""Encoders write pixels of 427:426 where they rounded a size: scaling would only blur."""
NARROWEST = Fraction(1, 4)


def square_size(width: int, height: int, pixel: Fraction | None) -> tuple[int, int]:
    """Width and height of a frame with square pixels; it is enlarged, never shrunk.

    Args:
        width: of the stored frame, pixels.
        height: likewise.
        pixel: width over height of a stored pixel (the sample aspect ratio); None or 0 where nobody says.

    Raises:
        ValueError: a pixel more than four times as wide as high, or as high as wide.
    """
    if not pixel or abs(pixel - 1) < NEARLY_SQUARE:
        return width, height
    if not NARROWEST <= pixel <= 1 / NARROWEST:
        raise ValueError(f"pixels of {pixel.numerator}:{pixel.denominator}, which no camera has")
    return (round(width * pixel), height) if pixel > 1 else (width, round(height / pixel))


def is_turned(frame: Any) -> bool:
    """Whether the container asks for the frame to be turned or mirrored."""
    return not np.array_equal(_matrix(frame), np.eye(2))


def as_shown(image: np.ndarray, frame: Any) -> np.ndarray:
    """Turn and mirror an image as its frame's display matrix says, [H, W, 3], to the nearest quarter turn.

    FFmpeg's matrix takes a point (x, y), as a row, to (x, y) times it.
    """
    matrix = _matrix(frame)
    if abs(matrix[0, 1]) > abs(matrix[0, 0]):  # what was a row becomes a column
        image = image.transpose(1, 0, 2)
        matrix = matrix[::-1]
    return image[:: -1 if matrix[1, 1] < 0 else 1, :: -1 if matrix[0, 0] < 0 else 1]


def _matrix(frame: Any) -> np.ndarray:
    """The display matrix's turning part, signs and scale; the unit matrix where there is none."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            return np.frombuffer(data, np.int32)[[0, 1, 3, 4]].reshape(2, 2) / (1 << 16)
    return np.eye(2)
