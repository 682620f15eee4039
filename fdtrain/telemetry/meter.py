"""What each rank measured of its steps, and what the log says of it."""

import resource
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch

from fdtrain.runtime import Runtime
from fdtrain.telemetry.clock import PhaseClock

# Of these a slow rank has more than the others, while those wait for it in "communication".
OWN_WORK = ("data_wait", "augment", "forward_backward", "optimizer")
PARTS = (*OWN_WORK, "communication")


@dataclass(frozen=True)
class Measures:
    """Of the steps between two lines of the log.

    Args:
        values: For log.jsonl and MLflow.
        by_rank: What each rank measured, by rank, under the names of `values`.
    """

    values: dict[str, float]
    by_rank: dict[str, list[float]]


class StepMeter:
    """Measures the steps of this rank between two lines of the log.

    Seconds a step, the mean of those steps: `train/time/step`, without validation and checkpoints, is the sum of

    - `data_wait`: until the loader had the batch;
    - `augment`: on a GPU next to nothing, since it is queued like any other work;
    - `forward_backward`;
    - `communication`: reducing gradients once the backward pass was done, and agreeing on what came of the step, which
      includes waiting for slower ranks. What DDP reduces during the backward pass costs no time of its own and is
      `communication_hidden`, no part of the sum;
    - `optimizer`: with clipping and moving averages;
    - `other`: the rest. On a GPU, where the optimizer works while the host waits for data, it may be below 0.

    `checkpoint_stall` comes beside: seconds that a checkpoint held training up, spread over the steps. Each is the mean
    over the ranks, with the largest of a rank as `..._max`; `train/slowest_rank` has the most work of its own, whether
    waiting for data or computing.

    `train/memory/peak_allocated` and `peak_reserved` are bytes of the GPU, `peak_rss` of main memory on a CPU: the most
    since the start. `train/mfu` is the share of the device's peak rate (`fdtrain.telemetry.peak`) at which the model's
    own FLOPs were done, where that rate is known.

    Args:
        runtime: This rank's surroundings.
        images_per_step: Global batch size.
        peak_flops: FLOP/s of one device at its best; None where that isn't known.
        flops_per_image: Epoch -> FLOPs of an image's forward and backward pass; where the peak is known.
    """

    def __init__(
        self,
        runtime: Runtime,
        images_per_step: int,
        peak_flops: float | None = None,
        flops_per_image: Callable[[int], float] | None = None,
    ) -> None:
        self.runtime, self.images_per_step, self.peak_flops = runtime, images_per_step, peak_flops
        self._count, self._flops = flops_per_image, 0.0
        self._host = PhaseClock(torch.device("cpu"))
        self._began, self._steps = time.perf_counter(), 0
        self._is_under_way = False

    @property
    def announcement(self) -> str:
        """Why there is no model FLOP utilization; empty where there is."""
        if self.peak_flops:
            return ""
        rate = f"the peak {self.runtime.precision} rate of {self.runtime.device_name}"
        return f"no model FLOP utilization (train/mfu): {rate} isn't known"

    def start_epoch(self, epoch: int) -> None:
        """Before steps of an epoch (from 0). Before the first of the run, time begins to count."""
        if not self._is_under_way:
            self._began, self._is_under_way = time.perf_counter(), True
        if self._count:
            self._flops = self._count(epoch)

    def phase(self, name: Literal["data_wait", "augment", "paused"]) -> AbstractContextManager[None]:
        """Around a phase of the loop; "paused" is what is no training: validation, a checkpoint."""
        return self._host.phase(name)

    def step(self) -> None:
        """Count a step."""
        self._steps += 1

    def take(self, engine_seconds: dict[str, float], checkpoint_stall_s: float) -> Measures:
        """What was measured since the last call, over all ranks. Collective.

        Args:
            engine_seconds: `Engine.take_seconds`.
            checkpoint_stall_s: Seconds in which training stood still for checkpoints.
        """
        seconds = {"data_wait": 0.0, "augment": 0.0} | self._host.take() | engine_seconds
        whole = time.perf_counter() - self._began - seconds.pop("paused", 0.0)
        seconds |= {"step": whole, "other": whole - sum(seconds[part] for part in PARTS)}
        seconds["checkpoint_stall"] = checkpoint_stall_s
        own = {f"train/time/{name}": value / self._steps for name, value in seconds.items()}
        own |= {f"train/memory/{name}": value for name, value in peak_memory(self.runtime.device).items()}
        self._began, self._steps = time.perf_counter(), 0
        by_rank = self.runtime.by_rank(own)
        return Measures(self._summarize(by_rank), by_rank)

    def _summarize(self, by_rank: dict[str, list[float]]) -> dict[str, float]:
        means = {name: sum(values) / len(values) for name, values in by_rank.items()}
        step = means["train/time/step"]
        work = [sum(of_rank) for of_rank in zip(*(by_rank[f"train/time/{name}"] for name in OWN_WORK), strict=True)]
        values = {
            "train/images_per_s": self.images_per_step / step,
            "train/data_wait": means["train/time/data_wait"] / step,
            "train/augment_share": means["train/time/augment"] / step,
            "train/slowest_rank": float(work.index(max(work))),
        }
        if self.peak_flops:
            flops = self._flops * self.images_per_step / self.runtime.world_size
            values["train/mfu"] = flops / step / self.peak_flops
        return values | means | {f"{name}_max": max(each) for name, each in by_rank.items()}


def peak_memory(device: torch.device) -> dict[str, float]:
    """Bytes that this process had at most: of the GPU's memory, or of main memory where it computes on the CPU."""
    if device.type == "cuda":
        return {
            "peak_allocated": float(torch.cuda.max_memory_allocated(device)),
            "peak_reserved": float(torch.cuda.max_memory_reserved(device)),
        }
    return {"peak_rss": 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}  # Linux counts in KiB
