"""Both loaders: the same batches for the same rows, and errors that name the sample."""

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets_shards.schema import ShardSet, ShardSetError, open_shard_set
from fdtrain.data.batch import Batch
from fdtrain.data.loader import LoaderKind, choose_loader, load_batches
from fdtrain.data.plan import MicroBatch
from fdtrain.data.reader import ShardReader

CPU = torch.device("cpu")
KINDS: tuple[LoaderKind, ...] = ("torch", "dali")


def load(kind: LoaderKind, shard_set: ShardSet, batches: list[np.ndarray]) -> list[Batch]:
    with ShardReader(shard_set) as reader:
        parts = map(MicroBatch.of, batches)
        return list(load_batches(kind, reader, parts, batch_size=8, device=CPU, threads=2, prefetch=2))


@pytest.fixture
def batches() -> list[np.ndarray]:
    """Five batches of eight in a random order, and a last one of three."""
    order = np.random.default_rng(0).permutation(96)[:43]
    return [order[start : start + 8] for start in range(0, 43, 8)]


@pytest.mark.parametrize("quality", [77, "raw"])
def test_dali_and_torch_give_the_same_batches(shard_root: Path, batches: list[np.ndarray], quality: int | str) -> None:
    shard_set = open_shard_set(shard_root, quality)
    labels = shard_set.index["label"].to_numpy()
    loaded = {kind: load(kind, shard_set, batches) for kind in KINDS}
    assert len(loaded["torch"]) == len(loaded["dali"]) == len(batches)
    for rows, ours, dalis in zip(batches, loaded["torch"], loaded["dali"], strict=True):
        for batch in (ours, dalis):
            assert batch.images.shape == (len(rows), 3, 64, 64)
            assert batch.images.dtype == torch.uint8
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            assert batch.rows.tolist() == rows.tolist()
            assert batch.labels.tolist() == labels[rows].tolist()
        difference = (ours.images.int() - dalis.images.int()).abs().max().item()
        assert difference <= (0 if quality == "raw" else 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_has_the_same_pixels_in_any_batch(shard_root: Path, kind: LoaderKind) -> None:
    shard_set = open_shard_set(shard_root, 77)
    together = load(kind, shard_set, [np.arange(8)])[0].images
    alone = torch.cat([batch.images for batch in load(kind, shard_set, [np.array([row]) for row in range(8)])])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loader_that_is_left_early_leaves_no_thread(shard_root: Path, kind: LoaderKind) -> None:
    before = set(threading.enumerate())
    with ShardReader(open_shard_set(shard_root, 77)) as reader:
        batches = load_batches(
            kind,
            reader,
            (MicroBatch.of(np.arange(8)) for _ in range(1000)),
            batch_size=8,
            device=CPU,
            threads=2,
            prefetch=2,
        )
        next(batches)
        batches.close()
    assert {thread for thread in threading.enumerate() if thread.name.startswith(("read", "decode"))} <= before


@pytest.fixture
def damaged(shard_root: Path, tmp_path: Path) -> Path:
    """A root whose 6th sample (row 5) has a JPEG with a hole in it; the tar's size is as the manifest says."""
    root = Path(shutil.copytree(shard_root, tmp_path / "root"))
    index = open_shard_set(root, 77).index
    row = index.slice(5, 1).to_pylist()[0]
    with (root / "q77" / row["shard"]).open("r+b") as tar:
        tar.seek(row["offset"] + 20)
        tar.write(b"\0" * (row["size"] - 20))
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_a_corrupt_image_is_named(damaged: Path, kind: LoaderKind) -> None:
    shard_set = open_shard_set(damaged, 77)
    key, offset = shard_set.index["key"][5].as_py(), shard_set.index["offset"][5].as_py()
    with pytest.raises(ShardSetError, match=rf"train-000000\.tar: sample {key} at offset {offset}"):
        load(kind, shard_set, [np.arange(8)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_tar_that_shrinks_is_named(damaged: Path, kind: LoaderKind) -> None:
    shard_set = open_shard_set(damaged, 77)  # opened while the tar was whole
    with ShardReader(shard_set) as reader:
        reader.read(0)  # and so is the tar
        with (damaged / "q77" / "train-000000.tar").open("r+b") as tar:
            tar.truncate(1000)
        parts = [MicroBatch.of(np.arange(8, 16))]
        with pytest.raises(ShardSetError, match=r"train-000000\.tar: sample .* no image there"):
            list(load_batches(kind, reader, parts, batch_size=8, device=CPU, threads=2, prefetch=2))
    with pytest.raises(ShardSetError, match=r"train-000000\.tar: sample .*: 1000 bytes where the manifest lists"):
        load(kind, shard_set, [np.arange(8, 16)])


def test_a_missing_or_cut_tar_is_refused_when_the_set_is_opened(damaged: Path) -> None:
    tar = damaged / "q77" / "val-000000.tar"
    with tar.open("r+b") as file:
        file.truncate(512)
    with pytest.raises(ShardSetError, match=r"val-000000\.tar: 512 bytes where the manifest lists"):
        open_shard_set(damaged, 77)
    tar.unlink()
    with pytest.raises(ShardSetError, match=r"val-000000\.tar: missing"):
        open_shard_set(damaged, 77)


def test_auto_takes_dali_on_a_gpu_and_torch_on_a_cpu() -> None:
    assert choose_loader("auto", CPU)[0] == "torch"
    assert choose_loader("auto", torch.device("cuda"))[0] == "dali"
    assert choose_loader("dali", CPU)[0] == "dali"
