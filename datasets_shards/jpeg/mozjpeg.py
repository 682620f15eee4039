"""The encoder: MozJPEG inside libvips, with the parameters of MozJPEG's own `cjpeg -baseline -quality Q`.

DCT coefficients and quantization tables are those of cjpeg; only the order of the markers differs. Baseline with 8-bit
tables is the default because nvJPEG's hardware decoder takes nothing else.
"""

import struct
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np

from datasets_shards.errors import InputError
from datasets_shards.schema import RAW, Quality

BASELINE = {
    "interlace": False,
    "optimize_coding": True,
    "trellis_quant": True,
    "overshoot_deringing": True,
    "quant_table": 3,
}
PNG = {"compression": 6, "filter": "sub", "interlace": False}
PROBE_QUALITY = 77

# Luminance table of quant_table=3 (N. Robidoux, as in ImageMagick) in zigzag order, first entries; cjpeg's default. The
# table of the JPEG standard, which a libjpeg without MozJPEG falls back to, begins 16 11 12 14.
ROBIDOUX_HEAD = (16, 16, 16, 16, 17, 16, 18, 20, 20, 18)


def chroma_subsampling(quality: int) -> str:
    """cjpeg's own rule: 4:4:4 from quality 90, 4:2:2 from 80, else 4:2:0."""
    return "4:4:4" if quality >= 90 else "4:2:2" if quality >= 80 else "4:2:0"


def check_quality(quality: Quality) -> None:
    """Raise InputError for a quality that libvips can't encode as cjpeg does."""
    if quality != RAW and chroma_subsampling(int(quality)) == "4:2:2":
        raise InputError(
            f"quality {quality}: from 80 to 89 MozJPEG's cjpeg halves the chroma in one direction only (4:2:2), "
            "which libvips can't write; choose a quality up to 79 or from 90"
        )


def encode_jpeg(crop: np.ndarray, quality: int) -> bytes:
    """Compress one crop, RGB uint8 [H, W, 3], to a baseline JPEG file."""
    import pyvips

    subsample = "on" if chroma_subsampling(quality) == "4:2:0" else "off"
    image = pyvips.Image.new_from_array(crop)
    return image.jpegsave_buffer(Q=quality, subsample_mode=subsample, keep="none", **BASELINE)


def encode_png(crop: np.ndarray) -> bytes:
    """Write one crop, RGB uint8 [H, W, 3], to a lossless PNG file."""
    import pyvips

    return pyvips.Image.new_from_array(crop).pngsave_buffer(keep="none", **PNG)


def encode(crop: np.ndarray, quality: Quality) -> bytes:
    """The image member of a sample: a baseline JPEG, or a PNG in the raw set."""
    return encode_png(crop) if quality == RAW else encode_jpeg(crop, int(quality))


def describe_encoder(quality: Quality) -> dict[str, Any]:
    """For the manifest: encoder, version and every parameter that it was given."""
    import pyvips

    library = f"libvips {pyvips.version(0)}.{pyvips.version(1)}.{pyvips.version(2)}"
    try:  # the wheel carries its own libvips with its own MozJPEG, and its version names them both
        library += f" (pyvips-binary {metadata.version('pyvips-binary')})"
    except metadata.PackageNotFoundError:
        library += " (of the system)"
    if quality == RAW:
        return {"name": "png", "library": library, **PNG}
    subsampling = chroma_subsampling(int(quality))
    return {"name": "mozjpeg", "library": library, "mode": "baseline", "subsampling": subsampling, **BASELINE}


def require_mozjpeg(encoder: Callable[[np.ndarray, int], bytes] = encode_jpeg) -> None:
    """Encode a small image and look whether MozJPEG wrote it.

    libvips passes trellis quantization and the choice of quantization table on to MozJPEG; built with another libjpeg
    it ignores them with a warning, and the shards would silently hold something else than they say.

    Raises:
        InputError: no pyvips, no libvips, or one without MozJPEG; says how to get one.
    """
    remedy = "install the one that carries it: pip install 'pyvips[binary]'"
    try:
        data = encoder(np.zeros((16, 16, 3), np.uint8), PROBE_QUALITY)
    except (ImportError, OSError) as error:
        raise InputError(f"libvips can't be loaded ({str(error).splitlines()[0]}); {remedy}") from None
    scale = 200 - 2 * PROBE_QUALITY
    expected = [(entry * scale + 50) // 100 for entry in ROBIDOUX_HEAD]
    markers = dict(jpeg_segments(data))
    table = next(content for marker, content in jpeg_segments(data) if marker == 0xDB)
    if list(table[1 : 1 + len(expected)]) != expected:
        raise InputError(f"libvips was built without MozJPEG (it ignored the choice of quantization table); {remedy}")
    if 0xC0 not in markers:
        raise InputError(f"libvips wrote something else than a baseline JPEG; {remedy}")


def jpeg_segments(data: bytes) -> list[tuple[int, bytes]]:
    """The marker segments of a JPEG file up to the first scan, as (marker, content): 0xDB DQT, 0xC0 baseline SOF."""
    segments, position = [], 2  # after SOI
    while position + 4 <= len(data):
        marker, length = data[position + 1], struct.unpack_from(">H", data, position + 2)[0]
        segments.append((marker, data[position + 4 : position + 2 + length]))
        if marker == 0xDA:
            break
        position += 2 + length
    return segments
