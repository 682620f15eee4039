"""The multi-attentional network and its training step once more, slowly: each equation as it reads, one by one.

The independent reference of `fdtrain.models.multi_attention` and `fdtrain.tasks.multi_attention` in their tests and
benchmarks. The modules have the same names, so that it takes the same state dict; all that is computed with them is
written anew, in NCHW memory, with loops over the maps, a resize wherever two sizes meet and concatenations by reshape;
the losses loop over samples, maps and pairs of maps. No dropout, no autocast.
"""

import math
from dataclasses import dataclass
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


class ReferenceDraws(NamedTuple):
    """What the augmentation draws."""

    chosen: Tensor
    """int64 `[B]`: the map under which each image is degraded."""
    threshold: float
    """t."""
    zoom: float
    """z."""
    noise: Tensor
    """White, `[B, 3, H // 2, W // 2]`."""


def draw(images: Tensor, maps: Tensor) -> ReferenceDraws:
    """Draw from the default generator as `degrade` documents: the maps, t and z, the noise.

    The noise is laid out as the images are: a generator fills memory in its order.
    """
    weights = (maps.sum(dim=(2, 3)) + 1).sqrt()
    chosen = (weights / torch.empty_like(weights).exponential_()).argmax(dim=1)
    first, second = torch.rand(2).tolist()
    half = (*images.shape[:2], images.shape[2] // 2, images.shape[3] // 2)
    is_channels_last = images.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if is_channels_last else torch.contiguous_format
    noise = torch.randn_like(torch.empty(half, memory_format=layout))
    return ReferenceDraws(chosen, 0.4 + 0.2 * first, 3 + 2 * second, noise)


def degrade_by_equation(images: Tensor, maps: Tensor, draws: ReferenceDraws) -> Tensor:
    """Each image degraded under its map: normalized `[B, 3, H, W]`, maps `[B, M, h, w]` -> `[B, 3, H, W]`."""
    t, z, size, noise = draws.threshold, draws.zoom, images.shape[2:], draws.noise.to(images.dtype)
    taps = [math.exp(-(offset**2) / (2 * 7.0**2)) for offset in range(-5, 6)]
    kernel = torch.tensor([[a * b for b in taps] for a in taps], dtype=images.dtype)
    kernel = (kernel / kernel.sum()).expand(3, 1, 11, 11)
    bottom = 1 / (1 + math.exp(t * z))
    changed = []
    for b in range(len(images)):
        shares = F.interpolate(maps[b : b + 1], size=size, mode="bilinear", align_corners=True)[0, int(draws.chosen[b])]
        shares = shares / (shares.max() + 1e-8)
        shares = (1 / (1 + torch.exp(-(shares - t) * z)) - bottom) / (1 - bottom)
        small = F.interpolate(images[b : b + 1], size=(size[0] // 2, size[1] // 2), mode="bilinear", align_corners=True)
        small = F.conv2d(F.pad(small, (5, 5, 5, 5), mode="reflect"), kernel, groups=3) + 0.1 * noise[b : b + 1]
        degraded = F.interpolate(small, size=size, mode="bilinear", align_corners=True)[0]
        changed.append(images[b] * (1 - shares) + degraded * shares)
    return torch.stack(changed)


def moved_by_equation(regions: Tensor, labels: Tensor, centers: Tensor, rate: float) -> Tensor:
    """c' = c + alpha mean(V - c) over the whole batch, fakes as zeros; in the type of `regions`."""
    moved = centers.clone()
    for sample, label in zip(regions, labels, strict=True):
        if label == 0:
            moved = moved + rate * (sample - centers) / len(regions)
    return moved


def regional_by_equation(
    regions: Tensor, labels: Tensor, centers: Tensor, rate: float, margins: tuple[float, float], distance: float
) -> Tensor:
    """Regional independence of V `[B, M, C]` with centers c `[M, C]`, for a margin of real images that isn't 0."""
    moved = moved_by_equation(regions, labels, centers, rate)
    intra = torch.zeros((), dtype=regions.dtype)
    for sample, label in zip(regions, labels, strict=True):
        margin = margins[int(label)]
        sign = 1 if margin > 0 else -1
        intra = intra + torch.clamp(((sample - moved) ** 2).sum().sqrt() * sign - margin, min=0) / len(regions)
    inter = torch.zeros((), dtype=regions.dtype)
    for j in range(len(moved)):
        for k in range(j + 1, len(moved)):
            inter = inter + torch.clamp(distance - ((moved[j] - moved[k]) ** 2).sum().sqrt(), min=0)
    return intra + inter / (len(moved) * rate)


def match_by_equation(regions: Tensor, changed: Tensor, chosen: Tensor) -> Tensor:
    """Mean over all samples and maps of ||V[m] - V'[m]||, 0 for the map chosen."""
    batch, maps, _ = regions.shape
    total = torch.zeros((), dtype=regions.dtype)
    for b in range(batch):
        for m in range(maps):
            if m != int(chosen[b]):
                total = total + ((regions[b, m] - changed[b, m]) ** 2).sum().sqrt()
    return total / (batch * maps)


@dataclass(frozen=True)
class ReferenceTask:
    """See `MultiAttentionTask`: its step in the stage "whole", with the paper's weights and distances.

    Args:
        network: Its centers move at each pass, as the authors' do.
        mean: Of the pixels, 0 .. 1.
        std: Of the pixels.
    """

    network: ReferenceNetwork
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def training_step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """uint8 `[B, 3, H, W]`, int64 `[B]` -> "loss", and its parts without their weights."""
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        images = ((images.float() / 255 - mean) / std).contiguous()
        centers, rate = self.network.centers.centers, float(self.network.centers.rate)

        seen = self.network.describe(images)
        losses = {"ce": _cross_entropy(seen.logits, labels)}
        losses["regional"] = regional_by_equation(seen.regions, labels, centers, rate, (0.2, -0.8), 0.8)
        centers.copy_(moved_by_equation(seen.regions.detach(), labels, centers, rate))

        with torch.no_grad():
            # The draws of images in channels_last memory, as the task has them.
            draws = draw(images.contiguous(memory_format=torch.channels_last), seen.maps)
            changed = degrade_by_equation(images, seen.maps, draws)
        again = self.network.describe(changed)
        losses["ce_augmented"] = _cross_entropy(again.logits, labels)
        losses["match"] = match_by_equation(seen.regions, again.regions, draws.chosen)
        centers.copy_(moved_by_equation(again.regions.detach(), labels, centers, rate))
        weights = {"ce": 1.0, "regional": 0.5, "ce_augmented": 1.0, "match": 0.1}
        loss = torch.stack([weight * losses[name] for name, weight in weights.items()]).sum()
        return {"loss": loss} | {name: value.detach() for name, value in losses.items()}


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    total = torch.zeros((), dtype=logits.dtype)
    for row, label in zip(logits, labels, strict=True):
        total = total + torch.log(torch.exp(row - row.max()).sum()) + row.max() - row[int(label)]
    return total / len(logits)
