"""Regional independence (Zhao et al., CVPR 2021, section 3.3, in the form of the authors' release).

Each attention map m has a center c[m] in the space of the pooled texture features V[b, m]. The centers follow the real
images; real images should lie near them, fakes away from them, and the centers away from each other.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional


def regional_loss(
    regions: Tensor,
    labels: Tensor,
    centers: Tensor,
    rate: Tensor,
    margins: tuple[float, float],
    center_distance: float,
) -> Tensor:
    """The loss of one micro-batch, in fp32 under autocast too.

    With c' = c + rate * mean over the batch of (V - c), where a fake counts as zero in the mean, it is
    mean over the batch of relu(+-||V - c'|| - margin), the norm over maps and channels together, + for real and - for
    fakes, plus the sum over pairs j < k of relu(center_distance - ||c'[j] - c'[k]||) / (M rate).
    The gradient flows through c' too; that of a norm is 0 where the norm is 0, as it is between fresh centers.

    The authors write the sign as that of the margin. It is the same, but for a margin of 0 for real images, which would
    then cost nothing at any distance; here they are drawn to the centers.

    Args:
        regions: V, float `[B, M, C]`.
        labels: int64 `[B]`, 1 = fake.
        centers: c, float32 `[M, C]`.
        rate: alpha, float32 `[]`, above 0.
        margins: Of real images (at least 0) and of fakes (below 0).
        center_distance: What two centers should be apart at least.
    """
    with torch.autocast(regions.device.type, enabled=False):
        regions = regions.float()
        maps = len(centers)
        is_real = labels == 0
        moved = centers + rate * ((regions - centers) * is_real.view(-1, 1, 1)).mean(0)
        distances = torch.linalg.vector_norm(regions - moved, dim=(1, 2))
        intra = torch.where(is_real, distances - margins[0], -distances - margins[1]).relu().mean()
        # All M * M at once rather than the pairs by index, whose backward pass would add up in no fixed order on a GPU.
        between = torch.linalg.vector_norm(moved[:, None] - moved[None], dim=2)
        inter = functional.relu(center_distance - between).triu(1).sum() / (maps * rate)
        return intra + inter


class CenterUpdate(nn.Module):
    """Moves the centers once per optimizer step by all its samples, however they were split over ranks and time.

    The authors' buffer takes c' at each forward pass: after the first one, and again after that of the augmented
    images. c' is linear in V, so sums over the micro-batches of a step give the c' of the whole global batch, for the
    first pass and from there for the second. With one micro-batch the buffer ends up as theirs does.

    The sums are buffers, which go along to the device and which an engine puts back after a throw-away pass, but no
    part of the state: between steps they are zeros.

    Args:
        maps: M.
        channels: C.
    """

    sums: Tensor

    def __init__(self, maps: int, channels: int) -> None:
        super().__init__()
        self.maps, self.channels = maps, channels
        # Of each pass: the sum of V over its real images, the number of those, the number of images. In double
        # precision the order of a sum is of no account after rounding to the centers' single one.
        self.register_buffer("sums", torch.zeros(2, maps * channels + 2, dtype=torch.float64), persistent=False)

    @torch.no_grad()
    def accumulate(self, pass_number: int, regions: Tensor, labels: Tensor) -> None:
        """Add a micro-batch.

        Args:
            pass_number: 0, or 1 for the augmented images.
            regions: V, float `[B, M, C]`.
            labels: int64 `[B]`, 1 = fake.
        """
        is_real = (labels == 0).double()
        total = (regions.double() * is_real.view(-1, 1, 1)).sum(0).flatten()
        counts = torch.stack((is_real.sum(), torch.ones_like(is_real).sum()))
        self.sums[pass_number] += torch.cat((total, counts))

    @torch.no_grad()
    def apply_to(self, centers: Tensor, rate: Tensor) -> None:
        """Move the centers, float32 `[M, C]`, in place, and begin anew. Collective: every rank gets the same bits."""
        if dist.is_initialized():
            dist.all_reduce(self.sums)
        moved = centers.double()
        for total in self.sums:
            regions, real, count = total[:-2].view(self.maps, self.channels), total[-2], total[-1]
            # A pass that didn't take place has counted nothing, and moves nothing.
            moved = moved + rate.double() * (regions - real * moved) / count.clamp(min=1)
        centers.copy_(moved)
        self.clear()

    def clear(self) -> None:
        """Forget what was added since the last `apply_to`."""
        self.sums.zero_()
