"""One image file as an RGB array, whatever its bit depth, colour space or orientation."""

import logging
import struct
from pathlib import Path

import numpy as np

from datasets_shards.frames.errors import FrameError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_RGB8 = (8, 2)  # bit depth, colour type
MAX_PIXELS = 1 << 26
"""67 million: more than any camera frame. A compressed file of kilobytes may declare thousands of millions."""

# pyvips logs what it also raises; without this every broken file would be told twice.
logging.getLogger("pyvips").setLevel(logging.CRITICAL)


def read_image(path: Path) -> np.ndarray:
    """Decode to RGB uint8 [H, W, 3].

    Grey is repeated, CMYK converted, 10 and 16 bits per channel are reduced to 8, what is transparent is blended with
    black, and the orientation of the EXIF tag is applied. Embedded colour profiles of RGB images are not: neither do
    the readers (OpenCV, DALI) that detectors are trained with apply them.

    Raises:
        FrameError: not an image, damaged, cut short, or one of more than `MAX_PIXELS`.
    """
    plain = _read_plain_png(path) if path.suffix.lower() == ".png" else None
    if plain is not None:
        return plain
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


def _read_plain_png(path: Path) -> np.ndarray | None:
    """What nearly all frames are, a PNG of 8-bit RGB, by Pillow, which takes two thirds of libvips' time for it.

    Returns None for every other file, broken ones included: libvips then says what it is.
    """
    from PIL import Image, ImageFile

    try:
        with path.open("rb") as file:
            header = file.read(26)
            width, height, depth, colour = struct.unpack_from(">IIBB", header, 16)
            if header[:8] != PNG_SIGNATURE or (depth, colour) != PNG_RGB8 or width * height > MAX_PIXELS:
                return None
            file.seek(0)
            image: ImageFile.ImageFile
            with Image.open(file, formats=["PNG"]) as image:
                pixels = np.array(image)
                if image.mode != "RGB" or image.info.keys() & {"transparency", "exif"}:
                    return None
                return pixels
    except (OSError, SyntaxError, struct.error):  # Pillow's PNG reader raises the second for broken chunks
        return None


def _open(path: Path):  # type: ignore[no-untyped-def]  # pyvips has no types
    import pyvips

    if path.suffix.lower() == ".bmp":
        return _open_bmp(path)
    try:
        # Sequential access streams the file: the header is known before anything is decoded. fail_on makes a file that
        # was cut short an error, where libvips would otherwise paint the rest grey.
        image = pyvips.Image.new_from_file(str(path), access="sequential", fail_on="truncated")
    except pyvips.Error as error:
        if not path.exists():
            raise FrameError(path, "no such file") from None
        raise FrameError(path, f"is no image ({_first_line(error)})") from None
    _check_size(path, image.width, image.height)
    return image


def _open_bmp(path: Path):  # type: ignore[no-untyped-def]
    """By Pillow, for libvips reads BMP only where it was built with ImageMagick."""
    import pyvips
    from PIL import Image

    try:
        with path.open("rb") as file, Image.open(file, formats=["BMP"]) as image:
            _check_size(path, *image.size)
            return pyvips.Image.new_from_array(np.asarray(image.convert("RGB")))
    except FileNotFoundError:
        raise FrameError(path, "no such file") from None
    except FrameError:
        raise
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise FrameError(path, f"can't be decoded ({_first_line(error)})") from None


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise FrameError(path, f"{width}x{height} pixels, more than the {MAX_PIXELS} that are read")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(getattr(error, "detail", error) or error).splitlines() if line.strip()]
    return lines[0] if lines else "libvips says no more"
