"""The losses of the logits against their equations, written out sample by sample."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from fdtrain.config import LossConfig
from fdtrain.tasks.losses import create_loss

NAMES = ("cross_entropy", "focal", "bce")
RANDOM = torch.Generator().manual_seed(0)
LOGITS = torch.randn(16, 2, generator=RANDOM) * 3
LABELS = torch.randint(0, 2, (16,), generator=RANDOM)

weights = st.none() | st.tuples(st.floats(0.1, 10), st.floats(0.1, 10))
samples = st.lists(st.tuples(st.floats(-30, 30), st.floats(-30, 30), st.integers(0, 1)), min_size=1, max_size=8)


def log_softmax(logits: tuple[float, float]) -> tuple[float, float]:
    top = max(logits)
    log_sum = top + math.log(sum(math.exp(logit - top) for logit in logits))
    return logits[0] - log_sum, logits[1] - log_sum


def by_equation(config: LossConfig, logits: list[tuple[float, float]], labels: list[int]) -> float:
    """The docstring of `Loss`, in double precision."""
    weight = config.class_weights or (1.0, 1.0)
    total = 0.0
    for pair, label in zip(logits, labels, strict=True):
        target = [config.label_smoothing / 2] * 2
        target[label] += 1 - config.label_smoothing
        if config.name == "bce":
            z = pair[1] - pair[0]
            # log(sigmoid(z)) and log(1 - sigmoid(z)), for z of any size
            log_fake, log_real = -math.log1p(math.exp(-abs(z))) + min(z, 0), -math.log1p(math.exp(-abs(z))) - max(z, 0)
            total += weight[label] * (-target[1] * log_fake - target[0] * log_real)
            continue
        for kind, log_p in enumerate(log_softmax(pair)):
            factor = (1 - math.exp(log_p)) ** config.focal_gamma if config.name == "focal" else 1.0
            total += weight[kind] * target[kind] * factor * -log_p
    return total / sum(weight[label] for label in labels)


@pytest.mark.parametrize("name", NAMES)
@given(samples=samples, smoothing=st.floats(0, 0.5), class_weights=weights, gamma=st.floats(0, 5))
@settings(max_examples=60, deadline=None)
def test_each_loss_is_its_equation(
    name: str,
    samples: list[tuple[float, float, int]],
    smoothing: float,
    class_weights: tuple[float, float] | None,
    gamma: float,
) -> None:
    config = LossConfig(name, smoothing, class_weights, gamma)  # type: ignore[arg-type]
    logits = torch.tensor([sample[:2] for sample in samples])
    labels = [sample[2] for sample in samples]
    loss = create_loss(config)(logits, torch.tensor(labels))
    assert loss.dtype == torch.float32
    expected = by_equation(config, [(float(a), float(b)) for a, b in logits], labels)
    assert float(loss) == pytest.approx(expected, rel=2e-5, abs=2e-6)


def test_bce_is_cross_entropy_of_two_classes() -> None:
    plain = functional.cross_entropy(LOGITS, LABELS)
    torch.testing.assert_close(create_loss(LossConfig("bce"))(LOGITS, LABELS), plain)
    for one_option in ({"label_smoothing": 0.2}, {"class_weights": (4.0, 1.0)}):
        bce, softmax = (create_loss(LossConfig(name, **one_option)) for name in ("bce", "cross_entropy"))  # type: ignore[arg-type]
        torch.testing.assert_close(bce(LOGITS, LABELS), softmax(LOGITS, LABELS))
        assert abs(softmax(LOGITS, LABELS) - plain) > 1e-3


def test_cross_entropy_is_a_weighted_mean() -> None:
    each = functional.cross_entropy(LOGITS, LABELS, reduction="none")
    weight = torch.where(LABELS == 1, 1.0, 4.0)
    loss = create_loss(LossConfig(class_weights=(4.0, 1.0)))(LOGITS, LABELS)
    torch.testing.assert_close(loss, (each * weight).sum() / weight.sum())


@pytest.mark.parametrize("class_weights", [None, (3.0, 0.5)])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_focal_with_gamma_0_is_cross_entropy(class_weights: tuple[float, float] | None, smoothing: float) -> None:
    focal = create_loss(LossConfig("focal", smoothing, class_weights, focal_gamma=0.0))
    softmax = create_loss(LossConfig("cross_entropy", smoothing, class_weights))
    torch.testing.assert_close(focal(LOGITS, LABELS), softmax(LOGITS, LABELS))


def test_focal_makes_little_of_what_is_easy() -> None:
    focal, softmax = create_loss(LossConfig("focal")), create_loss(LossConfig())
    shares = []
    for sure in (0.0, 2.0, 4.0):
        logits, label = torch.tensor([[0.0, sure]]), torch.tensor([1])
        shares.append(float(focal(logits, label) / softmax(logits, label)))
    # (1 - p)^2 for p = 1/2, 0.881, 0.982
    assert shares == pytest.approx([0.25, 0.01421, 0.000324], rel=2e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_gradients_are_finite_where_the_answer_is_certain(name: str, gamma: float) -> None:
    logits = torch.tensor([[200.0, -200.0], [200.0, -200.0], [0.0, 0.0]], requires_grad=True)
    loss = create_loss(LossConfig(name, focal_gamma=gamma))(logits, torch.tensor([0, 1, 1]))  # type: ignore[arg-type]
    loss.backward()
    assert logits.grad is not None
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert logits.grad[1].abs().min() > 0.1  # a certain and wrong answer is what counts most


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_fp32_whatever_the_logits(name: str) -> None:
    loss = create_loss(LossConfig(name, 0.1, (2.0, 1.0)))  # type: ignore[arg-type]
    half = LOGITS.bfloat16()

    def under_autocast(logits: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return loss(logits, LABELS)

    assert torch.equal(under_autocast(half), loss(half.float(), LABELS))
    assert torch.equal(under_autocast(LOGITS), loss(LOGITS, LABELS))


def test_a_loss_has_no_state() -> None:
    loss = create_loss(LossConfig(class_weights=(2.0, 1.0)))
    assert not loss.state_dict()
    assert not list(loss.parameters())
