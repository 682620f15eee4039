"""One image file as an RGB array, and what a file is."""

from pathlib import Path

import numpy as np

from datasets_shards.frames.errors import FrameError, check_file
from datasets_shards.frames.pixels import HEAD_BYTES, ImageError, decode_image, image_loader

MAX_FILE_BYTES = 1 << 30
"""1 GiB: more than `MAX_PIXELS` of 16 bits in four channels take without any compression."""


def read_image(path: Path) -> np.ndarray:
    """Decode to RGB uint8 [H, W, 3], as `decode_image`.

    Raises:
        FrameError: no file, not an image, damaged, cut short, or too large.
    """
    check_file(path)
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise FrameError(path, f"{size} bytes, more than the {MAX_FILE_BYTES} of an image that is read")
    try:
        return decode_image(path.read_bytes())
    except ImageError as error:
        raise FrameError(path, str(error)) from None


def is_image(path: Path) -> bool | None:
    """Whether a file is an image or a video, by its content; None where that says neither.

    Raises:
        FrameError: no file.
        OSError: it can't be read.
    """
    check_file(path)
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if image_loader(head) is not None:
        return True
    if head[4:8] == b"ftyp" or head.startswith(b"\x1a\x45\xdf\xa3") or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return False
    return None
