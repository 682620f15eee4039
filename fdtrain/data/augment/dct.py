"""Compression to JPEG and back in tensors: the pixels of libjpeg-turbo, bit for bit, on any device.

Huffman coding loses nothing, so what compression does to pixels is all before and after it: colour conversion, chroma
subsampling, the integer DCT (`JDCT_ISLOW`), quantization, and the same way back with "fancy" upsampling. All of that
is whole numbers, which float64 holds exactly, so a GPU gives the CPU's bytes. nvJPEG by way of torchvision writes 4:4:4
and the standard's tables only, takes one quality a call and waits for every image.

References: ITU-T T.81; Loeffler, Ligtenberg, Moschytz, ICASSP 1989 (the DCT); JFIF 1.02 (the colours).
"""

import torch
from torch import Tensor
from torch.nn import functional

BITS = 13  # fraction bits of the DCT's constants
SPARE = 2  # fraction bits kept between the two passes of a DCT

# 2**13 * sqrt(8) * DCT-II. Each entry is a sum of rounded constants of that fast algorithm, so 2259 stands beside 2260.
_EVEN = ((8192, 8192), (10703, 4433), (8192, -8192), (4433, -10704))
_ODD = (
    (11363, 9633, 6437, 2260),
    (9633, -2259, -11362, -6436),
    (6437, -11362, 2261, 9633),
    (2260, -6436, 9633, -11363),
)

Sampling = tuple[int, int]  # chroma's horizontal and vertical divisor: (1, 1), (2, 1) or (2, 2)


def _dct_rows() -> list[list[int]]:
    rows = []
    for i in range(4):
        a, b = _EVEN[i]
        quarter = [a, b, -b, -a] if i % 2 else [a, b, b, a]
        rows.append(quarter + quarter[::-1])
        rows.append([*_ODD[i], *(-v for v in reversed(_ODD[i]))])
    return rows


def compress(images: Tensor, luma: Tensor, chroma: Tensor, sampling: Sampling) -> Tensor:
    """Compress and decompress.

    Args:
        images: uint8 `[n, H, W, 3]`, RGB.
        luma: int64 `[n, 8, 8]`, quantization tables, 1 to 255.
        chroma: The same for the two chroma planes.
        sampling: Divisors of the chroma planes' width and height.

    Returns:
        uint8 `[n, H, W, 3]`.
    """
    height, width = images.shape[1:3]
    across, down = sampling
    pixels = images.permute(0, 3, 1, 2).double()
    # Columns are repeated before subsampling, rows after it, as libjpeg does.
    pixels = functional.pad(pixels, (0, -width % (8 * across), 0, -height % down), mode="replicate")
    red, green, blue = pixels.unbind(1)
    planes = (
        _descale(19595 * red + 38470 * green + 7471 * blue, 16),
        _shrink(_chroma(-11059 * red - 21709 * green + 32768 * blue), sampling),
        _shrink(_chroma(32768 * red - 27439 * green - 5329 * blue), sampling),
    )
    decoded = [_quantize(plane, table) for plane, table in zip(planes, (luma, chroma, chroma), strict=True)]
    # What lies beyond the image must not reach it through the upsampling.
    y = decoded[0][:, :height, :width]
    cb, cr = (
        _enlarge(plane[:, : -(-height // down), : -(-width // across)], sampling)[:, :height, :width] - 128
        for plane in decoded[1:]
    )
    rgb = (
        y + _descale(91881 * cr, 16),
        y + _descale(-22554 * cb - 46802 * cr, 16),
        y + _descale(116130 * cb, 16),
    )
    return torch.stack(rgb, -1).clamp_(0, 255).to(torch.uint8)


def _descale(values: Tensor, bits: int) -> Tensor:
    """Divide by 2**bits; a half is rounded up."""
    return torch.floor((values + 2 ** (bits - 1)) / 2**bits)


def _chroma(values: Tensor) -> Tensor:
    return torch.floor((values + 128 * 2**16 + 2**15 - 1) / 2**16)


def _shrink(plane: Tensor, sampling: Sampling) -> Tensor:
    """Means of 1x1, 2x1 or 2x2 pixels, rounded down and up by turns."""
    across, down = sampling
    if across == 1:
        return plane
    sums = sum(plane[:, i::down, j::2] for i in range(down) for j in range(2))
    assert isinstance(sums, Tensor)
    bias = torch.arange(sums.shape[-1], device=plane.device) % 2 + (down - 1)
    return torch.floor((sums + bias) / (2 * down))


def _enlarge(plane: Tensor, sampling: Sampling) -> Tensor:
    """The triangle filter of libjpeg's fancy upsampling: 3/4 of the nearer pixel, 1/4 of the next."""
    across, down = sampling
    if across == 1:
        return plane
    if down == 2:
        padded = torch.cat([plane[:, :1], plane, plane[:, -1:]], 1)
        plane = torch.stack([3 * plane + padded[:, :-2], 3 * plane + padded[:, 2:]], 2).flatten(1, 2)
    padded = torch.cat([plane[..., :1], plane, plane[..., -1:]], -1)
    bias = (8, 7) if down == 2 else (1, 2)
    sides = (3 * plane + padded[..., :-2] + bias[0], 3 * plane + padded[..., 2:] + bias[1])
    return torch.floor(torch.stack(sides, -1).flatten(-2) / (16 if down == 2 else 4))


def _quantize(plane: Tensor, tables: Tensor) -> Tensor:
    """A plane `[n, H, W]` -> the decoded plane, with both sides padded to multiples of 8."""
    plane = functional.pad(plane[:, None], (0, -plane.shape[-1] % 8, 0, -plane.shape[-2] % 8), mode="replicate")[:, 0]
    n, height, width = plane.shape
    # Blocks [n, H/8, W/8, 8, 8].
    blocks = plane.reshape(n, height // 8, 8, width // 8, 8).transpose(2, 3) - 128
    matrix = torch.tensor(_dct_rows(), dtype=torch.float64, device=plane.device)
    steps = tables[:, None, None].double()

    spectrum = _descale(blocks @ matrix.T, BITS - SPARE)  # along rows
    spectrum = _descale(matrix @ spectrum, BITS + SPARE)  # along columns; eight times the DCT of the standard
    levels = torch.floor((spectrum.abs() + 4 * steps) / (8 * steps)) * spectrum.sign()

    restored = _descale(matrix.T @ (levels * steps), BITS - SPARE)
    restored = _descale(restored @ matrix, BITS + SPARE + 3) + 128
    return restored.clamp_(0, 255).transpose(2, 3).reshape(n, height, width)
