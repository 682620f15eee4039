"""Settings of the model and of what it learns from: the detector, its loss, what is special about one of them."""

import sys
from dataclasses import dataclass, fields
from typing import Any, Literal

from fdtrain.config.checks import UserError, all_in_range, in_range, shares, without_effect


@dataclass
class ModelConfig:
    """Which detector.

    Args:
        name: `meso4`, `meso_inception4`, `multi_attention`, `efficientnet_b0` .. `efficientnet_b8`, `efficientnet_l2`,
            `efficientnetv2_s` .. `efficientnetv2_xl`, or the name of any other EfficientNet of timm.
        pretrained: `true`: start from timm's ImageNet weights, downloaded by timm at the first use; or start from the
            model in a folder: a run, a checkpoint, or what `import-weights` wrote. `multi_attention` takes its backbone
            from an EfficientNet's folder.
        drop_rate: Dropout before the classifier. Default: the model's own.
        drop_path_rate: Stochastic depth of an EfficientNet. Default: none.
        outputs: Of the MesoNets: 1, as published, or 2, a network with two classes like the rest. Default: 1.
        variant: Of the MesoNets and `efficientnet_b4`: `deepfakebench` is that benchmark's own form. Default: as
            published.
        freeze: Parameters that stay as they are: patterns of their names, such as `[features.*]`; batch normalization
            of which both are frozen keeps its averages too.
    """

    name: str = "efficientnet_b4"
    pretrained: bool | str = False
    drop_rate: float | None = None
    drop_path_rate: float | None = None
    outputs: Literal[1, 2] | None = None
    variant: Literal["deepfakebench"] | None = None
    freeze: list[str] | None = None

    def validate(self) -> None:
        """Raise UserError for a setting that is out of range."""
        shares({"model.drop_rate": self.drop_rate, "model.drop_path_rate": self.drop_path_rate})


@dataclass
class LossConfig:
    """What a wrong answer costs.

    Args:
        name: `cross_entropy`; `focal`: cross entropy that makes little of what is easy (Lin et al. 2017); `bce`: binary
            cross entropy of the difference of the two logits.
        label_smoothing: Share of the label that is spread over both classes.
        class_weights: Weights of real and fake, such as `[4, 1]`. Default: equal.
        focal_gamma: How little `focal` makes of what is easy; 0 is cross entropy.
    """

    name: Literal["cross_entropy", "focal", "bce"] = "cross_entropy"
    label_smoothing: float = 0.0
    class_weights: tuple[float, float] | None = None
    focal_gamma: float = 2.0

    def validate(self) -> None:
        """Raise UserError for a setting that is out of range or without effect."""
        shares({"loss.label_smoothing": self.label_smoothing})
        in_range("loss.focal_gamma", self.focal_gamma, 0)
        if self.focal_gamma != LossConfig.focal_gamma and self.name != "focal":
            raise UserError(f"loss.focal_gamma: has no effect on loss.name {self.name}; set that to focal, or leave it")
        if self.class_weights is not None and not all(0 < weight < float("inf") for weight in self.class_weights):
            raise UserError(f"loss.class_weights: {list(self.class_weights)}: both are positive numbers")


@dataclass
class MultiAttentionConfig:
    """What is special about `multi_attention` (Zhao et al., CVPR 2021).

    Args:
        backbone: The EfficientNet that it stands on.
        maps: Attention maps, M.
        texture_stage: Stage of the backbone that texture features come from.
        map_drop_rate: Share of the attention maps that is dropped whole.
        backbone_epochs: Epochs of warm start in which the backbone learns alone, by its own classifier.
        head_epochs: Epochs after those in which the rest learns with the backbone frozen.
        regional_weight: Weight of the regional independence loss.
        augmented_weight: Weight of the cross entropy of images degraded under an attention map.
        match_weight: Weight of the distance between what the maps see in an image and in its degraded self. With this
            and `augmented_weight` at 0 there is no second pass.
        center_rate: How fast the maps' centers follow the real images, alpha.
        center_decay: Factor of `center_rate` from one epoch to the next.
        margins: Of the distance to the centers: real images should be nearer than the first, fakes farther than the
            second's absolute value.
        center_distance: What two centers should be apart at least.
    """

    backbone: str = "efficientnet_b4"
    maps: int = 4
    texture_stage: Literal["b1", "b2", "b3"] = "b2"
    map_drop_rate: float = 0.25
    backbone_epochs: int = 0
    head_epochs: int = 0
    regional_weight: float = 0.5
    augmented_weight: float = 1.0
    match_weight: float = 0.1
    center_rate: float = 0.05
    center_decay: float = 0.9
    margins: tuple[float, float] = (0.2, -0.8)
    center_distance: float = 0.8

    def validate(self, model: str) -> None:
        """Raise UserError for a setting that is out of range, or that another model would ignore."""
        if model != "multi_attention":
            for setting in fields(self):
                if getattr(self, setting.name) != setting.default:
                    raise UserError(
                        f"multi_attention.{setting.name}: has no effect on model.name {model}; leave it, or set "
                        "model.name to multi_attention"
                    )
        shares({"multi_attention.map_drop_rate": self.map_drop_rate})
        all_in_range({"multi_attention.maps": self.maps}, 1, 64)
        for key in ("backbone_epochs", "head_epochs", "regional_weight", "augmented_weight", "match_weight"):
            in_range(f"multi_attention.{key}", getattr(self, key), 0, sys.float_info.max)
        in_range("multi_attention.center_distance", self.center_distance, 0, sys.float_info.max)
        if self.regional_weight == 0:
            default = MultiAttentionConfig
            remedy = "raise multi_attention.regional_weight"
            without_effect("multi_attention.margins", tuple(self.margins), default.margins, remedy)
            without_effect("multi_attention.center_distance", self.center_distance, default.center_distance, remedy)
        for key in ("center_rate", "center_decay"):
            value = getattr(self, key)
            if not 0 < value <= 1:
                raise UserError(f"multi_attention.{key}: {value} is out of range; allowed are above 0 up to 1")
        real, fake = self.margins
        if not (float("inf") > real >= 0 > fake > float("-inf")):
            raise UserError(f"multi_attention.margins: {[real, fake]}: real images want at least 0, fakes below 0")

    @property
    def model_options(self) -> dict[str, Any]:
        """Those of the network itself, for `create_model`."""
        return {
            "backbone": self.backbone,
            "maps": self.maps,
            "texture_stage": self.texture_stage,
            "map_drop_rate": self.map_drop_rate,
        }
