"""Tasks: what is frozen stays as it is, and what can't be is said in one line."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from fdtrain.config import OptimConfig, UserError
from fdtrain.data.batch import Batch
from fdtrain.models import InputSpec, create_model
from fdtrain.optim import create_optimizer
from fdtrain.tasks import ClassificationTask
from tests.unit.compiling import needs_compiler

SPEC = InputSpec(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear")


def task(*freeze: str) -> ClassificationTask:
    return ClassificationTask(create_model("meso4", image_size=32), SPEC, freeze=freeze)


def test_what_is_frozen_by_pattern_learns_nothing() -> None:
    frozen = task("features.[01].*", "features.2.*").train()
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    frozen.training_step(images, torch.tensor([0, 1, 0, 1]))["loss"].backward()
    without = {name for name, parameter in frozen.model.named_parameters() if parameter.grad is None}
    assert without == {"features.0.weight", "features.0.bias", "features.2.weight", "features.2.bias"}
    norms = {name: module for name, module in frozen.model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert {name for name, norm in norms.items() if not norm.training} == {"features.2"}
    assert norms["features.2"].running_mean is not None
    assert not norms["features.2"].running_mean.any()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("meso4", {"image_size": 64}),
        ("meso_inception4", {"image_size": 64, "outputs": 2}),
        ("efficientnet_b0", {}),
    ],
)
def test_eight_images_are_learned_by_heart(name: str, options: dict) -> None:
    torch.manual_seed(0)
    learner = ClassificationTask(create_model(name, drop_rate=0.0, **options), replace(SPEC, size=64))
    images = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
    optimizer = create_optimizer(learner.model, OptimConfig(lr=3e-3, weight_decay=0.0))
    learner.train()
    losses = []
    for _ in range(80):
        result = learner.training_step(images, labels)
        result["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(result["loss"].item())
        if losses[-1] < 0.05:
            break
    assert losses[0] > 0.4
    assert losses[-1] < 0.05
    assert result["acc"] == 1


@needs_compiler
def test_a_compiled_model_gives_the_same_losses_and_keeps_its_names() -> None:
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 0, 1])
    # Small, for the compiler's sake.
    parts = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    eager = ClassificationTask(nn.Sequential(*parts), SPEC)
    compiled = copy.deepcopy(eager)
    compiled.compile_part("on")
    losses = []
    for each in (eager, compiled):
        loss = each.train().training_step(images, labels)["loss"]
        loss.backward()
        losses.append(loss)
    torch.testing.assert_close(*losses)
    assert compiled.model.state_dict().keys() == eager.model.state_dict().keys()
    for mine, its in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad, rtol=1e-3, atol=1e-5)
    copied = copy.deepcopy(compiled).eval()
    copied.model.load_state_dict(eager.model.state_dict())
    batch = Batch(images, labels, labels, labels)
    torch.testing.assert_close(copied.scores(batch), eager.eval().scores(batch))


def test_a_part_that_is_not_there_cannot_be_compiled() -> None:
    with pytest.raises(UserError, match=r"train\.compile: backbone: the model has no EfficientNet"):
        task().compile_part("backbone")


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["backbone.*"], r"model.freeze: 'backbone.\*' fits no parameter; their names begin with classifier, features"),
        (["feat*", "cla*"], r"model.freeze: feat\*, cla\* freezes all 20 parameters; leave some to train"),
    ],
)
def test_patterns_that_make_no_sense_are_named(patterns: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        task(*patterns)
