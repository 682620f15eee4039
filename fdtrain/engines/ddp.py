"""DistributedDataParallel (Li et al., VLDB 2020), over gloo or nccl, also for one process."""

import copy
import gc
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fdtrain.config import OptimConfig, UserError
from fdtrain.data.batch import Batch
from fdtrain.engines.base import EngineState, Outcome, StepResult
from fdtrain.engines.buffers import copy_buffers, put_back
from fdtrain.engines.ema import MovingAverage
from fdtrain.engines.norms import NormAverages
from fdtrain.engines.sync_norm import ordinary_norms
from fdtrain.optim import create_optimizer, create_schedule, lr_factor
from fdtrain.runtime import Runtime
from fdtrain.tasks import Task
from fdtrain.telemetry.clock import PhaseClock


class DDPEngine:
    """Data-parallel training; each rank holds the whole model.

    Args:
        task: The task. Rank 0's weights are taken by all ranks.
        config: Optimizer and schedule.
        runtime: This rank's surroundings.
        total_steps: Optimizer steps of the whole run, for the schedule.
        warm_up_batch: `(micro-batch size, side of the decoded images)`, for the throw-away pass.
    """

    def __init__(
        self,
        task: Task,
        config: OptimConfig,
        runtime: Runtime,
        total_steps: int,
        warm_up_batch: tuple[int, int],
    ) -> None:
        self.runtime = runtime
        self.settings: dict[str, Any] = {}
        self.task = task.to(runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for value in self.task.model.state_dict().values():
            dist.broadcast(value, src=0)
        self.config, self.total_steps, self.warm_up_batch = config, total_steps, warm_up_batch
        self.optimizer = create_optimizer(self.task.model, config)
        self.schedule = create_schedule(self.optimizer, config, total_steps)
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == "fp16")
        self.ema = MovingAverage(self.task.model, config.ema_decay) if config.ema_decay else None
        self._clock = PhaseClock(runtime.device)
        self._ddp: DistributedDataParallel | None = None
        self._trained: list[bool] = []  # of each parameter, whether the wrapper reduces its gradient

    def start_epoch(self, epoch: int) -> None:
        """See `Engine`. DDP reduces the gradients of the parameters that were trained when it was made."""
        self.task.start_epoch(epoch)
        trained = [parameter.requires_grad for parameter in self.task.parameters()]
        if trained != self._trained:
            self._trained = trained
            self._wrap()
        self._norms = NormAverages(self.task.train())

    def _wrap(self) -> None:
        # The hooks of the wrapper before are gone when it is, and it is part of circles.
        self._ddp = None
        gc.collect()
        self._ddp = DistributedDataParallel(
            self.task,
            device_ids=[self.runtime.device.index] if self.runtime.device.type == "cuda" else None,
            init_sync=False,  # it would replace this rank's buffers by those of rank 0
            forward_sync_buffers=False,
            gradient_as_bucket_view=True,
        )
        # On a GPU the gradients of squeeze-and-excitation's kernels, which are of one pixel, have other strides than
        # the kernels themselves: the same bytes in the same order.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
        # Of a first step that was skipped: as if the schedule were stepped before the optimizer. Said here once, since
        # `catch_warnings` around each step would undo what other threads do to the filters meanwhile.
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
        self._ddp._set_ddp_runtime_logging_sample_rate(1)  # it times its reductions, and every hundredth unless told
        self._settle_buckets(self._ddp, *self.warm_up_batch)

    def _settle_buckets(self, ddp: DistributedDataParallel, micro_batch_size: int, side: int) -> None:
        """One throw-away forward and backward.

        DDP rebuilds its gradient buckets after the first backward, in the order in which gradients became ready. A sum
        over three ranks or more depends on a gradient's place in its bucket, so without this pass the first step after
        a resume would round otherwise than the same step of an undisturbed run.
        """
        buffers = copy_buffers(self.task)
        images = torch.zeros((micro_batch_size, side, side, 3), dtype=torch.uint8, device=self.runtime.device)
        labels = torch.zeros(micro_batch_size, dtype=torch.int64, device=self.runtime.device)
        ddp.train()
        # Nor may its dropout move the generators on.
        with (
            torch.random.fork_rng([images.device] if images.is_cuda else []),
            self.runtime.autocast(),
        ):
            loss = ddp(images.permute(0, 3, 1, 2), labels)["loss"]
        loss.backward()
        self.optimizer.zero_grad()
        put_back(buffers)

    def train_step(self, batches: Sequence[Batch], draw_seeds: Sequence[int]) -> StepResult:
        """See `Engine`. The loss of a step is the mean over its micro-batches, so accumulation changes no gradient."""
        ddp = self._ddp
        assert ddp is not None, "start_epoch comes first"
        buffers = copy_buffers(self.task)
        self._norms.begin()
        with self._clock.phase("forward_backward"):
            ddp.train()
            means = self._accumulate(ddp, batches, draw_seeds)
        with self._clock.phase("optimizer"):
            self.scaler.unscale_(self.optimizer)
            # An infinite limit clips nothing and still measures.
            limit = self.config.clip_grad_norm or float("inf")
            grad_norm = nn.utils.clip_grad_norm_(self.task.parameters(), limit)
        lr = self.optimizer.param_groups[0]["lr"]
        with self._clock.phase("communication"):
            outcome = self._outcome(means["loss"], grad_norm)
            if outcome == "applied":
                self._norms.exchange()
        self._count_reduction(ddp)
        with self._clock.phase("optimizer"):
            self._finish_step(outcome, buffers)
        return StepResult(means, grad_norm, lr, outcome)

    def _accumulate(
        self, ddp: DistributedDataParallel, batches: Sequence[Batch], draw_seeds: Sequence[int]
    ) -> dict[str, Tensor]:
        """Forward and backward of each micro-batch, gradients reduced with the last; means of the task's scalars."""
        sums: dict[str, Tensor] = {}
        for number, (batch, seed) in enumerate(zip(batches, draw_seeds, strict=True), start=1):
            torch.manual_seed(seed)
            with ExitStack() as stack:
                if number < len(batches):
                    stack.enter_context(ddp.no_sync())
                with self.runtime.autocast():
                    scalars = ddp(batch.images, batch.labels)
                self.scaler.scale(scalars["loss"] / len(batches)).backward()
            self._norms.collect()
            for name, value in scalars.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach()
        return {name: total / len(batches) for name, total in sums.items()}

    def _count_reduction(self, ddp: DistributedDataParallel) -> None:
        """Take the time that DDP waited for reductions, once the backward pass was done, out of that of the pass.

        DDP itself notes when the reduction of the first bucket began, when the last gradient was ready and when the
        last reduction ended; it would compute the differences when the next step begins. On a GPU these are events that
        are over, since the step has waited for its outcome.
        """
        assert ddp.logger is not None
        ddp.logger.set_runtime_stats_and_log()
        times = ddp._get_ddp_logging_data()
        hidden = times["backward_compute_comm_overlap_time"] / 1e9
        exposed = times["backward_comm_time"] / 1e9 - hidden
        self._clock.add("communication", exposed)
        self._clock.add("forward_backward", -exposed)
        self._clock.add("communication_hidden", hidden)

    def take_seconds(self) -> dict[str, float]:
        """See `Engine`."""
        return self._clock.take()

    def _finish_step(self, outcome: Outcome, buffers: list[tuple[Tensor, Tensor]]) -> None:
        if outcome == "applied":
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.optimizer.zero_grad()
        if outcome == "applied":
            self.task.end_step()
            self._norms.move()
            if self.ema:
                self.ema.update(self.task.model, self.schedule.last_epoch)
        else:
            put_back(buffers)

    def _outcome(self, loss: Tensor, grad_norm: Tensor) -> Outcome:
        """Whether the step may be applied. Collective; the one place where a step waits for the device.

        The gradient is the same on every rank, but a loss may be infinite whose gradient isn't.
        """
        faults = torch.stack([~loss.isfinite(), ~grad_norm.isfinite()]).float()
        dist.all_reduce(faults, dist.ReduceOp.MAX)
        is_loss_bad, is_gradient_bad = faults.tolist()
        if not (is_loss_bad or is_gradient_bad):
            return "applied"
        # A scale of 1 or less can't be what made a gradient overflow.
        return "rescaled" if not is_loss_bad and self.scaler.get_scale() > 1 else "nonfinite"

    def evaluation_task(self) -> Task:
        """See `Engine`."""
        task = ordinary_norms(copy.deepcopy(self.task))
        values = self.ema.values if self.ema else self.task.model.state_dict()
        task.model.load_state_dict(values)
        return task.eval()

    def state(self) -> EngineState:
        """See `Engine`."""
        optimizer = self.optimizer.state_dict()
        # Parameters come in the order in which they were first trained, and pickle writes a word that is there twice
        # otherwise than the same word loaded from a file: equal states shall be equal files.
        optimizer["state"] = {
            index: {sys.intern(name): value for name, value in values.items()}
            for index, values in sorted(optimizer["state"].items())
        }
        training = {
            "optimizer": optimizer,
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        averages = self.ema.values if self.ema else None
        return EngineState(self.task.model.state_dict(), training, {}, averages)

    def load_state(self, state: EngineState) -> None:
        """See `Engine`. Raises UserError for a state of another engine."""
        if "engine" in state.training:  # which this one doesn't say, and didn't when it was the only one
            raise UserError(
                f"engine.kind: the checkpoint is of {state.training['engine']}, and a resumed run keeps its engine; "
                "take that one, or start another run from its weights (model.pretrained: the checkpoint's folder)"
            )
        self.task.model.load_state_dict(state.model)
        if self.ema:
            assert state.ema is not None  # a resumed run keeps optim.ema_decay
            self.ema.load(state.ema)
        self.optimizer.load_state_dict(state.training["optimizer"])
        self.schedule.load_state_dict(state.training["schedule"])
        # The stored rate is of the schedule's old length, which a resumed run may have changed.
        factor = lr_factor(self.schedule.last_epoch, self.total_steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * factor
        if state.training["scaler"]:
            self.scaler.load_state_dict(state.training["scaler"])
