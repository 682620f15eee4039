"""Is an image member what its set declares: format, size, kind of JPEG, and does it decode?"""

import io
import struct
import warnings
from dataclasses import dataclass
from typing import Any

import simplejpeg
from PIL import Image

from datasets_shards.jpeg.segments import EOI, SOF_BASELINE, SOS, describe_jpeg, jpeg_segments
from datasets_shards.schema import RAW

MAX_SIDE = 4096
"""The largest crop that `pack` makes, pixels: the limit where neither index nor manifest gives the size."""

MODES = ("baseline", "extended", "progressive")
SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0", "4:4:0", "4:1:1")

IMAGE_FACTS = {
    "mode": "whether the JPEGs are baseline or progressive",
    "table_bits": "the precision of the quantization tables",
    "subsampling": "the sampling of the chroma",
}

MASK_MODES = ("L", "1")
"""Pillow's names of the pixel formats of a mask."""

PNG_HEAD_BYTES = 24
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class ImageRules:
    """What a manifest says of its images; None for what it doesn't say.

    Args:
        extension: "jpg" or "png".
        mode: "baseline" or "progressive".
        table_bits: 8 or 16, the precision of the widest quantization table.
        subsampling: such as "4:2:0".
        decode: whether images are decoded, or only their headers read.
    """

    extension: str | None = None
    mode: str | None = None
    table_bits: int | None = None
    subsampling: str | None = None
    decode: bool = True

    @property
    def unknown(self) -> list[str]:
        """What can't be checked, for the manifest doesn't declare it."""
        if self.extension == "png":
            return []
        return [name for name in IMAGE_FACTS if getattr(self, name) is None]


def image_rules(quality: Any, encoder: dict[str, Any], decode: bool) -> ImageRules:
    """The rules for a set, out of its manifest. Raises ValueError where the manifest declares what no encoder does."""
    if quality == RAW:
        return ImageRules("png", decode=decode)
    mode, subsampling = encoder.get("mode"), encoder.get("subsampling")
    # A baseline frame has no other tables (ITU-T T.81, table B.4), so manifests that don't name them mean 8 bits.
    bits = encoder.get("table_bits", 8 if mode == "baseline" else None)
    for name, value, known in (
        ("mode", mode, MODES),
        ("table_bits", bits, (8, 16)),
        ("subsampling", subsampling, SUBSAMPLINGS),
    ):
        if value is not None and value not in known:
            raise ValueError(f"encoder {name} {value!r} is none of {', '.join(map(str, known))}")
    return ImageRules("jpg", mode, bits, subsampling, decode)


def check_image(content: bytes, extension: str, size: tuple[int, int] | None, rules: ImageRules) -> list[str]:
    """What is wrong with an image member.

    Args:
        content: the member's bytes.
        extension: "jpg" or "png".
        size: width and height that it must have, pixels, or None where nothing tells.
        rules: what its set declares.

    Returns:
        One phrase per problem. An image of another size than it must have is not decoded: a header may promise any.
    """
    try:
        return _check_jpeg(content, size, rules) if extension == "jpg" else check_png(content, size, rules.decode)
    except (ValueError, struct.error) as error:
        return [f"no readable {'JPEG' if extension == 'jpg' else 'PNG'} ({error})"]


def _check_jpeg(content: bytes, size: tuple[int, int] | None, rules: ImageRules) -> list[str]:
    facts = describe_jpeg(content)
    declared = (
        ("it is", facts.form, rules.mode),
        ("its chroma is sampled", facts.subsampling, rules.subsampling),
        ("its widest quantization table has this many bits:", facts.table_bits, rules.table_bits),
    )
    problems = [
        f"{what} {found} where the manifest declares {right}"
        for what, found, right in declared
        if right is not None and found != right
    ]
    # Inside a scan no marker's code follows a byte FF, so outside the headers FFDA begins another scan.
    scan = bytes((0xFF, SOS))
    scans = content.count(scan) - sum(data.count(scan) for _, data in jpeg_segments(content))
    if facts.sof == SOF_BASELINE and scans > 1:
        problems.append(f"it is baseline and yet has {scans} scans")
    if content[-2:] != bytes((0xFF, EOI)):
        problems.append("something follows its end")
    height, width, _, _ = simplejpeg.decode_jpeg_header(content, strict=False)  # what the decoder goes by
    if wrong := check_size((width, height), size):
        return [*problems, wrong]
    if rules.decode:
        try:
            simplejpeg.decode_jpeg(content, "RGB", fastdct=False, fastupsample=False)
        except ValueError as error:
            problems.append(f"does not decode ({error})")
    return problems


def check_png(
    content: bytes, size: tuple[int, int] | None, decode: bool, modes: tuple[str, ...] = ("RGB",)
) -> list[str]:
    """What is wrong with a PNG; chunks' checksums are checked even where it isn't decoded.

    Args:
        content: the member's bytes.
        size: as in `check_image`.
        decode: whether to decode the pixels.
        modes: Pillow's names of the pixel formats that are right.
    """
    if content[:8] != PNG_SIGNATURE or content[12:16] != b"IHDR" or len(content) < PNG_HEAD_BYTES:
        raise ValueError("it doesn't begin as one")
    width, height = struct.unpack_from(">II", content, 16)
    if wrong := check_size((width, height), size):
        return [wrong]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
                mode = image.mode
                image.verify()
            if decode:
                with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
                    image.load()
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombWarning) as error:
        return [f"does not decode ({error})"]
    return [] if mode in modes else [f"its pixels are {mode}, not {' or '.join(modes)}"]


def check_size(found: tuple[int, int], size: tuple[int, int] | None) -> str | None:
    """What is wrong with a width and height that a header claims, or None."""
    if size is not None and found != size:
        return f"it is {found[0]}x{found[1]} where the index says {size[0]}x{size[1]}"
    if not all(1 <= side <= MAX_SIDE for side in found):
        return f"it claims {found[0]}x{found[1]} pixels, more than any crop has"
    return None
