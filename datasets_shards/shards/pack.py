"""Write the sets of a root: every quality in one pass over the videos, shard after shard."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datasets_shards.crops.align import CropSettings
from datasets_shards.crops.samples import Sample, VideoJob, make_samples
from datasets_shards.errors import InputError
from datasets_shards.faces.table import FaceTable, boxes_of, landmarks_of
from datasets_shards.jpeg.mozjpeg import describe_encoder
from datasets_shards.pool import ordered_map
from datasets_shards.schema import (
    INDEX_NAME,
    INDEX_SCHEMA,
    MANIFEST_NAME,
    RAW,
    Manifest,
    Quality,
    TarEntry,
    file_sha256,
    open_shard_set,
    parse_quality,
    quality_name,
)
from datasets_shards.shards.layout import Layout
from datasets_shards.shards.root import publish
from datasets_shards.shards.tarwriter import TarWriter
from datasets_shards.splits import SplitPlan


@dataclass(frozen=True)
class PackRequest:
    """Everything that the bytes of a root's sets follow from.

    Args:
        faces: the faces of the source.
        splits: the split of every video.
        layout: shards and samples.
        crop: how crops are cut.
    """

    faces: FaceTable
    splits: SplitPlan
    layout: Layout
    crop: CropSettings

    def manifest(self, quality: Quality, tars: dict[str, TarEntry], index_sha256: str) -> Manifest:
        """The manifest of the set of one quality."""
        settings, table = self.faces.settings, self.faces.table
        return Manifest(
            quality=quality,
            encoder=describe_encoder(quality),
            crop=self.crop.describe()
            | {"frames_per_video": settings.frames_per_video, "frames": "middle of equal stretches of the video"}
            | {"upsample": settings.upsample, "min_face": settings.min_face}
            | self.faces.detector,
            source={
                "compression": table["compression"][0].as_py(),
                "videos": len(set(table["path"].to_pylist())),
                "sampled_frames": self.faces.status_counts(),
                "digest": self.faces.source_digest(),
            },
            splits=self.splits.origin | {"skipped_videos": len(self.splits.skipped)},
            counts=self.layout.counts,
            tars=tars,
            index_sha256=index_sha256,
        )


def find_missing(root: Path, request: PackRequest, qualities: Iterable[Quality]) -> list[Quality]:
    """Those of `qualities` that the root doesn't have yet.

    Raises:
        InputError: a set of that quality exists and was made otherwise, or the root's other sets hold other samples.
        ShardSetError: an existing set is damaged.
    """
    wanted = list(dict.fromkeys(qualities))
    present = [parse_quality(path.parent.name) for path in sorted(root.glob(f"*/{MANIFEST_NAME}"))]
    for quality in present:
        existing = open_shard_set(root, quality)
        if existing.index["key"].to_pylist() != request.layout.columns["key"]:
            raise InputError(
                f"--out {root}: its set {quality_name(quality)} holds other samples than this request "
                f"({existing.index.num_rows} against {len(request.layout.columns['key'])}); all sets of a root hold "
                "the same: pack into another folder"
            )
        # Beside the encoder everything must agree, or sets of one root would differ in more than their quality.
        names = ["crop", "source", "splits", "counts"] + ["encoder"] * (quality in wanted)
        planned = request.manifest(quality, {}, "")
        if differing := [name for name in names if getattr(planned, name) != getattr(existing.manifest, name)]:
            details = "; ".join(_difference(existing.manifest, planned, name) for name in differing)
            raise InputError(
                f"--out {root}: its set {quality_name(quality)} was made otherwise: {details}; pack into another folder"
            )
        shards = {name: tar.samples for name, tar in existing.manifest.tars.items()}
        if quality in wanted and shards != request.layout.samples_by_shard:
            raise InputError(
                f"--out {root}: its set {quality_name(quality)} was cut into other shards; pack into another folder, "
                "or with the --shard-samples of before"
            )
    return [quality for quality in wanted if quality not in present]


def _difference(there: Manifest, here: Manifest, name: str) -> str:
    old, new = getattr(there, name), getattr(here, name)
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{name} {key} {old.get(key)} there, {new.get(key)} here" for key in keys)


def pack_sets(
    root: Path,
    staging: Path,
    request: PackRequest,
    qualities: list[Quality],
    workers: int,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> list[Manifest]:
    """Write the sets of `qualities`, none of which exists, and publish them when all are whole.

    Args:
        root: folder of the sets.
        staging: an empty folder on the same file system to write in.
        request: what to pack.
        qualities: MozJPEG qualities, or "raw".
        workers: number of processes; no byte depends on it.
        progress: wraps the iterator over the finished videos, such as with a bar.

    Raises:
        FrameError: a video can no longer be read as the face stage read it.
        OSError: such as a full disk; no set appears then.
    """
    writers = [SetWriter(staging / quality_name(quality), quality) for quality in qualities]
    with closing(ordered_map(make_samples, _jobs(request, tuple(qualities)), workers)) as results, ExitStack() as stack:
        for writer in writers:
            stack.callback(writer.abandon)
        videos = iter(progress(results))
        for shard in request.layout.shards:
            for writer in writers:
                writer.begin(shard.name)
            for _ in shard.videos:
                for sample in next(videos):
                    for writer in writers:
                        writer.add(sample)
            for writer in writers:
                writer.end()
    manifests = [writer.finish(request) for writer in writers]
    for writer in writers:
        publish(writer.folder, root / writer.folder.name)
    return manifests


def _jobs(request: PackRequest, qualities: tuple[Quality, ...]) -> Iterator[VideoJob]:
    for shard in request.layout.shards:
        for video in shard.videos:
            rows = request.layout.rows[video.relative]
            yield VideoJob(
                video=video,
                split=shard.split,
                frames=rows["frame"].to_pylist(),
                boxes=boxes_of(rows),
                landmarks=landmarks_of(rows),
                crop=request.crop,
                qualities=qualities,
            )


@dataclass
class SetWriter:
    """The set of one quality while it is written: one open tar at a time, and the numbers for its index."""

    folder: Path
    quality: Quality
    tars: dict[str, TarEntry] = field(default_factory=dict)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    _tar: TarWriter | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self._extension = "png" if self.quality == RAW else "jpg"

    def begin(self, name: str) -> None:
        """Open the next tar."""
        self._tar = TarWriter(self.folder / name)

    def add(self, sample: Sample) -> None:
        """Append a sample to the open tar."""
        assert self._tar is not None
        image = sample.images[self.quality]
        members = {self._extension: image, "cls": b"%d" % sample.label, "json": sample.descriptions[self.quality]}
        self.offsets.append(self._tar.add_sample(sample.key, members)[self._extension])
        self.sizes.append(len(image))

    def end(self) -> None:
        """Close the open tar."""
        assert self._tar is not None
        self.tars[self._tar.path.name] = self._tar.close()
        self._tar = None

    def abandon(self) -> None:
        """Close a tar that was left open by an error."""
        if self._tar is not None:
            self._tar.abandon()

    def finish(self, request: PackRequest) -> Manifest:
        """Write the index and, last, the manifest."""
        columns = request.layout.columns | {"offset": self.offsets, "size": self.sizes}
        path = self.folder / INDEX_NAME
        table = pa.table({name: columns[name] for name in INDEX_SCHEMA.names}, schema=INDEX_SCHEMA)
        pq.write_table(table, path, compression="zstd")
        with path.open("rb") as file:
            os.fsync(file.fileno())
        manifest = request.manifest(self.quality, self.tars, file_sha256(path))
        manifest.save(self.folder)
        return manifest
