"""The multi-attentional network once more, slowly: each equation as it reads, one after the other.

The independent reference of `fdtrain.models.multi_attention` in its tests and benchmarks. The modules have the same
names, so that it takes the same state dict; all that is computed with them is written anew, in NCHW memory, with loops
over the maps, a resize wherever two sizes meet and concatenations by reshape. No dropout, no autocast.
"""

from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MASK_CELLS = 24
MASK_BORDER = 2


class ReferenceOutput(NamedTuple):
    logits: Tensor
    maps: Tensor
    regions: Tensor


class ReferenceNetwork(nn.Module):
    """See `MultiAttentionNetwork`; `backbone` is one of "b0" .. "b8", `widths` its channels at the stages' ends."""

    def __init__(self, backbone: str, maps: int, texture: int) -> None:
        super().__init__()
        self.maps, self.texture_stage = maps, texture
        self.backbone: Any = timm.create_model(f"tf_efficientnet_{backbone}", num_classes=2)
        c, a, f = (self._width(texture), self._width(5), self.backbone.conv_head.out_channels)
        self.attention = nn.ModuleDict(
            {
                "extract": nn.Conv2d(a, a, 3, padding=1),
                "norm1": nn.BatchNorm2d(a),
                "project": nn.Conv2d(a, maps, 1, bias=False),
                "norm2": nn.BatchNorm2d(maps),
            }
        )
        layers: dict[str, nn.Module] = {"extract": nn.Conv2d(c, c, 3, padding=1)}
        for i, kernel in enumerate((5, 3, 3, 3)):
            layers[f"conv{i}"] = nn.Conv2d(max(i, 1) * c * maps, c * maps, kernel, padding=kernel // 2, groups=maps)
            layers[f"norm{i + 1}"] = nn.BatchNorm2d((i + 1) * c * maps)
        layers["conv_last"] = nn.Conv2d(4 * c * maps, c * maps, 1, groups=maps)
        layers["norm_last"] = nn.BatchNorm2d(c * maps)
        self.texture = nn.ModuleDict(layers)
        self.local_projection = nn.Sequential(nn.Linear(maps * c, 256), nn.Hardswish(), nn.Linear(256, 256))
        self.global_projection = nn.Linear(f, 256)
        self.classifier = nn.Sequential(nn.Linear(512, 256), nn.Hardswish(), nn.Linear(256, 2))
        self.centers = nn.Module()
        self.centers.register_buffer("centers", torch.zeros(maps, c))
        self.centers.register_buffer("rate", torch.tensor(0.05))

    def _width(self, stage: int) -> int:
        convolutions = [module for module in self.backbone.blocks[stage - 1].modules() if isinstance(module, nn.Conv2d)]
        return convolutions[-1].out_channels

    def forward(self, images: Tensor) -> Tensor:
        return self.describe(images).logits

    def describe(self, images: Tensor) -> ReferenceOutput:
        stages, final = self._stages(images)
        maps = self._maps(stages[5])
        groups, small = self._texture(stages[self.texture_stage], maps)

        rows = torch.stack([self._pool(maps[:, i], groups[i]) for i in range(self.maps)], dim=1)
        mean = small.mean(dim=(2, 3), keepdim=True)
        count = small.shape[2] * small.shape[3]
        deviation = (((small - mean) ** 2).sum(dim=(2, 3), keepdim=True) / (count - 1)).sqrt()
        standard = (small - mean) / (deviation + 1e-8)
        regions = torch.stack([self._pool(maps[:, i], standard) for i in range(self.maps)], dim=1)

        total = sum(maps[:, i : i + 1] for i in range(self.maps))
        weights = F.interpolate(total, size=final.shape[2:], mode="bilinear", align_corners=True) + 1e-8
        pooled = torch.einsum("bhw,bchw->bc", weights[:, 0], final) / weights.sum(dim=(1, 2, 3))[:, None]

        local = F.hardswish(self.local_projection(rows.reshape(rows.shape[0], -1)))
        whole = F.hardswish(self.global_projection(pooled))
        return ReferenceOutput(self.classifier(torch.cat([local, whole], dim=1)), maps, regions)

    def _stages(self, images: Tensor) -> tuple[dict[int, Tensor], Tensor]:
        net = self.backbone
        x = net.bn1(net.conv_stem(images))
        ends = {}
        for number, stage in enumerate(net.blocks, start=1):
            x = stage(x)
            ends[number] = x
        return ends, net.bn2(net.conv_head(x))

    def _maps(self, features: Tensor) -> Tensor:
        part = self.attention
        x = F.relu(part["norm1"](part["extract"](features)))
        maps = F.elu(part["norm2"](part["project"](x))) + 1
        height, width = maps.shape[2:]
        inside = [[_inside(y, height) and _inside(x, width) for x in range(width)] for y in range(height)]
        return maps * torch.tensor(inside, dtype=maps.dtype)

    def _texture(self, features: Tensor, maps: Tensor) -> tuple[list[Tensor], Tensor]:
        part = self.texture
        x = part["extract"](features)
        small = F.adaptive_avg_pool2d(x, maps.shape[2:])
        residual = x - F.interpolate(small, size=x.shape[2:], mode="nearest")
        weighted = []
        for i in range(self.maps):
            weight = F.interpolate(maps[:, i : i + 1].detach(), size=x.shape[2:], mode="bilinear", align_corners=True)
            weighted.append(residual * torch.tanh(weight))
        dense = part["conv0"](torch.cat(weighted, dim=1))
        for i in (1, 2, 3):
            new = part[f"conv{i}"](F.relu(part[f"norm{i}"](dense)))
            dense = self._concatenate(dense, new)
        out = F.relu(part["norm_last"](part["conv_last"](F.relu(part["norm4"](dense)))))
        return list(out.chunk(self.maps, dim=1)), small

    def _concatenate(self, a: Tensor, b: Tensor) -> Tensor:
        """Within each map's group."""
        batch, _, height, width = a.shape
        a = a.reshape(batch, self.maps, -1, height, width)
        b = b.reshape(batch, self.maps, -1, height, width)
        return torch.cat([a, b], dim=2).reshape(batch, -1, height, width)

    @staticmethod
    def _pool(attention: Tensor, features: Tensor) -> Tensor:
        """`[B, h, w]`, `[B, C, H, W]` -> `[B, C]` with norm 1."""
        size = features.shape[2:]
        attention = F.interpolate(attention[:, None], size=size, mode="bilinear", align_corners=True)
        row = torch.einsum("bhw,bchw->bc", attention[:, 0], features)
        return row / row.norm(dim=1, keepdim=True).clamp_min(1e-12)


def _inside(position: int, size: int) -> bool:
    """Whether the nearest of the 24 cells is none of the two outermost."""
    return MASK_BORDER <= position * MASK_CELLS // size < MASK_CELLS - MASK_BORDER
