"""The data of a training run: the sets that it opens, the rows that it takes and their order."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets_shards.schema import ShardSet, open_shard_set, quality_name
from fdtrain.config import Config
from fdtrain.data.plan import PlanSettings, TrainPlan
from fdtrain.data.rows import balance_groups, require_rows, select_rows, split_rows


@dataclass(frozen=True)
class RunData:
    """What a run reads.

    Args:
        shard_set: The set of `data.quality`, which validation and test read.
        training_sets: The sets that training reads; that one alone, unless qualities are mixed.
        rows: int64 row numbers of each split that the run takes.
        plan: The order of the training rows.
        digest: Identity of all of it: of one set its manifest's digest, of several that of their digests.
        description: For people: the qualities of training.
    """

    shard_set: ShardSet
    training_sets: list[ShardSet]
    rows: dict[str, np.ndarray]
    plan: TrainPlan
    digest: str
    description: str


def open_data(config: Config) -> RunData:
    """Open the sets and choose the rows, as the configuration says.

    The methods that are chosen hold for training and validation; a part of the test split would be another test.

    Raises:
        UserError: a setting doesn't suit the data; the training or validation split is empty.
        ShardSetError: a set can't be used.
    """
    data, root = config.data, Path(config.data.root)
    mix = config.training_qualities
    shard_set = open_shard_set(root, config.quality)
    training_sets = [shard_set] if data.mix is None else [open_shard_set(root, quality) for quality in mix]
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
        training_sets,
        rows,
        plan,
        digest,
        description=" and ".join(weights) if len(mix) > 1 else quality_name(next(iter(mix))),
    )
