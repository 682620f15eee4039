"""Running averages of batch normalization move once a step, by all its micro-batches alike."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from fdtrain.config import UserError
from fdtrain.engines.norms import NormAverages
from fdtrain.models import InputSpec
from fdtrain.runtime import start
from fdtrain.tasks import ClassificationTask

MOMENTUM = 0.1
LABELS = torch.tensor([0, 1, 0, 1])


class Network(nn.Module):
    """One module of batch normalization, called once or twice, one that is never called, and one that is frozen."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.norm, self.idle, self.frozen = (nn.BatchNorm2d(3, momentum=MOMENTUM) for _ in range(3))
        self.classifier = nn.Linear(3, 2)
        self.calls = calls

    def forward(self, images: Tensor) -> Tensor:
        for call in range(self.calls):
            images = self.frozen(self.norm(images)) + call * images.roll(1, 0)
        return self.classifier(images.mean((2, 3)))


@pytest.fixture(autouse=True)
def _group() -> Iterator[None]:
    with start("fp32"):
        yield


def make_task(calls: int) -> ClassificationTask:
    torch.manual_seed(0)
    task = ClassificationTask(Network(calls), InputSpec(8), freeze=("frozen.*",)).train()
    for norm in (task.model.norm, task.model.idle, task.model.frozen):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return task


def micro_batch(number: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 200 + 10 * number, (4, 3, 8, 8), dtype=torch.uint8, generator=generator)


def do_step(task: ClassificationTask, numbers: list[int]) -> dict[str, Tensor]:
    averages = NormAverages(task)
    averages.begin()
    for number in numbers:
        task(micro_batch(number), LABELS)
        averages.collect()
    averages.exchange()
    averages.move()
    return dict(task.model.named_buffers())


def alone(task: ClassificationTask, number: int) -> dict[str, Tensor]:
    """What torch itself makes of the averages with one micro-batch."""
    other = copy.deepcopy(task)
    other(micro_batch(number), LABELS)
    return dict(other.model.named_buffers())


@pytest.mark.parametrize("calls", [1, 2])
def test_one_micro_batch_keeps_torch_s_rate(calls: int) -> None:
    task = make_task(calls)
    expected = alone(task, 1)
    torch.testing.assert_close(do_step(task, [1]), expected)
    assert task.model.norm.num_batches_tracked == calls


@pytest.mark.parametrize("calls", [1, 2])
def test_all_micro_batches_of_a_step_count_alike(calls: int) -> None:
    """Each is what a micro-batch alone would make of the averages; together they have the momentum 1 - (1 - m)^n."""
    task = make_task(calls)
    kept = (1 - MOMENTUM) ** calls
    before = {name: value.clone() for name, value in task.model.named_buffers()}
    found = [alone(task, number) for number in range(3)]
    after = do_step(task, [2, 0, 1])
    for name in ("norm.running_mean", "norm.running_var"):
        seen = torch.stack([(values[name] - kept * before[name]) / (1 - kept) for values in found]).mean(0)
        torch.testing.assert_close(after[name], kept**3 * before[name] + (1 - kept**3) * seen)
    for name in ("idle", "frozen"):
        for part in ("running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(after[f"{name}.{part}"], before[f"{name}.{part}"], rtol=1e-15, atol=0)
    assert after["norm.num_batches_tracked"] == 3 * calls


def test_without_momentum_is_refused() -> None:
    task = make_task(1)
    task.model.norm.momentum = None
    with pytest.raises(UserError, match=r"model\.name: norm of the model is batch normalization without momentum"):
        NormAverages(task)


def test_nothing_to_move() -> None:
    task = make_task(1)
    task.model.requires_grad_(False)
    before = {name: value.clone() for name, value in task.model.named_buffers()}
    task.train()
    torch.testing.assert_close(do_step(task, [1]), before, rtol=0, atol=0)
