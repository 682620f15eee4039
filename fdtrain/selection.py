"""Which model of a run counts: chosen by the validation split, scored on the test split once, and registered."""

import json
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from datasets_shards.schema import write_atomic
from fdtrain.checkpoint import Progress, WriteModel, publish
from fdtrain.config import Config, UserError
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
    jsonable,
    known_thresholds,
    remarks,
    threshold_metrics,
)
from fdtrain.models.weights import open_model
from fdtrain.registry import register, registered_name
from fdtrain.runtime import Runtime
from fdtrain.tasks import Task
from fdtrain.tracking import tracking_uri


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
        scores = self._score(reader, "val", task)
        table = scored_table(self.data.shard_set, self.data.rows["val"], scores)
        # No intervals yet: they are for the model that is chosen in the end.
        metrics = compute_metrics(table, "val") | threshold_metrics(choose_thresholds(table))
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
        self._warn(remarks(table, "val"))
        headlines = {name: value for name, value in metrics.items() if _is_headline(name)}
        self.journal.log(progress.step, headlines, self._folder(progress.step) if task.is_selectable else None)
        epoch = -(-progress.step // self.data.plan.steps_per_epoch)
        mark = ", the best so far" if progress.best_step == progress.step else ""
        self.journal.say(
            f"epoch {epoch}: {SELECTION_METRIC} {value:.4f}, val/video/acc {metrics['val/video/acc']:.4f}{mark}"
        )
        if fault:
            self.on_failure(fault)
        return progress

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
            With intervals on rank 0; the validation metrics alone elsewhere.

        Raises:
            UserError: no model could be kept.
            StopRequested: `check` did.
        """
        if self.runtime.on_main(lambda: not self.run.best.exists()):
            raise UserError(f"{self.run.best}: no model could be kept; mend that and go on by --run.resume auto")
        model, card = open_model(self.run.best)
        best = card["results"]
        task = Task(model, card["input"]).to(self.runtime.device)
        metrics = from_json(best["metrics"])
        has_test = len(self.data.rows["test"]) > 0
        scores = self._score(reader, "test", task) if has_test else None
        if not self.runtime.is_main:
            return metrics
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
            self.journal.say("the test split is empty: metrics.json has validation metrics only")
        write_atomic(self.run.metrics, json.dumps(jsonable(metrics), indent=2).encode() + b"\n")
        # Registering uploads the model as well.
        upload = None if self.config.tracking.register else self.run.best
        known = {name for name in metrics if name.startswith("val/") and _is_headline(name)}
        new = {name: value for name, value in metrics.items() if name not in known}
        self.journal.log_result(best["step"], new, files, self._folder(best["step"]), upload)
        return metrics

    def _folder(self, step: int) -> Path:
        """Where the checkpoint with the model of a step was written; older ones make room."""
        return self.run.checkpoints / f"step-{step:08d}"

    def _score(self, reader: ShardReader, split: str, task: Task) -> np.ndarray:
        return score_split(task, reader, self.data.rows[split], self.runtime, **self._scoring)

    def _write_predictions(self, split: str, scores: np.ndarray) -> None:
        write_predictions(self.run.predictions(split), self.data.shard_set, self.data.rows[split], scores)

    def _warn(self, lines: list[str]) -> None:
        for line in lines:
            self.journal.say(f"warning: {line}")

    def register(self, metrics: dict[str, float], tags: dict[str, str]) -> str | None:
        """Register the best model, from rank 0; its URI, or None where it isn't to be, or couldn't be, registered."""
        tracker = self.journal.tracker
        if not (tracker and self.config.tracking.register):
            return None
        name = registered_name(self.config.model.name, self.config.quality)
        uri = tracking_uri(self.config.tracking.uri)
        try:
            if tracker.run_id is None:
                raise ConnectionError("MLflow has no record of this run")
            done = register(self.run.best, name, metrics[SELECTION_METRIC], uri=uri, run_id=tracker.run_id, tags=tags)
        except Exception as error:  # noqa: BLE001 - any fault of a server or of the export; the trained model stays
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            print(f"warning: {name} was not registered ({reason}); the model is {self.run.best}", file=sys.stderr)
            return None
        role = "champion" if done.is_champion else "not champion"
        self.journal.say(f"registered {done.name} version {done.version}: {role} ({done.reason})")
        return f"models:/{done.name}/{done.version}"


def _is_headline(name: str) -> bool:
    """Whether a metric is of all methods together: those are recorded whenever a model is validated."""
    return name.count("/") == 2
