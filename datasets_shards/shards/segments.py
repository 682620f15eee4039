"""What a worker makes: the records of one video's samples, ready to be appended to a tar.

They go through files, not through the pipe between the processes: however long a video is, neither side ever has more
than one sample of it in memory.
"""

import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from datasets_shards.crops.samples import VideoJob, make_samples
from datasets_shards.schema import Manifest, Quality, naming, quality_name
from datasets_shards.shards.tarwriter import Component, write_records


@dataclass(frozen=True)
class SegmentJob:
    """A video to make records of.

    Args:
        video: what to make.
        path: where to write, without the quality.
    """

    video: VideoJob
    path: Path


@dataclass(frozen=True)
class Segment:
    """Records of one video's samples in one file per quality.

    Args:
        files: the file of each quality.
        samples: for each quality the components of every sample, offsets from the start of the file.
        crcs: for each quality the CRC-32 of every sample's image, taken before it was written.
        bytes: of all files together.
        notes: for people: what wasn't as it should be, though the samples are whole.
    """

    files: dict[Quality, Path]
    samples: dict[Quality, list[list[Component]]]
    crcs: dict[Quality, list[int]]
    bytes: int
    notes: list[str]

    def remove(self) -> None:
        """Delete the files."""
        for path in self.files.values():
            path.unlink()


def write_segment(job: SegmentJob) -> Segment:
    """Make a video's samples and write their records. Raises FrameError, or OSError such as for a full disk."""
    qualities = job.video.qualities
    files = {quality: job.path.with_suffix(f".{quality_name(quality)}") for quality in qualities}
    samples: dict[Quality, list[list[Component]]] = {quality: [] for quality in qualities}
    crcs: dict[Quality, list[int]] = {quality: [] for quality in qualities}
    notes: list[str] = []
    with naming(job.path), ExitStack() as stack:
        outputs = {quality: stack.enter_context(path.open("wb")) for quality, path in files.items()}
        for sample in make_samples(job.video, notes.append):
            for quality, output in outputs.items():
                components = write_records(output, output.tell(), sample.key, sample.members[quality])
                samples[quality].append(components)
                crcs[quality].append(zlib.crc32(sample.members[quality][Manifest.image_extension(quality)]))
        total = sum(output.tell() for output in outputs.values())
    return Segment(files, samples, crcs, total, notes)
