"""Half precision: under autocast a network says about what it says in float32."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from fdtrain.models import create_model
from tests.heads import with_large_heads

SIZE = 128
MESONET = {"image_size": SIZE, "outputs": 2}
NETWORKS: dict[str, dict[str, object]] = {"meso4": MESONET, "meso_inception4": MESONET, "efficientnet_b0": {}}


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        ("meso4", torch.bfloat16, 0.06),
        ("meso4", torch.float16, 0.01),
        ("meso_inception4", torch.bfloat16, 0.06),
        ("meso_inception4", torch.float16, 0.015),
        # 16 blocks without training amplify rounding. What has nothing to do with the logits would be at 1.
        ("efficientnet_b0", torch.bfloat16, 0.4),
        ("efficientnet_b0", torch.float16, 0.05),
    ],
)
def test_a_forward_agrees_with_that_of_float32(name: str, dtype: torch.dtype, tolerance: float) -> None:
    """Root mean square, relative to the logits' spread over the images: what depends on no image agrees anyway."""
    torch.manual_seed(0)
    network = with_large_heads(create_model(name, **NETWORKS[name]))
    # Squares under noise: noise alone looks the same to a deep network.
    images = functional.interpolate(torch.rand(8, 3, 4, 4), (SIZE, SIZE)) * 1.6 + torch.rand(8, 3, SIZE, SIZE) * 0.4 - 1
    for norm in network.modules():  # as in a trained network, its averages are those of the images
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
    with torch.no_grad():
        network.train()(images)
        network.eval()
        expected = network(images)
        with torch.autocast("cpu", dtype):
            half = network(images)
    assert (expected.dtype, half.dtype) == (torch.float32, dtype)
    spread = expected.std(dim=0).max()
    assert spread > 0.1
    assert 0 < (half.float() - expected).square().mean().sqrt() <= tolerance * spread
