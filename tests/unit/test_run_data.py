"""What a configuration makes of a root: sets, rows, order."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets_shards.schema import open_shard_set
from fdtrain.config import Config, DataConfig, TrainConfig, UserError
from fdtrain.data.loader import LoaderKind, load_batches
from fdtrain.data.reader import ShardReader
from fdtrain.data.run_data import RunData, open_data


def opened(root: Path, **data: object) -> RunData:
    config = Config(data=DataConfig(root=str(root), **data), train=TrainConfig(global_batch_size=8, micro_batch_size=4))  # type: ignore[arg-type]
    return open_data(config)


def methods_of(data: RunData, rows: np.ndarray) -> Counter:
    return Counter(data.shard_set.index["method"].take(rows).to_pylist())


def test_defaults_take_every_row_at_one_quality(shard_root: Path) -> None:
    data = opened(shard_root)
    assert {split: len(rows) for split, rows in data.rows.items()} == {"train": 96, "val": 36, "test": 36}
    assert data.training_sets == [data.shard_set]
    assert data.digest == open_shard_set(shard_root, 77).manifest.digest
    assert data.description == "q77"


def test_a_part_of_the_training_split(shard_root: Path) -> None:
    data = opened(shard_root, methods=["youtube", "FaceSwap"], frames_per_video=1, videos_fraction=0.5)
    assert methods_of(data, data.rows["train"]) == {"youtube": 8, "FaceSwap": 8}
    assert methods_of(data, data.rows["val"]) == {"youtube": 12, "FaceSwap": 12}
    assert len(data.rows["test"]) == 36  # another test otherwise


@pytest.mark.parametrize("kind", ["torch", "dali"])
def test_mixed_qualities_are_read_each_from_its_set(shard_root: Path, kind: LoaderKind) -> None:
    """A sample of the raw set has the raw pixels, one of q77 those of its JPEG, in one batch and for both loaders."""
    data = opened(shard_root, mix={"raw": 1.0, "q77": 1.0})
    assert data.description == "raw (weight 1) and q77 (weight 1)"
    assert data.digest not in {opened.manifest.digest for opened in data.training_sets}
    parts = list(data.plan.walk(0, 3, 0, 1))
    assert {0, 1} == set(np.concatenate([part.qualities for part in parts]).tolist())
    loading = {"batch_size": 4, "device": torch.device("cpu"), "threads": 1, "prefetch": 1}
    with ShardReader(*data.training_sets) as mixed:
        got = list(load_batches(kind, mixed, parts, **loading))  # type: ignore[arg-type]
    for number, shard_set in enumerate(data.training_sets):
        with ShardReader(shard_set) as reader:
            plain = [part._replace(qualities=np.zeros_like(part.qualities)) for part in parts]
            for part, batch, alone in zip(parts, got, load_batches(kind, reader, plain, **loading), strict=True):  # type: ignore[arg-type]
                of_this = torch.from_numpy(part.qualities == number)
                assert torch.equal(batch.images[of_this], alone.images[of_this])
                assert batch.positions.tolist() == part.positions.tolist()


def test_balance(shard_root: Path) -> None:
    for balance, shares in (("class", {"youtube": 48}), ("method", {"youtube": 32, "Deepfakes": 32, "FaceSwap": 32})):
        data = opened(shard_root, balance=balance)
        epoch = np.concatenate([part.rows for part in data.plan.walk(0, data.plan.steps_per_epoch, 0, 1)])
        assert shares.items() <= methods_of(data, epoch).items()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"mix": {"lossless": 1.0}}, "data.mix: quality 'lossless' is neither"),
        ({"mix": {}}, "data.mix: names no quality"),
        ({"mix": {"77": -1.0}}, r"data.mix: the weight -1.0 is out of range"),
        ({"methods": ["Face2Face"]}, "data.methods: 'Face2Face' is not in the split 'train'"),
        ({"methods": ["youtube"], "balance": "class"}, "data.balance: 'class' needs two groups"),
        ({"videos_fraction": 0.0}, "data.videos_fraction: 0.0 is out of range"),
        ({"block_samples": 0, "shuffle": "blocks"}, "data.block_samples: 0 is out of range"),
    ],
)
def test_what_does_not_suit_the_data_is_named(shard_root: Path, setting: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(shard_root, **setting)
