"""How many floating-point operations a training step takes, counted from the operators that it calls."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from fdtrain.config import Config
from fdtrain.models import InputSpec
from fdtrain.tasks import Task, create_task

COUNTED_IMAGES = 2
"""The fewest that batch normalization takes at any size."""


class StepFlops:
    """Counts the FLOPs of a task's forward and backward pass, with whatever second pass is in it.

    A copy of the task does them once on the CPU, with two images, for each set of parameters that is trained: that
    decides how much of the backward pass there is. Neither the task nor a generator notices. Counted are
    matrix multiplications and convolutions, a multiplication and an addition being two; what a step does only once
    (the optimizer) isn't.

    Args:
        config: Of the run.
        model: Its model, on the CPU, before it is compiled.
        spec: Its input.
        side: Of the decoded images, pixels.
    """

    def __init__(self, config: Config, model: nn.Module, spec: InputSpec, side: int) -> None:
        uncompiled = replace(config, train=replace(config.train, compile="off"))
        self._task = create_task(uncompiled, copy.deepcopy(model), spec)
        self._side = side
        self._counts: dict[tuple[bool, ...], float] = {}

    def per_image(self, epoch: int) -> float:
        """FLOPs of one image's forward and backward pass in an epoch (from 0)."""
        self._task.start_epoch(epoch)
        trained = tuple(parameter.requires_grad for parameter in self._task.parameters())
        if trained not in self._counts:
            self._counts[trained] = count_flops(self._task, COUNTED_IMAGES, self._side) / COUNTED_IMAGES
        return self._counts[trained]


def count_flops(task: Task, images: int, side: int) -> int:
    """FLOPs of `training_step` and its backward pass on so many images; the buffers of the task move on."""
    pixels = torch.zeros((images, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    labels = torch.arange(images) % 2
    task.to(memory_format=torch.channels_last).train()
    formulas = {torch.ops.aten.convolution_backward: _convolution_backward_flops}
    with torch.random.fork_rng(devices=()), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        task(pixels, labels)["loss"].backward()
    task.zero_grad()
    return counter.get_total_flops()


def _convolution_backward_flops(
    gradient: Sequence[int],
    inputs: Sequence[int],
    weight: Sequence[int],
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    output_mask: Sequence[bool],
    **_: Any,
) -> int:
    """As many for the gradient of the input, and for that of the weight, as forward.

    PyTorch's own formula (2.14) takes a grouped convolution's weight for a dense one: of a depthwise convolution of C
    channels it counts C times as many.
    """
    forward = conv_flop_count(list(inputs), list(weight), list(gradient), transposed)
    return forward * sum(map(bool, output_mask[:2]))
