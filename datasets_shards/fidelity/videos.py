"""Crops for a report straight from a source: faces are looked for in a few frames of the videos that are drawn.

The crops are those of `pack`: its own code cuts them and writes the lossless image that is read back here.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from datasets_shards.crops.align import AS_THEY_ARE, CropSettings
from datasets_shards.crops.samples import VideoJob, make_samples
from datasets_shards.errors import InputError
from datasets_shards.faces.detector import FaceSettings
from datasets_shards.faces.stage import detect_faces
from datasets_shards.faces.table import FaceTable, report_problems
from datasets_shards.fidelity.drawing import Crop, CropSample, Progress, decode_png, spread
from datasets_shards.jpeg.settings import JpegSettings
from datasets_shards.pool import ordered_map
from datasets_shards.schema import RAW
from datasets_shards.sources import Selection, Video, describe_skipped, open_source


def sample_videos(
    source: Path,
    count: int,
    seed: int,
    workers: int,
    selection: Selection,
    faces: Path | None,
    size: int | None,
    margin: float | None,
    progress: Progress,
    tell: Callable[[str], None],
) -> CropSample:
    """Draw crops from a source of videos or images; arguments and errors as in `sample_crops`."""
    opened = open_source(source, selection)
    videos = opened.videos
    for line in describe_skipped(opened):
        tell(line)
    with _faces_of(videos, count, seed, workers, faces, progress) as table:
        for line in report_problems(table):
            tell(line)
        defaults = CropSettings()
        if any(video.cropped for video in videos):
            if margin is not None:
                raise InputError(f"--margin {margin:g}: {source} holds crops that are cut already; leave it away")
            table, side = table.of_one_size(size)
            crop = CropSettings(side, align=AS_THEY_ARE)
        else:
            crop = CropSettings(size or defaults.size, margin or defaults.margin)
        usable = table.usable_mask()
        if not usable.any():
            raise InputError(f"{table.path}: holds no usable face")
        jobs = list(_jobs(table, usable, videos, crop, count, seed))
        with closing(ordered_map(_cut_video, jobs, workers)) as results:
            crops = [cut for part in progress(results, total=len(jobs), desc="crops") for cut in part]
        origin = {
            "kind": "videos or images, crops cut as pack does",
            "path": str(source),
            "digest of the videos looked at": table.source_digest(),
            "compression of the videos": videos[0].compression,
            "crop": ", ".join(f"{name} {value}" for name, value in crop.describe().items()),
        }
    return CropSample(crops, origin)


@contextmanager
def _faces_of(
    videos: list[Video], count: int, seed: int, workers: int, faces: Path | None, progress: Progress
) -> Iterator[FaceTable]:
    """The table at `faces`, checked; or, while the context lasts, one of a few frames of the videos that are drawn."""
    if faces is not None:
        table = FaceTable.load(faces)
        table.check(videos, str(faces))
        yield table
        return
    drawn = spread([video.method for video in videos], [video.relative for video in videos], count, seed)
    chosen = [videos[i] for i in drawn]
    # Enough frames in all, and of each method enough for its turns.
    methods = Counter(video.method for video in chosen)
    turns = count // len(methods)
    frames = max(-(-count // len(chosen)), *(-(-turns // there) for there in methods.values()))
    settings = FaceSettings(frames_per_video=frames)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "faces.parquet"
        yield detect_faces(chosen, settings, path, workers, partial(progress, desc="faces"))


def _jobs(
    table: FaceTable, usable: np.ndarray, videos: list[Video], crop: CropSettings, count: int, seed: int
) -> Iterator[VideoJob]:
    """One job for each video that has a crop in the sample."""
    by_path = {video.relative: video for video in videos}
    rows = np.flatnonzero(usable)
    methods, paths = (table.table[name].take(rows).to_pylist() for name in ("method", "path"))
    drawn = [int(rows[i]) for i in spread(methods, paths, count, seed)]
    frames = table.table["frame"].to_numpy()
    digests = table.video_values("sha256")
    for path, (first, length) in table.spans.items():
        mine = [int(frames[row]) for row in drawn if first <= row < first + length]
        if mine:
            settings = JpegSettings()  # the raw set has no JPEG step; these aren't looked at
            sha256 = digests[path]
            yield VideoJob(by_path[path], "", mine, table.path, first, length, sha256, crop, settings, False, (RAW,))


def _cut_video(job: VideoJob) -> list[Crop]:
    return [Crop(sample.key, job.video.method, decode_png(sample.members[RAW]["png"])) for sample in make_samples(job)]
