"""What a configuration makes of a root: sets, rows, order."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets_shards.schema import ShardSetError, open_shard_set
from fdtrain.config import Config, DataConfig, TrainConfig, UserError
from fdtrain.data.loader import LoaderKind, load_batches
from fdtrain.data.reader import ShardReader
from fdtrain.data.run_data import RunData, open_data
from fdtrain.facts import people_digest
from tests.shards import write_root


def opened(root: Path, **data: object) -> RunData:
    config = Config(data=DataConfig(root=str(root), **data), train=TrainConfig(global_batch_size=8, micro_batch_size=4))  # type: ignore[arg-type]
    return open_data(config)


def methods_of(data: RunData, rows: np.ndarray) -> Counter:
    return Counter(data.shard_set.index["method"].take(rows).to_pylist())


def test_defaults_take_every_row_at_one_quality(shard_root: Path) -> None:
    data = opened(shard_root)
    assert {split: len(rows) for split, rows in data.rows.items()} == {"train": 96, "val": 36, "test": 36}
    assert [opened.shard_set for opened in data.training] == [data.shard_set]
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
    assert DataConfig(mix={"raw": 1.0, "q77": 1.0}).is_mixed
    assert not any(config.is_mixed for config in (DataConfig(), DataConfig(mix={"77": 2.0}), DataConfig(quality="raw")))
    assert data.description == "raw (weight 1) and q77 (weight 1)"
    sets = [opened.shard_set for opened in data.training]
    assert data.digest not in {shard_set.manifest.digest for shard_set in sets}
    assert data.scored in data.training  # opened once
    parts = list(data.plan.walk(0, 3, 0, 1))
    assert {0, 1} == set(np.concatenate([part.qualities for part in parts]).tolist())
    loading = {"batch_size": 4, "device": torch.device("cpu"), "threads": 1, "prefetch": 1}
    with ShardReader(*sets) as mixed:
        got = list(load_batches(kind, mixed, parts, **loading))  # type: ignore[arg-type]
    for number, shard_set in enumerate(sets):
        with ShardReader(shard_set) as reader:
            plain = [part._replace(qualities=np.zeros_like(part.qualities)) for part in parts]
            for part, batch, alone in zip(parts, got, load_batches(kind, reader, plain, **loading), strict=True):  # type: ignore[arg-type]
                of_this = torch.from_numpy(part.qualities == number)
                assert torch.equal(batch.images[of_this], alone.images[of_this])
                assert batch.positions.tolist() == part.positions.tolist()


def test_a_run_says_how_many_videos_are_mixed_at_a_time(shard_root: Path) -> None:
    assert opened(shard_root).shuffling == ""
    assert opened(shard_root, shuffle="blocks", block_samples=4, buffer_blocks=3).shuffling == (
        "shuffled in buffers of 3 blocks of 4 samples: the frames of about 6 of 48 videos are mixed at a time "
        "(data.buffer_blocks)"
    )
    assert opened(shard_root, shuffle="blocks", block_samples=4).plan.settings.buffer_blocks == 128  # 256 videos
    with pytest.raises(UserError, match=r"data.buffer_blocks: 3 has no effect here; set data.shuffle to blocks"):
        DataConfig(root="x", buffer_blocks=3).validate()


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
        ({"buffer_blocks": -1, "shuffle": "blocks"}, "data.buffer_blocks: -1 is out of range"),
        ({"block_samples": 0, "shuffle": "blocks"}, "data.block_samples: 0 is out of range"),
        ({"buffer_blocks": 0, "shuffle": "blocks"}, "data.buffer_blocks: 0 is out of range"),
    ],
)
def test_what_does_not_suit_the_data_is_named(shard_root: Path, setting: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(shard_root, **setting)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_set_of_other_splits_is_not_trained_on(shard_root: Path, tmp_path: Path, scheme: str) -> None:
    """Rows are chosen by `quality`'s index, which need not be among those that are mixed."""
    for pairs, fault in (((3, 3, 8), "holds other samples than"), ((3, 3, 4), "holds 120 samples,")):
        root = write_root(tmp_path / str(pairs[2]), ("raw",), pairs=pairs)
        shutil.copytree(shard_root / "q77", root / "q77")
        place = f"{scheme}{root}"
        with pytest.raises(ShardSetError, match=rf"^{place}/raw: {fault} {place}/q77"):
            opened(place, quality=77, mix={"raw": 1.0}, cache_dir=str(tmp_path / "cache"))


def test_an_empty_split_is_told_of_the_set_that_the_user_named(tmp_path: Path) -> None:
    root = write_root(tmp_path / "root", (77,), pairs=(2, 0, 1), size=16)
    for place in (f"{root}", f"file://{root}"):
        with pytest.raises(UserError, match=f"^{place}/q77: the split 'val' has no samples; pack more videos"):
            opened(place, cache_dir=str(tmp_path / "cache"))


def test_what_the_cache_did_is_counted_over_all_sets(shard_root: Path, tmp_path: Path) -> None:
    assert opened(shard_root).cache_counters() == {}
    data = opened(f"file://{shard_root}", mix={"77": 1.0, "raw": 1.0}, cache_dir=str(tmp_path))
    before = data.cache_counters()
    sizes = [(each.shard_set.manifest.tars["train-000000.tar"].bytes) for each in data.training]
    with data.training_reader() as reader:
        for row in range(30):
            for quality in (0, 1):
                reader.read(row, quality)
        counters = data.cache_counters()
    assert counters["train/cache_misses"] - before["train/cache_misses"] == 2
    assert counters["train/cache_hits"] - before["train/cache_hits"] == 2 * 29
    assert counters["train/cache_fetched_bytes"] - before["train/cache_fetched_bytes"] == sum(sizes)


def test_a_cache_too_small_for_the_order_is_refused(shard_root: Path, tmp_path: Path) -> None:
    tars = [open_shard_set(shard_root, quality).manifest.tars["train-000000.tar"].bytes for quality in (77, "raw")]
    settings = {"mix": {"77": 1.0, "raw": 1.0}, "cache_dir": str(tmp_path)}
    for shuffle, remedy in (("full", "set data.shuffle: blocks, or raise it to"), ("blocks", "raise it to")):
        message = rf"^data.cache_bytes: {sum(tars) - 1} is less than the {sum(tars)} bytes .*{remedy} \d\d0+\b"
        with pytest.raises(UserError, match=message) as refused:
            opened(f"file://{shard_root}", shuffle=shuffle, cache_bytes=sum(tars) - 1, **settings)
        enough = int(str(refused.value).split("raise it to ")[1].split(",")[0])
        opened(f"file://{shard_root}", shuffle=shuffle, cache_bytes=enough, **settings)
    with pytest.raises(
        UserError, match=rf"data.cache_bytes: 9 is less than the {max(tars)} bytes of train-000000\.tar"
    ):
        opened(f"file://{shard_root}", cache_bytes=9, quality="raw", cache_dir=str(tmp_path))


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_the_walk_is_the_plans(shard_root: Path, tmp_path: Path, scheme: str) -> None:
    data = opened(f"{scheme}{shard_root}", mix={"77": 1.0, "raw": 1.0}, cache_dir=str(tmp_path))
    with data.training_reader():
        for ours, plans in zip(data.walk(3, 20, 1, 2), data.plan.walk(3, 20, 1, 2), strict=True):
            assert ours.number == plans.number
            for mine, theirs in zip(ours[1:], plans[1:], strict=True):
                np.testing.assert_array_equal(mine, theirs)


def people_of(data: RunData, rows: np.ndarray) -> set[str]:
    table = data.shard_set.index.take(rows, "target", "source")
    return {name for column in ("target", "source") for name in table[column].to_pylist() if name}


def test_people_are_held_out_of_selection(tmp_path: Path) -> None:
    """Half of them, whole groups, of all methods, whatever selection sees."""
    root = write_root(tmp_path / "root", pairs=(2, 12, 1), size=32)
    data = opened(root, contest_share=0.5, methods=["youtube", "FaceSwap"])
    assert data.holds_out
    assert set(methods_of(data, data.contest)) == {"youtube", "Deepfakes", "FaceSwap"}
    assert set(methods_of(data, data.rows["val"])) == {"youtube", "FaceSwap"}
    selecting, judging = people_of(data, data.rows["val"]), people_of(data, data.contest)
    assert len(selecting) == len(judging) == 12
    assert not selecting & judging
    assert np.array_equal(opened(root, contest_share=0.5).contest, data.contest)


def test_nobody_is_held_out_where_there_are_few(tmp_path: Path) -> None:
    """Nor where nobody asks: the contest is on the whole validation split then, of all methods."""
    few = opened(write_root(tmp_path / "few", pairs=(2, 9, 1), size=32), contest_share=0.5)
    for data in (few, opened(tmp_path / "few", methods=["youtube", "FaceSwap"])):
        assert not data.holds_out
        assert len(data.contest) == 9 * 2 * 3 * 2
    assert len(few.rows["val"]) == len(few.contest)


def test_the_digest_of_people_says_who_is_in_which_split(tmp_path: Path) -> None:
    """Equal at another quality, size and number of frames; another where one person moves."""
    digests = []
    for number, (pairs, frames) in enumerate((((2, 2, 1), 2), ((2, 2, 1), 3), ((3, 1, 1), 2))):
        root = write_root(tmp_path / str(number), (77, 10), pairs=pairs, frames=frames, size=32)
        digests.append([people_digest(open_shard_set(root, quality)) for quality in (77, 10)])
    (one, same), more_frames, (moved, _) = digests
    assert [one, one] == [same, same] == more_frames
    assert one != moved
