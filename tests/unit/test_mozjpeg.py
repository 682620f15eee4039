"""What the encoder writes is what MozJPEG writes: coefficients and quantization tables, read back by jpeglib."""

import io
from functools import partial
from pathlib import Path
from typing import Any

import jpeglib
import numpy as np
import pytest
from PIL import Image

from datasets_shards.errors import InputError
from datasets_shards.jpeg import mozjpeg403
from datasets_shards.jpeg.mozjpeg import (
    describe_encoder,
    encode,
    encode_jpeg,
    encode_png,
    require_encoder,
    require_mozjpeg,
)
from datasets_shards.jpeg.segments import describe_jpeg
from datasets_shards.jpeg.settings import JpegSettings
from tests.unit.conftest import FACE
from tests.unit.jpegs import assert_same_image, coefficients, same_coefficients

CROP = np.ascontiguousarray(FACE)
ODD = np.ascontiguousarray(FACE[70:153, 60:159])  # neither side fills its last block
PROGRESSIVE = JpegSettings(mode="progressive")


def written_by_jpeglib(
    path: Path, crop: np.ndarray, quality: int, subsampling: str, flags: tuple[str, ...] = (), **more: Any
) -> bytes:
    """What MozJPEG 3.0.0 makes of the crop: another version than those of the encoder, and another caller.

    Always progressive, for jpeglib has no way to turn that off. Without trellis quantization, which looks at the cost
    of coding, the coefficients are those of a baseline file all the same.
    """
    with jpeglib.version("mozjpeg300"):
        image = jpeglib.from_spatial(crop)
        image.samp_factor = subsampling
        image.write_spatial(str(path / "theirs.jpg"), qt=quality, flags=list(flags), **more)
    return (path / "theirs.jpg").read_bytes()


@pytest.mark.parametrize("crop", [CROP, ODD], ids=["face", "odd"])
@pytest.mark.parametrize("quality", [77, 60, 15, 10])
def test_baseline_has_the_coefficients_of_another_mozjpeg(quality: int, crop: np.ndarray, tmp_path: Path) -> None:
    """libvips' MozJPEG against 4.0.3, each called in its own way."""
    ours = encode_jpeg(crop, quality)
    assert_same_image(ours, mozjpeg403.encode(crop, quality, JpegSettings()))
    with jpeglib.version("turbo210"):
        jpeglib.from_spatial(crop).write_spatial(str(tmp_path / "turbo.jpg"), qt=quality)
    turbo = (tmp_path / "turbo.jpg").read_bytes()
    assert describe_jpeg(turbo).quant_tables != describe_jpeg(ours).quant_tables


HALF = np.repeat(np.where(np.arange(64) % 8 < 4, 0, 255).astype(np.uint8)[None, :, None], 64, 0).repeat(3, 2)
"""Blocks of black beside pure white: what the vector instructions of MozJPEG overflow on (mozilla/mozjpeg#444)."""


@pytest.mark.parametrize("quality", [15, 27, 54])
def test_both_builds_differ_on_black_beside_white_alone(quality: int) -> None:
    """Nor there without deringing, nor at 254, nor above quality 57: no reason to give up cjpeg's coefficients."""
    settings = JpegSettings()
    for crop in (HALF // 255 * 254, np.random.default_rng(0).integers(0, 256, HALF.shape)):
        crop = crop.astype(np.uint8)
        assert same_coefficients(encode_jpeg(crop, quality), mozjpeg403.encode(crop, quality, settings))
    plain = _with(deringing=False)
    assert same_coefficients(encode_jpeg(HALF, quality, plain), mozjpeg403.encode(HALF, quality, plain))
    assert same_coefficients(encode_jpeg(HALF, 60), mozjpeg403.encode(HALF, 60, settings))
    assert not same_coefficients(encode_jpeg(HALF, quality), mozjpeg403.encode(HALF, quality, settings))


@pytest.mark.parametrize(("quality", "subsampling"), [(77, "4:2:0"), (10, "4:2:0"), (85, "4:2:2"), (95, "4:4:4")])
def test_baseline_without_trellis_has_the_coefficients_that_jpeglib_writes(
    quality: int, subsampling: str, tmp_path: Path
) -> None:
    ours = encode_jpeg(CROP, quality, JpegSettings(trellis=False))
    theirs = written_by_jpeglib(tmp_path, CROP, quality, subsampling, ("+FORCE_BASELINE", "-TRELLIS_QUANT"))
    assert_same_image(ours, theirs, same_form=False)


@pytest.mark.parametrize("crop", [CROP, ODD], ids=["face", "odd"])
@pytest.mark.parametrize("quality", [95, 85, 77, 60, 15, 10])
def test_progressive_has_the_coefficients_that_jpeglib_writes(quality: int, crop: np.ndarray, tmp_path: Path) -> None:
    ours = encode_jpeg(crop, quality, PROGRESSIVE)
    subsampling = PROGRESSIVE.subsampling_at(quality)
    assert_same_image(ours, written_by_jpeglib(tmp_path, crop, quality, subsampling))
    facts = describe_jpeg(ours)
    assert facts.form == "progressive"
    assert facts.subsampling == subsampling
    assert facts.table_bits == (16 if quality <= 60 else 8)  # as cjpeg, which doesn't cut off at 255


def test_half_chroma_changes_nothing_about_the_luma() -> None:
    """4:2:2 comes from MozJPEG 4.0.3, 4:4:4 from libvips; trellis quantization goes component by component."""
    half, full = encode_jpeg(CROP, 85), encode_jpeg(CROP, 85, JpegSettings(subsampling="4:4:4"))
    assert describe_jpeg(half).subsampling == "4:2:2"
    assert describe_jpeg(half).form == "baseline"
    assert describe_jpeg(half).quant_tables == describe_jpeg(full).quant_tables
    assert np.array_equal(coefficients(half)[0], coefficients(full)[0])
    chroma = [component.shape for component in coefficients(half)[1:]]
    assert chroma == [(32, 16, 8, 8)] * 2


@pytest.mark.parametrize("quality", [100, 90, 89, 85, 80, 79, 77, 60, 15, 10, 1])
def test_a_member_is_a_baseline_jpeg_with_8_bit_tables(quality: int) -> None:
    facts = describe_jpeg(encode_jpeg(ODD, quality))
    assert facts.form == "baseline"
    assert facts.table_bits == 8
    assert (facts.width, facts.height) == (99, 83)
    assert facts.subsampling == ("4:4:4" if quality >= 90 else "4:2:2" if quality >= 80 else "4:2:0")
    assert not [marker for marker in facts.markers if 0xE1 <= marker <= 0xEF or marker == 0xFE]  # no metadata


@pytest.mark.parametrize("mode", ["baseline", "progressive"])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_fixed_subsampling(subsampling: str, mode: str) -> None:
    for quality in (77, 95):
        settings = JpegSettings(mode=mode, subsampling=subsampling)
        facts = describe_jpeg(encode_jpeg(ODD, quality, settings))
        assert (facts.form, facts.subsampling) == (mode, subsampling)


@pytest.mark.parametrize("table", range(9))
def test_quant_table_is_the_one_of_that_number(table: int, tmp_path: Path) -> None:
    ours = encode_jpeg(ODD, 40, JpegSettings(quant_table=table, trellis=False))
    flags = ("+FORCE_BASELINE", "-TRELLIS_QUANT")
    theirs = written_by_jpeglib(tmp_path, ODD, 40, "4:2:0", flags, base_quant_tbl_idx=table)
    assert_same_image(ours, theirs, same_form=False)
    assert (
        describe_jpeg(ours).quant_tables == describe_jpeg(encode_jpeg(ODD, 40, _with(quant_table=table))).quant_tables
    )


def test_quant_table_0_is_annex_k() -> None:
    """Pillow's libjpeg-turbo writes the tables of the standard."""
    buffer = io.BytesIO()
    Image.fromarray(CROP).save(buffer, "JPEG", quality=60)
    annex_k = describe_jpeg(buffer.getvalue()).quant_tables
    assert describe_jpeg(encode_jpeg(CROP, 60, JpegSettings(quant_table=0))).quant_tables == annex_k
    assert describe_jpeg(encode_jpeg(CROP, 60)).quant_tables != annex_k


@pytest.mark.parametrize("mode", ["baseline", "progressive"])
def test_trellis_and_deringing_do_what_they_are_for(mode: str) -> None:
    """Trellis spends fewer bits; deringing raises what is beside an edge on white, and does nothing without white."""
    page = np.full((64, 64, 3), 255, np.uint8)
    page[20:44, 20:44] = 40
    plain = _with(mode=mode)
    assert len(encode_jpeg(CROP, 60, plain)) < 0.95 * len(encode_jpeg(CROP, 60, _with(mode=mode, trellis=False)))
    off = _with(mode=mode, deringing=False)
    assert not same_coefficients(encode_jpeg(page, 77, plain), encode_jpeg(page, 77, off))
    dark = CROP // 2
    assert encode_jpeg(dark, 77, plain) == encode_jpeg(dark, 77, off)


def test_raw_loses_nothing() -> None:
    data = encode(CROP, "raw")
    assert data == encode(CROP, "raw")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), CROP)


def test_a_mask_is_a_grey_png() -> None:
    mask = np.where(CROP[..., 0] > 99, 255, 0).astype(np.uint8)
    image = Image.open(io.BytesIO(encode_png(mask)))
    assert image.mode == "L"
    assert np.array_equal(np.asarray(image), mask)


@pytest.mark.parametrize(
    "crop", [CROP[..., 0], CROP.astype(np.uint16), np.zeros((8, 8, 4), np.uint8), np.zeros((0, 8, 3), np.uint8)]
)
@pytest.mark.parametrize("quality", [77, 85])
def test_other_pixels_are_refused(quality: int, crop: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"RGB uint8 \[H, W, 3\]"):
        encode_jpeg(crop, quality)


def test_a_view_is_encoded_as_its_copy() -> None:
    view = CROP[::2, ::-1]
    for quality in (77, 85):
        assert encode_jpeg(view, quality) == encode_jpeg(view.copy(), quality)


def test_another_libjpeg_is_noticed() -> None:
    def turbo(crop: np.ndarray, quality: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(crop).save(buffer, "JPEG", quality=quality)
        return buffer.getvalue()

    def no_libvips(crop: np.ndarray, quality: int) -> bytes:
        raise OSError("cannot load library 'libvips.so.42'\nmore")

    require_encoder(JpegSettings())
    with pytest.raises(InputError, match=r"without MozJPEG .* pip install 'pyvips\[binary\]'"):
        require_mozjpeg(turbo)
    with pytest.raises(InputError, match=r"can't be loaded .* pip install 'pyvips\[binary\]'"):
        require_mozjpeg(no_libvips)
    with pytest.raises(InputError, match="something else than a baseline JPEG"):
        require_mozjpeg(partial(encode_jpeg, settings=PROGRESSIVE))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("_STRUCT_BYTES", 560, "struct mismatch"), ("_JPEG_LIB_VERSION", 62, "library is 70, caller expects 62")],
)
def test_another_interface_of_the_library_is_noticed(
    name: str, value: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mozjpeg403, name, value)
    mozjpeg403.load.cache_clear()
    with pytest.raises(InputError, match=f"jpeglib's MozJPEG can't be loaded .*{message}.* pip install jpeglib"):
        require_encoder(JpegSettings())
    monkeypatch.undo()
    require_encoder(JpegSettings())


def test_the_manifest_names_encoder_and_version() -> None:
    described = describe_encoder(77)
    assert "pyvips-binary" in described.pop("library")
    assert described == {
        "name": "mozjpeg",
        "mode": "baseline",
        "subsampling": "4:2:0",
        "trellis": True,
        "deringing": True,
        "quant_table": 3,
        "table_bits": 8,
        "optimize_coding": True,
        "optimize_scans": False,
    }
    half = describe_encoder(85, _with(trellis=False))
    assert "MozJPEG 4.0.3 (jpeglib" in half["library"]
    assert (half["subsampling"], half["trellis"]) == ("4:2:2", False)
    wide = describe_encoder(15, PROGRESSIVE)
    assert (wide["mode"], wide["table_bits"], wide["optimize_scans"]) == ("progressive", 16, True)
    assert describe_encoder("raw", PROGRESSIVE)["name"] == "png"


def _with(**settings: Any) -> JpegSettings:
    return JpegSettings(**settings)
