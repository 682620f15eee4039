"""The encoder: MozJPEG in this process, with the coefficients and quantization tables of MozJPEG's own cjpeg.

Two builds of it share the work. libvips carries one with vector instructions, and writes baseline files in 4:4:4 and
4:2:0 with it; it has no 4:2:2 and no 16-bit quantization tables, so all else, progressive files too, goes to
`mozjpeg403`. For the same pixels both write the coefficients and tables of cjpeg; only the order of the markers and the
scans of a progressive file may differ. One exception is known, see `JpegSettings.deringing`: a build with vector
instructions, be it cjpeg's or libvips', overflows there where a build without them doesn't.

Baseline with 8-bit tables is the default because nvJPEG's hardware decoder takes nothing else.
"""

from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np

from datasets_shards.errors import InputError
from datasets_shards.jpeg import cjpeg, mozjpeg403
from datasets_shards.jpeg.segments import DQT, SOF_BASELINE, describe_jpeg, jpeg_segments
from datasets_shards.jpeg.settings import JpegSettings, check_quality, chroma_subsampling
from datasets_shards.schema import RAW, Quality

__all__ = [
    "check_quality",
    "chroma_subsampling",
    "describe_encoder",
    "encode",
    "encode_jpeg",
    "encode_png",
    "jpeg_segments",
    "require_encoder",
    "require_mozjpeg",
]

DEFAULTS = JpegSettings()
PNG = {"compression": 6, "filter": "sub", "interlace": False}
PROBE_QUALITY = 77

# Luminance table of quant_table=3 (N. Robidoux, as in ImageMagick) in zigzag order, first entries; cjpeg's default. The
# table of the JPEG standard, which a libjpeg without MozJPEG falls back to, begins 16 11 12 14.
ROBIDOUX_HEAD = (16, 16, 16, 16, 17, 16, 18, 20, 20, 18)


def encode_jpeg(crop: np.ndarray, quality: int, settings: JpegSettings = DEFAULTS) -> bytes:
    """Compress one crop, RGB uint8 [H, W, 3], to a JPEG file.

    Raises:
        InputError: a quality outside 1 to 100; with the encoder "cjpeg", no such program, or one that fails.
        ValueError: other pixels than that.
    """
    check_quality(quality)
    mozjpeg403.check_crop(crop)
    if settings.encoder == "cjpeg":
        return cjpeg.encode(crop, quality, settings)
    if _libvips_writes(quality, settings):
        return _encode_by_libvips(crop, quality, settings)
    return mozjpeg403.encode(crop, quality, settings)


def encode_png(crop: np.ndarray) -> bytes:
    """Write one crop, RGB uint8 [H, W, 3], or a mask, grey uint8 [H, W], to a lossless PNG file."""
    import pyvips

    return pyvips.Image.new_from_array(crop).pngsave_buffer(keep="none", **PNG)


def encode(crop: np.ndarray, quality: Quality, settings: JpegSettings = DEFAULTS) -> bytes:
    """The image member of a sample: a JPEG, or a PNG in the raw set."""
    return encode_png(crop) if quality == RAW else encode_jpeg(crop, int(quality), settings)


def describe_encoder(quality: Quality, settings: JpegSettings = DEFAULTS) -> dict[str, Any]:
    """For the manifest: encoder, version and every parameter that it was given.

    Subsampling and the width of the quantization table's entries are read from a file that the encoder writes for it.
    """
    if quality == RAW:
        return {"name": "png", "library": libvips_version(), **PNG}
    quality = int(quality)
    if settings.encoder == "cjpeg":
        library = cjpeg.find_cjpeg().version
    else:
        library = libvips_version() if _libvips_writes(quality, settings) else mozjpeg403.describe()
    facts = describe_jpeg(encode_jpeg(_probe(), quality, settings))
    written = {"mode": facts.form, "subsampling": facts.subsampling, "table_bits": facts.table_bits}
    fixed = {"optimize_coding": True, "optimize_scans": settings.mode == "progressive"}
    return {"name": settings.encoder, "library": library, **settings.describe(), **written, **fixed}


def require_encoder(settings: JpegSettings = DEFAULTS) -> None:
    """Look whether the encoder of these settings is there and is MozJPEG, before hours of other work.

    Raises:
        InputError: it can't be loaded or found, isn't MozJPEG or can't write a small image; says what to do.
    """
    if settings.encoder == "cjpeg":
        cjpeg.encode(_probe(), PROBE_QUALITY, settings)
        return
    require_mozjpeg()
    try:
        mozjpeg403.load()
    except OSError as error:
        raise InputError(f"jpeglib's MozJPEG can't be loaded ({error}); install it anew: pip install jpeglib") from None


def require_mozjpeg(encoder: Callable[[np.ndarray, int], bytes] = encode_jpeg) -> None:
    """Encode a small image and look whether libvips has MozJPEG.

    libvips passes trellis quantization and the choice of quantization table on to MozJPEG; built with another libjpeg
    it ignores them with a warning, and the shards would silently hold something else than they say.

    Raises:
        InputError: no pyvips, no libvips, or one without MozJPEG; says how to get one.
    """
    remedy = "install the one that carries it: pip install 'pyvips[binary]'"
    try:
        data = encoder(_probe(), PROBE_QUALITY)
    except (ImportError, OSError) as error:
        raise InputError(f"libvips can't be loaded ({str(error).splitlines()[0]}); {remedy}") from None
    scale = 200 - 2 * PROBE_QUALITY
    expected = [(entry * scale + 50) // 100 for entry in ROBIDOUX_HEAD]
    markers = dict(jpeg_segments(data))
    table = next(content for marker, content in jpeg_segments(data) if marker == DQT)
    if list(table[1 : 1 + len(expected)]) != expected:
        raise InputError(f"libvips was built without MozJPEG (it ignored the choice of quantization table); {remedy}")
    if SOF_BASELINE not in markers:
        raise InputError(f"libvips wrote something else than a baseline JPEG; {remedy}")


def _libvips_writes(quality: int, settings: JpegSettings) -> bool:
    return settings.mode == "baseline" and settings.subsampling_at(quality) != "4:2:2"


def _encode_by_libvips(crop: np.ndarray, quality: int, settings: JpegSettings) -> bytes:
    import pyvips

    return pyvips.Image.new_from_array(crop).jpegsave_buffer(
        Q=quality,
        subsample_mode="on" if settings.subsampling_at(quality) == "4:2:0" else "off",
        keep="none",
        interlace=False,
        optimize_coding=True,
        trellis_quant=settings.trellis,
        overshoot_deringing=settings.deringing,
        quant_table=settings.quant_table,
    )


def libvips_version() -> str:
    """Name libvips, its version, and where it comes from."""
    import pyvips

    library = f"libvips {pyvips.version(0)}.{pyvips.version(1)}.{pyvips.version(2)}"
    try:  # the wheel carries its own libvips with its own MozJPEG, and its version names them both
        return f"{library} (pyvips-binary {metadata.version('pyvips-binary')})"
    except metadata.PackageNotFoundError:
        return f"{library} (of the system)"


def _probe() -> np.ndarray:
    return np.zeros((16, 16, 3), np.uint8)
