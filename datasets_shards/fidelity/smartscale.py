"""SmartScale's effect on rate and distortion, emulated: blocks of NxN pixels instead of 8x8.

IJG's libjpeg 8 and later can write such streams (`cjpeg -block N`). They aren't JPEG as ITU-T T.81 has it, and only
that library reads them: libjpeg-turbo, MozJPEG and nvJPEG know blocks of 8x8 alone, so a shard that standard decoders
read can't hold one. Here the image goes through the same steps in numpy, no file is written, and the size is what
JPEG's entropy coding would give (`datasets_shards.fidelity.rate`).

The steps: JFIF's YCbCr, chroma averaged to its subsampling, level shift, NxN DCT, quantization, and back, with the
triangular ("fancy") chroma interpolation of libjpeg's decoders. Values are rounded where a JPEG codec rounds them. The
quantization rounds to nearest: no trellis, so the curve to compare with is MozJPEG's without trellis.

Coefficients are scaled by 8/N from the orthonormal transform, so that a flat block has the DC it has in 8x8, which is
what libjpeg's jfdctint.c does for every N. A quantization step is therefore N/8 times as coarse for the orthonormal
coefficients: larger blocks compress more at the same quality, smaller ones lose less, as IJG says of SmartScale.

Two ways to quantize a block that isn't 8x8:

- "resampled": all NxN coefficients, with the 8x8 table read at the same frequency. Coefficient k of an N-point DCT has
  k / 2N cycles a pixel, which is index 8k/N of an 8-point one; between entries it is interpolated linearly along both
  axes, beyond the last entry the last one holds; steps are rounded, and at least 1.
- "corner": what libjpeg 8 and 9 do. The low min(N, 8) x min(N, 8) coefficients with the same entries of the table as in
  8x8, whatever frequency they stand for; for N > 8 the rest is dropped (`lim_Se` never exceeds 63).

"corner" was set beside streams that libjpeg 9f itself wrote and read, of a 256x256 face at qualities 15 and 77: for N
of 4, 6, 8, 10 and 16 the sizes agree within 3 % and PSNR within 0.25 dB (it interpolates chroma by its DCT); for N of 1
and 2 within 1 % and 0.9 dB.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from datasets_shards.fidelity.rate import Component, estimate_bits
from datasets_shards.jpeg.dctscale import DCT_SIZE, MAX_BLOCK, dct_matrix, pad_to_blocks, round_to_uint8

TableRule = Literal["resampled", "corner"]
TABLE_RULES: tuple[str, ...] = get_args(TableRule)

# JFIF 1.02; rows are Y, Cb, Cr
YCBCR = np.array([[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]])
# vertical and horizontal factor by which chroma is smaller
SUBSAMPLING = {"4:4:4": (1, 1), "4:2:2": (1, 2), "4:2:0": (2, 2)}


@dataclass(frozen=True)
class SmartScaled:
    """An image after the round trip.

    Args:
        pixels: RGB uint8 [H, W, 3].
        bits: estimated size of the file.
    """

    pixels: np.ndarray
    bits: int


def smartscale_roundtrip(
    image: np.ndarray,
    block: int,
    luma_table: np.ndarray,
    chroma_table: np.ndarray,
    subsampling: str,
    rule: TableRule = "resampled",
) -> SmartScaled:
    """Transform, quantize and restore an image with blocks of block x block pixels.

    Args:
        image: RGB uint8 [H, W, 3].
        block: 1 to 16; 8 is ordinary JPEG.
        luma_table: quantization steps of 8x8, [8, 8], vertical frequency first.
        chroma_table: likewise.
        subsampling: "4:4:4", "4:2:2" or "4:2:0".
        rule: how the tables apply to a block that isn't 8x8.
    """
    if not 1 <= block <= MAX_BLOCK:
        raise ValueError(f"block size {block} is outside 1..{MAX_BLOCK}")
    height, width = image.shape[:2]
    down, across = SUBSAMPLING[subsampling]
    padded = pad_to_blocks(image, down * block, across * block).astype(np.float64)
    luma, *chroma = np.moveaxis(round_to_uint8(padded @ YCBCR.T + [0, 128, 128]), -1, 0)

    quantized = [_quantize(luma, block, table_for(luma_table, block, rule))]
    steps = table_for(chroma_table, block, rule)
    quantized += [_quantize(_average(plane, down, across), block, steps) for plane in chroma]
    kept = len(steps)
    components = [Component(_mcu_order(quantized[0], down, across).reshape(-1, kept, kept), 0)]
    components += [Component(plane.reshape(-1, kept, kept), 1) for plane in quantized[1:]]

    restored = [_restore(quantized[0], block, table_for(luma_table, block, rule))]
    for plane in quantized[1:]:
        low = _restore(plane, block, steps)[: -(-height // down), : -(-width // across)]  # a decoder sees no padding
        restored.append(_interpolate(low, down, across))
    ycc = np.stack([plane[:height, :width].astype(np.float64) for plane in restored], axis=-1) - [0, 128, 128]
    return SmartScaled(round_to_uint8(ycc @ np.linalg.inv(YCBCR).T), estimate_bits(components))


def table_for(table: np.ndarray, block: int, rule: TableRule) -> np.ndarray:
    """Quantization steps for the coefficients of a block, float64 [n, n]; n is `block`, or at most 8 by "corner"."""
    if rule == "corner":
        kept = min(block, DCT_SIZE)
        return table[:kept, :kept].astype(np.float64)
    index = np.minimum(np.arange(block) * DCT_SIZE / block, DCT_SIZE - 1)
    low = np.minimum(index.astype(int), DCT_SIZE - 2)
    weights = np.zeros((block, DCT_SIZE))
    weights[np.arange(block), low] = 1 - (index - low)
    weights[np.arange(block), low + 1] = index - low
    return np.maximum(1, np.rint(weights @ table @ weights.T))


def _quantize(plane: np.ndarray, block: int, steps: np.ndarray) -> np.ndarray:
    """uint8 [H, W] -> quantized coefficients, int [rows, columns, n, n]; halves away from zero, as in libjpeg."""
    kept = len(steps)
    blocks = (plane.astype(np.float64) - 128).reshape(plane.shape[0] // block, block, plane.shape[1] // block, block)
    matrix = dct_matrix(block)[:kept]
    coefficients = (DCT_SIZE / block) * (matrix @ blocks.transpose(0, 2, 1, 3) @ matrix.T)
    return (np.sign(coefficients) * np.floor(np.abs(coefficients) / steps + 0.5)).astype(np.int64)


def _restore(quantized: np.ndarray, block: int, steps: np.ndarray) -> np.ndarray:
    """Quantized coefficients [rows, columns, n, n] -> uint8 [H, W]."""
    rows, columns, kept, _ = quantized.shape
    matrix = dct_matrix(block)[:kept]
    blocks = matrix.T @ (quantized * steps * (block / DCT_SIZE)) @ matrix + 128
    return round_to_uint8(blocks.transpose(0, 2, 1, 3).reshape(rows * block, columns * block))


def _mcu_order(blocks: np.ndarray, down: int, across: int) -> np.ndarray:
    """The luma blocks [rows, columns, n, n] as an interleaved scan holds them: down x across of each unit together."""
    rows, columns, *block = blocks.shape
    return blocks.reshape(rows // down, down, columns // across, across, *block).swapaxes(1, 2)


def _average(plane: np.ndarray, down: int, across: int) -> np.ndarray:
    """Subsample by averaging, uint8; libjpeg alternates the direction in which halves are rounded along a row."""
    sums = plane.astype(np.int64).reshape(plane.shape[0] // down, down, plane.shape[1] // across, across).sum((1, 3))
    count = down * across
    if count == 1:
        return plane
    bias = np.arange(sums.shape[1]) % 2 + (count // 2 - 1)  # 0, 1, 0, 1 for two pixels; 1, 2, 1, 2 for four
    return ((sums + bias) // count).astype(np.uint8)


def _interpolate(plane: np.ndarray, down: int, across: int) -> np.ndarray:
    """Enlarge by libjpeg's "fancy" upsampling: 3/4 of the nearer, 1/4 of the farther pixel along each halved axis."""
    values = plane.astype(np.int64)
    weight = 1
    if down == 2:
        values, weight = _triangle(values), weight * 4
    if across == 2:
        values, weight = _triangle(values.T).T, weight * 4
    if weight == 1:
        return plane
    # libjpeg rounds even columns down at a tie and odd ones up: 8 and 7 of 16, 1 and 2 of 4.
    bias = np.array([8, 7]) if weight == 16 else np.array([1, 2])
    return ((values + bias[np.arange(values.shape[1]) % 2]) // weight).astype(np.uint8)


def _triangle(values: np.ndarray) -> np.ndarray:
    """Twice as many rows: 3 times the nearer and once the farther neighbour; the edge is repeated."""
    before, after = np.vstack([values[:1], values[:-1]]), np.vstack([values[1:], values[-1:]])
    return np.stack([3 * values + before, 3 * values + after], axis=1).reshape(2 * len(values), -1)
