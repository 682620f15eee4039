"""`faces.parquet`: what the face stage found, one row per sampled frame.

Crops are cut from the videos by this table whenever they are needed, so they never lie on disk as loose files, and one
table serves every crop size, margin and quality. The rows of a video stand together, and within one row group of about
`ROWS_PER_GROUP` rows, so that a worker reads the boxes and landmarks of its video alone.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datasets_shards.errors import InputError, first_few
from datasets_shards.faces.detector import NUM_LANDMARKS, FaceSettings
from datasets_shards.faces.journal import Look
from datasets_shards.faces.rows import OK, OTHER_SIZE, STATUSES, UNREADABLE, UNREADABLE_FRAME, Row, size_of
from datasets_shards.schema import sync_path, written_whole
from datasets_shards.sources import Video

FORMAT = "fdtrain-faces"
FORMAT_VERSION = 2
METADATA_KEY = b"fdtrain"
ROWS_PER_GROUP = 1024

WORD = pa.dictionary(pa.int32(), pa.string())  # the same for all rows of a video, or for most rows

FACES_SCHEMA = pa.schema(
    [
        ("method", WORD),
        ("video", WORD),
        ("target", WORD),
        ("source", WORD),  # empty for a real video
        ("path", WORD),  # of the video, from the root of the source
        ("compression", WORD),
        ("bytes", pa.int64()),  # of the video's file, or of all its images; null where it can't be read
        ("sha256", WORD),  # of the video's file, or over those of its images (see `rows`); null likewise
        ("status", WORD),  # one of rows.STATUSES
        ("reason", WORD),  # for people; empty where the status says it all
        # null in the one row of a video that can't be read
        ("frame", pa.int32()),
        ("frame_width", pa.int32()),
        ("frame_height", pa.int32()),
        # null where no face was looked for: in what is a face crop already
        ("faces", pa.int32()),  # how many were seen in the frame
        # null where the video's face wasn't found
        ("confidence", pa.float32()),
        ("box", pa.list_(pa.int32())),  # 4: left, top, right, bottom; frame pixels
        ("landmarks", pa.list_(pa.float32())),  # 136: x0, y0, x1, ...; frame pixels
        # of a video file, in its first row: `Packets.times`, so that nobody has to demux it again
        ("times", pa.list_(pa.int64())),
    ]
)
HEAVY = ("box", "landmarks", "times")
OLD_SCHEMA = pa.schema([field for field in FACES_SCHEMA if field.name != "times"])  # tables of before are read too
LIGHT = [name for name in FACES_SCHEMA.names if name not in HEAVY]


@dataclass(frozen=True)
class FaceRows:
    """A video's rows with everything that a crop is cut by.

    Args:
        frames: frame numbers, int32 [N]; -1 in the one row of a video that can't be read.
        usable: whether each row has status ok, bool [N].
        sizes: height and width of each frame, int32 [N, 2]; zeros where it can't be read.
        boxes: int32 [N, 4], left, top, right, bottom in frame pixels; zeros where there is none.
        landmarks: float32 [N, 68, 2], frame pixels; NaN where there are none.
        times: of the packets of a video file; None where they aren't known.
    """

    frames: np.ndarray
    usable: np.ndarray
    sizes: np.ndarray
    boxes: np.ndarray
    landmarks: np.ndarray
    times: list[int] | None

    def landmarks_of(self, row: int) -> np.ndarray | None:
        """float32 [68, 2], or None where they aren't known, as of a face crop that came without them."""
        return None if np.isnan(self.landmarks[row]).any() else self.landmarks[row]


@dataclass(frozen=True)
class FaceTable:
    """A table of faces on disk; in memory is what doesn't grow with every landmark.

    Args:
        path: the Parquet file.
        table: its columns but for `HEAVY`, which `read_faces` reads.
        settings: what it was made with.
        detector: what found the faces.
        spans: first row and number of rows of each video, by path, in the table's order.
    """

    path: Path
    table: pa.Table
    settings: FaceSettings
    detector: dict[str, str]
    spans: dict[str, tuple[int, int]]

    @classmethod
    def load(cls, path: Path) -> "FaceTable":
        """Open a table. Raises InputError where it is missing, damaged or of another version."""
        if not path.is_file():
            raise InputError(f"{path}: no such table of faces; make one with 'python -m datasets_shards faces'")
        try:
            with pq.ParquetFile(path) as file:
                schema = file.schema_arrow
                content = json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))
                whole = any(schema.equals(known) for known in (FACES_SCHEMA, OLD_SCHEMA))
                table = file.read(columns=LIGHT) if whole else None
        except (pa.ArrowInvalid, OSError, ValueError) as error:
            raise InputError(f"{path}: not readable as a table of faces ({str(error).splitlines()[0]})") from None
        if content.get("format") != FORMAT or content.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"{path}: not a table of faces of version {FORMAT_VERSION}; make it again with "
                "'python -m datasets_shards faces'"
            )
        if table is None:
            raise InputError(f"{path}: its columns aren't those of a table of faces; make it again")
        table = table.unify_dictionaries().combine_chunks()
        return cls(path, table, FaceSettings(**content["settings"]), content["detector"], _spans(table))

    def usable_mask(self) -> np.ndarray:
        """Whether each row has a face that a crop can be cut by, bool [rows]."""
        return _equals(self.table["status"], OK) & self._selected()

    def _selected(self) -> np.ndarray:
        """Whether each row is of a video in `spans`, bool [rows]."""
        selected = np.zeros(self.table.num_rows, bool)
        for first, count in self.spans.values():
            selected[first : first + count] = True
        return selected

    def of_videos(self, videos: list[Video]) -> "FaceTable":
        """This table for a part of its videos; what else it has is left out of account.

        Raises:
            InputError: it lacks one of the videos, or one has another size than then.
        """
        self.check(videos, str(self.path))
        wanted = {video.relative for video in videos}
        return replace(self, spans={path: span for path, span in self.spans.items() if path in wanted})

    @property
    def num_frames(self) -> int:
        """Number of frames that were looked at."""
        return int((self._selected() & np.asarray(self.table["frame"].is_valid())).sum())

    @property
    def num_videos(self) -> int:
        """Number of videos, those that can't be read included."""
        return len(self.spans)

    @property
    def has_crops(self) -> bool:
        """Whether it is of face crops, in which no face was looked for."""
        return not np.asarray(self.table["faces"].is_valid())[self.usable_mask()].any()

    def video_values(self, name: str) -> dict[str, Any]:
        """A column that is the same in all rows of a video, by path: "bytes" or "sha256"."""
        column = self.table[name].take(pa.array([first for first, _ in self.spans.values()], pa.int64()))
        return dict(zip(self.spans, column.to_pylist(), strict=True))

    def looks(self) -> dict[str, Look]:
        """What is known of each video, by path; the table's own time stands for that of all of them."""
        columns = [self.video_values(name) for name in ("bytes", "sha256", "status")]
        time = self.path.stat().st_mtime
        return {
            path: Look(size, sha256, time, status != UNREADABLE)
            for path, size, sha256, status in zip(self.spans, *(column.values() for column in columns), strict=True)
        }

    def source_digest(self) -> str:
        """SHA-256 over path and SHA-256 of every video in the table, by path: the identity of the source."""
        lines = sorted(f"{path}\t{digest}\n" for path, digest in self.video_values("sha256").items())
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def status_counts(self) -> dict[str, int]:
        """Rows by status, in the order of `STATUSES`."""
        statuses = self.table["status"].cast(pa.string()).filter(pa.array(self._selected()))
        counted = pc.value_counts(statuses).to_pylist()
        counts = {entry["values"]: entry["counts"] for entry in counted}
        return {status: counts[status] for status in STATUSES if status in counts}

    def of_one_size(self, size: int | None = None) -> tuple["FaceTable", int]:
        """For a source of face crops: drop those that aren't square or not of the size of the set.

        Args:
            size: of the set, pixels; None for the size that most crops have (of equals the largest).

        Returns:
            This table with the status of the others changed to "other size", and the size.

        Raises:
            InputError: no crop has the size, or none is square.
        """
        usable = self.usable_mask()
        widths, heights = (self.table[name].fill_null(0).to_numpy() for name in ("frame_width", "frame_height"))
        square = usable & (widths == heights)
        sides, counts = np.unique(widths[square], return_counts=True)
        if not len(sides):
            raise InputError(f"{self.path}: none of {usable.sum()} face crops is square")
        if size is None:
            size = int(max(zip(counts, sides, strict=True))[1])
        if size not in sides:
            raise InputError(f"--size {size}: the source's own crops are {first_few(map(str, sides))} pixels")
        other = usable & ~(square & (widths == size))
        table = self.table
        for name, words in (
            ("status", [OTHER_SIZE] * int(other.sum())),
            (
                "reason",
                [f"{w}x{h} of {size}x{size} pixels" for w, h in zip(widths[other], heights[other], strict=True)],
            ),
        ):
            column = np.array(table[name].to_pylist(), dtype=object)
            column[other] = words
            table = table.set_column(
                table.schema.get_field_index(name), FACES_SCHEMA.field(name), pa.array(column, WORD)
            )
        return replace(self, table=table), size

    def check(self, videos: list[Video], where: str) -> None:
        """Raise InputError unless the table has these videos, with the sizes that they have now.

        Args:
            videos: what the source holds now.
            where: the table, as a message names it.
        """
        if self.has_crops is not any(video.cropped for video in videos) and self.usable_mask().any():
            made, now = ("crops", "pictures to find faces in") if self.has_crops else ("pictures", "face crops")
            raise InputError(f"{where}: was made of {made}, and the source is now read as {now} (--crops)")
        recorded = self.video_values("bytes")
        there = {video.relative: video for video in videos}
        if lacking := sorted(set(there) - set(recorded)):
            raise InputError(f"{where}: lacks {len(lacking)} videos of the source: {first_few(lacking)}; make it again")
        if changed := sorted(
            path for path, video in there.items() if recorded[path] not in (None, current_size(video))
        ):
            raise InputError(f"{where}: these videos have changed since: {first_few(changed)}; make it again")


def current_size(video: Video) -> int | None:
    """Bytes of a video now, or None where it can't be looked at; nothing is opened."""
    try:
        return size_of(video)
    except OSError:
        return None


def made_with(settings: FaceSettings, detector: dict[str, str]) -> dict[str, Any]:
    """Everything that a table follows from, beside the videos."""
    return {"format_version": FORMAT_VERSION, "settings": asdict(settings), "detector": detector}


def write_table(path: Path, settings: FaceSettings, detector: dict[str, str], videos: Iterable[list[Row]]) -> None:
    """Write the Parquet file so that it is either absent or whole, with one row group in memory at a time.

    Args:
        path: where it goes.
        settings: what it was made with.
        detector: what found the faces.
        videos: the rows of each video.
    """
    metadata = {METADATA_KEY: json.dumps({"format": FORMAT, **made_with(settings, detector)})}
    schema = FACES_SCHEMA.with_metadata(metadata)
    with written_whole(path) as part, pq.ParquetWriter(part, schema, compression="zstd") as writer:
        group: list[Row] = []
        for rows in videos:
            if group and len(group) + len(rows) > ROWS_PER_GROUP:
                _write_group(writer, group, schema)
                group = []
            group.extend(rows)
        if group:
            _write_group(writer, group, schema)
    sync_path(path.parent)


def _write_group(writer: pq.ParquetWriter, rows: list[Row], schema: pa.Schema) -> None:
    writer.write_table(pa.Table.from_pylist(rows, schema), row_group_size=len(rows))


def read_rows(path: Path, first: int, count: int) -> list[Row]:
    """A video's rows in the form that `rows.detect_video` gives them."""
    rows = _read(path, first, count, None).to_pylist()
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def read_faces(path: Path, first: int, count: int) -> FaceRows:
    """What the crops of a video are cut by; reads its row group alone.

    Args:
        path: the table.
        first: the video's first row, of `FaceTable.spans`.
        count: how many rows it has.
    """
    table = _read(path, first, count, ["frame", "status", "frame_height", "frame_width", *HEAVY])
    times = table["times"][0].as_py() if "times" in table.column_names else None
    boxes, landmarks = (_filled(table[name], width) for name, width in (("box", 4), ("landmarks", 2 * NUM_LANDMARKS)))
    return FaceRows(
        frames=table["frame"].fill_null(-1).to_numpy(),
        usable=_equals(table["status"], OK),
        sizes=np.stack([table[name].fill_null(0).to_numpy() for name in ("frame_height", "frame_width")], axis=1),
        boxes=np.nan_to_num(boxes).astype(np.int32),
        landmarks=landmarks.astype(np.float32).reshape(count, NUM_LANDMARKS, 2),
        times=times,
    )


def _filled(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """A column of lists of equal length: float64 [N, width], NaN where it is null (float64 holds any int32)."""
    there = np.asarray(column.is_valid())
    values = np.full((len(there), width), np.nan)
    values[there] = np.asarray(pc.list_flatten(column)).reshape(-1, width)
    return values


def _read(path: Path, first: int, count: int, columns: list[str] | None) -> pa.Table:
    status = path.stat()
    file, starts = _open(path, status.st_ino, status.st_mtime_ns)
    low = int(np.searchsorted(starts, first, side="right")) - 1
    high = int(np.searchsorted(starts, first + count, side="left"))
    table = file.read_row_groups(list(range(low, high)), columns=columns)
    return table.slice(first - int(starts[low]), count)


@lru_cache(maxsize=2)
def _open(path: Path, _inode: int, _time: int) -> tuple[pq.ParquetFile, np.ndarray]:
    """The file, kept open for the next video, and the first row of each row group, with the end of the last."""
    file = pq.ParquetFile(path)
    counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    return file, np.cumsum([0, *counts])


def _equals(column: pa.ChunkedArray, word: str) -> np.ndarray:
    return np.asarray(pc.equal(column.cast(pa.string()), word).fill_null(False))


def _spans(table: pa.Table) -> dict[str, tuple[int, int]]:
    paths = table["path"].combine_chunks()
    if isinstance(paths, pa.ChunkedArray):  # of a table without rows
        return {}
    codes = paths.indices.to_numpy()
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    stops = [*starts[1:].tolist(), len(codes)]
    words = paths.dictionary.to_pylist()
    return {words[codes[start]]: (start, stop - start) for start, stop in zip(starts.tolist(), stops, strict=True)}


def report_problems(faces: FaceTable) -> Iterator[str]:
    """One line per video that gives no sample, or not of every image: what can't be read, or has no usable face."""
    usable = faces.usable_mask()
    statuses = faces.table["status"].cast(pa.string())
    bad = np.asarray(pc.is_in(statuses, pa.array([UNREADABLE, UNREADABLE_FRAME])))
    reasons = faces.table["reason"]
    for path, (first, count) in faces.spans.items():
        troubled = np.flatnonzero(bad[first : first + count])
        if len(troubled):
            reason = reasons[first + int(troubled[0])].as_py()
            if statuses[first].as_py() == UNREADABLE:
                yield f"skipped {path}: {reason}"
                continue
            yield f"skipped {len(troubled)} of {count} images of {path}: {reason}" + ", ..." * (len(troubled) > 1)
        if not usable[first : first + count].any():
            yield f"no usable face in {path} ({count} frames)"
