"""Running averages of batch normalization, which move once per optimizer step, alike on any number of ranks."""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fdtrain.config import UserError
from fdtrain.tasks import Task


class NormAverages:
    """Moves the averages by the mean statistics of all micro-batches of a step, with momentum 1 - (1 - m)^n.

    Within a step they don't enter the forward pass, so they serve as accumulators: a micro-batch begins with zeros, and
    torch makes of them u = m * (sum over its c calls of (1 - m)^(c - j) s[j]), where s[j] are the statistics of call j.
    c is 1, or 2 with the second pass of attention-guided augmentation and where layers share a module. Of one
    micro-batch torch makes (1 - m)^c r + u from averages r; of a step this makes

        (1 - m)^C r + (1 - (1 - m)^C) * (sum of u) / (sum of 1 - (1 - m)^c),

    with the sums, and C the sum of c, over the micro-batches of all ranks: the same for one micro-batch.

    Args:
        task: In training mode. Modules that are in evaluation mode, frozen ones, keep their averages.

    Raises:
        UserError: a module has no momentum.
    """

    def __init__(self, task: Task) -> None:
        norms: list[tuple[str, Any]] = [
            (name, module)
            for name, module in task.model.named_modules()
            if isinstance(module, _BatchNorm) and module.training and module.track_running_stats
        ]
        for name, norm in norms:
            if norm.momentum is None:
                raise UserError(f"model.name: {name} of the model is batch normalization without momentum; give it one")
        self._averages = [average for _, norm in norms for average in (norm.running_mean, norm.running_var)]
        self._calls = [norm.num_batches_tracked for _, norm in norms]
        if not norms:
            return
        device = self._calls[0].device
        self._kept = torch.tensor([1 - norm.momentum for _, norm in norms], dtype=torch.float64, device=device)
        # What was normalized over all ranks together is one micro-batch, which each of them has counted.
        ranks = [dist.get_world_size() if isinstance(norm, nn.SyncBatchNorm) else 1 for _, norm in norms]
        self._ranks = torch.tensor(ranks, device=device)
        channels = torch.tensor([2 * norm.num_features for _, norm in norms])
        self._owner = torch.arange(len(norms)).repeat_interleave(channels).to(device)  # of each value, which module

    def begin(self) -> None:
        """Before the first micro-batch of a step."""
        if self._calls:
            self._before = torch.cat(self._averages).double()
            self._calls_before = torch.stack(self._calls)
            self._totals = self._before.new_zeros(len(self._before) + 2 * len(self._calls))
            self._clear()

    def collect(self) -> None:
        """After each micro-batch."""
        if self._calls:
            calls = torch.stack(self._calls).double()
            self._totals += torch.cat((torch.cat(self._averages).double(), 1 - self._kept**calls, calls))
            self._clear()

    def _clear(self) -> None:
        torch._foreach_zero_(self._averages)
        torch._foreach_zero_(self._calls)

    def exchange(self) -> None:
        """Sum over the ranks, in double precision, where the order is of no account. Collective."""
        if self._calls:
            dist.all_reduce(self._totals)

    def move(self) -> None:
        """End the step, after `exchange`. A step that isn't applied puts all buffers back instead."""
        if not self._calls:
            return
        count = len(self._calls)
        updates, weights, calls = self._totals.split((len(self._before), count, count))
        calls = calls / self._ranks
        kept = self._kept**calls
        share = (1 - kept) / weights.clamp(min=torch.finfo(weights.dtype).tiny)  # a module may not have been called
        moved = self._before * kept[self._owner] + updates * share[self._owner]
        values = moved.to(self._averages[0].dtype).split([average.numel() for average in self._averages])
        torch._foreach_copy_(self._averages, values)
        torch._foreach_copy_(self._calls, (self._calls_before + calls.long()).unbind())
