"""Regional independence against its equations in loops; centers that don't depend on how a batch is split."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing

from fdtrain.tasks.regional import CenterUpdate, regional_loss
from tests.reference_multi_attention import moved_by_equation, regional_by_equation

MARGINS, DISTANCE = (0.2, -0.8), 0.8
BATCH, MAPS, CHANNELS = 8, 4, 5
LABELS = torch.tensor([0, 1, 1, 0, 1, 0, 1, 1])
RATE = torch.tensor(0.05)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


REGIONS, AGAIN, CENTERS = normal(1, BATCH, MAPS, CHANNELS), normal(2, BATCH, MAPS, CHANNELS), normal(3, MAPS, CHANNELS)


@pytest.mark.parametrize("scale", [0.05, 0.2, 1.0])  # fakes within their margin or not; centers too near or not
@pytest.mark.parametrize("labels", [LABELS, torch.zeros_like(LABELS), torch.ones_like(LABELS)])
def test_the_loss_and_its_gradient_are_the_equations(scale: float, labels: Tensor) -> None:
    regions, exact = (scale * REGIONS).requires_grad_(), (scale * REGIONS).double().requires_grad_()
    loss = regional_loss(regions, labels, scale * CENTERS, RATE, MARGINS, DISTANCE)
    rate = float(RATE.double())
    expected = regional_by_equation(exact, labels, (scale * CENTERS).double(), rate, MARGINS, DISTANCE)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    if not expected.requires_grad:
        return
    (gradient,), (expected_gradient,) = torch.autograd.grad(loss, regions), torch.autograd.grad(expected, exact)
    torch.testing.assert_close(gradient, expected_gradient.float(), rtol=1e-4, atol=1e-6)


def test_both_parts_and_both_classes_take_part() -> None:
    near = 0.05 * REGIONS
    fakes_only = regional_loss(near, torch.ones_like(LABELS), 10 * CENTERS, RATE, MARGINS, DISTANCE)
    assert float(fakes_only) == 0  # far from centers that are far from each other
    reals_only = regional_loss(near, torch.zeros_like(LABELS), 10 * CENTERS, RATE, MARGINS, DISTANCE)
    assert float(reals_only) > 1
    # Six pairs at distance 0.
    at_zero = regional_loss(torch.zeros(2, 4, 5), torch.zeros(2).long(), torch.zeros(4, 5), RATE, MARGINS, DISTANCE)
    assert float(at_zero) == pytest.approx(6 * DISTANCE / (4 * 0.05))


def test_the_gradient_flows_through_the_moved_centers() -> None:
    """Two centers too near to each other: only the batch's share of c' can part them."""
    regions = (0.1 * REGIONS).requires_grad_()
    loss = regional_loss(regions, torch.zeros_like(LABELS), torch.zeros(MAPS, CHANNELS), RATE, (1e6, -0.8), DISTANCE)
    loss.backward()
    assert regions.grad is not None
    assert float(regions.grad.norm()) > 0.01


@pytest.mark.parametrize("regions", [torch.zeros(4, 3, 2), torch.ones(4, 3, 2)])
@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 1]])
def test_gradients_are_finite_at_distance_0(regions: Tensor, labels: list[int]) -> None:
    regions = regions.clone().requires_grad_()
    loss = regional_loss(regions, torch.tensor(labels), torch.zeros(3, 2), RATE, (0.0, -0.8), DISTANCE)
    loss.backward()
    assert loss.isfinite()
    assert regions.grad is not None
    assert regions.grad.isfinite().all()


def test_reals_are_drawn_to_the_centers_with_a_margin_of_0() -> None:
    loss = regional_loss(REGIONS, torch.zeros_like(LABELS), CENTERS, RATE, (0.0, -0.8), 0.0)
    moved = moved_by_equation(REGIONS, torch.zeros_like(LABELS), CENTERS, float(RATE))
    assert float(loss) == pytest.approx(float((REGIONS - moved).flatten(1).norm(dim=1).mean()), rel=1e-5)


def test_the_loss_is_fp32_under_autocast() -> None:
    expected = regional_loss(REGIONS, LABELS, CENTERS, RATE, MARGINS, DISTANCE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(regional_loss(REGIONS, LABELS, CENTERS, RATE, MARGINS, DISTANCE), expected)
        half = REGIONS.bfloat16()
        loss = regional_loss(half, LABELS, CENTERS, RATE, MARGINS, DISTANCE)
    assert torch.equal(loss, regional_loss(half.float(), LABELS, CENTERS, RATE, MARGINS, DISTANCE))


def updated(steps: int, *micro_batches: slice, passes: int = 2) -> Tensor:
    """The centers after steps in which this process sees these parts of the batch, pass by pass."""
    centers, update = CENTERS.clone(), CenterUpdate(MAPS, CHANNELS)
    for step in range(steps):
        for part in micro_batches:
            for number, regions in enumerate((REGIONS, AGAIN)[:passes]):
                update.accumulate(number, regions[part] + step, LABELS[part])
        update.apply_to(centers, RATE)
    return centers


@pytest.mark.parametrize("passes", [1, 2])
def test_centers_follow_the_equation_pass_by_pass(passes: int) -> None:
    expected = CENTERS.double()
    for step in range(3):
        for regions in (REGIONS, AGAIN)[:passes]:
            expected = moved_by_equation(regions.double() + step, LABELS, expected, float(RATE.double()))
    centers = updated(3, slice(BATCH), passes=passes)
    torch.testing.assert_close(centers, expected.float(), rtol=0, atol=1e-6)
    assert float((centers - CENTERS).abs().max()) > 0.05


def test_accumulation_moves_the_centers_as_one_batch_does() -> None:
    whole = updated(3, slice(BATCH))
    halves = updated(3, slice(0, 4), slice(4, 8))
    uneven = updated(3, slice(0, 1), slice(1, 8))
    torch.testing.assert_close(halves, whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(uneven, whole, rtol=0, atol=1e-6)


def test_no_real_image_moves_nothing() -> None:
    centers, update = CENTERS.clone(), CenterUpdate(MAPS, CHANNELS)
    update.accumulate(0, REGIONS, torch.ones_like(LABELS))
    update.apply_to(centers, RATE)
    assert torch.equal(centers, CENTERS)


def test_the_sums_are_forgotten_and_no_state() -> None:
    centers, update = CENTERS.clone(), CenterUpdate(MAPS, CHANNELS)
    update.accumulate(0, REGIONS.requires_grad_(), LABELS)
    REGIONS.requires_grad_(False)
    assert not update.sums.requires_grad
    update.clear()
    update.apply_to(centers, RATE)
    assert torch.equal(centers, CENTERS)
    assert not update.state_dict()


def _rank(rank: int, folder: str) -> None:
    """One of two processes: half of the batch each, at once, and in two micro-batches taken in turn."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    half = updated(3, slice(4 * rank, 4 * rank + 4))
    quarters = updated(3, slice(2 * rank, 2 * rank + 2), slice(4 + 2 * rank, 6 + 2 * rank))
    torch.save([half, quarters], f"{folder}/centers-{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_move_the_centers_as_one_does(tmp_path: Path) -> None:
    multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"centers-{rank}.pt") for rank in range(2))
    whole = updated(3, slice(BATCH))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, whole, rtol=0, atol=1e-6)
