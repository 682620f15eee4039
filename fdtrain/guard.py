"""Steps whose loss or gradient isn't a number: counted, put on record, and too many end the run."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets_shards.schema import write_atomic
from fdtrain.checkpoint import Progress
from fdtrain.data.batch import Batch
from fdtrain.engines import StepResult
from fdtrain.runtime import Runtime


@dataclass(frozen=True)
class StepGuard:
    """Judges what came of a step; on every rank alike, since an engine's outcomes are.

    Args:
        folder: Where the batches of bad steps are put on record, by rank 0.
        limit: Steps with a loss or gradient that isn't finite which the run, from its beginning, puts up with.
        runtime: This rank's surroundings.
        keys: int64 rows -> the samples' keys.
    """

    folder: Path
    limit: int
    runtime: Runtime
    keys: Callable[[np.ndarray], list[str]]

    def judge(
        self, result: StepResult, progress: Progress, batches: Sequence[Batch], draw_seeds: Sequence[int]
    ) -> Progress:
        """What the step adds to the counts of the run. Collective where it wasn't applied.

        Args:
            result: Of the step.
            progress: After it.
            batches: What this rank had of it, as they were augmented.
            draw_seeds: Of its micro-batches.

        Raises:
            FloatingPointError: that was one bad step too many; it names step, rank and record.
        """
        if result.outcome == "applied":
            return progress
        if result.outcome == "rescaled":
            return replace(progress, rescaled_steps=progress.rescaled_steps + 1)
        progress = replace(progress, nonfinite_steps=progress.nonfinite_steps + 1)
        loss = float(result.scalars["loss"])
        own = {
            "rank": self.runtime.rank,
            "loss": loss if math.isfinite(loss) else repr(loss),
            "micro_batches": [
                {"draw_seed": seed, "rows": batch.rows.tolist(), "keys": self.keys(batch.rows.numpy())}
                for batch, seed in zip(batches, draw_seeds, strict=True)
            ],
        }
        ranks = self.runtime.of_all_ranks(own)
        record = self.folder / f"step-{progress.step:08d}.json"
        content = {"step": progress.step, "grad_norm": repr(float(result.grad_norm)), "ranks": ranks}
        self.runtime.on_main(lambda: self._write(record, content))
        guilty = [str(each["rank"]) for each in ranks if isinstance(each["loss"], str)]
        where = f"the loss of rank {', '.join(guilty)}" if guilty else "the gradient"
        if progress.nonfinite_steps > self.limit:
            raise FloatingPointError(
                f"step {progress.step}: {where} is not finite, in step number {progress.nonfinite_steps} of this kind, "
                f"and train.max_nonfinite_steps allows {self.limit}; its samples are in {record}: look at them, lower "
                "optim.lr, or take another precision"
            )
        if self.runtime.is_main:
            print(f"warning: step {progress.step} was skipped: {where} is not finite; its samples are in {record}")
        return progress

    def _write(self, path: Path, content: dict[str, Any]) -> None:
        self.folder.mkdir(exist_ok=True)
        write_atomic(path, json.dumps(content, indent=2).encode() + b"\n")
