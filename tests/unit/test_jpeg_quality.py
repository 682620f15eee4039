"""The quality that a JPEG's quantization tables tell, against the encoders themselves."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from datasets_shards.jpeg.mozjpeg import encode_jpeg, encode_png
from datasets_shards.jpeg.segments import describe_jpeg
from datasets_shards.jpeg.settings import JpegSettings
from fdtrain.registry.serving import choose_model, estimate_quality

NOISE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


def pillow(quality: int, mode: str = "RGB", **options: object) -> bytes:
    """libjpeg-turbo's file."""
    out = io.BytesIO()
    Image.fromarray(NOISE).convert(mode).save(out, "JPEG", quality=quality, **options)
    return out.getvalue()


def baseline(quality: int) -> bytes:
    return encode_jpeg(NOISE, quality)


def progressive(quality: int) -> bytes:
    return encode_jpeg(NOISE, quality, JpegSettings(mode="progressive"))


# With 8-bit entries MozJPEG's tables are all 255 up to quality 3, and the standard's at quality 1: one and the same.
@pytest.mark.parametrize(
    ("encode", "encoder", "indistinct"),
    [
        (baseline, "MozJPEG", range(1, 4)),
        (progressive, "MozJPEG", ()),
        (pillow, "libjpeg", range(1, 2)),
        (lambda quality: pillow(quality, "L"), "libjpeg", range(1, 2)),
        (lambda quality: pillow(quality, progressive=True, subsampling=0), "libjpeg", range(1, 2)),
    ],
    ids=["mozjpeg", "mozjpeg-progressive-16-bit", "libjpeg", "libjpeg-grey", "libjpeg-progressive"],
)
def test_every_quality_of_both_encoders(encode: Callable[[int], bytes], encoder: str, indistinct: range) -> None:
    widths = set()
    for quality in range(1, 101):
        data = encode(quality)
        widths.add(describe_jpeg(data).table_bits)
        estimate = estimate_quality(data)
        assert estimate is not None
        assert estimate.distance == 0
        assert estimate.quality == (1 if quality in indistinct else quality)
        if quality not in indistinct and quality < 100:  # at 100 all entries are 1, whoever wrote them
            assert estimate.encoder == encoder
    assert widths == ({8, 16} if encode is progressive else {8})


def test_tables_of_nobody_get_the_nearest_quality() -> None:
    standard = describe_jpeg(pillow(60)).quant_tables
    custom = [[max(1, entry + (1 if i % 3 else -1)) for i, entry in enumerate(standard[k])] for k in (0, 1)]
    out = io.BytesIO()
    Image.fromarray(NOISE).save(out, "JPEG", qtables=custom)
    estimate = estimate_quality(out.getvalue())
    assert estimate is not None
    assert estimate.distance > 0
    assert abs(estimate.quality - 60) <= 3
    # Luma and chroma of two qualities: between them.
    mixed = [list(describe_jpeg(pillow(quality)).quant_tables[k]) for k, quality in enumerate((50, 70))]
    out = io.BytesIO()
    Image.fromarray(NOISE).save(out, "JPEG", qtables=mixed)
    estimate = estimate_quality(out.getvalue())
    assert estimate is not None
    assert 50 <= estimate.quality <= 70


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", pillow(77)[:30], encode_png(NOISE), b"\xff\xd8" + b"\xff" * 9])
def test_what_has_no_tables_has_no_quality(data: bytes) -> None:
    assert estimate_quality(data) is None


def test_the_nearest_model_is_asked() -> None:
    models = {name: {"quality": quality} for name, quality in (("q10", 10), ("q60", 60), ("q77", 77), ("raw", None))}
    content = {"models": models, "other": "raw"}
    chosen = {quality: choose_model(content, estimate_quality(baseline(quality))) for quality in range(1, 101)}
    assert {quality for quality, name in chosen.items() if name == "q10"} == set(range(1, 36))  # 35 is as near to 60
    assert {quality for quality, name in chosen.items() if name == "q60"} == set(range(36, 69))
    assert {quality for quality, name in chosen.items() if name == "q77"} == set(range(69, 101))
    assert choose_model(content, None) == "raw"
    assert choose_model({"models": {"raw": {"quality": None}}, "other": "raw"}, estimate_quality(baseline(10))) == "raw"
