"""The two parts that the paper adds to its backbone: attention maps and texture enhancement (sections 3.2 and 3.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fdtrain.models.multi_attention.pooling import at_least_float32

_GRID, _BORDER = 24, 2


class AttentionMaps(nn.Module):
    """Backbone features `[B, channels, h, w]` -> attention maps, float32 `[B, maps, h, w]`, not negative.

    The maps are 0 at the border: the two outer cells of a 24 by 24 grid, which is laid over maps of any size by nearest
    neighbour.
    """

    grid: Tensor

    def __init__(self, channels: int, maps: int) -> None:
        super().__init__()
        self.extract = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(channels)
        self.project = nn.Conv2d(channels, maps, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(maps)
        inside = torch.ones(1, 1, _GRID - 2 * _BORDER, _GRID - 2 * _BORDER)
        self.register_buffer("grid", F.pad(inside, [_BORDER] * 4), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        features = F.relu(self.norm1(self.extract(features)), inplace=True)
        # Float32 from here on, under autocast too: the maps are pooling weights.
        maps = F.elu(at_least_float32(self.norm2(self.project(features)))) + 1
        return maps * F.interpolate(self.grid, size=maps.shape[2:], mode="nearest")


class TextureEnhancement(nn.Module):
    """Shallow features -> one group of texture features for each attention map.

    Tensors pass from layer to layer in channels_last memory, where a group's channels are neighbours in each pixel, so
    that a concatenation within the groups is a single copy.
    """

    def __init__(self, channels: int, maps: int) -> None:
        super().__init__()
        self.maps = maps
        width = channels * maps
        self.extract = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv0 = nn.Conv2d(width, width, 5, padding=2, groups=maps)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, groups=maps)
        self.norm2 = nn.BatchNorm2d(2 * width)
        self.conv2 = nn.Conv2d(2 * width, width, 3, padding=1, groups=maps)
        self.norm3 = nn.BatchNorm2d(3 * width)
        self.conv3 = nn.Conv2d(3 * width, width, 3, padding=1, groups=maps)
        self.norm4 = nn.BatchNorm2d(4 * width)
        self.conv_last = nn.Conv2d(4 * width, width, 1, groups=maps)
        self.norm_last = nn.BatchNorm2d(width)

    def forward(self, features: Tensor, attention: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
        """Enhance the texture.

        Args:
            features: `[B, C, H, W]`.
            attention: The maps at the size of the features, `[B, M, H, W]`; no gradient reaches them from here.
            size: The maps' own size, (h, w).

        Returns:
            Texture features `[B, M * C, H, W]`, a map's group after the other, and the features at the maps' size,
            `[B, C, h, w]`, D in the paper.
        """
        features = self.extract(features)
        small = _average(features, (size[0], size[1]))
        residual = features - F.interpolate(small, size=features.shape[2:], mode="nearest")
        weights = torch.tanh(attention.detach()).to(residual.dtype)
        groups = residual.permute(0, 2, 3, 1).unsqueeze(3) * weights.permute(0, 2, 3, 1).unsqueeze(4)

        parts = [self._grouped(self.conv0(_channels(groups)))]
        layers = ((self.norm1, self.conv1), (self.norm2, self.conv2), (self.norm3, self.conv3))
        for norm, conv in layers:
            parts.append(self._grouped(conv(_activate(norm, parts))))
        return F.relu(self.norm_last(self.conv_last(_activate(self.norm4, parts))), inplace=True), small

    def _grouped(self, features: Tensor) -> Tensor:
        """`[B, M * C, H, W]` -> a view, `[B, H, W, M, C]`."""
        return features.permute(0, 2, 3, 1).unflatten(3, (self.maps, -1))


def _activate(norm: nn.Module, parts: list[Tensor]) -> Tensor:
    """Concatenate `[B, H, W, M, C]` within each group, then normalize and rectify: `[B, M * parts * C, H, W]`."""
    return F.relu(norm(_channels(torch.cat(parts, dim=4) if len(parts) > 1 else parts[0])), inplace=True)


def _channels(groups: Tensor) -> Tensor:
    """`[B, H, W, M, C]` -> `[B, M * C, H, W]`, channels_last."""
    return groups.flatten(3).permute(0, 3, 1, 2)


def _average(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Adaptive average pooling; by windows of one size where that is it, whose gradient a GPU sums in one order."""
    height, width = features.shape[2:]
    if height % size[0] == 0 and width % size[1] == 0:
        return F.avg_pool2d(features, (height // size[0], width // size[1]))
    return F.adaptive_avg_pool2d(features, size)
