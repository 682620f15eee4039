"""Where the regional independence loss keeps what it learned from earlier batches."""

import torch
from torch import Tensor, nn


class RegionCenters(nn.Module):
    """The center of each attention map's region features (section 3.4), as buffers: a checkpoint holds them.

    The loss moves them; the network's own output doesn't depend on them.

    Args:
        maps: Attention maps, M.
        channels: Channels of the texture features, C.
        rate: How fast the centers follow the real images at first, alpha.
    """

    centers: Tensor
    """float32 [M, C], zeros in a new model."""
    rate: Tensor
    """float32 [], alpha: the loss lowers it from epoch to epoch."""

    def __init__(self, maps: int, channels: int, rate: float = 0.05) -> None:
        super().__init__()
        self.register_buffer("centers", torch.zeros(maps, channels))
        self.register_buffer("rate", torch.tensor(rate))
