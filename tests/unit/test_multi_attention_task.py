"""The multi-attentional network's task: stages, losses put together, centers, repeatability, and that it learns."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from fdtrain.config import LossConfig, MultiAttentionConfig, OptimConfig, UserError
from fdtrain.data.batch import Batch
from fdtrain.engines import DDPEngine
from fdtrain.models import InputSpec, create_model
from fdtrain.runtime import start
from fdtrain.tasks.guided import degrade
from fdtrain.tasks.multi_attention import MultiAttentionTask, match_loss
from fdtrain.tasks.regional import regional_loss
from tests.reference_multi_attention import (
    ReferenceNetwork,
    ReferenceTask,
    match_by_equation,
    moved_by_equation,
    regional_by_equation,
)
from tests.unit.compiling import needs_compiler

SPEC = InputSpec(64)
RANDOM = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8, generator=RANDOM)
LABELS = torch.tensor([0, 1, 0, 1, 1, 0, 1, 0])
FULL = {"loss", "acc", "ce", "regional", "ce_augmented", "match"}


@pytest.fixture(scope="module")
def fresh() -> Any:
    """A network on the smallest backbone; take a copy."""
    torch.manual_seed(0)
    return create_model("multi_attention", backbone="efficientnet_b0")


def make_task(
    model: Any, freeze: tuple[str, ...] = (), loss: LossConfig | None = None, **config: Any
) -> MultiAttentionTask:
    settings = MultiAttentionConfig(backbone="efficientnet_b0", **config)
    task = MultiAttentionTask(copy.deepcopy(model), SPEC, loss or LossConfig(), settings, freeze)
    task.train()
    return task


def trained(task: MultiAttentionTask) -> dict[str, bool]:
    """Of the backbone but its classifier, of its classifier, of the rest: whether all parameters are trained."""
    parts: dict[str, set[bool]] = {"backbone": set(), "classifier": set(), "rest": set()}
    for name, parameter in task.model.named_parameters():
        part = "rest"
        if name.startswith("backbone."):
            part = "classifier" if name.startswith("backbone.classifier.") else "backbone"
        parts[part].add(parameter.requires_grad)
    assert all(len(values) == 1 for values in parts.values()), parts
    return {part: values.pop() for part, values in parts.items()}


STAGES = {
    0: ("backbone", {"backbone": True, "classifier": True, "rest": False}, False),
    1: ("backbone", {"backbone": True, "classifier": True, "rest": False}, False),
    2: ("head", {"backbone": False, "classifier": False, "rest": True}, True),
    4: ("head", {"backbone": False, "classifier": False, "rest": True}, True),
    5: ("whole", {"backbone": True, "classifier": False, "rest": True}, True),
    99: ("whole", {"backbone": True, "classifier": False, "rest": True}, True),
}


def test_stages_from_any_epoch_to_any_other(fresh: Any) -> None:
    task = make_task(fresh, backbone_epochs=2, head_epochs=3, center_rate=0.1, center_decay=0.5)
    assert task.stage == "backbone"
    for before in STAGES:
        for epoch, (stage, parts, is_selectable) in STAGES.items():
            task.start_epoch(before)
            task.start_epoch(epoch)
            assert (task.stage, trained(task), task.is_selectable) == (stage, parts, is_selectable)
            assert float(task.model.centers.rate) == pytest.approx(0.1 * 0.5 ** max(epoch - 2, 0))


def test_without_warm_start_everything_learns_from_the_first_epoch(fresh: Any) -> None:
    task = make_task(fresh)
    assert (task.stage, task.is_selectable) == ("whole", True)
    assert trained(task) == {"backbone": True, "classifier": False, "rest": True}
    assert float(task.model.centers.rate) == pytest.approx(0.05)


def test_gradients_reach_what_is_trained_and_nothing_else(fresh: Any) -> None:
    task = make_task(fresh, backbone_epochs=1, head_epochs=1)
    for epoch in range(3):
        task.start_epoch(epoch)
        task.train()
        task.zero_grad()
        task(IMAGES, LABELS)["loss"].backward()
        for name, parameter in task.model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, (epoch, name)
            assert parameter.grad is None or parameter.grad.isfinite().all(), (epoch, name)


def test_a_frozen_backbone_keeps_its_averages(fresh: Any) -> None:
    task = make_task(fresh, head_epochs=1)
    before = copy.deepcopy(task.model.backbone.state_dict())
    task(IMAGES, LABELS)
    task.end_step()
    after = task.model.backbone.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    rest = [module for name, module in task.model.named_modules() if not name.startswith("backbone")]
    assert any(isinstance(module, _BatchNorm) and module.training for module in rest)


def test_frozen_by_name_stays_frozen_in_every_stage(fresh: Any) -> None:
    task = make_task(fresh, ("backbone.conv_stem.*",), backbone_epochs=1, head_epochs=1)
    for epoch in (0, 1, 2):
        task.start_epoch(epoch)
        assert not task.model.backbone.conv_stem.weight.requires_grad
    with pytest.raises(UserError, match=r"model\.freeze: backbone\.\* leaves nothing to train in epoch 0"):
        make_task(fresh, ("backbone.*",), backbone_epochs=1)
    make_task(fresh, ("backbone.*",))


def test_the_backbone_stage_is_the_backbone_s_own_loss_and_scores(fresh: Any) -> None:
    loss = LossConfig("focal", class_weights=(2.0, 1.0))
    task = make_task(fresh, loss=loss, backbone_epochs=1)
    task.eval()
    with torch.no_grad():
        logits = task.model.backbone_logits(task.prepare(IMAGES))
        scalars = task(IMAGES, LABELS)
        assert scalars.keys() == {"loss", "acc", "ce"}
        assert torch.equal(scalars["loss"], task.loss(logits, LABELS))
        batch = Batch(IMAGES, LABELS, LABELS, LABELS)
        torch.testing.assert_close(task.scores(batch), logits.double().softmax(1)[:, 1])
        task.start_epoch(1)
        logits = task.model(task.prepare(IMAGES))
        torch.testing.assert_close(task.scores(batch), logits.double().softmax(1)[:, 1])
    task.start_epoch(0)
    task.train()
    task(IMAGES, LABELS)
    task.end_step()
    assert not task.model.centers.centers.any()


def test_the_match_loss_is_its_equation() -> None:
    regions, changed = torch.randn(2, 3, 4, 5, generator=RANDOM).requires_grad_().unbind()
    chosen = torch.tensor([3, 0, 0])
    loss = match_loss(regions, changed, chosen)
    exact = match_by_equation(regions.detach().double(), changed.detach().double(), chosen)
    assert loss.item() == pytest.approx(float(exact), rel=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(match_loss(regions, changed, chosen), loss)
    same = torch.ones(2, 4, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(match_loss(same, torch.ones(2, 4, 5), torch.tensor([0, 1])), same)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_the_loss_is_the_weighted_sum_of_its_parts(fresh: Any) -> None:
    """Each part from the network's two passes in evaluation mode, where both are the same each time."""
    config = {"regional_weight": 0.7, "augmented_weight": 1.3, "match_weight": 0.2, "margins": (0.1, -0.5)}
    task = make_task(fresh, **config).eval()
    task.model.centers.centers.copy_(torch.randn(task.model.centers.centers.shape, generator=RANDOM))
    with torch.no_grad():
        torch.manual_seed(3)
        found = task(IMAGES, LABELS)
        images = task.prepare(IMAGES)
        seen = task.model.describe(images)
        torch.manual_seed(3)
        changed, chosen = degrade(images, seen.maps)
        again = task.model.describe(changed)
        centers = task.model.centers
        expected = {
            "ce": functional.cross_entropy(seen.logits, LABELS),
            "regional": regional_loss(seen.regions, LABELS, centers.centers, centers.rate, (0.1, -0.5), 0.8),
            "ce_augmented": functional.cross_entropy(again.logits, LABELS),
            "match": match_loss(seen.regions, again.regions, chosen),
        }
    assert found.keys() == FULL
    for name, value in expected.items():
        assert value > 0
        torch.testing.assert_close(found[name], value)
    total = expected["ce"] + 0.7 * expected["regional"] + 1.3 * expected["ce_augmented"] + 0.2 * expected["match"]
    torch.testing.assert_close(found["loss"], total)
    assert not task.center_update.sums.any()  # evaluation leaves no trace


def straight(task: MultiAttentionTask) -> ReferenceTask:
    """The same weights in the straightforward form."""
    network = ReferenceNetwork("b0", 4, 2)
    network.load_state_dict(task.model.state_dict())
    return ReferenceTask(network)


def without_dropout(model: Any) -> Any:
    model = copy.deepcopy(model)
    model.drop_rate = model.map_drop_rate = model.backbone.drop_rate = 0.0
    return model


@pytest.mark.parametrize("training", [False, True])
def test_a_step_is_that_of_the_straightforward_form(fresh: Any, training: bool) -> None:
    """Loss, gradients and centers; in training the norms of 2 x 2 pixels amplify the rounding of their gradients."""
    task = make_task(without_dropout(fresh))
    centers = task.model.centers.centers
    centers.copy_(torch.randn(centers.shape, generator=RANDOM) * 0.1)
    reference = straight(task)
    for network in (task.model, reference.network):
        for norm in network.modules():
            if isinstance(norm, _BatchNorm):
                norm.train(training)
    torch.manual_seed(4)
    mine = task.training_step(IMAGES, LABELS)
    torch.manual_seed(4)
    theirs = reference.training_step(IMAGES, LABELS)
    for name, value in theirs.items():
        assert mine[name].item() == pytest.approx(value.item(), rel=1e-4), name
    mine["loss"].backward()
    theirs["loss"].backward()
    task.end_step()
    torch.testing.assert_close(centers, reference.network.centers.centers, rtol=1e-4, atol=1e-5)
    gradients = {name: value.grad for name, value in reference.network.named_parameters() if value.grad is not None}
    assert gradients.keys() == {name for name, value in task.model.named_parameters() if value.grad is not None}
    whole = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
    apart = torch.cat([(task.model.get_parameter(name).grad - gradients[name]).flatten() for name in gradients]).norm()
    assert apart <= (1e-2 if training else 1e-4) * whole


@pytest.mark.parametrize(
    ("weights", "passes", "parts"),
    [
        ((0.0, 0.0, 0.0), 1, {"loss", "acc", "ce"}),
        ((0.5, 0.0, 0.0), 1, {"loss", "acc", "ce", "regional"}),
        ((0.0, 1.0, 0.0), 2, {"loss", "acc", "ce", "ce_augmented"}),
        ((0.0, 0.0, 0.1), 2, {"loss", "acc", "ce", "match"}),
    ],
)
def test_a_loss_of_weight_0_takes_no_part(
    fresh: Any, weights: tuple[float, float, float], passes: int, parts: set[str]
) -> None:
    task = make_task(fresh, **dict(zip(("regional_weight", "augmented_weight", "match_weight"), weights, strict=True)))
    calls = []
    task.model.backbone.conv_stem.register_forward_hook(lambda *_: calls.append(1))
    assert task(IMAGES, LABELS).keys() == parts
    assert len(calls) == passes


def test_centers_move_once_a_step_by_both_passes(fresh: Any) -> None:
    task = make_task(fresh)
    regions: list[Tensor] = []
    describe = task.model.describe

    def recording(images: Tensor) -> Any:
        seen = describe(images)
        regions.append(seen.regions.detach().double())
        return seen

    task._describe = recording
    expected, real = torch.zeros_like(task.model.centers.centers).double(), (LABELS == 0).view(-1, 1, 1)
    for _ in range(2):
        regions.clear()
        before = task.model.centers.centers.clone()
        task(IMAGES[:4], LABELS[:4])
        task(IMAGES[4:], LABELS[4:])
        assert torch.equal(task.model.centers.centers, before)
        task.end_step()
        for first in (0, 1):
            whole = torch.cat(regions[first::2])
            expected = expected + 0.05 * ((whole - expected) * real).mean(0)
        torch.testing.assert_close(task.model.centers.centers, expected.float(), rtol=1e-5, atol=1e-6)
    assert float(expected.abs().max()) > 1e-3


def test_centers_are_state_and_the_running_sums_are_not(fresh: Any) -> None:
    task = make_task(fresh)
    names = {name for name in task.state_dict() if "center" in name}
    assert names == {"model.centers.centers", "model.centers.rate"}
    # As an engine's throw-away pass does: all buffers are put back, those of the sums too.
    before = [buffer.clone() for buffer in task.buffers()]
    task(IMAGES, LABELS)["loss"].backward()
    assert task.center_update.sums.any()
    for buffer, value in zip(task.buffers(), before, strict=True):
        buffer.copy_(value)
    task.end_step()
    assert not task.model.centers.centers.any()


def test_the_decay_of_the_rate_reaches_the_loss_through_the_engine(fresh: Any) -> None:
    """Both the loss and the centers of a step go by the rate of its epoch, which the first stage doesn't lower."""
    task = make_task(fresh, backbone_epochs=1, center_rate=0.2, center_decay=0.5)
    batch = Batch(IMAGES[:4], LABELS[:4], LABELS[:4], LABELS[:4])
    with start("fp32") as runtime:
        engine = DDPEngine(task, OptimConfig(lr=1e-6, warmup_steps=0), runtime, 10, (4, 64))
        regions: list[Tensor] = []
        describe = task._describe

        def recording(images: Tensor) -> Any:
            seen = describe(images)
            regions.append(seen.regions.detach().double())
            return seen

        task._describe = recording
        for epoch, rate in ((1, 0.2), (3, 0.05), (2, 0.1)):  # a resumed run may begin with any of them
            centers = task.model.centers.centers.clone().double()
            engine.start_epoch(epoch)
            regions.clear()  # of the engine's throw-away pass
            result = engine.train_step([batch], [epoch])
            expected = regional_by_equation(regions[0], batch.labels, centers, rate, (0.2, -0.8), 0.8)
            assert result.scalars["regional"].item() == pytest.approx(float(expected), rel=1e-4)
            other = regional_by_equation(regions[0], batch.labels, centers, 0.15, (0.2, -0.8), 0.8)
            assert float(other) != pytest.approx(float(expected), rel=1e-2)
            for passed in regions:
                centers = moved_by_equation(passed, batch.labels, centers, rate)
            torch.testing.assert_close(task.model.centers.centers, centers.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.long
@needs_compiler
@pytest.mark.parametrize(("part", "epochs"), [("on", [2]), ("backbone", [0, 1, 2])])
def test_every_stage_is_compiled_and_loses_as_before(
    fresh: Any, monkeypatch: pytest.MonkeyPatch, part: Any, epochs: list[int]
) -> None:
    """Traced by the compiler; what it would make of that isn't built, which takes minutes."""
    torch._dynamo.reset()
    traced = CompileCounterWithBackend("eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=traced))
    plain, compiled = (make_task(without_dropout(fresh), backbone_epochs=1, head_epochs=1) for _ in range(2))
    compiled.compile_part(part)
    counts = []
    for epoch in epochs:
        counts.append(traced.frame_count)
        for task in (plain, compiled):
            task.start_epoch(epoch)
            task.train()
        losses = []
        for task in (plain, compiled):
            torch.manual_seed(epoch)
            losses.append(task(IMAGES[:4], LABELS[:4])["loss"])
            losses[-1].backward()
            task.zero_grad()
            task.end_step()
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)
        counts[-1] = traced.frame_count - counts[-1]
    torch._dynamo.reset()
    # The whole of the network at once, or each of its backbone's 7 stages. At last these are trained as at first, so by
    # the same kernels.
    assert counts == ([1] if part == "on" else [7, 7, 0])


def one_step(task: MultiAttentionTask, seed: int) -> dict[str, Tensor]:
    task.zero_grad()
    torch.manual_seed(seed)
    scalars = task(IMAGES, LABELS)
    scalars["loss"].backward()
    task.end_step()
    gradients = {name: parameter.grad for name, parameter in task.named_parameters() if parameter.grad is not None}
    return scalars | gradients | dict(task.model.named_buffers())


def test_a_seed_repeats_a_step_bit_for_bit(fresh: Any) -> None:
    first, again, other = (one_step(make_task(fresh), seed) for seed in (1, 1, 2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["loss"], other["loss"])


def test_a_step_in_bf16_is_finite_and_near(fresh: Any) -> None:
    plain = one_step(make_task(fresh), 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = one_step(make_task(fresh), 1)
    assert half["loss"].dtype == torch.float32
    assert all(value.isfinite().all() for value in half.values())
    assert float(half["loss"].detach()) == pytest.approx(float(plain["loss"].detach()), rel=0.1)


def test_it_learns_eight_images_by_heart(fresh: Any) -> None:
    task = make_task(fresh)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-3)
    seen = []
    for step in range(22):
        torch.manual_seed(step)
        scalars = task(IMAGES, LABELS)
        optimizer.zero_grad()
        scalars["loss"].backward()
        optimizer.step()
        task.end_step()
        seen.append({name: value.detach().item() for name, value in scalars.items()})
    assert [step["acc"] for step in seen[-5:]] == [1.0] * 5
    assert seen[-1]["ce"] < 0.05
    assert seen[-1]["ce_augmented"] < 0.05
    assert seen[-1]["regional"] < 0.2 * seen[0]["regional"]
    assert seen[-1]["match"] < 0.5 * seen[0]["match"]
    task.eval()
    with torch.no_grad():
        assert torch.equal(task.scores(Batch(IMAGES, LABELS, LABELS, LABELS)) > 0.5, LABELS == 1)
