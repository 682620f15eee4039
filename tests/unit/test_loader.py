"""Both loaders: the same batches for the same rows, and errors that name the sample."""

import shutil
import threading
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

from datasets_shards.schema import ShardSet, ShardSetError, open_shard_set
from fdtrain.data.batch import Batch
from fdtrain.data.intake import Intake
from fdtrain.data.loader import LoaderKind, choose_loader, load_batches
from fdtrain.data.plan import MicroBatch, TrainPlan
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


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_sample_may_be_skipped(
    damaged: Path, shard_root: Path, kind: LoaderKind, capsys: pytest.CaptureFixture[str]
) -> None:
    """A hole in a JPEG and a tar cut short: the plan's substitutes, the same from both loaders, counted once each."""
    with (damaged / "q77/val-000000.tar").open("r+b") as tar:
        size = tar.seek(0, 2)
        first = open_shard_set(shard_root, 77).index.filter(pc.field("split") == "val").slice(0, 1).to_pylist()[0]
        tar.seek(first["offset"])
        tar.write(b"\0" * 4)
        assert tar.seek(0, 2) == size
    shard_set = open_shard_set(damaged, 77)
    bad_rows = {5, int(pc.index(shard_set.index["key"], first["key"]).as_py())}
    rows = np.array([1, *bad_rows, 7, 8, 9, 10, 11])
    plan = TrainPlan(np.arange(96), 0, 8, 8)
    intake = Intake(plan.substitutes, limit=2)
    with ShardReader(shard_set) as reader:
        parts = [MicroBatch.of(rows.copy()) for _ in range(6)]
        loading = {"batch_size": 8, "device": CPU, "threads": 2, "prefetch": 2}
        got = list(load_batches(kind, reader, parts, **loading, intake=intake))  # type: ignore[arg-type]
        assert len(got) == 6
        stand_ins = [
            next(
                row
                for attempt in range(9)
                if (row := int(plan.substitutes(np.array([bad]), attempt)[0])) not in bad_rows
            )
            for bad in rows[1:3]
        ]
        expected = MicroBatch.of(np.array([rows[0], *stand_ins, *rows[3:]]))
        (whole,) = load_batches("torch", reader, [expected], **loading)  # type: ignore[arg-type]
    for batch in got:
        assert batch.rows.tolist() == expected.rows.tolist()
        assert batch.labels.tolist() == whole.labels.tolist()
        assert (batch.images.int() - whole.images.int()).abs().max() <= 1
    assert intake.bad_samples == 2
    assert intake.take()["train/bad_samples"] == 2
    assert capsys.readouterr().err.count("warning: skipped a bad sample: ") == 2


@pytest.mark.parametrize("kind", KINDS)
def test_too_many_bad_samples_stop_the_run(damaged: Path, kind: LoaderKind) -> None:
    intake = Intake(TrainPlan(np.arange(96), 0, 8, 8).substitutes, limit=0)
    with ShardReader(open_shard_set(damaged, 77)) as reader:
        batches = load_batches(
            kind, reader, [MicroBatch.of(np.arange(8))], batch_size=8, device=CPU, threads=1, prefetch=1, intake=intake
        )
        with pytest.raises(ShardSetError, match=r"bad sample number 1 of this rank, and data.max_bad_share allows 0"):
            list(batches)


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
