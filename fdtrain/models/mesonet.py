"""MesoNet (Afchar et al., "MesoNet: a Compact Facial Video Forgery Detection Network", WIFS 2018)."""

import torch
from torch import Tensor, nn

from fdtrain.config import UserError


class Meso4(nn.Module):
    """Meso-4 (section III.A, figure 4): four convolution blocks and two dense layers, 27 977 trainable parameters.

    The published network has one output, z = logit P(real); here it gives the logits `[z, 0]`.

    Args:
        image_size: Side of the input in pixels, a multiple of 32; 256 as published. It sizes the first dense layer.
        drop_rate: Dropout before each of the dense layers.

    Raises:
        UserError: `image_size` is not a multiple of 32.
    """

    def __init__(self, image_size: int = 256, drop_rate: float = 0.5) -> None:
        super().__init__()
        if image_size % 32:
            raise UserError(f"data.image_size: {image_size} doesn't suit meso4; it takes multiples of 32")
        self.features = nn.Sequential(
            *_block(3, 8, kernel=3, pool=2),
            *_block(8, 8, kernel=5, pool=2),
            *_block(8, 16, kernel=5, pool=2),
            *_block(16, 16, kernel=5, pool=4),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(drop_rate),
            nn.Linear(16 * (image_size // 32) ** 2, 16),
            nn.LeakyReLU(0.1),
            nn.Dropout(drop_rate),
            nn.Linear(16, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """`[B, 3, S, S]` on the scale 0..1 -> logits `[B, 2]`."""
        real = self.classifier(self.features(images))
        return torch.cat([real, torch.zeros_like(real)], dim=1)


def _block(channels_in: int, channels_out: int, kernel: int, pool: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels_out, kernel, padding="same"),
        nn.ReLU(),
        # Keras' epsilon. The running averages keep torch's momentum: Keras' 0.99 lags far behind in a short run.
        nn.BatchNorm2d(channels_out, eps=1e-3),
        nn.MaxPool2d(pool),
    ]
