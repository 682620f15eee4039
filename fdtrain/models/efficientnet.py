"""EfficientNet (Tan and Le, ICML 2019; V2: ICML 2021) through timm, with TensorFlow's padding and two classes.

`efficientnet_b4` is timm's `tf_efficientnet_b4`. timm has networks of its own under the unprefixed names, padded as
PyTorch does: those are `timm/efficientnet_b4` here. Every other EfficientNet goes by the name that timm gives it, such
as `tf_efficientnet_lite0` or `tf_efficientnet_b4.ns_jft_in1k`.

timm takes seconds to import, so it is imported when one of its networks is made, or asked about by timm's name.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from datasets_shards.errors import first_few, nearest
from fdtrain.config import UserError
from fdtrain.models.card import HALF, InputSpec
from fdtrain.models.fast import speed_up
from fdtrain.models.head import draw_head
from fdtrain.models.state import another_network, start_from

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class _Known:
    timm_name: str
    size: int
    drop_rate: float
    mean: tuple[float, float, float] = HALF
    std: tuple[float, float, float] = HALF


EFFICIENTNETS: dict[str, _Known] = {
    # Input side and dropout that each was scaled for (Tan and Le, section 5.2, and timm for B8); AdvProp's weights.
    **{
        f"efficientnet_b{scale}": _Known(f"tf_efficientnet_b{scale}.ap_in1k", size, drop_rate)
        for scale, (size, drop_rate) in enumerate(
            zip(
                (224, 240, 260, 300, 380, 456, 528, 600, 672),
                (0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5, 0.5),
                strict=True,
            )
        )
    },
    "efficientnet_l2": _Known("tf_efficientnet_l2.ns_jft_in1k", 800, 0.5, _IMAGENET_MEAN, _IMAGENET_STD),
    # The sides that V2's published accuracies were measured at; its training went up to smaller ones (300 to 384).
    **{
        f"efficientnetv2_{scale}": _Known(f"tf_efficientnetv2_{scale}.in21k_ft_in1k", size, drop_rate)
        for scale, size, drop_rate in (("s", 384, 0.2), ("m", 480, 0.3), ("l", 480, 0.4), ("xl", 512, 0.4))
    },
}
"""The networks under names of our own; b0 to b8 and L2 are the report's table 2."""

_B4_AT_380 = {"1": (0, 1), "2": (2, 2), "3": (0, 1), "5": (1, 2)}
"""Stage -> padding before and after of its stride-2 convolution, SAME for an input of 380 (95 pixels at stage 2)."""


def efficientnet(
    name: str,
    pretrained: bool | str = False,
    drop_rate: float | None = None,
    drop_path_rate: float | None = None,
    image_size: int | None = None,
    variant: str | None = None,
) -> nn.Module:
    """Make an EfficientNet with two outputs.

    Args:
        name: One of `EFFICIENTNETS`, or of timm's.
        pretrained: True: timm's ImageNet weights, of the tag that the name stands for. A path: a run, a checkpoint, a
            model folder, or a file of weights under timm's names (`.safetensors`, or `.pth` that needs no unpickling).
        drop_rate: Dropout before the classifier; if None the network's own: that in `EFFICIENTNETS`, whatever name the
            network goes by, and 0 for those that aren't there.
        drop_path_rate: Stochastic depth; none if None.
        image_size: Taken for the sake of one call for all models: the network is fully convolutional.
        variant: "deepfakebench", of efficientnet_b4 alone: see `_as_deepfakebench`.

    Raises:
        UserError: the name or variant is unknown, or the pretrained weights can't be had or don't fit.
    """
    del image_size
    if variant is not None and (variant != "deepfakebench" or name != "efficientnet_b4"):
        raise UserError(f"model.variant: {name} has no variant {variant!r}; leave it out, or take efficientnet_b4")
    timm_name = resolve(name)
    import timm

    known = EFFICIENTNETS.get(architecture(name).removeprefix("tf_"))
    own_drop_rate = known.drop_rate if known else 0.0
    try:
        model = timm.create_model(
            timm_name,
            pretrained=pretrained is True,
            num_classes=2,
            drop_rate=own_drop_rate if drop_rate is None else drop_rate,
            drop_path_rate=drop_path_rate or 0.0,
        )
    except (OSError, RuntimeError) as error:
        if pretrained is not True:
            raise
        reason = str(error).splitlines()[0]
        raise UserError(
            f"model.pretrained: timm could not get the weights of {timm_name} ({reason}); "
            "set it to false, or fetch them once where there is a network (timm keeps them in its cache)"
        ) from error
    head = model.get_submodule("classifier")
    assert isinstance(head, nn.Linear)
    draw_head(head)  # timm's is drawn from +-0.7 where there are two classes
    if variant is not None:
        _as_deepfakebench(model)
    if isinstance(pretrained, str):

        def is_same(other: str) -> bool:
            return is_efficientnet(other) and architecture(other) == architecture(name)

        spec = efficientnet_spec(name)
        differs = partial(another_network, is_same=is_same, variant=variant)
        start_from(model, pretrained, spec, differs=differs, classifier="classifier.")
    return speed_up(model)


def efficientnet_spec(name: str) -> InputSpec:
    """The input that a network was designed for: its test size, where timm tells that from the training size.

    Raises:
        UserError: the name is unknown.
    """
    if name in EFFICIENTNETS:
        known = EFFICIENTNETS[name]
        return InputSpec(known.size, known.mean, known.std)
    timm_name = resolve(name)
    import timm

    facts: Any = timm.get_pretrained_cfg(timm_name)
    size = (facts.test_input_size or facts.input_size)[-1]
    return InputSpec(size, tuple(facts.mean), tuple(facts.std), facts.interpolation)


def is_efficientnet(name: str) -> bool:
    """Whether the name can only be meant for a network of this module."""
    return name in EFFICIENTNETS or "efficientnet" in name


def architecture(name: str) -> str:
    """The network of timm that a name stands for, without the tag of its weights. Raises UserError as `resolve`."""
    return resolve(name).partition(".")[0]


def resolve(name: str) -> str:
    """timm's name of a network. Raises UserError for a name that nobody knows; it tells the nearest."""
    if name in EFFICIENTNETS:
        return EFFICIENTNETS[name].timm_name
    bare = name.removeprefix("timm/")
    base, _, tag = bare.partition(".")
    if bare == name and base in EFFICIENTNETS:
        raise UserError(
            f"model.name: {name!r} could mean two networks; write tf_{name} for the one padded as in TensorFlow, "
            f"timm/{name} for timm's own"
        )
    import timm

    networks = [network for network in timm.list_models(module="efficientnet") if "efficientnet" in network]
    if base not in networks:
        prefix = name[: len(name) - len(bare)]
        match = nearest(base, networks if prefix else [*EFFICIENTNETS, *networks])
        hint = f"did you mean {prefix}{match}?" if match else f"known are {', '.join(EFFICIENTNETS)} and timm's"
        raise UserError(f"model.name: {name!r} is unknown; {hint}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        raise UserError(f"model.name: {name!r}: timm has no such weights; it has {first_few(tags) or 'none'}")
    return bare


def _as_deepfakebench(model: nn.Module) -> None:
    """Make a B4 that of DeepfakeBench (Yan et al., NeurIPS 2023), its weights kept.

    That benchmark puts an unpadded convolution in the place of the stem. The rest is `efficientnet_pytorch`'s B4, whose
    paddings are fixed when it is made, SAME for 380 pixels whatever comes; at 256 they aren't what SAME would be.
    """
    stem = model.get_submodule("conv_stem")
    assert isinstance(stem, nn.Conv2d)
    model.set_submodule("conv_stem", _PaddedConv2d(stem, (0, 0)))
    for stage, padding in _B4_AT_380.items():
        place = f"blocks.{stage}.0.conv_dw"
        convolution = model.get_submodule(place)
        assert isinstance(convolution, nn.Conv2d)
        model.set_submodule(place, _PaddedConv2d(convolution, padding))


class _PaddedConv2d(nn.Conv2d):
    """A convolution with another one's weight and a fixed padding, (before, after), alike for rows and columns."""

    def __init__(self, like: nn.Conv2d, padding: tuple[int, int]) -> None:
        kernel, stride = like.kernel_size[0], like.stride[0]
        super().__init__(like.in_channels, like.out_channels, kernel, stride, groups=like.groups, bias=False)
        self.weight = like.weight
        self.sides = (*padding, *padding)

    def forward(self, images: Tensor) -> Tensor:
        if any(self.sides):
            images = functional.pad(images, self.sides)
        return functional.conv2d(images, self.weight, None, self.stride, groups=self.groups)
