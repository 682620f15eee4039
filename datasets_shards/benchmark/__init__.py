"""A set back as files: DeepfakeBench's tree of crops, landmarks and masks, and the JSON files its loader walks.

    <out>/FaceForensics++/original_sequences/youtube/c23/frames/004/012.png
    <out>/FaceForensics++/manipulated_sequences/Deepfakes/c23/{frames,landmarks,masks}/004_982/012.{png,npy,png}
    <out>/dataset_json/{FaceForensics++,FF-DF,FF-F2F,FF-FS,FF-NT}.json

The names are those of `datasets_shards.sources.benchmark_names`; `datasets_shards.sources` reads such a tree.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from datasets_shards.benchmark.tars import COLUMNS, TarFiles, TarJob, write_tar
from datasets_shards.errors import InputError, first_few
from datasets_shards.pool import ordered_map
from datasets_shards.schema import REAL_METHODS, SPLITS, ShardSet, rows_by_shard
from datasets_shards.sources.benchmark_names import (
    COMPRESSIONS,
    DATASETS,
    FRAMES,
    LABELS,
    MASKS,
    METHOD_OF_LABEL,
    json_name,
    json_path,
)
from datasets_shards.staging import staged

JSON_FOLDER = "dataset_json"
ALWAYS_WRITTEN = ("FaceForensics++", "FF-DF", "FF-F2F", "FF-FS", "FF-NT")
"""FF++ itself; the file of another data set is written where the set has something that FF++ hasn't."""


@dataclass
class Unpacked:
    """What was written.

    Args:
        compression: folder of the benchmark's tree, and the value of its setting of that name.
        frames: frames of each video, by label, split and video.
        masks: masks of each video, likewise.
        landmarks: number of frames with landmarks.
        datasets: data sets whose JSON file was written.
    """

    compression: str
    frames: dict[str, dict[str, dict[str, list[int]]]] = field(default_factory=dict)
    masks: dict[str, dict[str, dict[str, list[int]]]] = field(default_factory=dict)
    landmarks: int = 0
    datasets: list[str] = field(default_factory=list)

    def add(self, files: TarFiles) -> None:
        """Take in the samples of a tar."""
        for row, has_mask in zip(files.rows.to_pylist(), files.masks, strict=True):
            for table, present in ((self.frames, True), (self.masks, has_mask)):
                videos = table.setdefault(LABELS[row["method"]], {}).setdefault(row["split"], {})
                numbers = videos.setdefault(row["video"], [])
                if present:
                    numbers.append(row["frame"])
        self.landmarks += sum(files.landmarks)

    def count(self, label: str, split: str) -> tuple[int, int]:
        """Number of videos and of frames."""
        videos = self.frames.get(label, {}).get(split, {})
        return len(videos), sum(map(len, videos.values()))

    def content(self, label: str) -> dict[str, dict[str, dict[str, Any]]]:
        """A label's part of the JSON files: split -> compression -> video. The loader wants all of them, even empty."""
        return {split: {self.compression: dict(self._videos(label, split))} for split in SPLITS}

    def _videos(self, label: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        method = METHOD_OF_LABEL[label]
        for video, frames in sorted(self.frames.get(label, {}).get(split, {}).items()):
            masks = self.masks[label][split][video]
            named = {
                kind: [json_path(method, self.compression, kind, video, number) for number in sorted(numbers)]
                for kind, numbers in ((FRAMES, frames), (MASKS, masks))
                if kind == FRAMES or method not in REAL_METHODS
            }
            yield video, {"label": label, **named}


def unpack_benchmark(
    opened: ShardSet, out: Path, workers: int, progress: Callable[[Iterable[Any]], Iterable[Any]] = iter
) -> Unpacked:
    """Write a set as DeepfakeBench's tree and JSON files.

    Each tar is read once, a sample at a time, and its SHA-256 is checked on the way. `out` appears when all is written.

    Args:
        opened: the set.
        out: folder to write; absent or empty.
        workers: number of processes, each with a tar of its own; the result doesn't depend on it.
        progress: wraps the iterator over the finished tars, such as with a bar.

    Raises:
        InputError: the benchmark has no place for what is in the set, `out` has content, is a mount point or is being
            written, a tar is damaged or isn't what the index lists, or the disk is full.
        OSError: something else stops the writing.
    """
    compression = check_place(opened)
    jobs = _jobs(opened, compression)
    unpacked = Unpacked(compression)
    with staged(out) as folder:
        here = (TarJob(out=folder, **job) for job in jobs)
        with closing(ordered_map(write_tar, here, workers)) as results:
            for files in progress(results):
                unpacked.add(files)
        _write_json_files(unpacked, folder / JSON_FOLDER)
    return unpacked


def check_place(opened: ShardSet) -> str:
    """The folder of the benchmark's tree that a set belongs to, one of `COMPRESSIONS`.

    Raises:
        InputError: the benchmark's tree has none for this set's compression, or no place for its methods or videos.
    """
    recorded = opened.manifest.source.get("compression")
    compression = "raw" if recorded == "c0" else recorded  # FF++'s older name
    methods = pc.unique(opened.index["method"].cast(pa.string())).to_pylist()
    if strange := sorted(set(methods) - set(LABELS)):
        raise InputError(
            f"{opened.folder}: DeepfakeBench's tree of FF++ has no place for its methods {first_few(strange)}; "
            f"it has {', '.join(LABELS)}"
        )
    if compression not in COMPRESSIONS:
        raise InputError(
            f"{opened.folder}: its source has compression {recorded!r}, for which DeepfakeBench's tree has no folder; "
            f"it has {', '.join(COMPRESSIONS)}"
        )
    names = pc.unique(opened.index["video"]).to_pylist()
    if misread := sorted(name for name in names if FRAMES in name):
        raise InputError(
            f"{opened.folder}: videos with {FRAMES!r} in their name: {first_few(misread)}; DeepfakeBench replaces that "
            "word all over a path to find landmarks and masks; rename the videos and pack them into another folder"
        )
    return str(compression)


def _jobs(opened: ShardSet, compression: str) -> list[dict[str, Any]]:
    """The arguments of each tar's `TarJob`, but for `out`."""
    table = opened.index.read(*COLUMNS, "shard")
    shards = rows_by_shard(table)
    jobs = []
    for name, tar in opened.manifest.tars.items():
        rows = shards.get(name, table[:0]).select(COLUMNS).sort_by("offset").combine_chunks()
        if rows.num_rows != tar.samples:
            raise InputError(
                f"{opened.folder / name}: {rows.num_rows} samples in the index where the manifest lists {tar.samples}; "
                f"delete {opened.folder} and pack it again"
            )
        jobs.append(
            {"tar": opened.folder / name, "sha256": tar.sha256, "rows": rows}
            | {"extension": opened.manifest.extension, "compression": compression}
        )
    return jobs


def _write_json_files(unpacked: Unpacked, folder: Path) -> None:
    folder.mkdir()
    for dataset, labels in DATASETS.items():
        own = [label for label in labels if label != LABELS["youtube"]]  # FF++'s real videos are in six of the seven
        if dataset in ALWAYS_WRITTEN or any(label in unpacked.frames for label in own):
            content = {dataset: {label: unpacked.content(label) for label in labels}}
            (folder / json_name(dataset)).write_text(json.dumps(content), encoding="utf-8")
            unpacked.datasets.append(dataset)
