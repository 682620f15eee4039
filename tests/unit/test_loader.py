"""Both loaders: the same batches for the same rows, and errors that name the sample."""

import errno
import gc
import io
import json
import os
import re
import shutil
import threading
import time
import zlib
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from datasets_shards.jpeg.mozjpeg import encode, encode_jpeg
from datasets_shards.schema import INDEX_NAME, INDEX_SCHEMA, ShardSet, ShardSetError, file_sha256, open_shard_set
from fdtrain.checkpoint import latest_checkpoint
from fdtrain.config import Config, DataConfig, RunConfig, TrainConfig
from fdtrain.data import dali
from fdtrain.data.batch import Batch
from fdtrain.data.intake import Intake
from fdtrain.data.loader import LoaderKind, choose_loader, load_batches
from fdtrain.data.plan import MicroBatch, TrainPlan
from fdtrain.data.reader import Encoded, ShardReader
from fdtrain.data.tars import LocalTars
from fdtrain.data.threads import decode_image
from fdtrain.train import train

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


def threads_of_this_process() -> set[str]:
    """DALI's own among them, which Python doesn't know of."""
    return {task.name for task in Path("/proc/self/task").iterdir()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_loader_that_is_left_early_leaves_no_thread(shard_root: Path, kind: LoaderKind) -> None:
    load(kind, open_shard_set(shard_root, 77), [np.arange(8)])  # what a library starts once and for all
    before = threads_of_this_process()
    with ShardReader(open_shard_set(shard_root, 77)) as reader:
        parts = (MicroBatch.of(np.arange(8)) for _ in range(1000))
        batches = load_batches(kind, reader, parts, batch_size=8, device=CPU, threads=2, prefetch=2)
        next(batches)
        assert len(threads_of_this_process() - before) >= 2  # one reads, others decode
        batches.close()
    deadline = time.monotonic() + 5  # Python joins a thread a moment before the system ends it
    while left := threads_of_this_process() - before:
        assert time.monotonic() < deadline, left
        time.sleep(0.001)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_batch_waits_for_its_own_images_only(shard_root: Path, kind: LoaderKind) -> None:
    """And so does the last: in between, the following ones are read and decoded while nobody asks."""

    class Gated(ShardReader):
        """Reads one batch, and the others when it is told to."""

        gate = threading.Event()
        batches = 0

        def read_batch(self, batch: MicroBatch, intake: Intake | None = None) -> list[Encoded]:
            self.batches += 1
            assert self.batches == 1 or self.gate.wait(120)
            return super().read_batch(batch, intake)

    intake = Intake()
    with Gated(open_shard_set(shard_root, 77)) as reader:
        parts = [MicroBatch.of(np.arange(start, start + 8)) for start in range(0, 48, 8)]
        batches = load_batches(kind, reader, parts, batch_size=8, device=CPU, threads=1, prefetch=3, intake=intake)
        with closing(batches):
            assert next(batches).rows.tolist() == parts[0].rows.tolist()
            while reader.batches < 2:  # its own thread comes to the gate in a moment
                time.sleep(0.001)
            assert reader.batches == 2
            reader.gate.set()
            while reader.batches < 4:  # with nobody asking
                time.sleep(0.001)
            assert [batch.rows.tolist() for batch in batches] == [part.rows.tolist() for part in parts[1:]]


def test_waiting_for_the_reader_is_not_decoding(shard_root: Path) -> None:
    class Slow(ShardReader):
        def read_batch(self, batch: MicroBatch, intake: Intake | None = None) -> list[Encoded]:
            time.sleep(0.3)
            return super().read_batch(batch, intake)

    for kind in KINDS:
        intake = Intake()
        with Slow(open_shard_set(shard_root, 77)) as reader:
            parts = [MicroBatch.of(np.arange(8))] * 5
            list(load_batches(kind, reader, parts, batch_size=8, device=CPU, threads=1, prefetch=1, intake=intake))
        seconds = intake.take_seconds()
        assert seconds["train/read_s"] >= 1.5
        assert 0 < seconds["train/decode_s"] < 1.2


class Fetching(LocalTars):
    """Tars of which one read waits for a fetch that doesn't come, until it is cancelled."""

    def __init__(self, shard_set: ShardSet) -> None:
        super().__init__(shard_set)
        self.waiting, self.cancelled, self.times = threading.Event(), threading.Event(), 0

    def read(self, name: str, offset: int, size: int) -> bytes:
        self.times += 1
        if self.times == 20:
            self.waiting.set()
            assert self.cancelled.wait(120), "nobody gave the fetch up"
            raise RuntimeError("the fetch was given up")
        return super().read(name, offset, size)

    def cancel(self) -> None:
        self.cancelled.set()


@pytest.mark.parametrize("kind", KINDS)
def test_a_loader_that_is_left_early_gives_fetches_up(shard_root: Path, kind: LoaderKind) -> None:
    shard_set = open_shard_set(shard_root, 77)
    with Fetching(shard_set) as tars, ShardReader(shard_set, tars=[tars]) as reader:
        parts = [MicroBatch.of(np.arange(8)) for _ in range(9)]
        loading = {"batch_size": 8, "device": CPU, "threads": 1, "prefetch": 2}
        batches = load_batches(kind, reader, parts, **loading)  # type: ignore[arg-type]
        next(batches)
        assert tars.waiting.wait(120)
        batches.close()
        assert tars.cancelled.is_set()
        assert tars.times == 20  # nothing else was begun meanwhile
        tars.cancelled.clear()
        again = list(load_batches(kind, reader, parts, **loading))  # type: ignore[arg-type]
        assert len(again) == 9
        assert not tars.cancelled.is_set()


@pytest.fixture
def damaged(shard_root: Path, tmp_path: Path) -> Path:
    """A root whose 6th sample (row 5) has a JPEG with a hole in it; the tar's size is as the manifest says."""
    root = Path(shutil.copytree(shard_root, tmp_path / "root"))
    index = open_shard_set(root, 77).index.read()
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
        with pytest.raises(
            ShardSetError,
            match=r"train-000000\.tar: sample .* isn't the one that was packed .*: delete ",
        ):
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
        index = open_shard_set(shard_root, 77).index.read()
        first = index.filter(pc.field("split") == "val").slice(0, 1).to_pylist()[0]
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
    assert intake.bad_samples().keys() == bad_rows
    assert capsys.readouterr().err.count("warning: skipped a bad sample: ") == 2


def pack_wrongly(root: Path, row: int, image: bytes) -> None:
    """Put another image where a row's is, padded to its size, as if it had been packed."""
    opened = open_shard_set(root, 77)
    rows = opened.index.read().to_pylist()
    image += bytes(rows[row]["size"] - len(image))
    rows[row]["crc32"] = zlib.crc32(image)
    with (opened.folder / rows[row]["shard"]).open("r+b") as tar:
        tar.seek(rows[row]["offset"])
        tar.write(image)
    path = opened.folder / INDEX_NAME
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), path)
    replace(opened.manifest, index_sha256=file_sha256(path)).save(opened.folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alone", [False, True])
def test_an_image_of_another_size_is_named_or_skipped(
    shard_root: Path, tmp_path: Path, kind: LoaderKind, alone: bool
) -> None:
    """Alone in its batch as well; and no batch is lost by it."""
    root = Path(shutil.copytree(shard_root, tmp_path / "root"))
    small = encode_jpeg(np.zeros((32, 32, 3), np.uint8), 77)
    pack_wrongly(root, 20, small)
    shard_set = open_shard_set(root, 77)
    whole = [np.arange(start, start + 8) for start in range(0, 48, 8)]
    batches = [*whole[:2], np.array([20]), *whole[3:]] if alone else whole
    message = (
        rf"sample {shard_set.index['key'][20]} at offset .*it is 32x32, the manifest says 64x64.*: delete .*q77 and"
    )
    with pytest.raises(ShardSetError, match=message):
        load(kind, shard_set, batches)
    plan = TrainPlan(np.arange(96), 0, 8, 8)
    intake = Intake(plan.substitutes, limit=1)
    with ShardReader(shard_set) as reader:
        parts = [MicroBatch.of(rows) for rows in batches]
        got = list(load_batches(kind, reader, parts, batch_size=8, device=CPU, threads=2, prefetch=2, intake=intake))
    stand_in = int(plan.substitutes(np.array([20]), 0)[0])
    expected = [[stand_in if row == 20 else row for row in rows.tolist()] for rows in batches]
    assert [batch.rows.tolist() for batch in got] == expected
    plain = load("torch", open_shard_set(shard_root, 77), [np.array(rows) for rows in expected])
    for batch, alike in zip(got, plain, strict=True):
        assert (batch.images.int() - alike.images.int()).abs().max() <= 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quality", [77, "raw"])
def test_no_damage_passes(shard_root: Path, tmp_path: Path, kind: LoaderKind, quality: int | str) -> None:
    """One wrong bit in each image, in places that decoders don't mind as well: all loaders refuse all of them."""
    root = Path(shutil.copytree(shard_root, tmp_path / "root"))
    shard_set = open_shard_set(root, quality)
    rng = np.random.default_rng(0)
    for row in shard_set.index.read().slice(0, 16).to_pylist():
        with (shard_set.folder / row["shard"]).open("r+b") as tar:
            place = row["offset"] + int(rng.integers(row["size"]))
            tar.seek(place)
            byte = tar.read(1)[0]
            tar.seek(place)
            tar.write(bytes([byte ^ 1 << int(rng.integers(8))]))
    intake = Intake(TrainPlan(np.arange(16, 96), 0, 8, 8).substitutes, limit=16)
    with ShardReader(shard_set) as reader:
        parts = [MicroBatch.of(np.arange(8)), MicroBatch.of(np.arange(8, 16))]
        list(load_batches(kind, reader, parts, batch_size=8, device=CPU, threads=2, prefetch=1, intake=intake))
    assert sorted(intake.bad_samples()) == list(range(16))
    for fault in intake.bad_samples().values():
        assert "the image there isn't the one that was packed (its CRC-32 differs); the tar is damaged" in fault
        assert fault.endswith(f": delete {shard_set.folder} and pack it again")


def test_known_bad_samples_are_not_decoded_again(
    shard_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DALI's pipeline ends with an image that it refuses; with the same image again it would end each time."""
    root = Path(shutil.copytree(shard_root, tmp_path / "root"))
    pack_wrongly(root, 5, b"no image")
    pipelines = 0
    build = dali._Pipeline.__init__

    def counted(*args: object) -> None:
        nonlocal pipelines
        pipelines += 1
        build(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(dali._Pipeline, "__init__", counted)
    rows = {}
    for kind in KINDS:
        intake = Intake(TrainPlan(np.arange(96), 0, 8, 8).substitutes, limit=1)
        with ShardReader(open_shard_set(root, 77)) as reader:
            parts = [MicroBatch.of(np.arange(8)) for _ in range(12)]
            got = load_batches(kind, reader, parts, batch_size=8, device=CPU, threads=1, prefetch=1, intake=intake)
            rows[kind] = [batch.rows.tolist() for batch in got]
    assert pipelines == 2
    assert rows["dali"] == rows["torch"]


def test_a_sample_is_bad_at_its_own_quality_alone(shard_root: Path, tmp_path: Path) -> None:
    """Or a run that is resumed, and has not met it yet, would take other rows."""
    root = Path(shutil.copytree(shard_root, tmp_path / "root"))
    pack_wrongly(root, 5, b"no image")
    for kind in KINDS:
        intake = Intake(TrainPlan(np.arange(96), 0, 8, 8).substitutes, limit=1)
        with ShardReader(open_shard_set(root, 77), open_shard_set(root, "raw")) as reader:
            parts = [MicroBatch.of(np.arange(8))._replace(qualities=np.full(8, n % 2, np.int8)) for n in range(8)]
            got = list(
                load_batches(kind, reader, parts, batch_size=8, device=CPU, threads=1, prefetch=1, intake=intake)
            )
        assert all((5 in batch.rows) == bool(number % 2) for number, batch in enumerate(got))


@pytest.mark.parametrize("fault", [errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_is_named_and_the_tar_is_opened_anew(
    shard_root: Path, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    shard_set = open_shard_set(shard_root, 77)
    key, pread, fails = shard_set.index["key"][3].as_py(), os.pread, True
    with ShardReader(shard_set) as reader:
        content = reader.read(3)
        opened = reader._sets[0].tars._open["train-000000.tar"]

        def failing(descriptor: int, size: int, offset: int) -> bytes:
            if descriptor == opened.number and fails:
                raise OSError(fault, os.strerror(fault))
            return pread(descriptor, size, offset)

        monkeypatch.setattr(os, "pread", failing)
        reason = re.escape(os.strerror(fault))
        with pytest.raises(
            ShardSetError, match=rf"train-000000\.tar: sample {key} at offset \d+: can't be read \({reason}"
        ):
            reader.read(3)
        assert reader.read(3) == content  # through another descriptor


def test_a_tar_that_may_not_be_read_is_named(shard_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard_set = open_shard_set(shard_root, 77)

    def refused(*args: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), args[0])

    monkeypatch.setattr(os, "open", refused)
    with ShardReader(shard_set) as reader, pytest.raises(ShardSetError, match=r"sample .*: can't be read \(Permission"):
        reader.read(0)


def test_what_comes_in_pieces_is_whole(shard_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard_set = open_shard_set(shard_root, 77)
    with ShardReader(shard_set) as reader:
        whole = reader.read(3)
        pread = os.pread
        monkeypatch.setattr(os, "pread", lambda tar, size, offset: pread(tar, min(size, 100), offset))
        assert reader.read(3) == whole


def test_a_broken_png_is_named(shard_root: Path) -> None:
    """Pillow has another exception for it than for a truncated one."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    content = encode(noise, "raw")  # of several chunks
    broken = content[: len(content) // 2] + bytes(len(content) // 2)
    with ShardReader(open_shard_set(shard_root, "raw")) as reader:
        with pytest.raises(SyntaxError), Image.open(io.BytesIO(broken)) as image:
            image.load()
        with pytest.raises(
            ShardSetError, match=r"raw/train-000000.tar: sample .*: does not decode \(.*: delete .*raw and"
        ):
            decode_image(reader, 0, 0, broken, np.empty((64, 64, 3), np.uint8))


@pytest.mark.parametrize("kind", KINDS)
def test_batches_may_be_kept(shard_root: Path, kind: LoaderKind) -> None:
    """DALI's own memory is handed out: it must not be used again for what comes later."""
    kept = []
    batches = [np.arange(start, start + 8) for start in range(0, 160, 8)]
    with ShardReader(open_shard_set(shard_root, 77)) as reader:
        parts = map(MicroBatch.of, batches)
        for batch in load_batches(kind, reader, parts, batch_size=8, device=CPU, threads=2, prefetch=2):
            kept.append((batch.images, batch.images.clone()))
    gc.collect()
    assert len(kept) == 20
    for images, copy in kept:
        assert torch.equal(images, copy)


@pytest.mark.parametrize("kind", KINDS)
def test_too_many_bad_samples_stop_the_run(damaged: Path, kind: LoaderKind) -> None:
    intake = Intake(TrainPlan(np.arange(96), 0, 8, 8).substitutes, limit=0)
    with ShardReader(open_shard_set(damaged, 77)) as reader:
        batches = load_batches(
            kind, reader, [MicroBatch.of(np.arange(8))], batch_size=8, device=CPU, threads=1, prefetch=1, intake=intake
        )
        with pytest.raises(ShardSetError, match=r"bad sample number 1, and data.max_bad_share allows 0"):
            list(batches)


def test_bad_samples_count_on_when_a_run_is_resumed(shard_root: Path, tmp_path: Path) -> None:
    """One is allowed. The first run meets one, the resumed one another."""
    root = Path(shutil.copytree(shard_root, tmp_path / "root"))
    data = DataConfig(root=str(root), on_bad_sample="skip", max_bad_share=0.011)
    config = Config(data=data, run=RunConfig(str(tmp_path / "run"), "auto"))
    config.model.name, config.tracking.enabled = "meso4", False
    config.train = TrainConfig(max_steps=1, global_batch_size=8, micro_batch_size=8)
    plan = TrainPlan(np.arange(96), 0, 8, 8)
    index = open_shard_set(root, 77).index.read()
    bad = [int(plan.global_batch(step)[0]) for step in (0, 1)]
    for row in index.take(bad).to_pylist():
        with (root / "q77" / row["shard"]).open("r+b") as tar:
            tar.seek(row["offset"] + 20)
            tar.write(b"\0" * (row["size"] - 20))

    train(config)
    saved = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert saved is not None
    assert list(saved.progress.bad_rows) == bad[:1]
    config.train.max_steps = 2
    with pytest.raises(ShardSetError, match=r"it is bad sample number 2, and data.max_bad_share allows 1"):
        train(config)
    config.data.max_bad_share = 0.03
    train(config)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["train/bad_samples"] for line in log if "train/bad_samples" in line] == [1, 2]


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
