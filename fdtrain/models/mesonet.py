"""MesoNet (Afchar et al., "MesoNet: a Compact Facial Video Forgery Detection Network", WIFS 2018).

Both networks end in 16 maps of 1/32 of the image's side and two dense layers. As published they have one output,
z = logit P(real), which becomes the logits `[z, 0]`; with two outputs they are like every other model here.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from fdtrain.config import UserError
from fdtrain.models.card import InputSpec
from fdtrain.models.head import draw_head
from fdtrain.models.state import another_network, start_from

PUBLISHED_SPEC = InputSpec(256, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="bilinear")
"""Pixels scaled to 0..1 and nothing else."""


def mesonet(
    name: str,
    pretrained: bool | str = False,
    drop_rate: float = 0.5,
    image_size: int = 256,
    outputs: int | None = None,
    variant: str | None = None,
) -> nn.Module:
    """Make a MesoNet.

    Args:
        name: "meso4" or "meso_inception4".
        pretrained: A run, a checkpoint, a model folder or a file of weights to begin with; there are none of ImageNet.
        drop_rate: Dropout before each of the dense layers.
        image_size: Side of the input in pixels, a multiple of 32; 256 as published. It sizes the first dense layer.
        outputs: 1, as published, or 2; the variant has 2.
        variant: "deepfakebench": that benchmark's form, see `_SharedNorms`; None: as published.

    Raises:
        UserError: a setting doesn't suit the network, or the pretrained weights don't.
    """
    if image_size % 32 or image_size < 32:
        raise UserError(f"data.image_size: {image_size} doesn't suit {name}; it takes multiples of 32")
    if variant not in (None, "deepfakebench"):
        raise UserError(f"model.variant: {variant!r} is unknown; {name} has deepfakebench")
    if outputs not in (None, 1, 2) or (variant and outputs == 1):
        raise UserError(f"model.outputs: {outputs} doesn't suit {name}{' as of ' + variant if variant else ''}; take 2")
    features = (_VARIANTS if variant else _PUBLISHED)[name]()
    model = MesoNet(features, image_size, drop_rate, outputs or (2 if variant else 1))
    if pretrained is True:
        raise UserError(f"model.pretrained: {name} has no ImageNet weights; set it to false, or to a folder or file")
    if pretrained:
        spec = mesonet_spec(variant)
        differs = partial(another_network, is_same=lambda other: other == name, variant=variant)
        start_from(model, pretrained, spec, differs=differs, classifier="classifier.5.")
    return model


def mesonet_spec(variant: str | None = None) -> InputSpec:
    """The input that the networks were designed for; DeepfakeBench feeds all of its detectors alike."""
    return InputSpec(256) if variant else PUBLISHED_SPEC


class MesoNet(nn.Module):
    """Convolutional features and two dense layers.

    Args:
        features: `[B, 3, S, S]` -> `[B, 16, S/32, S/32]`; its last-but-one child gives the last full feature maps.
        image_size: S.
        drop_rate: Dropout before each of the dense layers.
        outputs: 1 or 2.
    """

    def __init__(self, features: nn.Sequential, image_size: int, drop_rate: float, outputs: int) -> None:
        super().__init__()
        self.features = features
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(drop_rate),
            nn.Linear(16 * (image_size // 32) ** 2, 16),
            nn.LeakyReLU(0.1),
            nn.Dropout(drop_rate),
            draw_head(nn.Linear(16, outputs)),
        )
        self.outputs = outputs

    def forward(self, images: Tensor) -> Tensor:
        """Normalized `[B, 3, S, S]` -> logits `[B, 2]`."""
        logits = self.classifier(self.features(images))
        return logits if self.outputs == 2 else torch.cat([logits, torch.zeros_like(logits)], dim=1)


def meso4_features() -> nn.Sequential:
    """Meso-4 (section III.A, figure 4); with one output and 256 pixels 27 977 trainable parameters."""
    return nn.Sequential(
        *_block(3, 8, kernel=3, pool=2),
        *_block(8, 8, kernel=5, pool=2),
        *_block(8, 16, kernel=5, pool=2),
        *_block(16, 16, kernel=5, pool=4),
    )


def meso_inception4_features() -> nn.Sequential:
    """MesoInception-4 (section III.B, figure 5); with one output and 256 pixels 28 615 trainable parameters."""
    return nn.Sequential(
        *_inception_block(3, (1, 4, 4, 2)),
        *_inception_block(11, (2, 4, 4, 2)),
        *_block(12, 16, kernel=5, pool=2),
        *_block(16, 16, kernel=5, pool=4),
    )


class Inception(nn.Module):
    """Four branches side by side: 1x1, and 1x1 with 3x3 of dilation 1, 2 and 3, whose outputs are concatenated.

    Args:
        channels_in: Channels of the input.
        widths: Channels of each branch.
        published: With ReLU after every convolution, and biases; without either otherwise.
    """

    def __init__(self, channels_in: int, widths: tuple[int, int, int, int], published: bool = True) -> None:
        super().__init__()

        def convolution(channels: int, width: int, kernel: int, dilation: int = 1) -> list[nn.Module]:
            padding = dilation * (kernel // 2)
            layer = nn.Conv2d(channels, width, kernel, padding=padding, dilation=dilation, bias=published)
            return [layer, nn.ReLU()] if published else [layer]

        point, *dilated = widths
        self.branches = nn.ModuleList([nn.Sequential(*convolution(channels_in, point, 1))])
        for dilation, width in enumerate(dilated, start=1):
            self.branches.append(
                nn.Sequential(*convolution(channels_in, width, 1), *convolution(width, width, 3, dilation))
            )

    def forward(self, images: Tensor) -> Tensor:
        """`[B, channels_in, H, W]` -> `[B, sum of widths, H, W]`."""
        return torch.cat([branch(images) for branch in self.branches], dim=1)


def _block(channels_in: int, channels_out: int, kernel: int, pool: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels_out, kernel, padding="same"),
        nn.ReLU(),
        _norm(channels_out),
        nn.MaxPool2d(pool),
    ]


def _inception_block(channels_in: int, widths: tuple[int, int, int, int]) -> list[nn.Module]:
    return [Inception(channels_in, widths), _norm(sum(widths)), nn.MaxPool2d(2)]


def _norm(channels: int) -> nn.BatchNorm2d:
    # Keras' epsilon. The running averages keep torch's momentum: Keras' 0.99 lags far behind in a short run.
    return nn.BatchNorm2d(channels, eps=1e-3)


class _SharedNorms(nn.Module):
    """The plain convolutions of DeepfakeBench's MesoNets: no biases, and a batch normalization for two of them at once.

    Each is followed by ReLU, its normalization, and, but for the last, 2x2 pooling.

    Args:
        convolutions: (channels in, channels out, kernel) of each; those with equal channels out share one.
    """

    def __init__(self, *convolutions: tuple[int, int, int]) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList()
        self.norms = nn.ModuleDict()
        for channels_in, channels_out, kernel in convolutions:
            self.convolutions.append(nn.Conv2d(channels_in, channels_out, kernel, padding="same", bias=False))
            if str(channels_out) not in self.norms:
                self.norms[str(channels_out)] = nn.BatchNorm2d(channels_out)

    def forward(self, images: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, last channels out, H/2^(n-1), W/2^(n-1)]` for n convolutions."""
        for index, convolution in enumerate(self.convolutions):
            if index:
                images = functional.max_pool2d(images, 2)
            images = functional.relu(convolution(images))
            images = self.norms[str(images.shape[1])](images)
        return images


def _shared_meso4_features() -> nn.Sequential:
    return nn.Sequential(_SharedNorms((3, 8, 3), (8, 8, 5), (8, 16, 5), (16, 16, 5)), nn.MaxPool2d(4))


def _shared_meso_inception4_features() -> nn.Sequential:
    return nn.Sequential(
        Inception(3, (1, 4, 4, 2), published=False),
        nn.BatchNorm2d(11),
        nn.MaxPool2d(2),
        Inception(11, (2, 4, 4, 2), published=False),
        nn.BatchNorm2d(12),
        nn.MaxPool2d(2),
        _SharedNorms((12, 16, 5), (16, 16, 5)),
        nn.MaxPool2d(4),
    )


_PUBLISHED: dict[str, Callable[[], nn.Sequential]] = {
    "meso4": meso4_features,
    "meso_inception4": meso_inception4_features,
}
_VARIANTS: dict[str, Callable[[], nn.Sequential]] = {
    "meso4": _shared_meso4_features,
    "meso_inception4": _shared_meso_inception4_features,
}
