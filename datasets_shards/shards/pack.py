"""Write the sets of a root: every quality in one pass over the videos, shard after shard."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from datasets_shards.crops.samples import VideoJob
from datasets_shards.errors import InputError, first_few
from datasets_shards.pool import ordered_map
from datasets_shards.schema import (
    INDEX_NAME,
    INDEX_SCHEMA,
    Manifest,
    Quality,
    TarEntry,
    file_sha256,
    sync_path,
)
from datasets_shards.shards.layout import Shard
from datasets_shards.shards.ledger import Ledger
from datasets_shards.shards.request import PackRequest
from datasets_shards.shards.root import Task
from datasets_shards.shards.segments import Segment, SegmentJob, write_segment
from datasets_shards.shards.tarwriter import TarWriter, read_components

Report = Callable[[int, int], None]
"""Called with the samples and bytes that were added."""


@dataclass(frozen=True)
class Work:
    """A shard to pack, and the sets in which it is missing."""

    shard: Shard
    qualities: tuple[Quality, ...]


def plan_work(root: Path, request: PackRequest, qualities: list[Quality], task: Task) -> list[Work]:
    """Begin the sets of `qualities`, or find out what is missing of them: the shards left to this task.

    Raises:
        InputError: a set was begun otherwise, or isn't what was recorded.
    """
    finished = {}
    for quality in qualities:
        ledger = Ledger(root, quality)
        ledger.begin(request.plan(quality))
        finished[quality] = ledger.finished()
    work = []
    for shard in request.layout.shards[task.number :: task.count]:
        missing = tuple(quality for quality in qualities if shard.name not in finished[quality])
        if missing:
            work.append(Work(shard, missing))
    return work


def pack_shards(root: Path, folder: Path, request: PackRequest, todo: list[Work], workers: int, report: Report) -> None:
    """Write shards; each tar appears under its name only when it is complete.

    Args:
        root: folder of the sets.
        folder: to work in, on the same file system.
        request: what to pack.
        todo: the shards.
        workers: number of processes; no byte depends on it.
        report: hears of every video that was packed.

    Raises:
        FrameError: a video can no longer be read as the face stage read it.
        OSError: such as a full disk; the tars that are complete stay.
    """
    with closing(ordered_map(write_segment, _jobs(folder, request, todo), workers)) as segments:
        for work in todo:
            _write_shard(root, work, segments, report)


def _write_shard(root: Path, work: Work, segments: Iterator[Segment], report: Report) -> None:
    ledgers = {quality: Ledger(root, quality) for quality in work.qualities}
    with ExitStack() as stack:
        tars: dict[Quality, TarWriter] = {}
        for quality, ledger in ledgers.items():
            tars[quality] = TarWriter(ledger.folder / work.shard.name)
            stack.callback(tars[quality].abandon)
        for _ in work.shard.videos:
            segment = next(segments)
            for quality, tar in tars.items():
                tar.add_segment(segment.files[quality], segment.samples[quality])
            segment.remove()
            report(len(segment.samples[work.qualities[0]]), segment.bytes)
        for quality, tar in tars.items():
            ledgers[quality].record(work.shard.name, tar.close())
            tar.publish()


def _jobs(folder: Path, request: PackRequest, todo: list[Work]) -> Iterator[SegmentJob]:
    for work in todo:
        for video in work.shard.videos:
            span = request.layout.spans[video.relative]
            job = VideoJob(
                video=video,
                split=work.shard.split,
                frames=span.frames.tolist(),
                faces=request.faces.path,
                first_row=span.first_row,
                rows=span.rows,
                crop=request.crop,
                jpeg=request.jpeg,
                masks=request.masks,
                qualities=work.qualities,
            )
            yield SegmentJob(job, folder / f"{work.shard.name}-{video.method}-{video.name}".replace(".", "_"))


def finish_sets(root: Path, request: PackRequest, qualities: list[Quality], task: Task | None = None) -> None:
    """Give sets whose tars are all there their index and manifest.

    Args:
        root: folder of the sets.
        request: what was packed.
        qualities: sets that were begun.
        task: how the shards were dealt out, to name the tasks whose tars are missing.

    Raises:
        InputError: tars are missing.
    """
    for quality in qualities:
        ledger = Ledger(root, quality)
        ledger.begin(request.plan(quality))
        tars = ledger.finished()
        if missing := [shard.name for shard in request.layout.shards if shard.name not in tars]:
            names = [shard.name for shard in request.layout.shards]
            tasks = f" (of tasks {_tasks(names, missing, task.count)} of {task.count})" if task else ""
            raise InputError(
                f"{ledger.folder}: {len(missing)} of {len(names)} tars are missing{tasks}: {first_few(missing)}; pack "
                "them first"
            )
        _finish(ledger, request, quality, {shard.name: tars[shard.name] for shard in request.layout.shards})
        ledger.end()


def _tasks(names: list[str], missing: list[str], count: int) -> str:
    return ", ".join(map(str, sorted({names.index(name) % count for name in missing})))


def _finish(ledger: Ledger, request: PackRequest, quality: Quality, tars: dict[str, TarEntry]) -> None:
    """Write the index and, last, the manifest."""
    path = ledger.folder / INDEX_NAME
    extension = Manifest.image_extension(quality)
    offsets: list[pa.Array] = []
    sizes: list[pa.Array] = []
    for name in tars:
        images = [sample[extension] for sample in read_components((ledger.folder / name).with_suffix(".idx"))]
        offsets.append(pa.array([image.offset for image in images], pa.int64()))
        sizes.append(pa.array([image.size for image in images], pa.int64()))
    table = request.layout.samples
    table = table.append_column("offset", pa.chunked_array(offsets, pa.int64()))
    table = table.append_column("size", pa.chunked_array(sizes, pa.int64()))
    part = path.with_name(f".{path.name}.part")
    pq.write_table(table.select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA).combine_chunks(), part, compression="zstd")
    sync_path(part)
    part.replace(path)
    request.manifest(quality, tars, file_sha256(path)).save(ledger.folder)
    sync_path(ledger.folder)
