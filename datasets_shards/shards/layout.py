"""Which videos make up which shard: decided from the face table before anything is packed.

A shard is a fixed list of videos with the methods interleaved, so its bytes depend on the input and the settings alone,
it can be packed by itself, and a reader that goes through it from the start meets all methods early. The order of the
samples doesn't depend on where one shard ends and the next begins.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from datasets_shards.faces.table import FaceTable
from datasets_shards.schema import INDEX_SCHEMA, METHODS, SPLITS, sample_key
from datasets_shards.sources import Video


@dataclass(frozen=True)
class Shard:
    """One tar of a set.

    Args:
        name: its file name, `<split>-<number:06d>.tar`.
        split: train, val or test.
        videos: its videos, in the order of their samples.
    """

    name: str
    split: str
    videos: list[Video]


@dataclass(frozen=True)
class Span:
    """A video's rows in the face table.

    Args:
        first_row: where they begin.
        rows: how many there are.
        frames: numbers of the frames that become samples, int32, ascending.
    """

    first_row: int
    rows: int
    frames: np.ndarray


@dataclass(frozen=True)
class Layout:
    """Shards and samples of every set of a root, whatever its quality.

    Args:
        shards: in the order of the index.
        spans: by `Video.relative`, of each video with a sample.
        samples: the columns of `INDEX_SCHEMA` that are the same in every set, one row per sample.
        compression: of the source.
        digests: SHA-256 by `Video.relative`, as the face stage saw the video.
    """

    shards: list[Shard]
    spans: dict[str, Span]
    samples: pa.Table
    compression: str
    digests: dict[str, str]

    @property
    def videos(self) -> list[Video]:
        """Those with a sample, in the order of the index."""
        return [video for shard in self.shards for video in shard.videos]

    @property
    def samples_by_shard(self) -> dict[str, int]:
        """Number of samples in each tar."""
        return {
            shard.name: sum(len(self.spans[video.relative].frames) for video in shard.videos) for shard in self.shards
        }

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Number of samples, `counts[split][method]`."""
        counts: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
        for shard in self.shards:
            for video in shard.videos:
                there = counts[shard.split].get(video.method, 0)
                counts[shard.split][video.method] = there + len(self.spans[video.relative].frames)
        return counts


def plan_layout(placed: dict[str, list[Video]], faces: FaceTable, size: int, shard_samples: int) -> Layout:
    """Decide shards and samples.

    Args:
        placed: the videos of each split.
        faces: the table that covers them.
        size: side of an image, pixels.
        shard_samples: samples that a shard is meant to have; it gets whole videos, at least one.
    """
    spans = find_spans(faces)
    per_video = faces.settings.frames_per_video if faces.settings.every is None else None
    if per_video is None:  # every k-th or all: as many as a video has in the mean
        per_video = -(-faces.num_frames // max(1, faces.num_videos))
    videos_per_shard = max(1, shard_samples // max(1, per_video))
    shards = [
        Shard(f"{split}-{number:06d}.tar", split, videos)
        for split in SPLITS
        for number, videos in enumerate(
            cut_evenly(interleave([video for video in placed[split] if video.relative in spans]), videos_per_shard)
        )
    ]
    compression = next((video.compression for videos in placed.values() for video in videos), "")
    return Layout(shards, spans, _samples(shards, spans, size), compression, faces.video_values("sha256"))


def find_spans(faces: FaceTable) -> dict[str, Span]:
    """Where each video with a sample stands in the table."""
    usable = faces.usable_mask()
    frames = faces.table["frame"].fill_null(-1).to_numpy()
    return {
        path: Span(first, rows, np.sort(frames[first : first + rows][usable[first : first + rows]]))
        for path, (first, rows) in faces.spans.items()
        if usable[first : first + rows].any()
    }


def interleave(videos: list[Video]) -> list[Video]:
    """Spread every method evenly over the list: its i-th of n videos stands at the fraction (i + 1/2) / n."""
    by_method: dict[str, list[Video]] = defaultdict(list)
    for video in videos:
        by_method[video.method].append(video)
    placed = [
        ((2 * i + 1) / (2 * len(group)), METHODS.index(method), video)
        for method, group in by_method.items()
        for i, video in enumerate(sorted(group, key=lambda video: video.name))
    ]
    return [video for _, _, video in sorted(placed, key=lambda entry: entry[:2])]


def cut_evenly(videos: list[Video], most: int) -> list[list[Video]]:
    """As few lists as possible of at most `most` videos, whose lengths differ by one at most."""
    parts = -(-len(videos) // most)
    return [videos[i * len(videos) // parts : (i + 1) * len(videos) // parts] for i in range(parts)]


def _samples(shards: list[Shard], spans: dict[str, Span], size: int) -> pa.Table:
    """Column by column and video by video: lists of Python objects would outweigh the crops under way."""
    fields = [field for field in INDEX_SCHEMA if field.name not in ("offset", "size", "crc32")]
    videos = [(shard, video, spans[video.relative].frames) for shard in shards for video in shard.videos]
    if not videos:
        return pa.schema(fields).empty_table()
    counts = np.array([len(frames) for _, _, frames in videos])

    def repeated(values: Iterable[str]) -> pa.DictionaryArray:
        words, codes = np.unique(list(values), return_inverse=True)
        return pa.DictionaryArray.from_arrays(np.repeat(codes.astype(np.int32), counts), words)

    columns = {
        "key": pa.chunked_array(
            [
                pa.array([sample_key(video.method, video.name, int(frame)) for frame in frames], pa.string())
                for _, video, frames in videos
            ]
        ),
        "split": repeated(shard.split for shard, _, _ in videos),
        "shard": repeated(shard.name for shard, _, _ in videos),
        "label": np.repeat(np.array([video.label for _, video, _ in videos], np.int8), counts),
        "method": repeated(video.method for _, video, _ in videos),
        "video": repeated(video.name for _, video, _ in videos),
        "target": repeated(video.target for _, video, _ in videos),
        "source": repeated(video.source for _, video, _ in videos),
        "frame": np.concatenate([frames for _, _, frames in videos]),
        "width": np.full(counts.sum(), size, np.int32),
        "height": np.full(counts.sum(), size, np.int32),
    }
    table = pa.table({field.name: columns[field.name] for field in fields})
    return table.cast(pa.schema(fields)).combine_chunks()
