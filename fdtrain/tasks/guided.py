"""Attention-guided augmentation (Zhao et al., CVPR 2021, section 3.4, in the form of the authors' release).

An image is degraded where one of its attention maps looks, so that the other maps learn to do without that place.
"""

import torch
from torch import Tensor
from torch.nn import functional

THRESHOLDS = (0.4, 0.6)
ZOOMS = (3.0, 5.0)
TAPS, SIGMA = 11, 7.0
NOISE = 0.1


@torch.no_grad()
def degrade(images: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Degrade each image under one of its maps.

    Draws come from torch's default generator of the device, in this order: the maps, t and z, the noise. Nothing waits
    for the device.

    Args:
        images: Normalized float32 `[B, 3, H, W]`, sides of at least 12 pixels.
        maps: Attention, float `[B, M, h, w]`, not negative.

    Returns:
        images: float32 `[B, 3, H, W]`, in the memory format of the images given.
        chosen: int64 `[B]`, the map of each.
    """
    with torch.autocast(images.device.type, enabled=False):
        maps = maps.float()
        chosen = draw_maps(maps)
        threshold, zoom = torch.rand(2, device=images.device)
        threshold = THRESHOLDS[0] + (THRESHOLDS[1] - THRESHOLDS[0]) * threshold
        zoom = ZOOMS[0] + (ZOOMS[1] - ZOOMS[0]) * zoom
        # One map is resized, not all.
        index = chosen.view(-1, 1, 1, 1).expand(-1, 1, *maps.shape[2:])
        drawn = _resize(maps.gather(1, index), images.shape[2], images.shape[3])
        shares = soft_threshold(drawn / (drawn.amax((2, 3), keepdim=True) + 1e-8), threshold, zoom)
        mixed = torch.empty_like(images)
        return torch.lerp(images, degraded(images), shares, out=mixed), chosen


def draw_maps(maps: Tensor) -> Tensor:
    """Draw a map per sample with a probability proportional to the root of (its sum + 1): `[B, M, h, w]` -> `[B]`."""
    weights = (maps.sum((2, 3)) + 1).sqrt()
    # The first of M exponential clocks with these rates. `torch.multinomial` would wait for the device.
    return (weights / torch.empty_like(weights).exponential_()).argmax(1)


def soft_threshold(maps: Tensor, threshold: Tensor, zoom: Tensor) -> Tensor:
    """sigmoid((x - t) z), moved and scaled so that 0 stays 0 and infinity becomes 1."""
    bottom = torch.sigmoid(-threshold * zoom)
    return (torch.sigmoid((maps - threshold) * zoom) - bottom) / (1 - bottom)


def degraded(images: Tensor) -> Tensor:
    """At half size blurred and noisy, then at full size again: float32 `[B, 3, H, W]` -> the same."""
    height, width = images.shape[2:]
    small = blurred(_resize(images, height // 2, width // 2))
    return _resize(small + NOISE * torch.randn_like(small), height, width)


def blurred(images: Tensor) -> Tensor:
    """Gaussian filter, 11 taps, sigma 7, mirrored at the border: float32 `[B, C, H, W]` -> the same."""
    channels, reach = images.shape[1], TAPS // 2
    taps = torch.arange(-reach, reach + 1, dtype=torch.float32, device=images.device)
    # The softmax is the bell curve, divided by its sum.
    kernel = torch.softmax(-(taps**2) / (2 * SIGMA**2), 0)
    images = functional.pad(images, (reach, reach, reach, reach), mode="reflect")
    images = functional.conv2d(images, kernel.view(1, 1, TAPS, 1).expand(channels, 1, TAPS, 1), groups=channels)
    return functional.conv2d(images, kernel.view(1, 1, 1, TAPS).expand(channels, 1, 1, TAPS), groups=channels)


def _resize(images: Tensor, height: int, width: int) -> Tensor:
    return functional.interpolate(images, size=(height, width), mode="bilinear", align_corners=True)
