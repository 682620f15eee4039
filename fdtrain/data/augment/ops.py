"""Operations on planes: float32 `[n, 3, H, W]`, contiguous, on the scale 0..255, on any device.

Every result is a function of its own image alone, computed by elementwise kernels: no matrix product or convolution,
whose order of summing may change with the size of the batch.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

# What OpenCV takes for a Gaussian of these widths when no sigma is given (0.8, 1.1 and 1.4 by its formula): whole
# numbers over a power of two.
BLUR_KERNELS: dict[int, tuple[int, ...]] = {3: (2, 1), 5: (6, 4, 1), 7: (18, 14, 7, 2)}  # centre, then one side

# RGB to luma (that of JPEG, ITU-R BT.601) and two axes of chroma (FCC, 47 CFR 73.682).
YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def to_planes(images: Tensor) -> Tensor:
    """uint8 `[n, H, W, 3]` -> planes."""
    return images.permute(0, 3, 1, 2).contiguous().float()


def from_planes(planes: Tensor) -> Tensor:
    """Planes -> uint8 `[n, H, W, 3]`, a half rounded up. Overwrites the planes."""
    # By way of int16, since torch's conversion of floats to bytes isn't vectorized.
    rounded = planes.add_(0.5).clamp_(0, 255).to(torch.int16).to(torch.uint8)
    return torch.stack(rounded.unbind(1), -1)


def warp(planes: Tensor, matrices: Tensor) -> Tensor:
    """An affine map about the image's centre, in one resampling.

    Bilinear, and beyond the border a reflection about the centre of the edge pixels (OpenCV's `BORDER_REFLECT_101`),
    as albumentations' `Rotate` does; its centre is half a pixel off the middle, ours isn't.

    Args:
        planes: `[n, 3, H, W]`.
        matrices: float32 `[n, 2, 2]`: from output to input, (x, y) in pixels from the centre, y down.
    """
    height, width = planes.shape[-2:]
    x = torch.arange(width, device=planes.device) - (width - 1) / 2
    y = torch.arange(height, device=planes.device) - (height - 1) / 2
    # grid_sample with align_corners calls the centres of the edge pixels -1 and 1.
    to_unit = torch.tensor([2 / (width - 1), 2 / (height - 1)], device=planes.device)
    scaled = matrices * to_unit[None, :, None]
    grid = planes.new_empty((len(planes), height, width, 2))
    for axis in range(2):
        along_x, along_y = scaled[:, axis, 0, None] * x, scaled[:, axis, 1, None] * y
        torch.add(along_x[:, None, :], along_y[:, :, None], out=grid[..., axis])
    return functional.grid_sample(planes, grid, "bilinear", "reflection", align_corners=True)


def blur(planes: Tensor, size: int) -> Tensor:
    """A separable Gaussian of 3, 5 or 7 pixels, reflected at the border as in `warp`.

    Pixels are rounded before it; its own sums are exact. Overwrites the planes.
    """
    weights = BLUR_KERNELS[size]
    total = weights[0] + 2 * sum(weights[1:])
    reach = size // 2
    height, width = planes.shape[-2:]
    padded = functional.pad(planes.add_(0.5), (reach, reach, reach, reach), mode="reflect")
    # int16 is twice as fast as float32. From -128 on, sums of 16 x 16 weights just fit into it; those of 64 x 64 don't.
    line = padded.to(torch.int16).sub_(128).view(-1)
    # One run of numbers, as long runs are what a CPU is fast at; sums across the ends of rows fall into the padding.
    for stride in (1, padded.shape[-1]):
        if stride > 1 and size == 7:
            line = line.int()
        length = len(line) - 2 * reach * stride
        blurred = line[reach * stride :][:length] * weights[0]
        for distance, weight in enumerate(weights[1:], 1):
            for start in (reach - distance, reach + distance):
                blurred.add_(line[start * stride :][:length], alpha=weight)
        line = blurred
    padded.view(-1)[: len(line)] = line
    return padded[..., :height, :width].mul_(1 / total**2).add_(128)


def recolour(planes: Tensor, matrices: Tensor) -> Tensor:
    """One colour matrix for each image.

    Args:
        planes: `[n, 3, H, W]`.
        matrices: float32 `[n, 3, 4]`: RGB and 1, on the scale 0..255, to RGB.
    """
    result = torch.empty_like(planes)
    for channel in range(3):
        out = result[:, channel]
        factors = matrices[:, channel, :, None, None]
        torch.addcmul(factors[:, 3], planes[:, 0], factors[:, 0], out=out)
        out.addcmul_(planes[:, 1], factors[:, 1]).addcmul_(planes[:, 2], factors[:, 2])
    return result
