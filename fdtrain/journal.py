"""Where the records of a run go: to people, to `log.jsonl`, to MLflow. Rank 0 writes; elsewhere nothing happens."""

import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from fdtrain.metrics import jsonable
from fdtrain.run_folder import RunFolder
from fdtrain.tracking import Tracker


class Journal:
    """The records of one run.

    Args:
        run: Its folder.
        is_main: Whether this rank writes.
    """

    def __init__(self, run: RunFolder, is_main: bool) -> None:
        self.run, self.is_main = run, is_main
        self.tracker: Tracker | None = None
        """MLflow's part, once the run is under way and where it is wanted."""

    def say(self, line: str) -> None:
        """Print a line for people, above the progress bar."""
        if self.is_main:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def log(self, step: int, values: dict[str, float], by_rank: dict[str, list[float]] | None = None) -> None:
        """Record values at an optimizer step; what each rank measured goes to `log.jsonl` alone."""
        if self.is_main:
            self.run.log(step=step, **jsonable(values), **({"by_rank": by_rank} if by_rank else {}))
            if self.tracker:
                self.tracker.log_metrics(values, step)

    def log_result(self, step: int, metrics: dict[str, float], files: Sequence[Path]) -> None:
        """Give MLflow what came of the run: the metrics of the model of that step, and files of the run folder."""
        if self.tracker:
            self.tracker.log_metrics(metrics, step)
            for path in files:
                self.tracker.log_file(path)
