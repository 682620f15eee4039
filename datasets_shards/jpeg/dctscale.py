"""Scaling in the DCT domain by 8/N, N in 1..16: what libjpeg 7 and later do ahead of quantization.

libjpeg v7 (IJG, 2009; `cjpeg -scale 8/N`, jcdctmgr.c and jfdctint.c) cuts the image into blocks of NxN pixels,
transforms each with an NxN DCT, and keeps the low 8x8 coefficients (N > 8) or pads with zeros to 8x8 (N < 8). The file
that it writes is an ordinary one of 8x8 blocks, of ceil(8 * size / N) pixels: N = 16 halves the image, 4 doubles it.

MozJPEG has no such stage and takes pixels, so the scaled coefficients reach it as pixels: an inverse 8x8 DCT, rounded
to whole numbers, which MozJPEG's own 8x8 DCT takes back to the same coefficients. Against libjpeg v7, which quantizes
them directly, this differs in three ways:

- Rounding to 8 bits, and clipping to 0..255 where a block overshoots: an error of at most half a grey level per pixel
  but for clipped ones, about 0.29 per coefficient, below every quantization step but the finest.
- The order of colour conversion doesn't matter to the scaling: RGB to YCbCr is linear and acts on each pixel alone, the
  DCT is linear and acts on each channel alone, so they commute, again up to rounding.
- libjpeg v7 folds chroma subsampling into the same transform (for 4:2:0 at scale 1 it takes 16x16 chroma DCTs); here
  the chroma of the scaled image is subsampled by MozJPEG, which averages pixels.

A flat area keeps its value: an orthonormal NxN DCT gives N * v where 8x8 needs 8 * v, hence a gain of 8/N, which is the
factor (8/N)^2 that jfdctint.c folds into its unnormalized transforms.

The transform here is the exact one. libjpeg's integer transforms agree with it to a quarter of a coefficient's unit,
but for 12x12 and 14x14: in libjpeg 7 to 9f a term of the row pass lacks its shift by CONST_BITS (`jpeg_fdct_12x12`,
dataptr[2]; `jpeg_fdct_14x14`, dataptr[1]), so that one horizontal frequency of their output is wrong.
"""

from functools import lru_cache

import numpy as np
from scipy.fft import dct

from datasets_shards.errors import InputError

DCT_SIZE = 8
MAX_BLOCK = 16
# Added before rounding, so that a value halfway between two grey levels goes up on every processor: the sums of two
# BLAS libraries differ by about 1e-13.
TIE = 1e-6


def scaled_size(size: int, block: int) -> int:
    """Side of the scaled image, pixels: ceil(8 * size / block), as libjpeg's jpeg_calc_jpeg_dimensions.

    >>> scaled_size(256, 16), scaled_size(256, 6)
    (128, 342)
    """
    _check_block(block)
    return -(-DCT_SIZE * size // block)


def scale_points(points: np.ndarray, block: int) -> np.ndarray:
    """Where points of the image lie in the scaled one: float64 [N, 2].

    Args:
        points: [N, 2], pixels; pixel centres have whole coordinates, so the image's corner is at -1/2.
        block: N of the scale 8/N.
    """
    _check_block(block)
    return (np.asarray(points, dtype=np.float64) + 0.5) * (DCT_SIZE / block) - 0.5


def scale_by_dct(image: np.ndarray, block: int) -> np.ndarray:
    """Scale an image by 8/block in the DCT domain; block = 8 gives the image itself.

    Args:
        image: uint8 [H, W] or [H, W, C], such as RGB.
        block: side of the pixel blocks, 1 to 16. Edge pixels are repeated to a whole number of blocks.

    Returns:
        uint8, sides of `scaled_size`.

    Raises:
        InputError: a block size outside 1..16.
    """
    _check_block(block)
    height, width = (scaled_size(side, block) for side in image.shape[:2])
    return _resize_blocks(image, block, DCT_SIZE)[:height, :width]


def unscale_by_dct(image: np.ndarray, block: int, height: int, width: int) -> np.ndarray:
    """Take an image scaled by 8/block back to its size, as a libjpeg v7 decoder with scale block/8 does.

    Each 8x8 block of pixels is transformed, its coefficients cut or padded with zeros to block x block, and transformed
    back. What `scale_by_dct` cut off is lost; with block <= 8 only its rounding is.

    Args:
        image: uint8 [ceil(8 * height / block), ceil(8 * width / block)] or with channels.
        block: the block size that it was scaled with.
        height: of the image before scaling, pixels.
        width: of the image before scaling, pixels.

    Returns:
        uint8 [height, width] or with channels.

    Raises:
        InputError: a block size outside 1..16.
    """
    _check_block(block)
    expected = (scaled_size(height, block), scaled_size(width, block))
    if image.shape[:2] != expected:
        raise ValueError(f"{image.shape[:2]} pixels aren't {height}x{width} scaled by 8/{block}, which are {expected}")
    return _resize_blocks(image, DCT_SIZE, block)[:height, :width]


@lru_cache
def dct_matrix(size: int) -> np.ndarray:
    """The orthonormal DCT-II as a matrix, float64 [size, size]: coefficients = matrix @ pixels."""
    return dct(np.eye(size), axis=0, norm="ortho")


def pad_to_blocks(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Repeat the bottom and right edge pixels to a multiple of `rows` and `columns`."""
    below, right = -image.shape[0] % rows, -image.shape[1] % columns
    return np.pad(image, ((0, below), (0, right)) + ((0, 0),) * (image.ndim - 2), mode="edge")


def round_to_uint8(values: np.ndarray) -> np.ndarray:
    """Nearest whole number, halves up, clipped to 0..255."""
    return np.clip(np.floor(values + (0.5 + TIE)), 0, 255).astype(np.uint8)


@lru_cache
def _resampling_matrix(taken: int, given: int) -> np.ndarray:
    """From `taken` pixels in a row to `given`, through the low min(taken, given) coefficients: [given, taken]."""
    kept = min(taken, given)
    gain = np.sqrt(given / taken)  # per axis; a flat row keeps its value
    return gain * dct_matrix(given)[:kept].T @ dct_matrix(taken)[:kept]


def _resize_blocks(image: np.ndarray, taken: int, given: int) -> np.ndarray:
    """Replace every block of taken x taken pixels by one of given x given, uint8."""
    matrix = _resampling_matrix(taken, given)
    pixels = pad_to_blocks(image, taken, taken).astype(np.float64)
    rows, columns, *channels = pixels.shape
    # Along the columns of pixels, then along the rows: two products of matrices over all blocks at once.
    pixels = matrix @ pixels.reshape(rows // taken, taken, -1)
    pixels = pixels.reshape(rows // taken * given, columns // taken, taken, -1)
    return round_to_uint8(matrix @ pixels).reshape(rows // taken * given, columns // taken * given, *channels)


def _check_block(block: int) -> None:
    if not 1 <= block <= MAX_BLOCK:
        raise InputError(f"DCT scaling by 8/{block}: the block size must be from 1 to {MAX_BLOCK}; 8 changes nothing")
