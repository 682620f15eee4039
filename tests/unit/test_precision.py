"""Half precision: under autocast a network says about what it says in float32."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fdtrain.evaluation.scoring import full_precision
from fdtrain.models import InputSpec, create_model
from fdtrain.tasks import Task
from fdtrain.tasks.precision import fake_probability
from tests.heads import with_large_heads

SIZE = 128
MESONET = {"image_size": SIZE, "outputs": 2}
NETWORKS: dict[str, dict[str, object]] = {"meso4": MESONET, "meso_inception4": MESONET, "efficientnet_b0": {}}


def seen_images(network: nn.Module, count: int, size: int) -> Tensor:
    """Images for a network, float `[B, 3, S, S]`; as in a trained one, its batch-norm averages are theirs."""
    # Squares under noise: noise alone looks the same to a deep network.
    squares = functional.interpolate(torch.rand(count, 3, 4, 4), (size, size))
    images = squares * 1.6 + torch.rand(count, 3, size, size) * 0.4 - 1
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
    with torch.no_grad():
        network.train()(images)
    network.eval()
    return images


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
    images = seen_images(network, 8, SIZE)
    with torch.no_grad():
        expected = network(images)
        with torch.autocast("cpu", dtype):
            half = network(images)
    assert (expected.dtype, half.dtype) == (torch.float32, dtype)
    spread = expected.std(dim=0).max()
    assert spread > 0.1
    assert 0 < (half.float() - expected).square().mean().sqrt() <= tolerance * spread


@pytest.mark.parametrize(
    ("name", "options", "head"),
    [
        ("meso4", {"image_size": 64}, "classifier.5"),
        ("meso_inception4", {"image_size": 64, "variant": "deepfakebench"}, "classifier.5"),
        ("efficientnet_b0", {}, "classifier"),
        ("multi_attention", {"backbone": "efficientnet_b0"}, "classifier.2"),
    ],
)
def test_logits_near_6_do_not_tie_in_half_precision(name: str, options: dict[str, object], head: str) -> None:
    """The classifier of a task computes in float32, whatever precision the features have."""
    torch.manual_seed(0)
    task = Task(with_large_heads(create_model(name, **options)), InputSpec(64))
    images = seen_images(task.model, 64, 64)
    last = task.model.get_submodule(head)
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.bias[0] += 6
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = task.logits(images)
        if name == "multi_attention":  # the other classifier, of its warm start
            assert task.model.backbone_logits(images).dtype == torch.float32
    assert logits.dtype == torch.float32
    assert len(logits[:, 0].unique()) == 64 > len(logits[:, 0].bfloat16().unique())


def test_scores_of_finite_logits_are_neither_0_nor_1() -> None:
    logits = torch.stack((torch.zeros(61), torch.arange(-30.0, 31.0)), 1)
    scores = fake_probability(logits)
    assert scores.dtype == torch.float64
    assert scores[0] > 0
    assert scores[-1] < 1
    assert (scores.diff() > 0).all()
    assert (logits.softmax(1)[:, 1] == 1).sum() > 10  # which float32 doesn't tell apart
    assert scores[30] == 0.5


def test_scoring_within_a_tf32_run_is_in_float32() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        with full_precision():
            assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", False)
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", True)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
