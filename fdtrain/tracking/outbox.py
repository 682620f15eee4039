"""What a run has for MLflow lies on its own disk first, and leaves from there.

`mlflow/001/` in the run folder belongs to one MLflow run: `records.jsonl`, a line for each record, with its time;
`system-<node>.jsonl`, the same of each node's measurements; `files.jsonl`, what is to be uploaded, apart from the rest
since MLflow keeps files in another place, which may be full or closed by itself; `sent.json`, up to where MLflow has
each. So nothing waits for a server, a backlog takes the memory of one batch, and a killed process loses nothing.
"""

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datasets_shards.schema import append_whole, write_atomic
from fdtrain.config import UserError

Record = dict[str, Any]

FOLDER, RECORDS, FILES, SENT = "mlflow", "records.jsonl", "files.jsonl", "sent.json"


def record_folders(run: Path) -> list[Path]:
    """Folders of records in a run folder, oldest first. A run that began anew without a checkpoint has several."""
    return sorted(path.parent for path in (run / FOLDER).glob(f"[0-9]*/{RECORDS}"))


def new_folder(run: Path) -> Path:
    """The name of the next."""
    return run / FOLDER / f"{len(record_folders(run)) + 1:03d}"


class Outbox:
    """The records of one writer: a file that only grows, a line of JSON for each.

    A line is written by one call, so that a process that is killed leaves it whole or not at all; what a crash of the
    machine cut short is dropped when the file is opened again. May be shared by threads.

    Args:
        path: The file; it and its folder are made if need be.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = threading.Lock()
        self._unsynced = False
        self._file = path.open("ab", buffering=0)
        whole = _whole_length(path)
        if whole < path.stat().st_size:
            self._file.truncate(whole)

    def append(self, kind: str, content: Record, at: int | None = None) -> None:
        """Add a record; `at` is its time in ms since 1970, now if None. Raises OSError where the disk is full."""
        record = {"kind": kind, "time": int(time.time() * 1000) if at is None else at, **content}
        line = json.dumps(record).encode() + b"\n"
        with self._lock:
            append_whole(self._file, line)
            self._unsynced = True

    def sync(self) -> None:
        """Make what was added durable."""
        with self._lock:
            unsynced, self._unsynced = self._unsynced, False
        if unsynced:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        self._file.close()


def read_records(path: Path, offset: int = 0) -> Iterator[tuple[Record, int]]:
    """The whole records of a file from an offset on, each with the offset of its end.

    Raises:
        UserError: a line is no record, which no writer of ours leaves.
    """
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return  # being written, or cut short
            offset += len(line)
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict) or not {"kind", "time"} <= record.keys():
                raise UserError(f"{path}: damaged before byte {offset}; remove that line to send the rest")
            yield record, offset


def outboxes(folder: Path) -> list[Path]:
    """The files of records that are in a folder; of what can be sent, the first one's goes first."""
    paths = [folder / RECORDS, *sorted(folder.glob("system-*.jsonl")), folder / FILES]
    return [path for path in paths if path.exists()]


@dataclass
class Sent:
    """What MLflow has of the records of a folder.

    Args:
        uri: Tracking URI of the server.
        run_id: The MLflow run; None until there is one.
        experiment_id: Its experiment.
        offsets: File name -> bytes of it that were sent.
        refused: Records that can't be sent: MLflow takes them for invalid, or their file is gone.
    """

    uri: str
    run_id: str | None = None
    experiment_id: str | None = None
    offsets: dict[str, int] = field(default_factory=dict)
    refused: int = 0

    @classmethod
    def load(cls, folder: Path, uri: str) -> "Sent":
        """Of `sent.json`. Another server has nothing yet, and gets the whole run."""
        path = folder / SENT
        if not path.exists():
            return cls(uri)
        try:
            sent = cls(**json.loads(path.read_bytes()))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: damaged ({error}); remove it, and everything is sent again, once") from None
        return sent if sent.uri == uri else cls(uri)

    def save(self, folder: Path) -> None:
        """Write `sent.json`."""
        write_atomic(folder / SENT, json.dumps(asdict(self), indent=2).encode() + b"\n")

    def left(self, folder: Path) -> int:
        """Records that were not sent."""
        return sum(1 for path in outboxes(folder) for _ in read_records(path, self.offsets.get(path.name, 0)))


def _whole_length(path: Path) -> int:
    """Bytes up to the last end of line."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 2**16)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0
