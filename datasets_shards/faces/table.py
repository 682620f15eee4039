"""`faces.parquet`: what the face stage found, one row per sampled frame.

Crops are cut from the videos by this table whenever they are needed, so they never lie on disk as loose files, and one
table serves every crop size, margin and quality.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datasets_shards.errors import InputError, first_few
from datasets_shards.faces.detector import (
    NUM_LANDMARKS,
    OK,
    STATUSES,
    UNREADABLE,
    FaceSettings,
    describe_detector,
    detect_video,
    landmark_model,
)
from datasets_shards.pool import ordered_map
from datasets_shards.sources import Video

FORMAT = "fdtrain-faces"
FORMAT_VERSION = 1
METADATA_KEY = b"fdtrain"

FACES_SCHEMA = pa.schema(
    [
        ("method", pa.dictionary(pa.int8(), pa.string())),
        ("video", pa.string()),
        ("target", pa.string()),
        ("source", pa.string()),  # empty for a real video
        ("path", pa.string()),  # of the video, from the root of the source
        ("compression", pa.dictionary(pa.int8(), pa.string())),
        ("bytes", pa.int64()),  # of the video's file
        ("sha256", pa.string()),  # of the video's file
        ("status", pa.dictionary(pa.int8(), pa.string())),  # one of faces.STATUSES
        ("reason", pa.string()),  # for people; empty where the status says it all
        # null in the one row of a video that can't be read
        ("frame", pa.int32()),
        ("frame_width", pa.int32()),
        ("frame_height", pa.int32()),
        # null where no face was found
        ("confidence", pa.float32()),
        ("box", pa.list_(pa.int32(), 4)),  # left, top, right, bottom; frame pixels
        ("landmarks", pa.list_(pa.float32(), 2 * NUM_LANDMARKS)),  # x0, y0, x1, ...; frame pixels
    ]
)


@dataclass(frozen=True)
class FaceTable:
    """A table of faces with the settings that it was made with."""

    table: pa.Table
    settings: FaceSettings
    detector: dict[str, str]

    def save(self, path: Path) -> None:
        """Write the Parquet file so that it is either absent or whole."""
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "settings": asdict(self.settings),
            "detector": self.detector,
        }
        part = path.with_name(f".{path.name}.part-{os.getpid()}")
        try:
            metadata = {METADATA_KEY: json.dumps(content)}
            pq.write_table(self.table.replace_schema_metadata(metadata), part, compression="zstd")
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: Path) -> "FaceTable":
        """Read a table. Raises InputError where it is missing, damaged or of another version."""
        if not path.is_file():
            raise InputError(f"{path}: no such table of faces; make one with 'python -m datasets_shards faces'")
        try:
            table = pq.read_table(path)
            content = json.loads((table.schema.metadata or {}).get(METADATA_KEY, b"{}"))
        except (pa.ArrowInvalid, OSError, ValueError) as error:
            raise InputError(f"{path}: not readable as a table of faces ({str(error).splitlines()[0]})") from None
        if content.get("format") != FORMAT or content.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"{path}: not a table of faces of version {FORMAT_VERSION}; make it again with "
                "'python -m datasets_shards faces'"
            )
        if not table.schema.equals(FACES_SCHEMA):
            raise InputError(f"{path}: its columns aren't those of a table of faces; make it again")
        return cls(table, FaceSettings(**content["settings"]), content["detector"])

    def usable(self) -> pa.Table:
        """The rows with a face, in the table's order."""
        return self.table.filter(pc.equal(self.table["status"].cast(pa.string()), OK))

    def source_digest(self) -> str:
        """SHA-256 over path and SHA-256 of every video in the table, by path: the identity of the source."""
        columns = (self.table["path"].to_pylist(), self.table["sha256"].to_pylist())
        lines = sorted({f"{path}\t{digest}\n" for path, digest in zip(*columns, strict=True)})
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def status_counts(self) -> dict[str, int]:
        """Rows by status, in the order of `STATUSES`."""
        counts = Counter(self.table["status"].to_pylist())
        return {status: counts[status] for status in STATUSES if counts[status]}

    @property
    def num_frames(self) -> int:
        """Number of frames that were looked at."""
        return self.table.num_rows - self.table["frame"].null_count

    def check(self, videos: list[Video], where: str) -> None:
        """Raise InputError unless the table is about exactly these videos, byte sizes included.

        Args:
            videos: what the source holds now.
            where: the table, as a message names it.
        """
        columns = (self.table["path"].to_pylist(), self.table["bytes"].to_pylist())
        recorded = dict(zip(*columns, strict=True))
        there = {video.relative: video.path.stat().st_size for video in videos}
        if lacking := sorted(set(there) - set(recorded)):
            raise InputError(f"{where}: lacks {len(lacking)} videos of the source: {first_few(lacking)}; make it again")
        if gone := sorted(set(recorded) - set(there)):
            raise InputError(f"{where}: lists videos that the source doesn't have: {first_few(gone)}")
        if changed := sorted(path for path, size in there.items() if recorded[path] not in (size, None)):
            raise InputError(f"{where}: these videos have changed since: {first_few(changed)}; make it again")


def detect_faces(
    videos: list[Video],
    settings: FaceSettings,
    workers: int,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> FaceTable:
    """Run the face stage over `videos`, in their order.

    Args:
        videos: what to look at.
        settings: sampling and detection.
        workers: number of processes; the table doesn't depend on it.
        progress: wraps the iterator over the finished videos, such as with a bar.

    Raises:
        InputError: there is no usable face in any video, or no landmark model.
    """
    landmark_model()
    with closing(ordered_map(partial(detect_video, settings=settings), videos, workers)) as results:
        batches = [pa.Table.from_pylist(rows, FACES_SCHEMA) for rows in progress(results)]
    faces = FaceTable(pa.concat_tables(batches).unify_dictionaries(), settings, describe_detector())
    if faces.usable().num_rows == 0:
        seen = ", ".join(f"{count} {status}" for status, count in faces.status_counts().items())
        raise InputError(f"no usable face in any of {len(videos)} videos ({seen})")
    return faces


def report_problems(faces: FaceTable) -> Iterator[str]:
    """One line per video that gives no sample: why it can't be read, or that no frame of it shows a usable face."""
    frames: Counter[str] = Counter()
    usable: Counter[str] = Counter()
    columns = (faces.table[name].to_pylist() for name in ("path", "status", "reason"))
    for path, status, reason in zip(*columns, strict=True):
        if status == UNREADABLE:
            yield f"skipped {path}: {reason}"
        else:
            frames[path] += 1
            usable[path] += status == OK
    yield from (f"no usable face in {path} ({count} frames)" for path, count in frames.items() if not usable[path])


def landmarks_of(rows: pa.Table) -> np.ndarray:
    """The landmarks of rows that have them: float32 [N, 68, 2], frame pixels."""
    values = rows["landmarks"].combine_chunks().flatten().to_numpy()
    return values.reshape(rows.num_rows, NUM_LANDMARKS, 2)


def boxes_of(rows: pa.Table) -> np.ndarray:
    """The boxes of rows that have them: int32 [N, 4], left, top, right, bottom in frame pixels."""
    return rows["box"].combine_chunks().flatten().to_numpy().reshape(rows.num_rows, 4)
