"""Which videos make up which shard: decided from the face table before anything is packed.

A shard is a fixed list of videos with the methods interleaved, so its bytes depend on the input and the settings alone,
it can be packed by itself, and a reader that goes through it from the start meets all methods early. The order of the
samples doesn't depend on where one shard ends and the next begins.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from datasets_shards.faces.table import FaceTable
from datasets_shards.schema import METHODS, SPLITS, sample_key
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
class Layout:
    """Shards and samples of every set of a root, whatever its quality.

    Args:
        shards: in the order of the index.
        rows: for each video path (`Video.relative`) the rows of `faces` with its usable faces, by frame.
        columns: the columns of `INDEX_SCHEMA` that are the same in every set, one entry per sample.
    """

    shards: list[Shard]
    rows: dict[str, pa.Table]
    columns: dict[str, list[Any]]

    @property
    def videos(self) -> list[Video]:
        """Every video with a sample, in the order of the index."""
        return [video for shard in self.shards for video in shard.videos]

    @property
    def samples_by_shard(self) -> dict[str, int]:
        """Number of samples in each tar."""
        return {shard.name: sum(self.rows[video.relative].num_rows for video in shard.videos) for shard in self.shards}

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Number of samples, `counts[split][method]`."""
        counts: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
        for shard in self.shards:
            for video in shard.videos:
                there = counts[shard.split].get(video.method, 0)
                counts[shard.split][video.method] = there + self.rows[video.relative].num_rows
        return counts


def plan_layout(placed: dict[str, list[Video]], faces: FaceTable, size: int, shard_samples: int) -> Layout:
    """Decide shards and samples.

    Args:
        placed: the videos of each split.
        faces: the table that covers them.
        size: side of a crop, pixels.
        shard_samples: samples that a shard is meant to have; it gets whole videos, at least one.
    """
    rows = _usable_rows(faces)
    videos_per_shard = max(1, shard_samples // faces.settings.frames_per_video)
    shards = [
        Shard(f"{split}-{number:06d}.tar", split, videos)
        for split in SPLITS
        for number, videos in enumerate(
            cut_evenly(interleave([video for video in placed[split] if video.relative in rows]), videos_per_shard)
        )
    ]
    return Layout(shards, rows, _index_columns(shards, rows, size))


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


def _usable_rows(faces: FaceTable) -> dict[str, pa.Table]:
    usable = faces.usable().sort_by([("path", "ascending"), ("frame", "ascending")])
    paths = usable["path"].to_pylist()
    starts = [i for i, path in enumerate(paths) if i == 0 or paths[i - 1] != path]
    return {
        paths[start]: usable.slice(start, stop - start)
        for start, stop in zip(starts, [*starts[1:], len(paths)], strict=True)
    }


def _index_columns(shards: list[Shard], rows: dict[str, pa.Table], size: int) -> dict[str, list[Any]]:
    samples = [
        {
            "key": sample_key(video.method, video.name, frame),
            "split": shard.split,
            "shard": shard.name,
            "label": video.label,
            "method": video.method,
            "video": video.name,
            "target": video.target,
            "source": video.source,
            "frame": frame,
            "width": size,
            "height": size,
        }
        for shard in shards
        for video in shard.videos
        for frame in rows[video.relative]["frame"].to_pylist()
    ]
    return {name: [sample[name] for sample in samples] for name in samples[0]} if samples else {}
