"""What stock readers, which know nothing of manifest and index, read from a set's tars."""

import os
import re
from collections.abc import Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from datasets_shards.verify.findings import Findings

WEBDATASET, DALI = "webdataset", "DALI"
READERS = (WEBDATASET, DALI)
TARS_PER_JOB = 16
"""Bounds the rows that travel to a worker and the files that DALI holds open."""

DALI_BATCH = 64
ENTRY = re.compile(r":\d+:([^/]*)$")  # DALI's source info: <tar>:<offset>:<member>

# What the readers raise for archives that they can't read: tarfile's own errors are OSErrors or ValueErrors.
READER_ERRORS = (OSError, ValueError, RuntimeError, KeyError, AssertionError)


@dataclass(frozen=True)
class ReaderJob:
    """A few tars for one reader.

    Args:
        reader: one of `READERS`.
        folder: of the set.
        tars: file names, in the order of the index.
        rows: the rows of the index that are in them, in order.
        extension: of the images, "jpg" or "png".
    """

    reader: str
    folder: Path
    tars: tuple[str, ...]
    rows: list[dict[str, Any]]
    extension: str


@dataclass
class ReaderReport:
    """What a reader made of its tars.

    Args:
        reader: one of `READERS`.
        version: of the reader's package, or None where it isn't installed.
        samples: how many it read.
        tars: from how many tars.
        findings: where it disagrees with the index.
    """

    reader: str
    version: str | None
    samples: int = 0
    tars: int = 0
    findings: Findings = field(default_factory=Findings)


def read_with_stock_reader(job: ReaderJob) -> ReaderReport:
    """Read the tars of a job and compare keys, labels and image bytes with the index, sample by sample."""
    try:
        version = _version(job.reader)
    except ImportError:
        return ReaderReport(job.reader, None)
    report = ReaderReport(job.reader, version, tars=len(job.tars))
    paths = [job.folder.absolute() / name for name in job.tars]
    samples = (_read_webdataset if job.reader == WEBDATASET else _read_dali)(paths, job.extension)
    with ExitStack() as stack:
        descriptors = {path.name: os.open(path, os.O_RDONLY) for path in paths}
        for descriptor in descriptors.values():
            stack.callback(os.close, descriptor)
        stack.enter_context(closing(samples))
        try:
            for sample, row in zip_longest(samples, job.rows):
                report.samples += sample is not None
                _compare(job, sample, row, descriptors, report.findings)
        except READER_ERRORS as error:
            what = str(error).strip().split("\n")[0] or type(error).__name__
            report.findings.add(
                job.reader, f"{job.folder}: {job.reader} stopped after {report.samples} samples: {what}"
            )
    return report


def _compare(
    job: ReaderJob,
    sample: tuple[str, bytes, bytes] | None,
    row: dict[str, Any] | None,
    descriptors: dict[str, int],
    findings: Findings,
) -> None:
    if row is None or sample is None:
        if row is not None:
            findings.add(job.reader, f"{job.folder / row['shard']}: {row['key']}: {job.reader} doesn't read it")
        elif sample is not None:
            findings.add(job.reader, f"{job.folder}: {sample[0]}: {job.reader} reads it, the index doesn't have it")
        return
    key, image, label = sample
    where = f"{job.folder / row['shard']}: {row['key']}: {job.reader}"
    if key != row["key"]:
        findings.add(job.reader, f"{where} reads {key} in its place")
        return
    if label != b"%d" % row["label"]:
        findings.add(job.reader, f"{where} reads the label {label[:20]!r}, the index says {row['label']}")
    start, size = row["offset"], row["size"]
    if len(image) != size or start < 0 or image != os.pread(descriptors[row["shard"]], size, start):
        findings.add(job.reader, f"{where} reads another image than the index leads to")


def _version(reader: str) -> str:
    if reader == WEBDATASET:
        import webdataset

        return str(webdataset.__version__)
    import nvidia.dali

    return str(nvidia.dali.__version__)


def _read_webdataset(paths: list[Path], extension: str) -> Generator[tuple[str, bytes, bytes], None, None]:
    """Key, image and label of every sample, as `webdataset.WebDataset` gives them."""
    import webdataset

    # No splitters: this may run beside a training, whose environment would have each process read its share only.
    dataset = webdataset.WebDataset(
        [str(path) for path in paths], shardshuffle=False, nodesplitter=None, workersplitter=None, cache_size=0
    )
    for sample in dataset:
        yield sample["__key__"], sample[extension], sample["cls"]


def _read_dali(paths: list[Path], extension: str) -> Generator[tuple[str, bytes, bytes], None, None]:
    """Key, image and label of every sample, as DALI's `fn.readers.webdataset` gives them, without a GPU."""
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=DALI_BATCH, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def pipeline() -> Any:
        outputs: Any = fn.readers.webdataset(
            paths=[str(path) for path in paths],
            index_paths=[str(path.with_suffix(".idx")) for path in paths],
            ext=[extension, "cls"],
            missing_component_behavior="error",
            dont_use_mmap=True,  # a mapped tar that shrinks under the reader kills the process
            name="reader",
        )
        return tuple(outputs)

    built = pipeline()
    built.build()
    left = built.epoch_size("reader")
    while left > 0:
        images, labels = built.run()
        for i in range(min(left, DALI_BATCH)):  # the reader fills the last batch from its start
            entry = ENTRY.search(images[i].source_info())
            if entry is None:
                raise ValueError(f"no member's name in {images[i].source_info()!r}")
            yield entry[1].partition(".")[0], bytes(images.at(i)), bytes(labels.at(i))
        left -= DALI_BATCH
