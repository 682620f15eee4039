"""The data of a training run: the sets that it opens, the rows that it takes and their order."""

import hashlib
from dataclasses import dataclass

import numpy as np

from datasets_shards.schema import ShardSet, quality_name
from fdtrain.config import Config
from fdtrain.data.cache import check_cache_fits
from fdtrain.data.plan import PlanSettings, TrainPlan
from fdtrain.data.reader import ShardReader
from fdtrain.data.remote import CachedTars, open_cache, open_set, split_bytes
from fdtrain.data.rows import balance_groups, require_rows, select_rows, split_rows
from fdtrain.data.tars import Tars


@dataclass(frozen=True)
class RunData:
    """What a run reads.

    Args:
        shard_set: The set of `data.quality`, which validation and test read.
        tars: Its tars.
        training_sets: The sets that training reads; that one alone, unless qualities are mixed.
        training_tars: The tars of each.
        rows: int64 row numbers of each split that the run takes.
        plan: The order of the training rows.
        digest: Identity of all of it: of one set its manifest's digest, of several that of their digests.
        description: For people: the qualities of training.
    """

    shard_set: ShardSet
    tars: Tars
    training_sets: list[ShardSet]
    training_tars: list[Tars]
    rows: dict[str, np.ndarray]
    plan: TrainPlan
    digest: str
    description: str

    def reader(self) -> ShardReader:
        """Of validation and test images; closing it ends all reading from a remote root."""
        return ShardReader(self.shard_set, tars=[self.tars])

    def cache_counters(self) -> dict[str, float]:
        """Of a root by URL, what its cache did so far; nothing of one by path."""
        if not isinstance(self.tars, CachedTars):
            return {}
        counters = self.tars.cache.counters()
        return {
            "train/cache_hits": counters.hits,
            "train/cache_misses": counters.misses,
            "train/cache_fetched_bytes": counters.fetched_bytes,
            "train/cache_evictions": counters.evictions,
            "train/cache_wait_s": counters.waited_s,
        }

    def training_reader(self) -> ShardReader:
        """Of training images."""
        return ShardReader(*self.training_sets, tars=self.training_tars)


def open_data(config: Config) -> RunData:
    """Open the sets and choose the rows, as the configuration says.

    The methods that are chosen hold for training and validation; a part of the test split would be another test.

    Raises:
        UserError: a setting doesn't suit the data; the training or validation split is empty.
        ShardSetError: a set can't be used.
    """
    data = config.data
    mix = config.training_qualities
    cache = open_cache(data.root, data.cache_dir, data.cache_bytes)
    shard_set, tars = open_set(data.root, config.quality, cache)
    training = [(shard_set, tars)] if data.mix is None else [open_set(data.root, quality, cache) for quality in mix]
    training_sets = [opened for opened, _ in training]
    if cache is not None:
        wanted = sum(split_bytes(opened.manifest, "train") for opened in training_sets)
        check_cache_fits(wanted, cache.max_bytes, data.shuffle)
    index = shard_set.index
    for split in ("train", "val"):
        require_rows(shard_set, split)
    rows = {
        "train": select_rows(
            index,
            "train",
            methods=data.methods,
            frames_per_video=data.frames_per_video,
            videos_fraction=data.videos_fraction,
            seed=config.seed,
        ),
        "val": select_rows(index, "val", methods=data.methods),
        "test": split_rows(shard_set, "test"),
    }
    plan = TrainPlan(
        rows["train"],
        config.seed,
        config.train.global_batch_size,
        config.train.micro_batch_size,
        PlanSettings(data.shuffle, data.block_samples, data.balance, tuple(mix.values())),
        balance_groups(index, rows["train"], data.balance),
    )
    digests = [opened.manifest.digest for opened in ([shard_set] if data.mix is None else [shard_set, *training_sets])]
    digest = digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
    weights = [f"{quality_name(quality)} (weight {weight:g})" for quality, weight in mix.items()]
    return RunData(
        shard_set,
        tars,
        training_sets,
        [there for _, there in training],
        rows,
        plan,
        digest,
        description=" and ".join(weights) if len(mix) > 1 else quality_name(next(iter(mix))),
    )
