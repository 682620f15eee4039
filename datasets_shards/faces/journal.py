"""What an unfinished face stage has done, beside the table that it is to write.

`.faces.parquet.journal` is a file of JSON lines: what the table is made with, then one line per finished video. A line
is appended as soon as its video is done, so a killed process loses what it had under way and no more. The file is also
what holds off a second process. It goes away when the table is written.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from datasets_shards.errors import InputError
from datasets_shards.faces.rows import UNREADABLE, Row
from datasets_shards.locks import hold
from datasets_shards.schema import naming

FORMAT = "fdtrain-faces-journal"


def journal_path(table: Path) -> Path:
    """Of the table at `table`."""
    return table.with_name(f".{table.name}.journal")


class Look(NamedTuple):
    """What is known of a video that was looked at: its bytes and SHA-256 at the time, when, and whether it was read."""

    bytes: int | None
    sha256: str | None
    time: float
    is_readable: bool


class Journal:
    """An open journal; see `open_journal`.

    Args:
        path: where it lies.
        file: opened for reading and appending.

    Attributes:
        looks: each video that was looked at, by path.
        removed: whether its file is gone, so that a file of that name is another process's.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._file = file
        self._lines: dict[str, tuple[int, int]] = {}
        self.looks: dict[str, Look] = {}
        self.removed = False

    def read(self, made_with: dict[str, Any], table: Path) -> None:
        """Take over what an earlier process left, up to the first line that isn't whole, and cut off the rest.

        Raises:
            InputError: it was begun with other settings.
        """
        self._file.seek(0)
        good = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            try:
                content = json.loads(line)
                if good > 0:
                    self._note(content, good, len(line))
            except (ValueError, LookupError, TypeError):
                break
            if good == 0:
                self._check(content, made_with, table)
            good += len(line)
        self._file.truncate(good)
        if good == 0:
            self._append({"format": FORMAT, **made_with})

    def add(self, rows: list[Row]) -> None:
        """Append a finished video."""
        shared = {name: value for name, value in rows[0].items() if name not in _own(rows)}
        own = [{name: value for name, value in row.items() if name not in shared} for row in rows]
        content = {"video": shared, "rows": own, "time": time.time()}
        place, length = self._append(content)
        self._note(content, place, length)

    def rows(self, path: str) -> list[Row]:
        """The rows of a finished video."""
        place, length = self._lines[path]
        self._file.seek(place)
        content = json.loads(self._file.read(length))
        return [content["video"] | row for row in content["rows"]]

    def remove(self) -> None:
        """Take it away, for the table has it all."""
        self.path.unlink()
        self.removed = True

    def _append(self, content: dict[str, Any]) -> tuple[int, int]:
        line = json.dumps(content, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        place = self._file.seek(0, os.SEEK_END)
        with naming(self.path):
            self._file.write(line)
            self._file.flush()
        return place, len(line)

    def _note(self, content: dict[str, Any], place: int, length: int) -> None:
        video, is_readable = content["video"], content["rows"][0]["status"] != UNREADABLE
        self._lines[video["path"]] = place, length
        # A journal that was begun by an older version knows no times.
        look = Look(video.get("bytes"), video.get("sha256"), content.get("time", 0.0), is_readable)
        self.looks[video["path"]] = look

    def _check(self, header: Any, made_with: dict[str, Any], table: Path) -> None:
        if not isinstance(header, dict) or header.pop("format", None) != FORMAT:
            raise InputError(f"{self.path}: not a journal of the face stage; delete it")
        if header != made_with:
            raise InputError(
                f"--out {table}: a face stage with other settings wasn't finished ({differences(header, made_with)}); "
                f"give the settings of then, or delete {self.path}"
            )


def _own(rows: list[Row]) -> set[str]:
    """Columns of the frame, which differ from row to row."""
    frame = ("status", "reason", "frame", "frame_width", "frame_height", "faces", "confidence", "box", "landmarks")
    return {name for row in rows for name in row if name in (*frame, "times")}  # the times stand in the first row alone


def differences(there: dict[str, Any], here: dict[str, Any]) -> str:
    """For messages: "upsample 0 there, 1 here"."""
    old, new = (_flat(content) for content in (there, here))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{key} {_word(old.get(key))} there, {_word(new.get(key))} here" for key in keys)


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value) if isinstance(value, dict) else {key: value}
    return flat


def _word(value: Any) -> str:
    return "none" if value is None else str(value)


@contextmanager
def open_journal(table: Path, made_with: dict[str, Any]) -> Iterator[Journal]:
    """Begin or take up the journal of the table at `table`, and hold it.

    It is left for the next call unless the table is there in the end or nothing was found out.

    Args:
        table: the Parquet file that is to be written.
        made_with: settings, detector and version; those of an unfinished journal must equal them.

    Raises:
        InputError: another process writes this table, or began it with other settings.
    """
    path = journal_path(table)
    busy = f"--out {table}: another process is writing this table of faces"
    with path.open("a+b") as file, hold(file, path, busy):
        journal = Journal(path, file)
        journal.read(made_with, table)
        try:
            yield journal
        finally:
            if not journal.looks and not journal.removed:
                journal.remove()
