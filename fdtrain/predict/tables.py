"""The tables of scores, written as they come and published when they are whole."""

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from datasets_shards.schema import written_whole
from fdtrain.config import UserError

FILES_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("kind", pa.string()),  # image or video; empty where there is no such file
        ("score", pa.float64()),  # P(fake); null where no frame has one
        ("scored", pa.int32()),  # frames with a score
        ("sampled", pa.int32()),  # frames that were looked at
        ("faces", pa.int32()),  # the most that were seen in one of them; null where none were looked for
        ("error", pa.string()),  # why there is no score; empty where there is one
    ]
)
"""One row for each input, in the order in which they were given."""

FRAMES_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("frame", pa.int32()),  # from 0, in the order shown
        ("score", pa.float64()),  # P(fake); null where there is no crop
        ("faces", pa.int32()),  # seen in the frame
        ("confidence", pa.float32()),  # the detector's, of the face that was scored
        ("left", pa.int32()),  # its box in frame pixels; right and bottom are exclusive
        ("top", pa.int32()),
        ("right", pa.int32()),
        ("bottom", pa.int32()),
        ("error", pa.string()),  # why there is no score
    ]
)
"""One row for each sampled frame of each input; an image has one."""

ROWS_AT_ONCE = 4096

Row = dict[str, Any]


class _Sink(Protocol):
    def write_table(self, table: pa.Table) -> None:
        """Append rows."""

    def close(self) -> None:
        """End the file."""


class _JsonSink:
    """A list of objects, one a line: JSON as a whole, and fit for line-wise tools as well."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._before = "[\n"

    def write_table(self, table: pa.Table) -> None:
        for row in table.to_pylist():
            self._file.write(self._before + json.dumps(row, ensure_ascii=False))
            self._before = ",\n"

    def close(self) -> None:
        self._file.write("\n]\n" if self._before == ",\n" else "[]\n")
        self._file.close()


SINKS = {".csv": pa.csv.CSVWriter, ".json": _JsonSink, ".parquet": pq.ParquetWriter}


class Table:
    """Rows of one schema on their way to a file; few of them are in memory.

    Args:
        sink: The open file.
        schema: Of the rows.
    """

    def __init__(self, sink: _Sink, schema: pa.Schema) -> None:
        self._sink, self._schema = sink, schema
        self._rows: list[Row] = []

    def add(self, row: Row) -> None:
        """Append a row, with a value for every column or None."""
        self._rows.append(row)
        if len(self._rows) == ROWS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Write what is in memory."""
        if self._rows:
            self._sink.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows.clear()


def frames_path(out: Path) -> Path:
    """Where the table of frames goes: `scores.csv` -> `scores.frames.csv`."""
    return out.with_name(f"{out.stem}.frames{out.suffix}")


def check_out(out: Path) -> None:
    """Raise UserError where `out` can't become a table, or would replace something other than scores."""
    if out.suffix not in SINKS:
        raise UserError(f"out: {out} must end in {', '.join(SINKS)}, which say the form; the frames' table goes beside")
    for path, schema in ((out, FILES_SCHEMA), (frames_path(out), FRAMES_SCHEMA)):
        if path.is_dir():
            raise UserError(f"out: {path} is a folder; name a file")
        if path.exists() and path.stat().st_size and _columns(path) not in (schema.names, []):
            raise UserError(f"out: {path} is there already and holds no scores; move it, or name another")


def _columns(path: Path) -> list[str] | None:
    """The columns of a table in one of our forms, none of an empty one; None where it is something else."""
    try:
        if path.suffix == ".parquet":
            return pq.read_schema(path).names
        with path.open(encoding="utf-8") as file:
            first = file.readline()
            if path.suffix == ".csv":
                return next(csv.reader([first])) or None
            if first.strip() == "[]":
                return None if file.read().strip() else []
            row = json.loads(file.readline().rstrip(",\n")) if first == "[\n" else None
            return list(row) if isinstance(row, dict) else None
    except (ValueError, OSError, csv.Error):  # pyarrow's and UnicodeDecodeError are ValueErrors
        return None


@contextmanager
def opened_tables(out: Path) -> Iterator[tuple[Table, Table]]:
    """The tables of files, at `out`, and of frames, beside it: both there when the block has ended well, else neither.

    The frames' comes first, so that whoever finds `out` finds both.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with _opened(out, FILES_SCHEMA) as files, _opened(frames_path(out), FRAMES_SCHEMA) as frames:
        yield files, frames


@contextmanager
def _opened(path: Path, schema: pa.Schema) -> Iterator[Table]:
    with written_whole(path) as part:
        sink = SINKS[path.suffix](part, schema)
        try:
            table = Table(sink, schema)
            yield table
            table.flush()
        finally:
            sink.close()
