"""Sends the records of a folder to one MLflow server: those of each file in order, and each takes effect once.

A record counts as sent when the server has said so. What was answered by nothing may have arrived, and is sent again:
MLflow keeps one of two points that are equal in name, value, step and time, and runs and models are looked up by what
we call them before they are made.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fdtrain.config import first_line
from fdtrain.tracking.client import connect, experiment_id, lasting_uri
from fdtrain.tracking.outbox import RECORDS, Outbox, Record, Sent, outboxes, read_records
from fdtrain.tracking.parents import PARENT_TAG, parent_run

T = TypeVar("T")

UID_TAG, FOLDER_TAG, BEST_TAG = "fdtrain.uid", "fdtrain.folder", "fdtrain.best"
MAX_METRICS, MAX_PARAMS = 1000, 100  # of one request
MANNERS = {
    # MLflow would go on for ten minutes by itself; here whoever sends tries again, and says so.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""What MLflow's client is told, unless the user has told it otherwise. It takes this from the environment alone."""


class Undeliverable(Exception):
    """A record that can't be sent, now or later."""


class Sender:
    """Sends the records of one folder.

    Args:
        run: The run folder.
        folder: That of the records.
        uri: Tracking URI.

    Raises:
        UserError: `sent.json` is damaged.
    """

    def __init__(self, run: Path, folder: Path, uri: str) -> None:
        self.run, self.folder, self.uri = run, folder, uri
        self.sent = Sent.load(folder, lasting_uri(uri))
        self.count = 0
        """Records that were sent."""
        self._client: Any = None
        self._has_models = True

    def send(self) -> None:
        """Send what there is at this moment: all of one file, then all of the next.

        So files that aren't taken keep no metrics back, and metrics that keep coming no files.

        Raises:
            Exception: whatever a server or its client may raise; the records are still to be sent.
        """
        for path in outboxes(self.folder):
            end = path.stat().st_size
            while self.sent.offsets.get(path.name, 0) < end and (batch := self._next_batch(path)):
                self._connect()
                self._deliver([record for record, _ in batch])
                self.sent.offsets[path.name] = batch[-1][1]
                self.sent.save(self.folder)
                self.count += len(batch)

    def _next_batch(self, path: Path) -> list[tuple[Record, int]]:
        """Metrics that fit into one request, or a single record of another kind."""
        batch: list[tuple[Record, int]] = []
        count = 0
        for record, end in read_records(path, self.sent.offsets.get(path.name, 0)):
            alone = record["kind"] != "metrics" or "model" in record
            count += len(record.get("values", ()))
            if batch and (alone or count > MAX_METRICS):
                break
            batch.append((record, end))
            if alone:
                break
        return batch

    def _connect(self) -> None:
        if self._client is None:
            for name, value in MANNERS.items():
                os.environ.setdefault(name, value)
            self._client = connect(self.uri)

    def _deliver(self, records: list[Record]) -> None:
        try:
            self._send(records)
        except Exception as error:
            if records[0]["kind"] == "run" or not self._is_final(error):  # nothing goes anywhere without a run
                raise
            if len(records) > 1:
                for record in records:
                    self._deliver([record])
                return
            # Waiting for what never will be taken would keep back all that comes after it.
            self.sent.refused += 1
            what = f"{records[0]['kind']} record"
            print(f"warning: {self.folder}: a {what} can't be sent ({first_line(error)})", file=sys.stderr)

    def _is_final(self, error: Exception) -> bool:
        """Whether it is the record's fault. A run that was deleted is the server's state, and can be restored."""
        from mlflow.exceptions import MlflowException

        if isinstance(error, Undeliverable):
            return True
        if not isinstance(error, MlflowException) or error.error_code != "INVALID_PARAMETER_VALUE":
            return False
        return self._client.get_run(self.sent.run_id).info.lifecycle_stage == "active"

    def _send(self, records: list[Record]) -> None:
        first = records[0]
        match first["kind"]:
            case "run":
                self._start(first)
            case "metrics":
                self._metrics(records)
            case "file":
                self._file(first)
            case "best":
                self._if_models(lambda: self._best(first))
            case "model files":
                path = str(self._existing(first["path"]))
                model_id = self._if_models(lambda: self._model(first["model"], first["step"]))
                if model_id is None:
                    self._client.log_artifacts(self.sent.run_id, path, "model")
                else:
                    self._client.log_model_artifacts(model_id, path)
            case "end":
                self._client.set_terminated(self.sent.run_id, first["status"], end_time=first["time"])
            case other:
                raise Undeliverable(f"{other!r} is no kind that this release knows")

    def _start(self, record: Record) -> None:
        """Find or make the MLflow run. All of it can be done twice."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        client, sent = self._client, self.sent
        if sent.run_id is None:
            experiment = experiment_id(client, self.uri, record["experiment"])
            found = client.search_runs([experiment], f"tags.`{UID_TAG}` = '{record['uid']}'", max_results=1)
            if record.get("run_id"):  # a run that was begun before there were folders of records
                run = client.get_run(record["run_id"])
            elif found:
                run = found[0]
            else:
                tags = record["tags"] | {UID_TAG: record["uid"]}
                if record["parent"]:
                    tags[PARENT_TAG] = parent_run(client, experiment, record["parent"])
                run = client.create_run(experiment, start_time=record["time"], tags=tags, run_name=record["name"])
            sent.run_id, sent.experiment_id = run.info.run_id, run.info.experiment_id
            sent.save(self.folder)
        client.update_run(sent.run_id, "RUNNING")
        params = [Param(key, value) for key, value in record["params"].items()]
        for start in range(0, len(params), MAX_PARAMS):
            client.log_batch(sent.run_id, params=params[start : start + MAX_PARAMS])
        inputs = [
            DatasetInput(Dataset(**fields), [InputTag("mlflow.data.context", context)])
            for context, fields in record["datasets"]
        ]
        client.log_inputs(sent.run_id, inputs)

    def _metrics(self, records: list[Record]) -> None:
        from mlflow.entities import Metric

        links = self._if_models(lambda: self._model_links(records[0])) if "model" in records[0] else None
        links = links or {}
        metrics = [
            Metric(name, value, record["time"], record["step"], **links.get(name.partition("/")[0], {}))
            for record in records
            for name, value in record["values"].items()
        ]
        for start in range(0, len(metrics), MAX_METRICS):
            self._client.log_batch(self.sent.run_id, metrics=metrics[start : start + MAX_METRICS])

    def _if_models(self, ask: Callable[[], T]) -> T | None:
        """Ask a server for logged models; None where it is older than 3, which is said once."""
        from mlflow.exceptions import MlflowException

        if not self._has_models:
            return None
        try:
            return ask()
        except MlflowException as error:
            if error.error_code != "ENDPOINT_NOT_FOUND":
                raise
        self._has_models = False
        said = f"{self.sent.uri} knows no logged models (MLflow 3 does); metrics go there without them"
        print(f"warning: {said}, and the model's files to the run's artifacts", file=sys.stderr)
        return None

    def _model_links(self, record: Record) -> dict[str, dict[str, str]]:
        """Split -> model and dataset of its metrics. The logged model is made if need be."""
        model_id = self._model(record["model"], record["step"])
        return {
            split: {"model_id": model_id, "dataset_name": name, "dataset_digest": digest}
            for split, (name, digest) in record["model"]["datasets"].items()
        }

    def _model(self, model: dict[str, Any], step: int) -> str:
        """Id of the logged model of a step: a reference to its folder, ready to be ranked by its metrics."""
        from mlflow.entities import LoggedModelOutput

        client, sent = self._client, self.sent
        named = f"source_run_id = '{sent.run_id}' AND name = '{model['name']}'"
        found = client.search_logged_models([sent.experiment_id], named, max_results=1)
        made = found[0] if found else None
        if made is None:
            tags = {FOLDER_TAG: model["folder"], "fdtrain.step": str(step)}
            made = client.create_logged_model(
                sent.experiment_id, name=model["name"], source_run_id=sent.run_id, tags=tags, model_type="fdtrain"
            )
        if str(made.status) != "READY":
            client.finalize_logged_model(made.model_id, "READY")
        outputs = client.get_run(sent.run_id).outputs
        if made.model_id not in {output.model_id for output in (outputs.model_outputs if outputs else [])}:
            client.log_outputs(sent.run_id, [LoggedModelOutput(made.model_id, step)])
        return made.model_id

    def _file(self, record: Record) -> None:
        path = self._existing(record["path"])
        send = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        send(self.sent.run_id, str(path), record["to"] or None)

    def _best(self, record: Record) -> None:
        """Mark the model of the record's step as the run's best."""
        client = self._client
        model_id = self._model(record["model"], record["step"])
        marked = f"source_run_id = '{self.sent.run_id}' AND tags.`{BEST_TAG}` = 'true'"
        for model in client.search_logged_models([self.sent.experiment_id], marked):
            if model.model_id != model_id:
                client.delete_logged_model_tag(model.model_id, BEST_TAG)
        client.set_logged_model_tags(model_id, {BEST_TAG: "true"})

    def _existing(self, name: str) -> Path:
        path = self.run / name
        if not path.exists():
            raise Undeliverable(f"{path} is gone")
        return path


def ended(folder: Path) -> tuple[bool, int]:
    """Whether the last process that recorded has said how the run ended, and the time of the last record, ms."""
    done, last = False, 0
    for record, _ in read_records(folder / RECORDS):
        last = record["time"]
        if record["kind"] in ("run", "end"):
            done = record["kind"] == "end"
    return done, last


def end_if_killed(folder: Path) -> None:
    """Add the end that a process which was killed couldn't. Whoever calls it holds the run's lock."""
    done, last = ended(folder)
    if not done:
        outbox = Outbox(folder / RECORDS)
        outbox.append("end", {"status": "KILLED"}, at=last)
        outbox.close()
