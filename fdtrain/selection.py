"""Which model of a run counts: chosen by the validation split, scored on the test split once, and registered."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from datasets_shards.schema import write_atomic
from fdtrain.checkpoint import Progress, WriteModel, publish
from fdtrain.config import Config, TransientError
from fdtrain.data.loader import LoaderKind
from fdtrain.data.reader import ShardReader
from fdtrain.data.run_data import RunData
from fdtrain.engines import Engine
from fdtrain.evaluation import read_predictions, score_split, scored_table, write_predictions
from fdtrain.journal import Journal
from fdtrain.metrics import (
    DRAWS,
    SELECTION_METRIC,
    choose_thresholds,
    compute_metrics,
    describe,
    from_json,
    is_headline,
    jsonable,
    known_thresholds,
    remarks,
    threshold_metrics,
)
from fdtrain.models.weights import open_model
from fdtrain.progress import ProgressBar
from fdtrain.runtime import Runtime
from fdtrain.tasks import Task

OnEpoch = Callable[[int, dict[str, float]], None]
"""Called on every rank with the epochs done and the validation metrics over all methods; what it raises ends it."""


class ModelSelection:
    """Keeps the best model in the run folder's `best/`. All methods are collective.

    Args:
        config: Of the run.
        data: What it reads.
        runtime: This rank's surroundings.
        journal: Of the run.
        loader: Which decoder.
        loading: Its threads and prefetch.
        check: Called between batches by all ranks together; what it raises ends an evaluation.
        on_failure: Told on every rank why the best model couldn't be kept.
    """

    def __init__(
        self,
        config: Config,
        data: RunData,
        runtime: Runtime,
        journal: Journal,
        loader: LoaderKind,
        loading: dict[str, Any],
        *,
        check: Callable[[], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self.config, self.data, self.runtime, self.journal = config, data, runtime, journal
        self.run = journal.run
        self.value: float | None = None
        """Selection metric of the model that was validated last; None where that is undefined, or not to be used."""
        self.on_epoch: OnEpoch | None = None
        """Told of each validation that is done."""
        self.on_failure = on_failure
        self._scoring = {"loader": loader, "batch_size": config.train.micro_batch_size, "check": check} | loading

    def validate(self, engine: Engine, reader: ShardReader, progress: Progress, write_model: WriteModel) -> Progress:
        """Score the validation split, and keep the model if it is the best so far.

        A model that can't be written leaves the one before where it is.

        Returns:
            `progress`, with what is known of the best model now.

        Raises:
            StopRequested: `check` did.
        """
        task = engine.evaluation_task()
        scores = self.score(reader, self.data.rows["val"], task, "val", self.runtime)
        # Rank 0's alone: another kind of processor may round otherwise, and its rank would decide otherwise.
        metrics, warnings = self.runtime.on_main(lambda: self._measure(scores))
        value = metrics[SELECTION_METRIC]
        best = progress.best_value
        self.value = value if task.is_selectable and not math.isnan(value) else None
        fault = None
        # Where the metric is undefined (one class only) there is nothing to choose by: the last model is taken.
        if task.is_selectable and (best is None or value > best):
            results = {"step": progress.step, "metrics": jsonable(metrics)}
            fault = self.runtime.on_main(lambda: self._keep(task, results, scores, write_model))
            if fault is None:
                progress = replace(progress, best_step=progress.step, best_value=None if math.isnan(value) else value)
        progress = replace(progress, unvalidated_step=None if fault is None else progress.step)
        self._warn(warnings)
        headlines = {name: value for name, value in metrics.items() if is_headline(name)}
        folder = self._folder(progress.step) if task.is_selectable else None
        self.journal.log(progress.step, headlines, model=folder)
        epoch = -(-progress.step // self.data.plan.steps_per_epoch)
        shown, mark = f"{value:.4f}", ", the best so far" if progress.best_step == progress.step else ""
        if math.isnan(value):
            shown, mark = "undefined", ""
        self.journal.say(
            f"epoch {epoch}: {SELECTION_METRIC} {shown}, val/video/acc {metrics['val/video/acc']:.4f}{mark}"
        )
        if fault:
            self.on_failure(fault)
        if self.on_epoch:
            self.on_epoch(epoch, headlines)
        return progress

    def _measure(self, scores: np.ndarray) -> tuple[dict[str, float], list[str]]:
        """Metrics of the validation split, and why some are undefined."""
        table = scored_table(self.data.shard_set, self.data.rows["val"], scores)
        # No intervals yet: they are for the model that is chosen in the end.
        metrics = compute_metrics(table, "val") | threshold_metrics(choose_thresholds(table))
        return metrics, remarks(table, "val")

    def _keep(self, task: Task, results: dict[str, Any], scores: np.ndarray, write_model: WriteModel) -> str | None:
        """Make this the model in `best/`; why that failed, if it did."""
        part = self.run.path / ".best.part"
        try:
            part.mkdir(exist_ok=True)
            write_model(part, task.model.state_dict(), results=results)
            self._write_predictions("val", scores)
            publish(part, self.run.best)  # last: it needs the least room
        except (OSError, SafetensorError) as error:
            shutil.rmtree(part, ignore_errors=True)
            return f"{self.run.best}: the best model, of step {results['step']}, wasn't kept ({error})"
        return None

    def evaluate_best(self, reader: ShardReader) -> dict[str, float]:
        """Validation metrics of the best model, and the test split's, which nothing before has read.

        Returns:
            With intervals.

        Raises:
            UserError: no model could be kept.
            FloatingPointError: a score is not finite.
            StopRequested: `check` did.
        """
        if self.runtime.on_main(lambda: not self.run.best.exists()):
            raise TransientError(f"{self.run.best}: no model could be kept; mend that and go on by --run.resume auto")
        model, card = open_model(self.run.best)
        best = card["results"]
        task = Task(model, card["input"]).to(self.runtime.device)
        metrics = from_json(best["metrics"])
        rows = self.data.rows["test"]
        is_tested = self.config.train.test and len(rows) > 0
        scores = self.score(reader, rows, task, "test", self.runtime) if is_tested else None
        return self.runtime.on_main(lambda: self._record_best(best, metrics, scores))

    def _record_best(
        self, best: dict[str, Any], metrics: dict[str, float], scores: np.ndarray | None
    ) -> dict[str, float]:
        """On rank 0: the metrics of the best model with intervals, written and told.

        Args:
            best: The results on its card.
            metrics: Those of them on the validation split.
            scores: Of the test split; None where that is empty, or left alone.
        """
        metrics |= compute_metrics(read_predictions(self.run.predictions("val")), "val", draws=DRAWS)
        files = [self.run.metrics, self.run.predictions("val")]
        if scores is not None:
            self._write_predictions("test", scores)
            table = read_predictions(self.run.predictions("test"))
            metrics |= compute_metrics(table, "test", thresholds=known_thresholds(best["metrics"]), draws=DRAWS)
            self._warn(remarks(table, "test"))
            files.append(self.run.predictions("test"))
            shown = ", ".join(f"{name} {describe(metrics, f'test/video/{name}')}" for name in ("auc", "acc", "f1"))
            self.journal.say(f"test, per video, best model (step {best['step']}): {shown}")
        else:
            why = "is empty" if self.config.train.test else "was left alone (train.test: false)"
            self.journal.say(f"the test split {why}: metrics.json has validation metrics only")
        write_atomic(self.run.metrics, json.dumps(jsonable(metrics), indent=2).encode() + b"\n")
        # Registering uploads the model as well.
        upload = None if self.config.tracking.register else self.run.best
        known = {name for name in metrics if name.startswith("val/") and is_headline(name)}
        new = {name: value for name, value in metrics.items() if name not in known}
        self.journal.log_result(best["step"], new, files, self._folder(best["step"]), upload)
        return metrics

    def _folder(self, step: int) -> Path:
        """Where the checkpoint with the model of a step was written; older ones make room."""
        return self.run.checkpoints / f"step-{step:08d}"

    def score(self, reader: ShardReader, rows: np.ndarray, task: Task, what: str, runtime: Runtime) -> np.ndarray:
        """Return P(fake) of each row, float64 `[N]`, on each rank of `runtime`, with a bar. Collective over these."""
        is_alone = runtime.world_size < self.runtime.world_size
        scoring = self._scoring | ({"check": lambda: None} if is_alone else {})
        with ProgressBar(-(-len(rows) // runtime.world_size), 0, runtime.is_main, what) as bar:
            return score_split(task, reader, rows, runtime, on_batch=bar.step, **scoring)

    def _write_predictions(self, split: str, scores: np.ndarray) -> None:
        write_predictions(self.run.predictions(split), self.data.shard_set, self.data.rows[split], scores)

    def _warn(self, lines: list[str]) -> None:
        for line in lines:
            self.journal.warn(line)
