"""Which rows of a shard set a run takes: a split, and a part of it."""

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa

from datasets_shards.columns import Columns
from datasets_shards.schema import METHODS, ShardSet
from fdtrain.config import UserError
from fdtrain.metrics import identity_clusters

Balance = Literal["none", "class", "method"]


def split_rows(shard_set: ShardSet, split: str) -> np.ndarray:
    """int64 row numbers of a split, in index order; empty where the split is."""
    return _rows_of(shard_set.index, split)


def require_rows(shard_set: ShardSet, split: str) -> np.ndarray:
    """As `split_rows`. Raises UserError where the split is empty."""
    return _some_rows_of(shard_set.index, split, shard_set.place)


def select_rows(
    index: Columns,
    split: str,
    *,
    place: str = "",
    methods: Sequence[str] | None = None,
    frames_per_video: int | None = None,
    videos_fraction: float = 1.0,
    seed: int = 0,
) -> np.ndarray:
    """The rows of a split that a run takes.

    Args:
        index: In `INDEX_SCHEMA`.
        split: "train", "val" or "test".
        place: Folder or URL of the set, for messages.
        methods: Those that are taken; None for all.
        frames_per_video: At most so many of each video's frames, from the middle of equal stretches of it (the rule of
            `pack --frames-per-video`); None for all.
        videos_fraction: Share of the split's target identities, in (0, 1]. The fakes made of a real video go with it,
            so every method loses the same ones, whatever `methods` says; what a smaller share keeps, a larger one does.
        seed: Of the choice of identities.

    Returns:
        int64 row numbers, ascending.

    Raises:
        UserError: a value is out of range, a method isn't in the split, or nothing is left.
    """
    if not 0 < videos_fraction <= 1:
        raise UserError(f"data.videos_fraction: {videos_fraction} is out of range; allowed is above 0 up to 1")
    if frames_per_video is not None and frames_per_video < 1:
        raise UserError(f"data.frames_per_video: {frames_per_video} is out of range; allowed is at least 1")
    rows = _some_rows_of(index, split, place)
    method_of, names = index.codes("method")
    if videos_fraction < 1:
        target_of, targets = index.codes("target")
        present = np.unique(target_of[rows])
        digests = [_digest(targets[code], seed) for code in present]
        kept = sorted(range(len(present)), key=digests.__getitem__)[: max(1, round(videos_fraction * len(present)))]
        fewer = rows[np.isin(target_of[rows], present[kept])]
    else:
        fewer = rows
    if methods is not None:
        present_methods = [names[code] for code in np.unique(method_of[rows])]
        for method in methods:
            if method not in present_methods:
                known = "is not in" if method in METHODS else "is unknown to"
                raise UserError(
                    f"data.methods: {method!r} {known} the split {split!r}, which has {', '.join(present_methods)}"
                )
        fewer = fewer[np.isin(method_of[fewer], [names.index(method) for method in methods])]
    if not len(fewer):
        raise UserError(
            f"data.methods, data.videos_fraction: no sample of the split {split!r} is left with {methods} and "
            f"{videos_fraction}; take more methods or a larger fraction"
        )
    if frames_per_video is None:
        return fewer
    video_of, videos = index.codes("video")
    group = method_of[fewer].astype(np.int64) * len(videos) + video_of[fewer]
    return np.sort(fewer[_evenly_spaced(group, index.numbers("frame")[fewer], frames_per_video)])


MIN_HELD_CLUSTERS = 10
"""Groups of people in a validation split below which none are held out: five in each part would have no interval."""


def hold_out(shard_set: ShardSet, share: float) -> np.ndarray:
    """Choose the validation rows of people who don't select a model, so that they can judge the one that is selected.

    The people are the same in every run and sweep on this split: groups that share nobody, in the order of a hash of
    their names.

    Args:
        shard_set: What is read.
        share: Of the groups, in [0, 1).

    Returns:
        int64 row numbers, ascending; empty where there are fewer than `MIN_HELD_CLUSTERS` groups, or one part would
        have a single class.
    """
    rows, none = split_rows(shard_set, "val"), np.empty(0, np.int64)
    if not share or not len(rows):
        return none
    people = shard_set.index.take(rows, "target", "source", "label")
    cluster = identity_clusters(people)
    _, first = np.unique(cluster, return_index=True)
    if len(first) < MIN_HELD_CLUSTERS:
        return none
    names = people["target"].take(pa.array(first)).to_pylist()
    order = sorted(range(len(first)), key=lambda number: _digest(names[number], 0))
    held = np.isin(cluster, order[: round(share * len(first))])
    labels = people["label"].to_numpy()
    if any(len(np.unique(labels[part])) < len(np.unique(labels)) for part in (held, ~held)):
        return none
    return rows[held]


def count_videos(index: Columns, rows: np.ndarray) -> int:
    """How many videos, of all methods, these rows are frames of."""
    method_of, _ = index.codes("method")
    video_of, videos = index.codes("video")
    return len(np.unique(method_of[rows].astype(np.int64) * len(videos) + video_of[rows]))


def balance_groups(index: Columns, rows: np.ndarray, balance: Balance) -> np.ndarray | None:
    """What `balance` makes equally frequent, as `TrainPlan.groups`: the rows' labels or methods; None for "none"."""
    if balance == "none":
        return None
    if balance == "class":
        return index.numbers("label")[rows]
    return index.codes("method")[0][rows]


def _rows_of(index: Columns, split: str) -> np.ndarray:
    splits, names = index.codes("split")
    return np.flatnonzero(splits == names.index(split)) if split in names else np.empty(0, np.int64)


def _some_rows_of(index: Columns, split: str, place: str) -> np.ndarray:
    rows = _rows_of(index, split)
    if not len(rows):
        where = f"{place}: " if place else ""
        raise UserError(f"{where}the split {split!r} has no samples; pack more videos, or check the split files")
    return rows


def _evenly_spaced(group: np.ndarray, frame: np.ndarray, count: int) -> np.ndarray:
    """Places in `group` of up to `count` members of each group, evenly spaced in the order of their frames."""
    order = np.lexsort((frame, group))
    _, starts, totals = np.unique(group[order], return_index=True, return_counts=True)
    few = totals <= count
    steps = 2 * np.arange(count, dtype=np.int64) + 1
    chosen = starts[~few, None] + steps * totals[~few, None] // (2 * count)
    whole = np.flatnonzero(np.repeat(few, totals))
    return order[np.concatenate([whole, chosen.ravel()])]


def _digest(word: str, seed: int) -> bytes:
    return hashlib.blake2b(word.encode(), digest_size=16, key=seed.to_bytes(8, "little")).digest()
