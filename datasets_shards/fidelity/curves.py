"""What is compared: each curve is a way to take a crop through a codec and back, at any quality."""

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from datasets_shards.fidelity.measures import Measured, measure
from datasets_shards.fidelity.smartscale import TableRule, smartscale_roundtrip
from datasets_shards.jpeg.dctscale import DCT_SIZE, scale_by_dct, unscale_by_dct
from datasets_shards.jpeg.mozjpeg import encode_jpeg
from datasets_shards.jpeg.segments import describe_jpeg
from datasets_shards.jpeg.settings import JpegSettings

Coder = Literal["mozjpeg", "progressive 8-bit", "libjpeg-turbo", "smartscale"]
LIMIT = 255  # largest step in an 8-bit quantization table

BASELINE = JpegSettings()
PROGRESSIVE = JpegSettings(mode="progressive")
PLAIN = JpegSettings(trellis=False, deringing=False)


@dataclass(frozen=True)
class Curve:
    """A codec with all its settings but the quality.

    Args:
        name: for the CSV file.
        label: for people.
        about: one sentence on what is done.
        coder: what encodes.
        settings: of MozJPEG; of the others only the subsampling counts.
        block: N of the scale 8/N ahead of the encoder, or SmartScale's block size; 8 is none of it.
        rule: how SmartScale's quantization tables are made.
    """

    name: str
    label: str
    about: str
    coder: Coder
    settings: JpegSettings = BASELINE
    block: int = DCT_SIZE
    rule: TableRule = "resampled"

    @property
    def scales(self) -> bool:
        """Whether it is about DCT scaling or SmartScale."""
        return self.block != DCT_SIZE or self.coder == "smartscale"

    def measure(self, crop: np.ndarray, quality: int) -> Measured:
        """Encode a crop, RGB uint8 [H, W, 3], decode it, and compare."""
        if self.coder == "smartscale":
            luma, chroma = base_tables(quality)
            subsampling = self.settings.subsampling_at(quality)
            restored = smartscale_roundtrip(crop, self.block, luma, chroma, subsampling, self.rule)
            return measure(crop, restored.pixels, restored.bits)
        pixels = np.ascontiguousarray(scale_by_dct(crop, self.block)) if self.scales else crop
        data = self.encode(pixels, quality)
        decoded = decode_jpeg(data)
        if self.scales:
            decoded = unscale_by_dct(decoded, self.block, *crop.shape[:2])
        return measure(crop, decoded, 8 * len(data))

    def encode(self, pixels: np.ndarray, quality: int) -> bytes:
        """The JPEG file of pixels that are scaled already, RGB uint8 [H, W, 3]."""
        if self.coder == "mozjpeg":
            return encode_jpeg(pixels, quality, self.settings)
        if self.coder == "libjpeg-turbo":
            return _encode_by_turbo(pixels, quality, self.settings.subsampling_at(quality))
        assert self.coder == "progressive 8-bit"
        return _encode_progressive_8_bit(pixels, quality)


BASELINE_CURVE = Curve(
    "mozjpeg-baseline",
    "MozJPEG baseline",
    "What pack writes: one scan, 8-bit quantization tables, trellis quantization, Robidoux's table.",
    "mozjpeg",
)
PROGRESSIVE_CURVE = Curve(
    "mozjpeg-progressive",
    "MozJPEG progressive",
    "cjpeg's default: several scans, and 16-bit quantization tables where a step is above 255.",
    "mozjpeg",
    PROGRESSIVE,
)
PROGRESSIVE_8_BIT_CURVE = Curve(
    "mozjpeg-progressive-8bit",
    "MozJPEG progressive, 8-bit tables",
    "Progressive with steps cut to 255, by libvips: tells the limit of the tables from what several scans cost or "
    "gain. Only where a step is above 255; elsewhere it is the curve above. libvips leaves out the JFIF segment and "
    "writes its tables one by one, which makes its files 10 bytes shorter beside the 128 of two 16-bit tables.",
    "progressive 8-bit",
    PROGRESSIVE,
)
PLAIN_CURVE = Curve(
    "mozjpeg-no-trellis",
    "MozJPEG baseline, no trellis",
    "Each coefficient rounded to the nearest step, no overshoot: what SmartScale is to be set beside.",
    "mozjpeg",
    PLAIN,
)
TURBO_CURVE = Curve(
    "libjpeg-turbo",
    "libjpeg-turbo",
    "The common encoder: the tables of the standard's Annex K, so the same quality number means other steps; baseline, "
    "Huffman tables optimized, chroma subsampled as MozJPEG does at that quality.",
    "libjpeg-turbo",
)


def build_curves(dct_scales: list[int], smartscale: list[int], rule: TableRule = "resampled") -> list[Curve]:
    """Every curve of a report, in the order of its tables.

    Args:
        dct_scales: block sizes N of DCT scaling by 8/N; not 8, which is the first curve.
        smartscale: block sizes of SmartScale.
        rule: how SmartScale's quantization tables are made.
    """
    encoders = [BASELINE_CURVE, PROGRESSIVE_CURVE, PROGRESSIVE_8_BIT_CURVE, PLAIN_CURVE, TURBO_CURVE]
    scaled = [
        Curve(
            f"mozjpeg-dct-scale-{block}",
            f"MozJPEG, DCT scaling 8/{block}",
            f"The crop scaled by 8/{block} in the DCT domain, then MozJPEG baseline.",
            "mozjpeg",
            block=block,
        )
        for block in sorted(set(dct_scales))
    ]
    emulated = [
        Curve(
            f"smartscale-{block}-emulated",
            f"SmartScale {block}×{block} (emulated)",
            f"Blocks of {block}×{block} pixels, MozJPEG's baseline table "
            + ("resampled to them" if rule == "resampled" else "from its low-frequency corner, as libjpeg 8 does")
            + ", no trellis; the size is an estimate.",
            "smartscale",
            block=block,
            rule=rule,
        )
        for block in sorted(set(smartscale))
    ]
    return [*encoders, *scaled, *emulated]


def qualities_of(curve: Curve, qualities: list[int]) -> list[int]:
    """The qualities at which a curve has something of its own to show."""
    if curve.coder != "progressive 8-bit":
        return qualities
    return [quality for quality in qualities if largest_step(quality) > LIMIT]


@lru_cache
def base_tables(quality: int, settings: JpegSettings = PLAIN) -> tuple[np.ndarray, np.ndarray]:
    """MozJPEG's luma and chroma table at a quality, as it writes them: int [8, 8] each, vertical frequency first."""
    from datasets_shards.fidelity.rate import zigzag

    facts = describe_jpeg(encode_jpeg(np.zeros((16, 16, 3), np.uint8), quality, settings))
    tables = []
    for identifier in facts.tables[:2]:
        table = np.zeros(64, dtype=np.int64)
        table[zigzag(DCT_SIZE)] = facts.quant_tables[identifier]
        tables.append(table.reshape(DCT_SIZE, DCT_SIZE))
    return tables[0], tables[1]


def largest_step(quality: int) -> int:
    """The largest step in MozJPEG's tables at a quality where nothing limits them."""
    return int(max(table.max() for table in base_tables(quality, PROGRESSIVE)))


def decode_jpeg(data: bytes) -> np.ndarray:
    """Decode by libjpeg-turbo with its defaults (accurate DCT, fancy upsampling): RGB uint8 [H, W, 3]."""
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        return np.asarray(image.convert("RGB"))


def turbo_version() -> str:
    """Version of the libjpeg-turbo that Pillow carries. It encodes one curve and decodes all of them."""
    from PIL import __version__, features

    name = "libjpeg-turbo" if features.check_feature("libjpeg_turbo") else "libjpeg"
    number = features.version_feature("libjpeg_turbo") or features.version_codec("jpg")
    return f"{name} {number} (Pillow {__version__})"


def _encode_by_turbo(pixels: np.ndarray, quality: int, subsampling: str) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=subsampling, optimize=True)
    return buffer.getvalue()


def _encode_progressive_8_bit(pixels: np.ndarray, quality: int) -> bytes:
    """MozJPEG in libvips: its tables are 8-bit in either mode. 4:2:0, as at every quality where the limit matters."""
    import pyvips

    assert PROGRESSIVE.subsampling_at(quality) == "4:2:0"
    return pyvips.Image.new_from_array(pixels).jpegsave_buffer(
        Q=quality,
        interlace=True,
        optimize_scans=True,
        optimize_coding=True,
        trellis_quant=PROGRESSIVE.trellis,
        overshoot_deringing=PROGRESSIVE.deringing,
        quant_table=PROGRESSIVE.quant_table,
        subsample_mode="on",
        keep="none",
    )
