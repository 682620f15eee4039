"""DistributedDataParallel (Li et al., VLDB 2020), over gloo or nccl, also for one process."""

import copy
from collections.abc import Sequence
from contextlib import ExitStack

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fdtrain.config import OptimConfig
from fdtrain.data.batch import Batch
from fdtrain.engines.base import EngineState, StepResult
from fdtrain.optim import create_optimizer, create_schedule, lr_factor
from fdtrain.runtime import Runtime
from fdtrain.task import ClassificationTask


class DDPEngine:
    """Data-parallel training; each rank holds the whole model.

    Batch-norm averages stay with their rank while training (they don't enter a training forward); an averaged copy is
    what is evaluated and exported.

    Args:
        task: The task, its initial weights equal on all ranks.
        config: Optimizer and schedule.
        runtime: This rank's surroundings.
        total_steps: Optimizer steps of the whole run, for the schedule.
        warm_up_batch: `(micro-batch size, side of the decoded images)`, for the throw-away pass.
    """

    def __init__(
        self,
        task: ClassificationTask,
        config: OptimConfig,
        runtime: Runtime,
        total_steps: int,
        warm_up_batch: tuple[int, int],
    ) -> None:
        self.runtime = runtime
        self.task = task.to(runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.config, self.total_steps = config, total_steps
        self.ddp = DistributedDataParallel(
            self.task,
            device_ids=[runtime.device.index] if runtime.device.type == "cuda" else None,
            forward_sync_buffers=False,
            gradient_as_bucket_view=True,
        )
        self.optimizer = create_optimizer(self.task.model, config, runtime.device)
        self.schedule = create_schedule(self.optimizer, config, total_steps)
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == "fp16")
        self._settle_buckets(*warm_up_batch)

    def _settle_buckets(self, micro_batch_size: int, side: int) -> None:
        """One throw-away forward and backward.

        DDP rebuilds its gradient buckets after the first backward, in the order in which gradients became ready. A sum
        over three ranks or more depends on a gradient's place in its bucket, so without this pass the first step after
        a resume would round otherwise than the same step of an undisturbed run.
        """
        buffers = [buffer.clone() for buffer in self.task.buffers()]
        images = torch.zeros((micro_batch_size, side, side, 3), dtype=torch.uint8, device=self.runtime.device)
        labels = torch.zeros(micro_batch_size, dtype=torch.int64, device=self.runtime.device)
        self.ddp.train()
        with self.runtime.autocast():
            loss = self.ddp(images.permute(0, 3, 1, 2), labels)["loss"]
        loss.backward()
        self.optimizer.zero_grad()
        for buffer, before in zip(self.task.buffers(), buffers, strict=True):
            buffer.copy_(before)

    def train_step(self, batches: Sequence[Batch], draw_seeds: Sequence[int]) -> StepResult:
        """See `Engine`. The loss of a step is the mean over its micro-batches, so accumulation changes no gradient."""
        self.ddp.train()
        sums: dict[str, Tensor] = {}
        for number, (batch, seed) in enumerate(zip(batches, draw_seeds, strict=True), start=1):
            torch.manual_seed(seed)
            with ExitStack() as stack:
                if number < len(batches):
                    stack.enter_context(self.ddp.no_sync())
                with self.runtime.autocast():
                    scalars = self.ddp(batch.images, batch.labels)
                self.scaler.scale(scalars["loss"] / len(batches)).backward()
            for name, value in scalars.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach()
        self.scaler.unscale_(self.optimizer)
        # An infinite limit clips nothing and still measures.
        limit = self.config.clip_grad_norm or float("inf")
        grad_norm = nn.utils.clip_grad_norm_(self.task.parameters(), limit)
        lr = self.optimizer.param_groups[0]["lr"]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.optimizer.zero_grad()
        return StepResult({name: total / len(batches) for name, total in sums.items()}, grad_norm, lr)

    def evaluation_task(self) -> ClassificationTask:
        """See `Engine`."""
        task = copy.deepcopy(self.task)
        task.model.load_state_dict(self._averaged())
        return task.eval()

    def _averaged(self) -> dict[str, Tensor]:
        """The model's state with its float buffers averaged over the ranks."""
        state = self.task.model.state_dict()
        parameters = dict(self.task.model.named_parameters())
        for name, value in state.items():
            if name not in parameters and value.is_floating_point():
                total = value.detach().clone()
                dist.all_reduce(total)
                state[name] = total / self.runtime.world_size
        return state

    def state(self) -> EngineState:
        """See `Engine`."""
        training = {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        local = {name: buffer.clone() for name, buffer in self.task.model.named_buffers()}
        return EngineState(self._averaged(), training, local)

    def load_state(self, state: EngineState) -> None:
        """See `Engine`."""
        self.task.model.load_state_dict(state.model)
        if state.local:
            self.task.model.load_state_dict(state.model | state.local)
        self.optimizer.load_state_dict(state.training["optimizer"])
        self.schedule.load_state_dict(state.training["schedule"])
        # The stored rate is of the schedule's old length, which a resumed run may have changed.
        factor = lr_factor(self.schedule.last_epoch, self.total_steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * factor
        if state.training["scaler"]:
            self.scaler.load_state_dict(state.training["scaler"])
