"""Where the records of a run go: to people, to `log.jsonl`, to MLflow. Rank 0 writes; elsewhere nothing happens."""

import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from fdtrain.config import Config
from fdtrain.data.run_data import RunData
from fdtrain.metrics import jsonable
from fdtrain.run_folder import RunFolder
from fdtrain.tracking import Tracker, describe_datasets


class Journal:
    """The records of one run.

    Args:
        run: Its folder.
        is_main: Whether this rank writes.
    """

    def __init__(self, run: RunFolder, is_main: bool) -> None:
        self.run, self.is_main = run, is_main
        self._is_lossy = False  # and has said so
        self._warned: set[str] = set()
        self.tracker: Tracker | None = None
        """MLflow's part, once the run is under way and where it is wanted."""

    def track(
        self, config: Config, facts: dict[str, str], data: RunData, resumed: bool, run_id: str | None
    ) -> Path | None:
        """Begin to record the run in MLflow, on rank 0, if it is to be.

        Args: as of `Tracker`.

        Returns:
            Folder of the records, for system metrics; None where those aren't wanted.
        """
        if not config.tracking.enabled:
            return None
        self.tracker = Tracker(config, self.run.path, facts, describe_datasets(data), resumed=resumed, run_id=run_id)
        self.tracker.log_file(self.run.config)
        return self.tracker.folder if config.tracking.system_metrics else None

    def say(self, line: str) -> None:
        """Print a line for people, above the progress bar."""
        if self.is_main:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def warn(self, line: str) -> None:
        """Print a warning for people, which is said once in a run however often it is met."""
        if line not in self._warned:
            self._warned.add(line)
            self.say(f"warning: {line}")

    def log(
        self,
        step: int,
        values: dict[str, float],
        *,
        model: Path | None = None,
        by_rank: dict[str, list[float]] | None = None,
    ) -> None:
        """Record values at an optimizer step.

        Args:
            step: Optimizer steps done.
            values: Name -> value.
            model: Folder of the model that they were measured on.
            by_rank: What each rank measured, which goes to `log.jsonl` alone.
        """
        if not self.is_main:
            return
        try:
            self.run.log(step=step, **jsonable(values), **({"by_rank": by_rank} if by_rank else {}))
            if self.tracker:
                self.tracker.log_metrics(values, step, model)
        except OSError as error:  # a full disk; whether the run may go on is for its checkpoints to say
            if not self._is_lossy:
                lost = f"the records lack step {step}, and what comes until there is room again"
                print(f"warning: {self.run.path}: {error.strerror or error}: {lost}", file=sys.stderr, flush=True)
            self._is_lossy = True
        else:
            self._is_lossy = False

    def log_result(
        self, step: int, metrics: dict[str, float], files: Sequence[Path], model: Path, upload: Path | None
    ) -> None:
        """Give MLflow what came of the run.

        Args:
            step: That of the best model.
            metrics: Its metrics that aren't recorded yet.
            files: Of the run folder.
            model: Its folder, as in `log`.
            upload: A folder to upload as that model's files.
        """
        if self.tracker:
            self.tracker.log_metrics(metrics, step, model)
            self.tracker.log_best(step, model, upload)
            for path in files:
                self.tracker.log_file(path)
