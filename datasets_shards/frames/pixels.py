"""One image file's bytes as an RGB array: the one decoder of packer, `predict` and served models.

A served model runs without this package, so this file is logged beside it as it stands and imports nothing of the
project.
"""

import io
import logging
from typing import Any

import numpy as np
from PIL import Image

MAX_PIXELS = 1 << 26
"""The limit for an image, or a video's frame: more than any camera's. A file of kilobytes may declare much more."""

HEAD_BYTES = 32
"""How much of a file's beginning tells its format."""

FORMATS = "JPEG, PNG, WebP, TIFF, AVIF and BMP"
_MAGIC = {
    b"\xff\xd8\xff": "jpegload",
    b"\x89PNG\r\n\x1a\n": "pngload",
    b"II*\0": "tiffload",
    b"MM\0*": "tiffload",
    b"II+\0": "tiffload",
    b"MM\0+": "tiffload",
    b"BM": "bmp",
}
_HEIF_BRANDS = {b"avif", b"avis", b"mif1", b"msf1", b"heic", b"heix", b"hevc"}
_INTEGERS = ("uchar", "ushort")

# pyvips logs what it also raises; without this every broken file would be told twice.
logging.getLogger("pyvips").setLevel(logging.CRITICAL)


class ImageError(ValueError):
    """Bytes that aren't an image, or not one that is read; the message says why, in one line."""


def image_loader(head: bytes) -> str | None:
    """Name of the decoder for a file that begins with `head` (`HEAD_BYTES` do); None where it is no image.

    These and no others are ever called: left to choose for itself, libvips would also take SVG, which reads other files
    and may run for hours, tables of numbers in text, and whatever else its build knows.
    """
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webpload"
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        return "heifload"
    return next((loader for magic, loader in _MAGIC.items() if head.startswith(magic)), None)


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode to RGB uint8 [H, W, 3].

    The format is what the content says. Grey is repeated, CMYK converted, 16 bits per channel are reduced to 8, what is
    transparent is blended with black, and the orientation of the EXIF tag is applied. Embedded colour profiles of RGB
    images are not: neither do the readers (OpenCV, DALI) that detectors are trained with apply them.

    Raises:
        ImageError: none of the formats that are read, damaged, cut short, or of more than `max_pixels`.
    """
    loader = image_loader(data[:HEAD_BYTES])
    if loader is None:
        raise ImageError(f"is no image, by its content ({FORMATS} are read)")
    try:
        return _decode_bmp(data, max_pixels) if loader == "bmp" else _decode(data, loader, max_pixels)
    except ImageError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a decoder raises for odd bytes is about these bytes
        raise ImageError(f"can't be decoded ({describe_error(error)})") from None


def describe_error(error: Exception) -> str:
    """Type and first line of what a decoder raised."""
    # pyvips has what libvips said in the first, FFmpeg's errors what it is without the path in the second
    text = str(getattr(error, "detail", "") or getattr(error, "strerror", "") or error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *lines[:1]])


def _decode(data: bytes, loader: str, max_pixels: int) -> np.ndarray:
    import pyvips

    # Sequential access streams the file: the header is known before anything is decoded. fail_on makes a file that was
    # cut short an error, where libvips would otherwise paint the rest grey.
    image = getattr(pyvips.Image, f"{loader}_buffer")(data, access="sequential", fail_on="truncated")
    _check_size(image.width, image.height, max_pixels)
    if image.format not in _INTEGERS and image.interpretation not in ("lab", "labs"):
        raise ImageError(f"has pixels of type {image.format}; save it with 8 or 16 bits per channel")
    return _upright_rgb(image)


def _upright_rgb(image: Any) -> np.ndarray:
    if image.get_typeof("orientation") and image.get("orientation") != 1:
        image = image.copy_memory().autorot()  # turning takes rows in another order than they are streamed in
    if image.interpretation != "srgb" or image.format != "uchar":
        image = image.colourspace("srgb")
    if image.hasalpha():
        image = image.flatten()
    pixels = np.ascontiguousarray(image.cast("uchar").numpy())
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ImageError(f"has {image.bands} channels; those of grey, RGB and CMYK, with or without alpha, are read")
    return pixels


def _decode_bmp(data: bytes, max_pixels: int) -> np.ndarray:
    """By Pillow, for libvips reads BMP only where it was built with ImageMagick."""
    with Image.open(io.BytesIO(data), formats=["BMP"]) as image:
        _check_size(*image.size, max_pixels)
        return np.array(image.convert("RGB"))


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(f"{width}x{height} pixels, more than the {max_pixels} that are read")
