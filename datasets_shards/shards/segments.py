"""Make the records of one video's samples, ready to be appended to a tar.

They go through the pipe between the processes, so that each is written once, into its tar. Those of a long video go
through a file instead: however long it is, neither side ever has more than `KEPT_BYTES` of a quality in memory.
"""

import io
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from datasets_shards.crops.samples import VideoJob, make_samples
from datasets_shards.errors import InputError
from datasets_shards.schema import Manifest, Quality, naming, quality_name
from datasets_shards.shards.tarwriter import Component, write_records

KEPT_BYTES = 32 << 20
"""A raw set's records of 270 frames of 256x256 pixels, and ten times as many of a JPEG set's."""


@dataclass(frozen=True)
class SegmentJob:
    """A video to make records of.

    Args:
        video: what to make.
        path: where to write records that are more than `KEPT_BYTES`, without the quality.
    """

    video: VideoJob
    path: Path


@dataclass(frozen=True)
class Segment:
    """Records of one video's samples, by quality.

    Args:
        records: of each quality, or the file that holds them.
        samples: for each quality the components of every sample, offsets from the start of its records.
        crcs: for each quality the CRC-32 of every sample's image, taken before it was written.
        bytes: of all records together.
        notes: for people: what wasn't as it should be, though the samples are whole.
    """

    records: dict[Quality, bytes | Path]
    samples: dict[Quality, list[list[Component]]]
    crcs: dict[Quality, list[int]]
    bytes: int
    notes: list[str]

    def remove(self) -> None:
        """Delete the files."""
        for records in self.records.values():
            if isinstance(records, Path):
                records.unlink()


def write_segment(job: SegmentJob) -> Segment:
    """Make a video's samples and write their records. Raises FrameError, or OSError such as for a full disk."""
    qualities = job.video.qualities
    samples: dict[Quality, list[list[Component]]] = {quality: [] for quality in qualities}
    crcs: dict[Quality, list[int]] = {quality: [] for quality in qualities}
    notes: list[str] = []
    with naming(job.path), ExitStack() as stack:
        outputs: dict[Quality, BinaryIO] = {quality: io.BytesIO() for quality in qualities}
        files: dict[Quality, Path] = {}
        for sample in make_samples(job.video, notes.append):
            for quality in qualities:
                output = outputs[quality]
                components = write_records(output, output.tell(), sample.key, sample.members[quality])
                samples[quality].append(components)
                crcs[quality].append(zlib.crc32(sample.members[quality][Manifest.image_extension(quality)]))
                if isinstance(output, io.BytesIO) and output.tell() > KEPT_BYTES:
                    files[quality] = job.path.with_suffix(f".{quality_name(quality)}")
                    outputs[quality] = stack.enter_context(files[quality].open("wb"))
                    outputs[quality].write(output.getbuffer())
        total = sum(output.tell() for output in outputs.values())
        records = {
            quality: output.getvalue() if isinstance(output, io.BytesIO) else files[quality]
            for quality, output in outputs.items()
        }
    return Segment(records, samples, crcs, total, notes)


def lost_segment(job: SegmentJob) -> Segment:
    """Refuse to go on without a video whose worker was killed among others and alone: its samples are planned.

    Raises:
        InputError: always.
    """
    raise InputError(
        f"{job.video.video.path}: the process that cut its crops was killed twice, by the system for want of memory "
        "most likely; free some and run the same command again, which goes on"
    )
