"""The multi-attentional network: an EfficientNet, M attention maps over it, and texture features under each map."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fdtrain.config import UserError
from fdtrain.models.efficientnet import efficientnet
from fdtrain.models.head import draw_head
from fdtrain.models.multi_attention.centers import RegionCenters
from fdtrain.models.multi_attention.modules import AttentionMaps, TextureEnhancement
from fdtrain.models.multi_attention.pooling import pool_grouped, pool_mean, pool_shared, resize, standardize
from fdtrain.models.multi_attention.pretrained import is_whole, start_whole

_STAGES = 7
_TEXTURE_STAGES = ("b1", "b2", "b3")
_ATTENTION_STAGE = 5
_WIDTH = 256


class MultiAttentionOutput(NamedTuple):
    """What the losses need of one pass."""

    logits: Tensor
    """`[B, 2]`."""
    maps: Tensor
    """float32 `[B, M, h, w]`: the attention maps with their border at 0, none of them dropped."""
    regions: Tensor
    """float32 `[B, M, C]`: V, the standardized D pooled under each map, with L2 norm 1."""


class MultiAttentionNetwork(nn.Module):
    """Zhao et al., CVPR 2021, as in the authors' released form: 18.83 M parameters with EfficientNet-B4 and M = 4.

    It is fast in channels_last memory. Images have more than 16 pixels a side: D is standardized over the cells of the
    attention maps, one for 16 pixels, and the deviation of a single cell is undefined.

    Args:
        pretrained: Of the backbone, as `efficientnet` takes it; or where a whole network of this build is (a run, a
            checkpoint, a model folder, or a file of weights under its names).
        drop_rate: Dropout of the pooled final features.
        drop_path_rate: Stochastic depth of the backbone.
        image_size: Taken for the sake of one call for all models: the network is fully convolutional.
        backbone: The EfficientNet that it stands on. It keeps its own classifier, for the warm start.
        maps: Attention maps, M.
        texture_stage: Stage whose end gives the texture features: "b1", "b2" or "b3" (strides 2, 4, 8).
        map_drop_rate: Share of the attention maps that is dropped whole.

    Raises:
        UserError: the backbone isn't one with the seven stages of an EfficientNet, or there is no such texture stage,
            or the pretrained weights can't be had or are another network's.
    """

    backbone: Any

    def __init__(
        self,
        pretrained: bool | str = False,
        drop_rate: float = 0.5,
        drop_path_rate: float = 0.0,
        image_size: int | None = None,
        backbone: str = "efficientnet_b4",
        maps: int = 4,
        texture_stage: str = "b2",
        map_drop_rate: float = 0.25,
    ) -> None:
        super().__init__()
        del image_size
        if texture_stage not in _TEXTURE_STAGES:
            known = ", ".join(_TEXTURE_STAGES)
            raise UserError(f"multi_attention.texture_stage: {texture_stage!r} is unknown; allowed are {known}")
        whole = isinstance(pretrained, str) and is_whole(pretrained)
        self.backbone = _backbone(backbone, False if whole else pretrained, drop_path_rate)
        self.texture_stage = int(texture_stage[1:])
        self.map_drop_rate = map_drop_rate
        self.drop_rate = drop_rate

        channels = [stage[-1].feature_info("bottleneck")["num_chs"] for stage in self.backbone.blocks]
        texture = channels[self.texture_stage - 1]
        self.attention = AttentionMaps(channels[_ATTENTION_STAGE - 1], maps)
        self.texture = TextureEnhancement(texture, maps)
        self.local_projection = nn.Sequential(
            nn.Linear(maps * texture, _WIDTH), nn.Hardswish(), nn.Linear(_WIDTH, _WIDTH)
        )
        self.global_projection = nn.Linear(self.backbone.num_features, _WIDTH)
        self.classifier = nn.Sequential(nn.Linear(2 * _WIDTH, _WIDTH), nn.Hardswish(), draw_head(nn.Linear(_WIDTH, 2)))
        self.centers = RegionCenters(maps, texture)
        if isinstance(pretrained, str) and whole:
            start_whole(self, pretrained, {"backbone": backbone, "maps": maps, "texture_stage": texture_stage})

    def forward(self, images: Tensor) -> Tensor:
        """Normalized `[B, 3, H, W]` -> logits `[B, 2]`."""
        return self.describe(images).logits

    def backbone_logits(self, images: Tensor) -> Tensor:
        """Logits `[B, 2]` of the backbone's own classifier, which learns in the warm start alone."""
        return self.backbone(images)

    def describe(self, images: Tensor) -> MultiAttentionOutput:
        """Logits, attention maps and region features of one pass. The backbone's own classifier takes no part."""
        shallow, deep, final = self.backbone_features(images)
        maps = self.attention(deep)
        resized = resize(maps, shallow.shape[2:])
        texture, small = self.texture(shallow, resized, maps.shape[2:])
        regions = F.normalize(pool_shared(maps, standardize(small)), dim=2)

        # [B, M, 1]: one draw for a sample and map, shared by its local row and its part in the final pooling.
        kept = F.dropout(maps.new_ones((*maps.shape[:2], 1)), self.map_drop_rate, self.training)
        rows = F.normalize(pool_grouped(resized, texture), dim=2) * kept
        union = (maps * kept.unsqueeze(3)).sum(dim=1, keepdim=True)
        pooled = pool_mean(resize(union, final.shape[2:]), final)

        local = F.hardswish(self.local_projection(rows.flatten(1)))
        whole = F.hardswish(self.global_projection(F.dropout(pooled, self.drop_rate, self.training)))
        return MultiAttentionOutput(self.classifier(torch.cat([local, whole], dim=1)), maps, regions)

    def backbone_features(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features at the ends of the texture stage, the attention stage, and of the head convolution, activated."""
        net = self.backbone
        features = net.bn1(net.conv_stem(images))
        ends = []
        for stage in net.blocks:
            features = stage(features)
            ends.append(features)
        return ends[self.texture_stage - 1], ends[_ATTENTION_STAGE - 1], net.bn2(net.conv_head(features))


def _backbone(name: str, pretrained: bool | str, drop_path_rate: float) -> nn.Module:
    try:
        network: Any = efficientnet(name, pretrained=pretrained, drop_path_rate=drop_path_rate)
    except UserError as error:
        raise UserError(str(error).replace("model.name:", "multi_attention.backbone:", 1)) from error
    stages = getattr(network, "blocks", ())
    if len(stages) != _STAGES:
        raise UserError(
            f"multi_attention.backbone: {name} has {len(stages)} stages, not the {_STAGES} of an EfficientNet; "
            "take one of efficientnet_b0 .. efficientnet_b8"
        )
    return network
