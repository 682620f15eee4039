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
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from torch import Tensor

from datasets_shards.schema import write_atomic
from fdtrain.checkpoint import Progress, WriteModel, publish
from fdtrain.config import Config, TransientError, first_line
from fdtrain.data.batch import Batch
from fdtrain.data.loader import LoaderKind
from fdtrain.data.reader import ShardReader
from fdtrain.data.run_data import RunData
from fdtrain.engines import Engine
from fdtrain.evaluation import read_predictions, score_split, scored_table, write_predictions
from fdtrain.journal import Journal
from fdtrain.metrics import (
    DRAWS,
    HIGH,
    LOW,
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
from fdtrain.models.weights import open_model, read_model_card
from fdtrain.progress import ProgressBar
from fdtrain.registry import (
    CHALLENGER,
    CHAMPION,
    Incumbent,
    Verdict,
    fetch_champion,
    judge,
    model_card,
    register,
    registered_name,
)
from fdtrain.runtime import Runtime
from fdtrain.tasks import Task
from fdtrain.tracking import tracking_uri

OnEpoch = Callable[[int, dict[str, float]], None]
"""Called on every rank with the epochs done and the validation metrics over all methods; what it raises ends it."""


class _Challenged(Task):
    """A champion's task: what goes wrong with a batch is noted, not raised, since the other ranks wait for this one."""

    fault = ""

    def scores(self, batch: Batch) -> Tensor:
        """See `Task`; NaN from the first fault on."""
        if not self.fault:
            try:
                return super().scores(batch)
            except RuntimeError as error:
                self.fault = first_line(error)
        return torch.full(batch.labels.shape, math.nan)


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
        scores = self._score(reader, "val", task)
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
        headlines = {name: value for name, value in metrics.items() if _is_headline(name)}
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
        has_test = len(self.data.rows["test"]) > 0
        scores = self._score(reader, "test", task) if has_test else None
        return self.runtime.on_main(lambda: self._record_best(best, metrics, scores))

    def _record_best(
        self, best: dict[str, Any], metrics: dict[str, float], scores: np.ndarray | None
    ) -> dict[str, float]:
        """On rank 0: the metrics of the best model with intervals, written and told.

        Args:
            best: The results on its card.
            metrics: Those of them on the validation split.
            scores: Of the test split; None where that is empty.
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

    def _score(self, reader: ShardReader, split: str, task: Task, what: str = "") -> np.ndarray:
        rows, ranks = self.data.rows[split], self.runtime.world_size
        with ProgressBar(-(-len(rows) // ranks), 0, self.runtime.is_main, what or split) as bar:
            return score_split(task, reader, rows, self.runtime, on_batch=bar.step, **self._scoring)

    def _write_predictions(self, split: str, scores: np.ndarray) -> None:
        write_predictions(self.run.predictions(split), self.data.shard_set, self.data.rows[split], scores)

    def _warn(self, lines: list[str]) -> None:
        for line in lines:
            self.journal.warn(line)

    def challenge(self, reader: ShardReader) -> Verdict | None:
        """Whether the best model becomes champion: the champion is scored on the same validation samples. Collective.

        Whatever is wrong with the champion is the reason why it stays; the run itself is done by now.

        Returns:
            None where nothing is to be registered.

        Raises:
            RuntimeError: a rank was lost.
        """
        found = self.runtime.on_main(self._find_champion)
        if not isinstance(found, Incumbent):
            return found
        try:
            if found.folder is None:
                return found.stays(f"it can't be loaded: {found.fault}")
            task, fault = None, ""
            try:
                model, card = open_model(found.folder)
                task = _Challenged(model, card["input"]).to(self.runtime.device)
            except Exception as error:  # noqa: BLE001 - any fault of whatever somebody put into the registry
                fault = first_line(error).replace(f"{found.folder}/", "")
            if fault := next(filter(None, self.runtime.of_all_ranks(fault)), ""):
                return found.stays(f"it can't be loaded: {fault}")
            assert task is not None
            scores = self._score(reader, "val", task, "registration: the champion on val")
            if fault := next(filter(None, self.runtime.of_all_ranks(task.fault)), ""):
                return found.stays(f"it can't be scored: {fault}")
            return self.runtime.on_main(lambda: self._judge(found, scores))
        finally:
            if self.runtime.is_main and found.folder:
                shutil.rmtree(found.folder)

    def _judge(self, incumbent: Incumbent, its_scores: np.ndarray) -> Verdict:
        """On rank 0: the verdict on the scores of the champion."""
        if not np.isfinite(its_scores).all():
            return incumbent.stays("its scores aren't finite")
        candidate = pq.read_table(self.run.predictions("val"))
        place = candidate.schema.get_field_index("score")
        return judge(incumbent, candidate.set_column(place, "score", pa.array(its_scores)), candidate)

    @property
    def _registered_name(self) -> str:
        return registered_name(self.config.model.name, self.config.quality, self.config.data.is_mixed)

    def _find_champion(self) -> Incumbent | Verdict | None:
        tracker = self.journal.tracker
        if not (tracker and self.config.tracking.register) or (tracker.run_id is None and tracker.fault):
            return None  # a server that is down would keep everybody waiting
        name = self._registered_name
        try:
            found = fetch_champion(name, tracking_uri(self.config.tracking.uri), self.run.path / ".incumbent")
        except Exception as error:  # noqa: BLE001 - any fault of a server or its client; the trained model stays
            return Verdict(False, f"the registry didn't say who is champion: {first_line(error)}")
        return found or Verdict(True, "the first version")

    def register(self, metrics: dict[str, float], facts: dict[str, str], verdict: Verdict | None) -> str | None:
        """Register the best model, from rank 0; its URI, or None where it isn't to be, or couldn't be, registered."""
        tracker = self.journal.tracker
        if not (tracker and self.config.tracking.register):
            return None
        name = self._registered_name
        content = read_model_card(self.run.best)
        try:
            if tracker.run_id is None or verdict is None:
                raise ConnectionError("MLflow has no record of this run")
            text = model_card(
                name,
                content | {"input": vars(content["input"])},
                training=[opened.shard_set.manifest for opened in self.data.training],
                scored=self.data.shard_set.manifest,
                metrics=metrics,
                facts=facts,
                run_id=tracker.run_id,
                verdict=verdict.reason,
                licence=self.config.tracking.data_licence,
            )
            done = register(
                self.run.best,
                name,
                uri=tracking_uri(self.config.tracking.uri),
                run_id=tracker.run_id,
                step=content["results"]["step"],
                tags=facts | {key: repr(value) for key, value in metrics.items() if _is_headline(key)},
                verdict=verdict,
                text=text,
            )
        except Exception as error:  # noqa: BLE001 - any fault of a server or of the export; the trained model stays
            reason = first_line(error)
            print(
                f"warning: {name} was not registered ({reason}); the model is {self.run.best}, "
                f"and 'python -m fdtrain register {self.run.path}' registers it later",
                file=sys.stderr,
            )
            return None
        role = CHAMPION if done.verdict.is_champion else CHALLENGER
        self.journal.say(f"registered {done.name} version {done.version}: {role} ({done.verdict.reason})")
        return f"models:/{done.name}/{done.version}"


def _is_headline(name: str) -> bool:
    """Of all methods together, and no end of an interval: recorded whenever a model is validated."""
    return name.count("/") == 2 and not name.endswith((LOW, HIGH))
