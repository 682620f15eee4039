"""Sending afterwards what MLflow has missed of a run, and what was made of it since."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datasets_shards.yaml12 import load_yaml
from fdtrain.config import HostError, UserError, first_line
from fdtrain.run_folder import FolderInUseError, RunFolder
from fdtrain.tracking.outbox import FILES, RECORDS, Outbox, read_records, record_folders
from fdtrain.tracking.sender import Sender, end_if_killed


def sync(path: Path) -> str:
    """Send what MLflow lacks of a run that isn't under way; what was done, in one line.

    It goes to the server that the run was recorded for, or to that of `MLFLOW_TRACKING_URI`; one that knows nothing of
    the run gets all of it.

    Raises:
        UserError: no such folder, nothing in it for MLflow, or the run is under way.
        HostError: the server isn't taking records.
    """
    folders = _recorded(path)
    with _taken(path):
        for folder in folders:
            end_if_killed(folder)
        senders = [Sender(path, folder, _uri(folder)) for folder in folders]
        _send(path, senders)
        count = sum(sender.count for sender in senders)
        refused = sum(sender.sent.refused for sender in senders)
    note = f"; {refused} could not be sent, as was said when it was tried" if refused else ""
    if _lacks_registration(path):
        note += f"; its model is not registered: 'python -m fdtrain register {path}' does it"
    place = f"{senders[-1].sent.uri} (run {senders[-1].sent.run_id})"
    if not count:
        return f"{path}: nothing to send, {place} has everything{note}"
    return f"{path}: sent {count} records to {place}{note}"


def attach(path: Path, made: Path) -> None:
    """Add a file or folder that was made in a run folder after the run, such as its figures, to its MLflow run.

    A run that isn't recorded in MLflow is left alone. What can't be sent now is said on stderr, and left for `sync`.

    Args:
        path: The run folder.
        made: In it; it gets the same place among the artifacts.
    """
    if not (folders := record_folders(path)):
        return
    place = made.relative_to(path)
    try:
        with _taken(path):
            end_if_killed(folders[-1])
            outbox = Outbox(folders[-1] / FILES)
            outbox.append("file", {"path": str(place), "to": str(place if made.is_dir() else place.parent)})
            outbox.close()
            _send(path, [Sender(path, folder, _uri(folder)) for folder in folders])
    except UserError as error:
        print(f"warning: {made} is not in MLflow: {error}", file=sys.stderr)


def _recorded(path: Path) -> list[Path]:
    if not path.is_dir():
        raise UserError(f"RUN: {path} is no run folder; name one, such as runs/meso4-q15")
    if not (folders := record_folders(path)):
        raise UserError(f"RUN: {path} holds nothing for MLflow; was it trained with tracking.enabled false?")
    return folders


def _lacks_registration(path: Path) -> bool:
    """Whether the run is finished and was to register its model, which failed."""
    run = RunFolder(path)
    status = run.status()
    if status.get("state") != "finished" or status.get("registered", "") is not None or not run.config.exists():
        return False
    return bool((load_yaml(run.config.read_text(encoding="utf-8")).get("tracking") or {}).get("register"))


@contextmanager
def _taken(path: Path) -> Iterator[None]:
    """Hold the run's lock."""
    run = RunFolder(path)
    try:
        run.claim(resume=True)
    except FolderInUseError:
        raise UserError(f"{path}: the run is under way and sends what is missing by itself; wait for its end") from None
    try:
        yield
    finally:
        run.release()


def _uri(folder: Path) -> str:
    """The server in force, or the one that the records were last meant for."""
    recorded = [record["uri"] for record, _ in read_records(folder / RECORDS) if record["kind"] == "run"]
    return os.environ.get("MLFLOW_TRACKING_URI") or recorded[-1]


def _send(path: Path, senders: list[Sender]) -> None:
    for sender in senders:
        try:
            sender.send()
        except UserError:
            raise
        except Exception as error:  # any fault of a server or its client, which is what has to be told
            left = sum(other.sent.left(other.folder) for other in senders)
            count = sum(other.count for other in senders)
            raise HostError(
                f"{path}: MLflow at {sender.sent.uri} is not taking records ({first_line(error)}): {count} sent, "
                f"{left} left; 'python -m fdtrain sync {path}' sends them later"
            ) from error
