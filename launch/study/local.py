"""Trainings by torchrun on this host, each slot with GPUs of its own."""

import os
from dataclasses import dataclass

from fdtrain.config import UserError
from launch.study.folder import StudyFolder
from launch.study.grid import Cell
from launch.study.process import Command, training_words
from launch.study.settings import RunnerPart


@dataclass(frozen=True)
class Local:
    """What this host gives to trainings.

    Args:
        ranks: Processes of each.
        parallel: Trainings at a time.
        devices: For CUDA_VISIBLE_DEVICES, all of the host; none on CPUs.
    """

    ranks: int
    parallel: int
    devices: tuple[str, ...]

    @classmethod
    def of(cls, runner: RunnerPart) -> "Local":
        """By the settings. Raises UserError where they ask for more GPUs than there are."""
        devices = gpus()
        ranks = runner.ranks or max(len(devices), 1)
        parallel = runner.parallel or max(len(devices) // ranks, 1)
        if devices and ranks * parallel > len(devices):
            raise UserError(
                f"runner: {parallel} trainings at a time of {ranks} ranks want {ranks * parallel} GPUs, and there are "
                f"{len(devices)}; lower runner.ranks or runner.parallel"
            )
        return cls(ranks, parallel, devices)

    def describe(self) -> str:
        """For a terminal."""
        kind = "GPUs" if self.devices else "CPU"
        return f"torchrun on this host: {self.ranks} rank{'s' * (self.ranks != 1)} each on {kind}"

    def environment(self, slot: int | None = None) -> dict[str, str]:
        """Of a command: in a slot, or of one that has the host for itself."""
        share = 1 if slot is None else self.parallel
        threads = max(len(os.sched_getaffinity(0)) // (self.ranks * share), 1)
        environment = {"OMP_NUM_THREADS": str(threads)} | os.environ
        if self.devices and slot is not None:
            own = self.devices[slot * self.ranks : (slot + 1) * self.ranks]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        return environment

    def start(self, cell: Cell, slot: int, folder: StudyFolder) -> Command:
        """Start a training."""
        words = training_words(cell.words, folder.run(cell.name), self.ranks)
        return Command(words, folder.log(cell.name), self.environment(slot), is_training=True)


def gpus() -> tuple[str, ...]:
    """Names of the visible GPUs, for CUDA_VISIBLE_DEVICES."""
    import torch

    count = torch.cuda.device_count()
    named = [word.strip() for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()]
    return tuple(named[:count] if len(named) >= count else map(str, range(count)))
