"""Compression to JPEG and back: by libjpeg-turbo in memory on a CPU, by `dct` (the same bytes) on a GPU."""

import io
from collections.abc import Callable
from functools import cache

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from fdtrain.data.augment.dct import Sampling, compress
from fdtrain.data.augment.settings import Tables

# ITU-T T.81, tables K.1 and K.2.
STANDARD_LUMA = """
    16 11 10 16 24 40 51 61   12 12 14 19 26 58 60 55   14 13 16 24 40 57 69 56   14 17 22 29 51 87 80 62
    18 22 37 56 68 109 103 77   24 35 55 64 81 104 113 92   49 64 78 87 103 121 120 101   72 92 95 98 112 100 103 99
"""
STANDARD_CHROMA = """
    17 18 24 47 99 99 99 99   18 21 26 66 99 99 99 99   24 26 56 99 99 99 99 99   47 66 99 99 99 99 99 99
    99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99
"""
# By N. Robidoux, for luma and chroma alike: cjpeg's default in MozJPEG.
MOZJPEG = """
    16 16 16 18 25 37 56 85   16 17 20 27 34 40 53 75   16 20 24 31 43 62 91 135   18 27 31 40 53 74 106 156
    25 34 43 53 69 94 131 189   37 40 62 74 94 124 169 238
    56 53 91 106 131 169 226 311   85 75 135 156 189 238 311 418
"""
_BASE = {
    "standard": np.array([STANDARD_LUMA.split(), STANDARD_CHROMA.split()], int).reshape(2, 8, 8),
    "mozjpeg": np.array([MOZJPEG.split(), MOZJPEG.split()], int).reshape(2, 8, 8),
}
_PILLOW_NAMES: dict[Sampling, str] = {(1, 1): "4:4:4", (2, 1): "4:2:2", (2, 2): "4:2:0"}


def quantization_tables(tables: Tables, quality: np.ndarray) -> np.ndarray:
    """int64 `[2, n, 8, 8]`, luma and chroma, of int64 `[n]` qualities 1 to 100: libjpeg's scaling, 8-bit entries."""
    percent = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)[:, None, None]
    return np.clip((_BASE[tables][:, None] * percent + 50) // 100, 1, 255)


def chroma_sampling(tables: Tables, quality: int) -> Sampling:
    """Divisors of chroma's width and height: always 4:2:0 in OpenCV, by the quality in MozJPEG's cjpeg."""
    if tables == "standard" or quality < 80:
        return (2, 2)
    return (1, 1) if quality >= 90 else (2, 1)


def recompress(images: Tensor, quality: np.ndarray, tables: Tables) -> Tensor:
    """Compress each image at its own quality, and decompress it.

    Args:
        images: uint8 `[n, H, W, 3]`, contiguous, RGB.
        quality: int64 `[n]`, 1 to 100.
        tables: As `AugmentSettings.jpeg_tables`.

    Returns:
        uint8 `[n, H, W, 3]`.
    """
    if images.device.type != "cpu":
        return recompress_tensors(images, quality, tables)
    result = torch.empty_like(images)
    for image, its_quality, out in zip(images.numpy(), quality.tolist(), result.numpy(), strict=True):
        encoded = encode(image, its_quality, tables)
        simplejpeg.decode_jpeg(encoded, "RGB", fastdct=False, fastupsample=False, buffer=out)
    return result


def recompress_tensors(images: Tensor, quality: np.ndarray, tables: Tables) -> Tensor:
    """`recompress` by tensor operations alone, on any device; a tenth of libjpeg-turbo's speed on a CPU."""
    luma, chroma = torch.from_numpy(quantization_tables(tables, quality)).to(images.device)
    samplings = [chroma_sampling(tables, its_quality) for its_quality in quality.tolist()]
    result = torch.empty_like(images)
    for sampling in sorted(set(samplings)):
        which = torch.tensor([i for i, other in enumerate(samplings) if other == sampling], device=images.device)
        result[which] = compress(images[which], luma[which], chroma[which], sampling)
    return result


def encode(image: np.ndarray, quality: int, tables: Tables) -> bytes | np.ndarray:
    """A JPEG file of one image, uint8 `[H, W, 3]`, with the accurate DCT, as OpenCV's.

    The standard's tables by torchvision, in half of Pillow's time and without the GIL; the bytes are the same.
    simplejpeg's encoder takes no tables, and below quality 96 the fast DCT whatever it is told, which changes up to a
    tenth of the coefficients.
    """
    by_torchvision = torchvision_encoder()
    if tables != "standard" or by_torchvision is None:
        return encode_by_pillow(image, quality, tables)
    return by_torchvision(torch.from_numpy(image).permute(2, 0, 1), quality).numpy()


@cache
def torchvision_encoder() -> Callable[[Tensor, int], Tensor] | None:
    """What `torchvision.io.encode_jpeg` calls: uint8 `[3, H, W]` and a quality to the file's bytes.

    That function itself warns at each call, since 0.29, that it will be removed. None once it is.
    """
    import torchvision  # noqa: F401, registers the operator

    encoder: Callable[[Tensor, int], Tensor] | None = getattr(torch.ops.image, "encode_jpeg", None)
    return encoder


def encode_by_pillow(image: np.ndarray, quality: int, tables: Tables) -> bytes:
    """`encode` with any tables. Holds the GIL (0.2 ms for 256x256)."""
    steps = quantization_tables(tables, np.array([quality]))[:, 0].reshape(2, 64).tolist()
    stream = io.BytesIO()
    subsampling = _PILLOW_NAMES[chroma_sampling(tables, quality)]
    Image.fromarray(image).save(stream, "JPEG", qtables=steps, subsampling=subsampling)
    return stream.getvalue()
