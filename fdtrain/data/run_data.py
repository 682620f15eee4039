"""The data of a training run: the sets that it opens, the rows that it takes and their order."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from datasets_shards.schema import ShardSet, check_same_samples, quality_name
from fdtrain.config import Config, UserError
from fdtrain.data.plan import MicroBatch, PlanSettings, TrainPlan, default_buffer_blocks
from fdtrain.data.reader import ShardReader
from fdtrain.data.remote import CachedTars, OpenedSet, cache_counters, open_cache, open_set, opening
from fdtrain.data.rows import balance_groups, count_videos, hold_out, select_rows, split_rows
from fdtrain.data.working_set import TrainingTars, check_cache_fits, walk_ahead


@dataclass(frozen=True)
class RunData:
    """What a run reads.

    Args:
        scored: The set of `data.quality`, which validation and test read.
        training: The sets that training reads; that one alone, unless qualities are mixed.
        rows: int64 row numbers of each split that the run takes.
        plan: The order of the training rows.
        contest: int64 row numbers of the validation split, of all methods, that the best model meets the champion on.
        holds_out: Whether these are of people that `rows` leaves out.
        digest: Identity of all of it: of one set its manifest's digest, of several that of their digests.
        description: For people: the qualities of training.
        shuffling: For people: what a buffer of shuffled blocks holds; empty where any sample may follow any other.
    """

    scored: OpenedSet
    training: list[OpenedSet]
    rows: dict[str, np.ndarray]
    plan: TrainPlan
    contest: np.ndarray
    holds_out: bool
    digest: str
    description: str
    shuffling: str = ""

    @property
    def shard_set(self) -> ShardSet:
        """Of `data.quality`."""
        return self.scored.shard_set

    def reader(self) -> ShardReader:
        """Of validation and test images; closing it ends all reading from a remote root."""
        return ShardReader(self.scored.shard_set, tars=[self.scored.tars])

    def cache_counters(self) -> dict[str, float]:
        """Of a root by URL, what its cache did so far; nothing of one by path."""
        tars = [opened.tars for opened in (self.scored, *self.training) if isinstance(opened.tars, CachedTars)]
        if not tars:
            return {}
        counters = cache_counters(tars)
        return {
            "train/cache_hits": counters.hits,
            "train/cache_misses": counters.misses,
            "train/cache_fetched_bytes": counters.fetched_bytes,
            "train/cache_evictions": counters.evictions,
            "train/cache_wait_s": counters.waited_s,
        }

    def training_reader(self) -> ShardReader:
        """Of training images."""
        shard_sets, tars = zip(*self.training, strict=True)
        return ShardReader(*shard_sets, tars=tars)

    def walk(self, first: int, last: int, rank: int, world_size: int) -> Iterator[MicroBatch]:
        """As `TrainPlan.walk`; of a root by URL, the tars of coming batches are fetched meanwhile."""
        batches = self.plan.walk(first, last, rank, world_size)
        if not isinstance(self.scored.tars, CachedTars):
            return batches
        return walk_ahead(batches, TrainingTars(self.training), self.scored.tars.cache.max_bytes)


@opening()
def open_data(config: Config, is_stopping: Callable[[], bool] = lambda: False) -> RunData:
    """Open the sets and choose the rows, as the configuration says.

    The methods that are chosen hold for training and validation; a part of the test split would be another test.

    Args:
        config: The resolved configuration.
        is_stopping: Whether the run was told to stop, so that it should wait for no store any more.

    Raises:
        UserError: a setting doesn't suit the data; the training or validation split is empty.
        HostError: the cache's folder can't be used.
        StoreError: the store of a root by URL refuses it, or is away for too long.
        UnusableSetError: a set can't be used, or the sets of the root don't hold the same samples and splits.
    """
    data = config.data
    mix = config.data.training_qualities
    patience_s = 60 * config.engine.timeout_minutes / 2  # the other ranks wait for the one that waits for the store
    cache = open_cache(data.root, data.cache_dir, data.cache_bytes, lambda: 0 if is_stopping() else patience_s)
    sets = {quality: open_set(data.root, quality, cache) for quality in dict.fromkeys([config.quality, *mix])}
    scored, training = sets[config.quality], [sets[quality] for quality in mix]
    shard_set = scored.shard_set
    for opened in training:
        check_same_samples(shard_set, opened.shard_set)
    index, place = shard_set.index, shard_set.place
    rows = {
        "train": select_rows(
            index,
            "train",
            place=place,
            methods=data.methods,
            frames_per_video=data.frames_per_video,
            videos_fraction=data.videos_fraction,
            seed=config.seed,
        ),
        "val": select_rows(index, "val", place=place, methods=data.methods),
        "test": split_rows(shard_set, "test"),
    }
    held_out = hold_out(shard_set, data.contest_share or 0.0)
    rows["val"] = np.setdiff1d(rows["val"], held_out, assume_unique=True)
    if not len(rows["val"]):
        raise UserError("data.contest_share: all people of data.methods are held out of validation; lower it")
    groups = balance_groups(index, rows["train"], data.balance)
    videos = count_videos(index, rows["train"])
    frames_per_video = len(rows["train"]) / videos
    buffer_blocks = data.buffer_blocks
    if buffer_blocks is None:
        buffer_blocks = default_buffer_blocks(data.block_samples, frames_per_video)
    plan = TrainPlan(
        rows["train"],
        config.seed,
        config.train.global_batch_size,
        config.train.micro_batch_size,
        PlanSettings(data.shuffle, data.block_samples, data.balance, tuple(mix.values()), buffer_blocks),
        groups,
    )
    if cache is not None:
        count = 1 if groups is None else len(np.unique(groups))
        check_cache_fits(cache.max_bytes, plan, count, TrainingTars(training))
    digests = [opened.shard_set.manifest.digest for opened in ([scored] if data.mix is None else [scored, *training])]
    digest = digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
    weights = [f"{quality_name(quality)} (weight {weight:g})" for quality, weight in mix.items()]
    return RunData(
        scored,
        training,
        rows,
        plan,
        held_out if len(held_out) else split_rows(shard_set, "val"),
        len(held_out) > 0,
        digest,
        description=" and ".join(weights) if len(mix) > 1 else quality_name(next(iter(mix))),
        shuffling=_shuffling(plan.settings, frames_per_video, videos),
    )


def _shuffling(settings: PlanSettings, frames_per_video: float, videos: int) -> str:
    """What is mixed with each other at a time, for people; empty for a full shuffle."""
    if settings.shuffle == "full":
        return ""
    held = min(videos, round(settings.buffer_blocks * settings.block_samples / frames_per_video))
    return (
        f"shuffled in buffers of {settings.buffer_blocks} blocks of {settings.block_samples} samples: the frames of "
        f"about {held} of {videos} videos are mixed at a time (data.buffer_blocks)"
    )
