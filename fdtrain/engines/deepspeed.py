"""DeepSpeed's ZeRO (Rajbhandari et al., SC 2020): ranks that hold but a share of what training keeps."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fdtrain.config import Config, UserError, flatten
from fdtrain.data.batch import Batch
from fdtrain.engines.base import EngineState, Outcome, StepResult
from fdtrain.engines.buffers import copy_buffers, put_back
from fdtrain.engines.deepspeed_config import deepspeed_config
from fdtrain.engines.deepspeed_engine import initialize
from fdtrain.engines.ema import MovingAverage
from fdtrain.engines.loss_scale import LossScale
from fdtrain.engines.norms import NormAverages
from fdtrain.engines.sync_norm import ordinary_norms
from fdtrain.optim import create_optimizer, lr_factor
from fdtrain.runtime import Runtime
from fdtrain.tasks import Task
from fdtrain.telemetry.clock import PhaseClock

# Another number of ranks has another accumulation, and what DeepSpeed prints is of no account.
MAY_CHANGE = (
    "gradient_accumulation_steps",
    "steps_per_print",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
    "disable_python_gc",
    "log_level",
)

VECTOR_BYTES = 16  # the widest load of a GPU's thread


class DeepSpeedEngine:
    """Data-parallel training by DeepSpeed, with ZeRO stage 0 to 3.

    Weights, gradients and the optimizer's state are fp32, and gradients are reduced in it; under bf16 and fp16 the
    forward pass runs under autocast, as with `DDPEngine`. Of its checkpoints DeepSpeed writes nothing: they are plain
    tensors. From stage 1 on each rank saves its own share of the optimizer's state.

    Args:
        task: The task. Rank 0's weights are taken by all ranks.
        config: The resolved configuration.
        runtime: This rank's surroundings.
        total_steps: Optimizer steps of the whole run, for the schedule.
        accumulation: Micro-batches of one rank in one step.

    Raises:
        UserError: DeepSpeed's own settings contradict ours, or DeepSpeed refuses them.
    """

    def __init__(self, task: Task, config: Config, runtime: Runtime, total_steps: int, accumulation: int) -> None:
        self.settings = deepspeed_config(config, runtime, accumulation)
        self.runtime, self.config, self.total_steps = runtime, config.optim, total_steps
        self.stage, self.accumulation = config.deepspeed.zero_stage, accumulation
        self.steps = 0
        # DeepSpeed hangs its hooks on the modules, and from stage 3 on takes the weights out of them: what is evaluated
        # is made from this.
        self._spare = ordinary_norms(copy.deepcopy(task).cpu())
        self.task = task.to(runtime.device)
        for value in self.task.model.state_dict().values():
            dist.broadcast(value, src=0)
        self._parameters = list(self.task.model.parameters())
        self._trained = self._which_are_trained()
        self.optimizer = create_optimizer(self.task.model, self.config)
        if self.stage:
            # Each group becomes one flat tensor, of which those that aren't trained are no part. What doesn't fill its
            # last vector comes behind what does, which stays aligned so: with stage 3 on one rank nothing else sees to
            # that (parameter_alignment in deepspeed_config.py is of stages 1 and 2).
            for group in self.optimizer.param_groups:
                trained = [parameter for parameter in group["params"] if parameter.requires_grad]
                group["params"] = sorted(trained, key=lambda parameter: parameter.nbytes % VECTOR_BYTES != 0)
            self.optimizer.param_groups[:] = [group for group in self.optimizer.param_groups if group["params"]]
        self._engine = initialize(self.task, self.optimizer, self.settings, runtime)
        self._clock = PhaseClock(runtime.device)
        self._engine.allreduce_gradients = self._timed(self._engine.allreduce_gradients)
        # Only now, as DeepSpeed sends out rank 0's weights in no other memory format. The other stages keep them in
        # flat tensors.
        if self.stage == 0:
            self.task.to(memory_format=torch.channels_last)
        self.ema = MovingAverage(self.task.model, self.config.ema_decay) if self.config.ema_decay else None
        self.scale = LossScale() if self.stage and runtime.precision == "fp16" else None
        if self.scale:
            # DeepSpeed (0.19) clips at these stages before it takes the scale out, and leaves a scale that is too large
            # as it is.
            self._engine.optimizer.torch_autocast_gradscaler = None
            self._engine.optimizer.override_loss_scale(self.scale.value)

    def _timed(self, reduce: Callable[..., None]) -> Callable[..., None]:
        """DeepSpeed's reduction of the gradients that it still has to reduce after the backward pass, timed."""

        def timed(*words: Any, **named: Any) -> None:
            with self._clock.phase("reduction"):
                reduce(*words, **named)

        return timed

    def take_seconds(self) -> dict[str, float]:
        """See `Engine`. From stage 1 on, what the optimizer's step exchanges (weights, the norm) is in "optimizer".

        With stage 3 weights are gathered where they are used, which is in "forward_backward".
        """
        seconds = self._clock.take()
        reduction = seconds.pop("reduction", 0.0)
        return seconds | {
            "forward_backward": seconds.get("forward_backward", 0.0) - reduction,
            "communication": seconds.get("communication", 0.0) + reduction,
        }

    def _which_are_trained(self) -> list[bool]:
        return [parameter.requires_grad for parameter in self._parameters]

    def start_epoch(self, epoch: int) -> None:
        """See `Engine`. With stage 0 DeepSpeed reduces the gradients of whatever is trained at that time.

        Raises:
            UserError: what is trained changes, with stage 1 to 3.
        """
        self._spare.start_epoch(epoch)
        self.task.start_epoch(epoch)
        if self.stage and self._which_are_trained() != self._trained:
            raise UserError(
                f"engine.kind: deepspeed with deepspeed.zero_stage {self.stage} can't change what is trained in the "
                "middle of a run (multi_attention.backbone_epochs, multi_attention.head_epochs); take ddp or stage 0"
            )
        self._norms = NormAverages(self.task.train())

    def train_step(self, batches: Sequence[Batch], draw_seeds: Sequence[int]) -> StepResult:
        """See `Engine`. DeepSpeed divides the loss by the accumulation, and steps after the last micro-batch."""
        assert len(batches) == self.accumulation
        self.task.train()
        buffers = copy_buffers(self.task)
        self._norms.begin()
        lr = self.config.lr * lr_factor(self.steps, self.total_steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with self._clock.phase("forward_backward"):
            means = self._accumulate(batches, draw_seeds)
        with self._clock.phase("optimizer"):
            grad_norm, outcome = self._update(means["loss"])
        if outcome == "applied":
            with self._clock.phase("communication"):
                self._norms.exchange()
        with self._clock.phase("optimizer"):
            self.steps += 1
            if outcome == "applied":
                self.task.end_step()
                self._norms.move()
                if self.ema:
                    self.ema.update(self.task.model, self.steps)
            else:
                put_back(buffers)
        return StepResult(means, grad_norm, lr, outcome)

    def _accumulate(self, batches: Sequence[Batch], draw_seeds: Sequence[int]) -> dict[str, Tensor]:
        """Forward and backward of each micro-batch; means of the task's scalars."""
        sums: dict[str, Tensor] = {}
        for number, (batch, seed) in enumerate(zip(batches, draw_seeds, strict=True), start=1):
            torch.manual_seed(seed)
            scalars = self._engine(batch.images, batch.labels)
            for name, value in scalars.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach()
            loss = scalars["loss"]
            if number < len(batches):
                self._engine.backward(loss)
                self._engine.step()
            else:
                # A loss may be infinite whose gradient isn't. Then the gradient is made so, by which all ranks come to
                # know of it, and DeepSpeed skips the step.
                self._engine.backward(loss * torch.where(sums["loss"].isfinite(), 1.0, float("nan")))
            self._norms.collect()
        return {name: total / len(batches) for name, total in sums.items()}

    def _update(self, loss: Tensor) -> tuple[Tensor, Outcome]:
        """The step itself: the norm of the gradient before clipping, and what came of it. Collective."""
        scale = self._scale()
        if self.stage == 0:
            # All ranks have the mean over them by now, still multiplied by the scale.
            gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
            grad_norm = nn.utils.get_total_norm(gradients) / scale
            if grad_norm.isfinite():
                self._engine.step()
            else:
                self._skip()
        else:
            self._engine.step()
            grad_norm = torch.as_tensor(self._engine.get_global_grad_norm(), device=self.runtime.device)
            if self.scale:
                self.scale.update(was_applied=not self._engine.optimizer.overflow)
                self._engine.optimizer.override_loss_scale(self.scale.value)
        if grad_norm.isfinite():
            return grad_norm, "applied"
        is_loss_bad = (~loss.isfinite()).float()
        dist.all_reduce(is_loss_bad, dist.ReduceOp.MAX)
        # A scale of 1 or less can't be what made a gradient overflow.
        return grad_norm, "rescaled" if scale > 1 and not is_loss_bad else "nonfinite"

    def _scale(self) -> float:
        """What the loss is multiplied by."""
        if self.scale:
            return self.scale.value
        scaler = self._engine.torch_autocast_z0_gradscaler
        return scaler.get_scale() if scaler else 1.0

    def _skip(self) -> None:
        """With stage 0: a step that changes nothing but fp16's scale. DeepSpeed would apply it."""
        if scaler := self._engine.torch_autocast_z0_gradscaler:
            scaler.unscale_(self.optimizer)
            scaler.update()
        self._engine.zero_grad()
        self._engine.micro_steps += 1  # by which it knows the last micro-batch of a step

    @contextmanager
    def _whole_weights(self, is_changed: bool = False) -> Iterator[None]:
        """With stage 3: all weights on all ranks; rank 0's are what stays where they are changed."""
        if self.stage < 3:
            with nullcontext():
                yield
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters(self._parameters, modifier_rank=0 if is_changed else None):
            yield

    def _model(self) -> dict[str, Tensor]:
        """The model's state, of tensors of their own."""
        with self._whole_weights():
            return _cloned(self.task.model.state_dict())

    def evaluation_task(self) -> Task:
        """See `Engine`."""
        task = copy.deepcopy(self._spare).to(self.runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        task.model.load_state_dict(self.ema.values if self.ema else self._model())
        return task.eval()

    def _shares(self) -> list[Tensor]:
        """With stage 1 to 3: this rank's share of each group's weights, one flat tensor, as the optimizer has it."""
        optimizer = self._engine.optimizer
        return optimizer.fp32_partitioned_groups_flat if self.stage == 3 else optimizer.single_partition_of_fp32_groups

    def state(self) -> EngineState:
        """See `Engine`."""
        training: dict[str, Any] = {"engine": "deepspeed", "settings": self.settings, "steps": self.steps}
        local: dict[str, Any] = {}
        if self.stage:
            training["scaler"] = self.scale.state_dict() if self.scale else {}
            local["optimizer"] = [_cloned(self.optimizer.state[share]) for share in self._shares()]
        else:
            scaler = self._engine.torch_autocast_z0_gradscaler
            training["scaler"] = scaler.state_dict() if scaler else {}
            training["optimizer"] = [_cloned(self.optimizer.state.get(parameter, {})) for parameter in self._parameters]
        return EngineState(self._model(), training, local, self.ema.values if self.ema else None)

    def load_state(self, state: EngineState) -> None:
        """See `Engine`.

        Raises:
            UserError: the state is of another engine, of other settings of DeepSpeed's, or, with stage 1 to 3, of
                another number of ranks.
        """
        self._check_is_ours(state)
        with self._whole_weights(is_changed=True):
            self.task.model.load_state_dict(state.model)
        if self.ema:
            assert state.ema is not None  # a resumed run keeps optim.ema_decay
            self.ema.load(state.ema)
        self.steps = state.training["steps"]
        if self.stage:
            self._engine.optimizer.refresh_fp32_params()
            for share, saved in zip(self._shares(), state.local["optimizer"], strict=True):
                self._load_moments(share, saved)
        else:
            for parameter, saved in zip(self._parameters, state.training["optimizer"], strict=True):
                self._load_moments(parameter, saved)
        if self.scale:
            self.scale.load_state_dict(state.training["scaler"])
            self._engine.optimizer.override_loss_scale(self.scale.value)
        elif state.training["scaler"]:
            self._engine.torch_autocast_z0_gradscaler.load_state_dict(state.training["scaler"])

    def _load_moments(self, weights: Tensor, saved: dict[str, Tensor]) -> None:
        self.optimizer.state.pop(weights, None)
        if saved:
            self.optimizer.state[weights] = {
                name: torch.empty_like(weights).copy_(value) if value.ndim else value.clone().to(weights.device)
                for name, value in saved.items()
            }

    def _check_is_ours(self, state: EngineState) -> None:
        if state.training.get("engine") != "deepspeed":
            raise UserError(
                "engine.kind: the checkpoint is of ddp, and a resumed run keeps its engine; take ddp, or start another "
                "run from its weights (model.pretrained: the checkpoint's folder)"
            )
        old, new = flatten(state.training["settings"]), flatten(self.settings)
        for key in sorted((old.keys() & new.keys()).difference(MAY_CHANGE)):
            if old[key] != new[key]:
                raise UserError(
                    f"deepspeed.overrides: {key} is {new[key]} where the checkpoint was trained with {old[key]}; a "
                    "resumed run keeps it: set it back there or in deepspeed.config"
                )
        if self.stage and "optimizer" not in state.local:
            raise UserError(
                f"deepspeed.zero_stage: {self.stage} keeps a share of the optimizer's state on each rank, so a run "
                f"can't go on with another number of ranks than it was saved by (now {self.runtime.world_size}); "
                "take that number, or start another run from its weights (model.pretrained: the checkpoint's folder)"
            )


def _cloned(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in values.items()}
