"""The encoder is MozJPEG, baseline, with 8-bit tables."""

import io
from pathlib import Path

import jpeglib
import numpy as np
import pytest
from PIL import Image

from datasets_shards.errors import InputError
from datasets_shards.jpeg.mozjpeg import (
    check_quality,
    describe_encoder,
    encode,
    encode_jpeg,
    jpeg_segments,
    require_mozjpeg,
)
from tests.unit.conftest import FACE

CROP = np.ascontiguousarray(FACE)


@pytest.mark.parametrize("quality", [77, 60, 15, 10])
def test_a_member_is_a_baseline_jpeg_with_8_bit_tables(quality: int) -> None:
    segments = jpeg_segments(encode_jpeg(CROP, quality))
    markers = [marker for marker, _ in segments]
    assert 0xC0 in markers  # baseline SOF
    assert not {0xC1, 0xC2} & set(markers)  # extended sequential, progressive
    assert all(content[0] >> 4 == 0 for marker, content in segments if marker == 0xDB)
    assert not [marker for marker in markers if 0xE1 <= marker <= 0xEF or marker == 0xFE]  # no metadata


@pytest.mark.parametrize("quality", [77, 60, 15, 10])
def test_quantization_is_what_mozjpeg_itself_writes(quality: int, tmp_path: Path) -> None:
    """Tables equal; coefficients too, but for where trellis quantization was tuned to progressive coding instead."""
    (tmp_path / "ours.jpg").write_bytes(encode_jpeg(CROP, quality))
    ours = jpeglib.read_dct(str(tmp_path / "ours.jpg"))
    assert not ours.progressive_mode
    with jpeglib.version("mozjpeg403"):
        image = jpeglib.from_spatial(CROP)
        image.samp_factor = "4:2:0"
        image.write_spatial(str(tmp_path / "mozjpeg.jpg"), qt=quality, flags=["+FORCE_BASELINE"])
        theirs = jpeglib.read_dct(str(tmp_path / "mozjpeg.jpg"))
    assert np.array_equal(ours.qt, theirs.qt)
    assert ours.qt.max() <= 255
    assert np.array_equal(ours.samp_factor, theirs.samp_factor)
    for component in ("Y", "Cb", "Cr"):
        assert (getattr(ours, component) != getattr(theirs, component)).mean() < 0.005

    with jpeglib.version("turbo210"):
        jpeglib.from_spatial(CROP).write_spatial(str(tmp_path / "turbo.jpg"), qt=quality)
        turbo = jpeglib.read_dct(str(tmp_path / "turbo.jpg"))
    assert not np.array_equal(ours.qt, turbo.qt)


@pytest.mark.parametrize(("quality", "sampling"), [(10, 2), (79, 2), (90, 1), (100, 1)])
def test_chroma_subsampling_follows_cjpeg(quality: int, sampling: int) -> None:
    frame = next(content for marker, content in jpeg_segments(encode_jpeg(CROP, quality)) if marker == 0xC0)
    assert frame[7] == sampling << 4 | sampling  # of the luma component


@pytest.mark.parametrize("quality", [80, 89])
def test_half_chroma_is_refused(quality: int) -> None:
    with pytest.raises(InputError, match="4:2:2"):
        check_quality(quality)


def test_raw_loses_nothing() -> None:
    data = encode(CROP, "raw")
    assert data == encode(CROP, "raw")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), CROP)


def test_another_libjpeg_is_noticed() -> None:
    def turbo(crop: np.ndarray, quality: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(crop).save(buffer, "JPEG", quality=quality)
        return buffer.getvalue()

    def no_libvips(crop: np.ndarray, quality: int) -> bytes:
        raise OSError("cannot load library 'libvips.so.42'\nmore")

    require_mozjpeg()
    with pytest.raises(InputError, match=r"without MozJPEG .* pip install 'pyvips\[binary\]'"):
        require_mozjpeg(turbo)
    with pytest.raises(InputError, match=r"can't be loaded .* pip install 'pyvips\[binary\]'"):
        require_mozjpeg(no_libvips)


def test_the_manifest_names_encoder_and_version() -> None:
    described = describe_encoder(77)
    assert described["name"] == "mozjpeg"
    assert "pyvips-binary" in described["library"]
    assert described["mode"] == "baseline"
    assert described["subsampling"] == "4:2:0"
