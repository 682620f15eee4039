"""What a run under way tells MLflow. Rank 0 writes it down; a thread of its own sends it."""

import math
import sys
import threading
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from fdtrain.config import Config, first_line, flatten
from fdtrain.tracking.client import lasting_uri, tracking_uri
from fdtrain.tracking.datasets import scored_datasets
from fdtrain.tracking.outbox import FILES, RECORDS, Outbox, Record, new_folder, read_records, record_folders
from fdtrain.tracking.sender import Sender

GATHER_S = 1.0
"""What comes within it goes in one request."""
POLL_S = 10.0  # records of other nodes come unannounced
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0  # before the server is tried again
LAST_WAIT_S = {"FINISHED": 60.0, "FAILED": 10.0, "KILLED": 10.0}
"""At the end of the run. torchrun gives a worker that is to stop thirty seconds; what is left is for `sync`."""
NOT_OF_THE_RUN = ("run.", "tracking.")


class Tracker:
    """Records one run for MLflow.

    Values and files are on disk when a call returns, and no call waits for the server. A step that a resumed run does
    again is on record already, and isn't recorded twice.

    Args:
        config: Of the run.
        run: Its folder.
        facts: What else identifies it (data digest, git revision), logged as tags.
        datasets: What it reads, as `describe_datasets` says.
        resumed: Whether it goes on from a checkpoint.
        run_id: The MLflow run of a folder that has no records yet; None for a new one.
    """

    def __init__(
        self,
        config: Config,
        run: Path,
        facts: Mapping[str, str],
        datasets: Sequence[tuple[str, dict[str, str]]] = (),
        *,
        resumed: bool = False,
        run_id: str | None = None,
    ) -> None:
        self.run, self.uri = run, tracking_uri(config.tracking.uri)
        self._datasets = scored_datasets(list(datasets))
        params = {key: str(value) for key, value in flatten(config.to_dict()).items()}
        self.folder, start, self._known = self._find(params, resumed)
        self._outbox, self._files = Outbox(self.folder / RECORDS), Outbox(self.folder / FILES)
        self._outbox.append(
            "run",
            {
                "uid": start or uuid.uuid4().hex,
                "uri": lasting_uri(self.uri),
                "name": run.resolve().name,
                "experiment": config.tracking.experiment,
                "parent": config.tracking.parent,
                "params": {} if start or run_id else params,  # which MLflow takes once
                "tags": dict(facts) | (config.tracking.tags or {}),
                "datasets": list(datasets),
                "run_id": None if start else run_id,
            },
        )
        self._senders = [Sender(run, folder, self.uri) for folder in record_folders(run)]
        self._closing, self._wake = threading.Event(), threading.Event()
        self.fault: str | None = None
        """Why the server takes nothing at the moment; None where it does, or hasn't been asked yet."""
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str | None:
        """The MLflow run; None as long as the server hasn't taken it."""
        return self._senders[-1].sent.run_id

    def log_metrics(self, metrics: Mapping[str, float], step: int, model: Path | None = None) -> None:
        """Log values at an optimizer step; one that is not finite is left out.

        Args:
            metrics: Name -> value.
            step: Optimizer steps done.
            model: Folder of the model that they were measured on, which makes them metrics of a logged model too.
        """
        values = {
            name: value for name, value in metrics.items() if math.isfinite(value) and step > self._known.get(name, -1)
        }
        if values:
            link = {} if model is None else {"model": self._model(model, step)}
            self._add(self._outbox, "metrics", {"step": step, "values": values} | link)

    def log_best(self, step: int, model: Path, path: Path | None) -> None:
        """Mark the run's best model, and give it the files of the folder `path` unless that is None."""
        content = {"step": step, "model": self._model(model, step)}
        self._add(self._outbox, "best", content)
        if path is not None:
            self._add(self._files, "model files", content | {"path": str(path.relative_to(self.run))})

    def log_file(self, path: Path, to: str = "") -> None:
        """Log a file or folder of the run folder as an artifact, into the folder `to` of the artifacts."""
        self._add(self._files, "file", {"path": str(path.relative_to(self.run)), "to": to})

    def close(self, status: str) -> None:
        """Send what is left, end the MLflow run and say what did not arrive.

        Args:
            status: MLflow's "FINISHED", "FAILED" or "KILLED".
        """
        self._add(self._outbox, "end", {"status": status})
        self._closing.set()
        self._wake.set()
        self._thread.join(LAST_WAIT_S[status])
        for outbox in (self._outbox, self._files):
            outbox.close()
        if self._thread.is_alive() or self.fault:
            left = sum(sender.sent.left(sender.folder) for sender in self._senders)
            self._warn(
                f"MLflow at {lasting_uri(self.uri)} has not taken {left} records; they are in {self.run}, and "
                f"'python -m fdtrain sync {self.run}' sends them"
            )

    def _find(self, params: dict[str, str], resumed: bool) -> tuple[Path, str | None, dict[str, int]]:
        """Folder of the records, identity of the run in it if it is this one, and the last step of each metric."""
        folders = record_folders(self.run)
        if not folders:
            return new_folder(self.run), None, {}
        start: dict[str, str] = {}
        known: dict[str, int] = {}
        uid = ""
        for record, _ in read_records(folders[-1] / RECORDS):
            if record["kind"] == "run":
                uid, start = record["uid"], start or record["params"]
            for name in record.get("values", ()):
                known[name] = max(record["step"], known.get(name, -1))
        # One that ended before its first checkpoint may begin anew with other settings: that is another run.
        if uid and (resumed or _settings(start) == _settings(params)):
            return folders[-1], uid, known
        return new_folder(self.run), None, {}

    def _model(self, folder: Path, step: int) -> dict[str, object]:
        return {"name": f"step-{step:08d}", "folder": str(folder.resolve()), "datasets": self._datasets}

    def _add(self, outbox: Outbox, kind: str, content: Record) -> None:
        outbox.append(kind, content)
        self._wake.set()

    def _work(self) -> None:
        wait = FIRST_WAIT_S
        while True:
            closing = self._closing.is_set()  # before sending, so that all that came before is sent
            self._wake.clear()
            try:
                self._outbox.sync()
                self._files.sync()
                for sender in self._senders:
                    sender.send()
            except Exception as error:  # noqa: BLE001 - any fault of a server or its client; training must go on
                if self.fault is None:
                    self._warn(
                        f"MLflow at {lasting_uri(self.uri)} is not taking records "
                        f"({first_line(error)}); training goes on"
                    )
                self.fault = first_line(error)
                if closing:
                    return
                self._closing.wait(wait)
                wait = min(2 * wait, LONGEST_WAIT_S)
                continue
            wait = FIRST_WAIT_S
            self._recovered()
            if closing:
                return
            self._wake.wait(POLL_S)
            self._closing.wait(GATHER_S)

    def _recovered(self) -> None:
        if self.fault is not None:
            self.fault = None
            print(f"MLflow at {lasting_uri(self.uri)} takes records again", file=sys.stderr)

    @staticmethod
    def _warn(message: str) -> None:
        print(f"warning: {message}", file=sys.stderr)


def _settings(params: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in params.items() if not key.startswith(NOT_OF_THE_RUN)}
