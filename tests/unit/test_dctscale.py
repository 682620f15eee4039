"""Scaling in the DCT domain, against sums written out from the definition."""

import ctypes
import math
from pathlib import Path

import jpeglib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.fft import dctn, idctn

from datasets_shards.errors import InputError
from datasets_shards.jpeg.dctscale import scale_by_dct, scale_points, scaled_size, unscale_by_dct
from datasets_shards.jpeg.mozjpeg import encode_jpeg
from tests.unit.conftest import FACE

BLOCKS = st.integers(1, 16)


def cosine_sum(pixels: list[list[float]], size: int, u: int, v: int) -> float:
    """One coefficient of the orthonormal DCT-II of size x size pixels, from the definition."""
    step = math.pi / (2 * size)
    norm = math.sqrt((1 if u == 0 else 2) / size) * math.sqrt((1 if v == 0 else 2) / size)
    return norm * sum(
        pixels[y][x] * math.cos((2 * y + 1) * u * step) * math.cos((2 * x + 1) * v * step)
        for y in range(size)
        for x in range(size)
    )


def scale_one_block(pixels: np.ndarray) -> np.ndarray:
    """Forward NxN, cut or pad to 8x8, gain 8/N, inverse 8x8: all by direct sums, before rounding."""
    size = len(pixels)
    rows = pixels.astype(float).tolist()
    kept = min(size, 8)
    coefficients = {(u, v): 8 / size * cosine_sum(rows, size, u, v) for u in range(kept) for v in range(kept)}
    result = np.zeros((8, 8))
    for y in range(8):
        for x in range(8):
            result[y, x] = sum(
                value
                * math.sqrt((1 if u == 0 else 2) / 8 * (1 if v == 0 else 2) / 8)
                * math.cos((2 * y + 1) * u * math.pi / 16)
                * math.cos((2 * x + 1) * v * math.pi / 16)
                for (u, v), value in coefficients.items()
            )
    return result


@pytest.mark.parametrize("block", [1, 2, 3, 5, 8, 9, 12, 16])
def test_blocks_are_those_of_the_definition(block: int) -> None:
    image = np.random.default_rng(block).integers(60, 196, (block, 2 * block), dtype=np.uint8)
    expected = np.hstack([scale_one_block(image[:, :block]), scale_one_block(image[:, block:])])
    scaled = scale_by_dct(image, block)
    assert scaled.shape == (8, 16)
    assert np.abs(scaled - np.clip(expected, 0, 255)).max() <= 0.5 + 1e-5


@pytest.mark.parametrize("block", range(1, 17))
def test_coefficients_are_those_of_libjpeg(block: int) -> None:
    """Against the forward transforms of IJG's libjpeg 9f, which cjpeg -scale 8/N runs."""
    library = ctypes.CDLL(str(Path(jpeglib.__file__).parent / "cjpeglib" / "cjpeglib_9f.abi3.so"))
    transform = getattr(library, "jpeg_fdct_islow" if block == 8 else f"jpeg_fdct_{block}x{block}")
    transform.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint)
    random = np.random.default_rng(block)
    errors = []
    for _ in range(40):
        pixels = random.integers(100, 156, (block, block), dtype=np.uint8)
        rows = (ctypes.c_void_p * block)(*(pixels.ctypes.data + i * block for i in range(block)))
        theirs = (ctypes.c_int * 64)()
        transform(theirs, rows, 0)
        ours = dctn(scale_by_dct(pixels, block).astype(float) - 128, norm="ortho")
        errors.append(ours - np.array(theirs).reshape(8, 8) / 8)
    spread = np.sqrt(np.mean(np.square(errors), axis=0))
    wrong_there = {12: 2, 14: 1}.get(block)  # horizontal frequency that libjpeg gets wrong
    if wrong_there is not None:
        assert spread[:, wrong_there].max() > 0.6
        spread = np.delete(spread, wrong_there, axis=1)
    assert spread.max() < 0.45  # rounding pixels to whole numbers makes 0.29


@given(BLOCKS, st.integers(1, 40), st.integers(1, 40), st.integers(0, 255), st.booleans())
@settings(max_examples=60, deadline=None)
def test_flat_images_stay_flat(block: int, height: int, width: int, value: int, colour: bool) -> None:
    shape = (height, width, 3) if colour else (height, width)
    scaled = scale_by_dct(np.full(shape, value, np.uint8), block)
    assert scaled.dtype == np.uint8
    assert scaled.shape == (math.ceil(8 * height / block), math.ceil(8 * width / block), *shape[2:])
    assert (scaled == value).all()
    assert (unscale_by_dct(scaled, block, height, width) == value).all()


@given(arrays(np.uint8, st.tuples(st.integers(1, 30), st.integers(1, 30), st.just(3))))
@settings(max_examples=40, deadline=None)
def test_block_8_is_the_identity(image: np.ndarray) -> None:
    assert np.array_equal(scale_by_dct(image, 8), image)
    assert np.array_equal(unscale_by_dct(image, 8, *image.shape[:2]), image)


@given(arrays(np.uint8, (16, 16), elements=st.integers(80, 176)))
@settings(max_examples=40, deadline=None)
def test_block_16_halves_a_band_limited_image(image: np.ndarray) -> None:
    """Of an image with no coefficient beyond 8x8 nothing is lost: scaling back gives it again, but for rounding."""
    spectrum = dctn(image, norm="ortho")
    spectrum[8:], spectrum[:, 8:] = 0, 0
    smooth = np.clip(np.rint(idctn(spectrum, norm="ortho")), 0, 255).astype(np.uint8)
    half = scale_by_dct(smooth, 16)
    expected = idctn(dctn(smooth.astype(float), norm="ortho")[:8, :8] / 2, norm="ortho")
    assert np.abs(half - expected).max() <= 0.5 + 1e-5
    again = unscale_by_dct(half, 16, 16, 16).astype(int)
    # Rounding twice: an error of 1/2 in each of 64 pixels at worst, but spread over all coefficients.
    assert np.sqrt(((again - smooth) ** 2).mean()) < 1


@pytest.mark.parametrize("block", range(1, 9))
def test_enlarging_loses_nothing_but_rounding(block: int) -> None:
    image = np.ascontiguousarray(FACE[40:101, 50:120])
    again = unscale_by_dct(scale_by_dct(image, block), block, *image.shape[:2])
    assert np.abs(again.astype(int) - image).mean() < 0.6


def test_edges_are_repeated() -> None:
    image = np.ascontiguousarray(FACE[:50, :70])
    padded = np.pad(image, ((0, 14), (0, 10), (0, 0)), mode="edge")
    scaled = scale_by_dct(image, 16)
    assert scaled.shape == (25, 35, 3)
    assert np.array_equal(scaled, scale_by_dct(padded, 16)[:25, :35])


def test_colour_conversion_commutes() -> None:
    """Scaling the luma is taking the luma of the scaled image, but for the rounding of the three channels."""
    weights = np.array([0.299, 0.587, 0.114])
    luma_first = scale_by_dct(np.rint(FACE @ weights).astype(np.uint8), 12)
    luma_last = scale_by_dct(np.ascontiguousarray(FACE), 12) @ weights
    inside = (luma_last > 8) & (luma_last < 247)  # clipped channels are another matter
    assert np.abs(luma_first - luma_last)[inside].mean() < 0.5


def test_mozjpeg_gets_the_scaled_coefficients_back(tmp_path: Path) -> None:
    """Through rounded pixels and MozJPEG's own DCT: at quality 100 it stores what libjpeg v7 would."""
    grey = np.repeat((64 + FACE.mean(2) / 2).astype(np.uint8)[..., None], 3, axis=2)  # nothing is clipped
    (tmp_path / "x.jpg").write_bytes(encode_jpeg(scale_by_dct(grey, 16), 100))
    stored = jpeglib.read_dct(str(tmp_path / "x.jpg"))
    assert stored.qt[0].max() == 1
    blocks = grey[..., 0].astype(float).reshape(16, 16, 16, 16).transpose(0, 2, 1, 3) - 128
    direct = dctn(blocks, axes=(2, 3), norm="ortho")[..., :8, :8] / 2
    error = np.abs(stored.Y - direct)
    assert error.mean() < 0.36  # rounding to whole coefficients alone gives 0.25
    assert np.quantile(error, 0.99) < 1.2


def test_points_move_with_the_pixels() -> None:
    corners = np.array([[-0.5, -0.5], [255.5, 255.5], [127.5, 63.5]])
    for block in (1, 6, 8, 16):
        side = 8 * 256 / block
        expected = np.array([[-0.5, -0.5], [side - 0.5, side - 0.5], [side / 2 - 0.5, side / 4 - 0.5]])
        assert np.allclose(scale_points(corners, block), expected)
    image = np.zeros((64, 64), np.uint8)
    image[20:28, 36:44] = 200  # its centre is (39.5, 23.5)
    scaled = scale_by_dct(image, 16).astype(float)
    rows, columns = np.indices(scaled.shape)
    centre = [(columns * scaled).sum() / scaled.sum(), (rows * scaled).sum() / scaled.sum()]
    assert np.allclose(centre, scale_points(np.array([[39.5, 23.5]]), 16)[0], atol=0.35)


@pytest.mark.parametrize("block", [0, 17, -8])
def test_other_block_sizes_are_refused(block: int) -> None:
    for call in (
        lambda: scale_by_dct(np.zeros((8, 8), np.uint8), block),
        lambda: unscale_by_dct(np.zeros((8, 8), np.uint8), block, 8, 8),
        lambda: scaled_size(256, block),
        lambda: scale_points(np.zeros((1, 2)), block),
    ):
        with pytest.raises(InputError, match="from 1 to 16"):
            call()


def test_a_wrong_size_is_not_taken_for_a_scaled_image() -> None:
    with pytest.raises(ValueError, match="scaled by 8/16"):
        unscale_by_dct(np.zeros((100, 128, 3), np.uint8), 16, 256, 256)
