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
    written_whole,
)
from datasets_shards.shards.layout import Shard
from datasets_shards.shards.ledger import Ledger
from datasets_shards.shards.request import PackRequest
from datasets_shards.shards.root import Task
from datasets_shards.shards.segments import Segment, SegmentJob, lost_segment, write_segment
from datasets_shards.shards.tarwriter import TarWriter, read_components

Report = Callable[[int, int, list[str]], None]
"""Called with the samples and bytes that were added, and lines for people about what wasn't as it should be."""


@dataclass(frozen=True)
class Work:
    """A shard to pack, and the sets in which it is missing."""

    shard: Shard
    qualities: tuple[Quality, ...]


def begin_sets(root: Path, request: PackRequest, qualities: list[Quality]) -> dict[Quality, Ledger]:
    """Begin the sets of `qualities`, or take them up where they were begun.

    Raises:
        InputError: a set was begun otherwise.
    """
    ledgers = {quality: Ledger(root, quality) for quality in qualities}
    for quality, ledger in ledgers.items():
        ledger.begin(request.plan(quality))
    return ledgers


def plan_work(request: PackRequest, ledgers: dict[Quality, Ledger], task: Task) -> list[Work]:
    """The shards that are left to this task.

    Raises:
        InputError: a finished tar isn't what was recorded.
    """
    finished = {quality: ledger.finished() for quality, ledger in ledgers.items()}
    work = []
    for shard in request.layout.shards[task.number :: task.count]:
        missing = tuple(quality for quality in ledgers if shard.name not in finished[quality])
        if missing:
            work.append(Work(shard, missing))
    return work


def pack_shards(
    request: PackRequest,
    ledgers: dict[Quality, Ledger],
    todo: list[Work],
    folder: Path,
    workers: int,
    report: Report,
) -> None:
    """Write shards; each tar appears under its name only when it is complete.

    Args:
        request: what to pack.
        ledgers: of the sets.
        todo: the shards.
        folder: to work in, on the sets' file system.
        workers: number of processes; no byte depends on it.
        report: hears of every video that was packed.

    Raises:
        FrameError: a video can no longer be read as the face stage read it.
        InputError: it has changed since, or ends its worker even alone.
        OSError: such as a full disk; the tars that are complete stay.
    """
    with closing(ordered_map(write_segment, _jobs(folder, request, todo), workers, lost_segment)) as segments:
        for work in todo:
            _write_shard(work, ledgers, folder, segments, report)


def _write_shard(
    work: Work, ledgers: dict[Quality, Ledger], folder: Path, segments: Iterator[Segment], report: Report
) -> None:
    with ExitStack() as stack:
        tars: dict[Quality, TarWriter] = {}
        for quality in work.qualities:
            # In this packer's own folder: should two ever pack the same shard, they write the same bytes, each its own.
            tars[quality] = TarWriter(ledgers[quality].folder / work.shard.name, folder)
            stack.callback(tars[quality].abandon)
        crcs: dict[Quality, list[int]] = {quality: [] for quality in tars}
        for _ in work.shard.videos:
            segment = next(segments)
            for quality, tar in tars.items():
                tar.add_segment(segment.records[quality], segment.samples[quality])
                crcs[quality] += segment.crcs[quality]
            segment.remove()
            report(len(segment.samples[work.qualities[0]]), segment.bytes, segment.notes)
        for quality, tar in tars.items():
            ledgers[quality].record(work.shard.name, tar.close(), crcs[quality])
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
                sha256=request.layout.digests[video.relative],
                crop=request.crop,
                jpeg=request.jpeg,
                masks=request.masks is not None,
                qualities=work.qualities,
            )
            yield SegmentJob(job, folder / f"{work.shard.name}-{video.method}-{video.name}".replace(".", "_"))


def finish_sets(request: PackRequest, ledgers: dict[Quality, Ledger], tasks: int = 1) -> None:
    """Give sets whose tars are all there their index and manifest.

    Args:
        request: what was packed.
        ledgers: of the sets.
        tasks: among how many the shards were dealt out, to name those whose tars are missing.

    Raises:
        InputError: tars are missing.
    """
    names = [shard.name for shard in request.layout.shards]
    for quality, ledger in ledgers.items():
        tars = ledger.finished()
        if missing := {name: number for number, name in enumerate(names) if name not in tars}:
            whose = ", ".join(map(str, sorted({number % tasks for number in missing.values()})))
            of_tasks = f" (of tasks {whose} of {tasks})" if tasks > 1 else ""
            raise InputError(
                f"{ledger.folder}: {len(missing)} of {len(names)} tars are missing{of_tasks}: {first_few(missing)}; "
                "pack them first"
            )
        _finish(ledger, request, quality, {name: tars[name] for name in names})
        ledger.end()


def _finish(ledger: Ledger, request: PackRequest, quality: Quality, tars: dict[str, TarEntry]) -> None:
    """Write the index and, last, the manifest."""
    path = ledger.folder / INDEX_NAME
    extension = Manifest.image_extension(quality)
    offsets: list[pa.Array] = []
    sizes: list[pa.Array] = []
    crcs: list[pa.Array] = []
    keys, first = request.layout.samples["key"], 0
    for name in tars:
        images = read_components((ledger.folder / name).with_suffix(".idx"), extension)
        wanted = keys.slice(first, len(images)).to_pylist()
        first += len(images)
        for image, key in zip(images, wanted, strict=True):  # the index must never lead to another image
            assert image.name == f"{key}.{extension}", f"{name} holds {image.name} where {key} belongs"
        offsets.append(pa.array([image.offset for image in images], pa.int64()))
        sizes.append(pa.array([image.size for image in images], pa.int64()))
        crcs.append(pa.array(ledger.crcs(name), pa.uint32()))
    table = request.layout.samples
    table = table.append_column("offset", pa.chunked_array(offsets, pa.int64()))
    table = table.append_column("size", pa.chunked_array(sizes, pa.int64()))
    table = table.append_column("crc32", pa.chunked_array(crcs, pa.uint32()))
    with written_whole(path) as part:
        pq.write_table(table.select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA).combine_chunks(), part, compression="zstd")
    request.manifest(quality, tars, file_sha256(path)).save(ledger.folder)
    sync_path(ledger.folder)
