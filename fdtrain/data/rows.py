"""Which rows of a shard set a run takes: a split, and a part of it."""

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets_shards.schema import METHODS, ShardSet
from fdtrain.config import UserError

Balance = Literal["none", "class", "method"]


def split_rows(shard_set: ShardSet, split: str) -> np.ndarray:
    """int64 row numbers of a split, in index order; empty where the split is."""
    chosen = pc.equal(shard_set.index["split"].cast(pa.string()), split)
    return np.flatnonzero(chosen.to_numpy())


def require_rows(shard_set: ShardSet, split: str) -> np.ndarray:
    """As `split_rows`. Raises UserError where the split is empty."""
    rows = split_rows(shard_set, split)
    if not len(rows):
        raise UserError(f"{shard_set.folder}: the split {split!r} is empty; pack more videos, or check the split files")
    return rows


def select_rows(
    index: pa.Table,
    split: str,
    *,
    methods: Sequence[str] | None = None,
    frames_per_video: int | None = None,
    videos_fraction: float = 1.0,
    seed: int = 0,
) -> np.ndarray:
    """The rows of a split that a run takes.

    Args:
        index: In `INDEX_SCHEMA`.
        split: "train", "val" or "test".
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
    splits, names = _codes(index["split"])
    rows = np.flatnonzero(splits == names.index(split)) if split in names else np.empty(0, np.int64)
    if not len(rows):
        raise UserError(f"the split {split!r} has no samples; pack more videos, or check the split files")
    method_of, names = _codes(index["method"])
    if videos_fraction < 1:
        target_of, targets = _codes(index["target"])
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
    video_of, videos = _codes(index["video"])
    group = method_of[fewer].astype(np.int64) * len(videos) + video_of[fewer]
    return np.sort(fewer[_evenly_spaced(group, index["frame"].to_numpy()[fewer], frames_per_video)])


def balance_groups(index: pa.Table, rows: np.ndarray, balance: Balance) -> np.ndarray | None:
    """What `balance` makes equally frequent, as `TrainPlan.groups`: the rows' labels or methods; None for "none"."""
    if balance == "none":
        return None
    if balance == "class":
        return index["label"].to_numpy()[rows]
    return _codes(index["method"])[0][rows]


def _evenly_spaced(group: np.ndarray, frame: np.ndarray, count: int) -> np.ndarray:
    """Places in `group` of up to `count` members of each group, evenly spaced in the order of their frames."""
    order = np.lexsort((frame, group))
    _, starts, totals = np.unique(group[order], return_index=True, return_counts=True)
    few = totals <= count
    steps = 2 * np.arange(count, dtype=np.int64) + 1
    chosen = starts[~few, None] + steps * totals[~few, None] // (2 * count)
    whole = np.flatnonzero(np.repeat(few, totals))
    return order[np.concatenate([whole, chosen.ravel()])]


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """A column of words as whole numbers `[N]`, and the words that they stand for."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    column = column.unify_dictionaries()
    if not column.num_chunks:
        return np.empty(0, np.int64), []
    codes = np.concatenate([chunk.indices.to_numpy(zero_copy_only=False) for chunk in column.chunks])
    return codes, column.chunk(0).dictionary.to_pylist()


def _digest(word: str, seed: int) -> bytes:
    return hashlib.blake2b(word.encode(), digest_size=16, key=seed.to_bytes(8, "little")).digest()
