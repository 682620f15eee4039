"""EfficientNet (Tan and Le, ICML 2019) through timm, in the field's form: TensorFlow padding, two classes."""

from torch import nn

from fdtrain.config import UserError

EFFICIENTNET_SIZES = {
    "efficientnet_b0": 224,
    "efficientnet_b1": 240,
    "efficientnet_b2": 260,
    "efficientnet_b3": 300,
    "efficientnet_b4": 380,
    "efficientnet_b5": 456,
    "efficientnet_b6": 528,
    "efficientnet_b7": 600,
    "efficientnet_b8": 672,
}
"""Input side in pixels that each network was scaled for (Tan and Le, table 1, and timm for B8)."""

_DROP_RATES = (0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5, 0.5)


def efficientnet(
    name: str,
    pretrained: bool = False,
    drop_rate: float | None = None,
    drop_path_rate: float = 0.0,
    image_size: int | None = None,
) -> nn.Module:
    """Make `tf_<name>` of timm: SAME padding, batch-norm epsilon 1e-3, two outputs.

    Args:
        name: "efficientnet_b0" .. "efficientnet_b8".
        pretrained: Load the AdvProp ImageNet weights, whose normalization (mean and std 0.5) is the one used here.
        drop_rate: Dropout before the classifier; the network's own (0.2 .. 0.5) if None.
        drop_path_rate: Stochastic depth.
        image_size: Taken for the sake of one call for all models: the network is fully convolutional.

    Raises:
        UserError: the pretrained weights can't be had.
    """
    import timm  # seconds, which a run of another model need not pay

    del image_size
    default = _DROP_RATES[list(EFFICIENTNET_SIZES).index(name)]
    try:
        return timm.create_model(
            f"tf_{name}.ap_in1k",
            pretrained=pretrained,
            num_classes=2,
            drop_rate=default if drop_rate is None else drop_rate,
            drop_path_rate=drop_path_rate,
        )
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        reason = str(error).splitlines()[0]
        raise UserError(
            f"model.pretrained: timm could not get the weights of tf_{name}.ap_in1k ({reason}); "
            "set it to false, or fetch them once where there is a network (timm keeps them in its cache)"
        ) from error
