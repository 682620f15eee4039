"""Traces of chosen steps by torch.profiler: what ran when, on the host and on the GPU."""

from pathlib import Path
from typing import Self

import torch
from torch.profiler import ProfilerActivity, profile

from fdtrain.config import ProfileConfig, UserError
from fdtrain.runtime import Runtime

TABLE_ROWS = 40


class StepTracer:
    """Traces a stretch of steps on this rank. Use it in a `with`: what was traced of a run that stops is written too.

    Args:
        config: Which steps, on which ranks.
        folder: Where the traces go.
        runtime: This rank's surroundings.
        total_steps: Of the whole run.

    Raises:
        UserError: there are no such steps or ranks.
    """

    def __init__(self, config: ProfileConfig, folder: Path, runtime: Runtime, total_steps: int) -> None:
        self.folder, self.runtime = folder, runtime
        self._first, self._last = config.steps or (0, 0)
        if self._last > total_steps:
            raise UserError(f"profile.steps: [{self._first}, {self._last}] where the run has {total_steps} steps")
        if strangers := [rank for rank in config.ranks or () if rank >= runtime.world_size]:
            raise UserError(f"profile.ranks: {strangers[0]} where the ranks are 0 to {runtime.world_size - 1}")
        self._is_chosen = bool(config.steps) and (config.ranks is None or runtime.rank in config.ranks)
        self._profile: profile | None = None
        self._began = 0
        self._done = 0

    def begin(self, step: int) -> None:
        """Before a step."""
        if self._is_chosen and self._profile is None and self._first <= step <= self._last:
            activities = [ProfilerActivity.CPU]
            if self.runtime.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities)
            self._profile.start()
            self._began = step

    def end(self, step: int) -> None:
        """After a step."""
        self._done = step
        if self._profile is not None and step >= self._last:
            self._write()

    def _write(self) -> None:
        traced, self._profile = self._profile, None
        assert traced is not None
        if self.runtime.device.type == "cuda":
            torch.cuda.synchronize(self.runtime.device)  # the last kernels are part of it
        traced.stop()
        self.folder.mkdir(exist_ok=True)
        name = f"steps-{self._began:08d}-{self._done:08d}-rank-{self.runtime.rank:05d}"
        traced.export_chrome_trace(str(self.folder / f"{name}.json.gz"))
        by = "self_device_time_total" if self.runtime.device.type == "cuda" else "self_cpu_time_total"
        table = traced.key_averages().table(sort_by=by, row_limit=TABLE_ROWS, max_name_column_width=80)
        (self.folder / f"{name}.txt").write_text(table)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._profile is not None:
            self._write()
