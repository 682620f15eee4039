"""One image file as an RGB array, whatever its bit depth, colour space or orientation."""

from pathlib import Path

import numpy as np

from datasets_shards.frames.errors import FrameError

MAX_PIXELS = 1 << 26
"""67 million: more than any camera frame. A compressed file of kilobytes may declare thousands of millions."""


def image_size(path: Path) -> tuple[int, int]:
    """Width and height from the header, in pixels, before any rotation that the file asks for.

    Raises:
        FrameError: not an image, or one of more than `MAX_PIXELS`.
    """
    image = _open(path)
    return image.width, image.height


def read_image(path: Path) -> np.ndarray:
    """Decode to RGB uint8 [H, W, 3].

    Grey is repeated, CMYK converted, 10 and 16 bits per channel are reduced to 8, what is transparent is blended with
    black, and the orientation of the EXIF tag is applied. Embedded colour profiles of RGB images are not: neither do
    the readers (OpenCV, DALI) that detectors are trained with apply them.

    Raises:
        FrameError: not an image, damaged, cut short, or one of more than `MAX_PIXELS`.
    """
    import pyvips

    image = _open(path)
    try:
        image = image.autorot()
        if image.interpretation != "srgb" or image.format != "uchar":
            image = image.colourspace("srgb")
        if image.hasalpha():
            image = image.flatten()
        return np.ascontiguousarray(image.cast("uchar").numpy())
    except pyvips.Error as error:
        raise FrameError(path, f"can't be decoded ({_first_line(error)})") from None


def _open(path: Path):  # type: ignore[no-untyped-def]  # pyvips has no types
    import pyvips

    try:
        # Sequential access streams the file: the header is known before anything is decoded. fail_on makes a file that
        # was cut short an error, where libvips would otherwise paint the rest grey.
        image = pyvips.Image.new_from_file(str(path), access="sequential", fail_on="truncated")
    except pyvips.Error as error:
        if not path.exists():
            raise FrameError(path, "no such file") from None
        raise FrameError(path, f"is no image ({_first_line(error)})") from None
    if image.width * image.height > MAX_PIXELS:
        raise FrameError(path, f"{image.width}x{image.height} pixels, more than the {MAX_PIXELS} that are read")
    return image


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(getattr(error, "detail", error) or error).splitlines() if line.strip()]
    return lines[0] if lines else "libvips says no more"
