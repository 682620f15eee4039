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
    """uint8 `[n, H, W, 3]` -> planes, but in the images' layout, which `warp` reads as fast: not contiguous."""
    return images.permute(0, 3, 1, 2).float()


def from_planes(planes: Tensor) -> Tensor:
    """Planes -> uint8 `[n, H, W, 3]`, a half rounded up. Overwrites the planes."""
    # By way of int16, since torch's conversion of floats to bytes isn't vectorized.
    rounded = planes.add_(0.5).to(torch.int16).clamp_(0, 255)
    return torch.stack(rounded.unbind(1), -1).to(torch.uint8)


def warp(planes: Tensor, matrices: np.ndarray) -> Tensor:
    """An affine map about the image's centre, in one resampling.

    Bilinear, and beyond the border a reflection about the centre of the edge pixels (OpenCV's `BORDER_REFLECT_101`),
    as albumentations' `Rotate` does; its centre is half a pixel off the middle, ours isn't.

    Args:
        planes: `[n, 3, H, W]`, in any layout.
        matrices: float32 `[n, 2, 2]`: from output to input, (x, y) in pixels from the centre, y down.
    """
    height, width = planes.shape[-2:]
    x = torch.arange(width, device=planes.device) - (width - 1) / 2
    y = torch.arange(height, device=planes.device) - (height - 1) / 2
    # grid_sample with align_corners calls the centres of the edge pixels -1 and 1.
    scaled = matrices * np.array([[2 / (width - 1)], [2 / (height - 1)]], np.float32)
    # Points as complex numbers, so that the grid is one sum.
    along_x, along_y = torch.from_numpy(scaled[:, 0] + np.complex64(1j) * scaled[:, 1]).to(planes.device).unbind(1)
    grid = torch.view_as_real((along_x[:, None] * x)[:, None] + (along_y[:, None] * y)[:, :, None])
    # The reflection, in half of grid_sample's time: what is far to within 2, which changes nothing that is within it,
    # and what is then beyond 1 back.
    limits = np.abs(scaled) @ np.array([(width - 1) / 2, (height - 1) / 2])
    if limits.max() > 3:
        grid.sub_((grid * 0.25).round_(), alpha=4)
    grid.lerp_(grid.clamp(-1, 1), 2)
    return functional.grid_sample(planes, grid, "bilinear", "zeros", align_corners=True)


def blur(planes: Tensor, size: int) -> Tensor:
    """A separable Gaussian of 3, 5 or 7 pixels, reflected at the border as in `warp`.

    Pixels are rounded before it; its own sums are exact. Overwrites the planes.
    """
    weights = BLUR_KERNELS[size]
    total = weights[0] + 2 * sum(weights[1:])
    reach = size // 2
    padded = functional.pad(planes.add_(0.5), (reach, reach, reach, reach), mode="reflect")
    # int16 is twice as fast as float32. About 0, sums of 16 x 16 weights just fit into it; those of 64 x 64 don't.
    line = padded.to(torch.int16).view(-1)
    # One run of numbers, as long runs are what a CPU is fast at; sums across the ends of rows fall into the padding.
    strides = padded.stride()
    for step, offset in ((1, -128 * total), (strides[2], 0)):
        if step > 1 and size == 7:
            line = line.int()
        length = len(line) - 2 * reach * step
        blurred = torch.add(line.new_full((), offset), line[reach * step :][:length], alpha=weights[0])
        for distance, weight in enumerate(weights[1:], 1):
            for start in (reach - distance, reach + distance):
                blurred.add_(line[start * step :][:length], alpha=weight)
        line = blurred
    return planes.copy_(line.as_strided(planes.shape, strides)).mul_(1 / total**2).add_(128)


def recolour(planes: Tensor, matrices: Tensor) -> Tensor:
    """One colour matrix for each image.

    Args:
        planes: `[n, 3, H, W]`.
        matrices: float32 `[n, 3, 4]`: RGB and 1, on the scale 0..255, to RGB.
    """
    red, green, blue, constant = matrices[..., None, None].unbind(2)
    result = planes[:, 0:1] * red
    return result.addcmul_(planes[:, 1:2], green).addcmul_(planes[:, 2:3], blue).add_(constant)
