"""Sets that aren't finished, and several packers at one root."""

import errno
import fcntl
import json
import threading
import zlib
from pathlib import Path

import pytest

from datasets_shards.crops.align import CropSettings
from datasets_shards.errors import InputError
from datasets_shards.jpeg.settings import JpegSettings
from datasets_shards.schema import INDEX_SCHEMA, file_sha256
from datasets_shards.shards.layout import Layout, Shard
from datasets_shards.shards.ledger import Ledger
from datasets_shards.shards.pack import finish_sets
from datasets_shards.shards.request import PackRequest
from datasets_shards.shards.root import Task, locked_root
from datasets_shards.shards.tarwriter import TarWriter

PLAN = {"manifest": {"crop": {"size": 256}}, "shards": {"train-000000.tar": 1}}


def write_tar(ledger: Ledger, name: str, folder: Path) -> None:
    tar = TarWriter(ledger.folder / name, folder)
    tar.add_sample("key", {"jpg": b"image", "cls": b"0"})
    ledger.record(name, tar.close(), [zlib.crc32(b"image")])
    tar.publish()


def begun(root: Path, plan: dict | None = None) -> Ledger:
    ledger = Ledger(root, 77)
    ledger.begin(plan or PLAN)
    return ledger


def test_another_task_may_finish_a_tar_at_any_moment(tmp_path: Path) -> None:
    with locked_root(tmp_path, Task(0, 2)) as folder:
        mine, other = begun(tmp_path), begun(tmp_path)
        writer = threading.Thread(target=lambda: [write_tar(other, f"train-{i:06d}.tar", folder) for i in range(150)])
        writer.start()
        seen = 0
        while writer.is_alive():
            seen = len(mine.finished())
        writer.join()
        assert len(mine.finished()) == 150 >= seen
        assert mine.crcs("train-000149.tar") == [zlib.crc32(b"image")]


def test_tasks_that_began_otherwise_at_the_same_moment(tmp_path: Path) -> None:
    """Each found no plan and wrote its own: what the one packs, the other doesn't take."""
    with locked_root(tmp_path, Task(0, 2)) as folder:
        mine = begun(tmp_path)
        (tmp_path / ".packing/q77.json").unlink()
        other = begun(tmp_path, PLAN | {"shards": {}})
        write_tar(other, "train-000000.tar", folder)
        with pytest.raises(InputError, match=r"train-000000.tar: was packed with other settings than this call has"):
            mine.finished()


def test_simultaneous_tasks_begin_the_same_set(tmp_path: Path) -> None:
    errors: list[Exception] = []

    def begin() -> None:
        try:
            begun(tmp_path)
        except (InputError, OSError) as error:
            errors.append(error)

    (tmp_path / ".packing").mkdir()
    for _ in range(20):
        tasks = [threading.Thread(target=begin) for _ in range(8)]
        for task in tasks:
            task.start()
        for task in tasks:
            task.join()
        (tmp_path / ".packing/q77.json").unlink()
    assert errors == []


def test_two_packers_of_one_shard_do_not_mix(tmp_path: Path) -> None:
    """Tasks of another count may own the same shard; each writes a whole tar."""
    with locked_root(tmp_path, Task(0, 2)) as one, locked_root(tmp_path, Task(0, 4)) as two:
        ledger = begun(tmp_path)
        tars = [TarWriter(ledger.folder / "train-000000.tar", folder) for folder in (one, two)]
        for key in ("a", "b"):
            for tar in tars:
                tar.add_sample(key, {"jpg": b"image" * 1000})
        for tar in tars:
            entry = tar.close()
            ledger.record("train-000000.tar", entry, [0, 0])
            tar.publish()
            assert file_sha256(tar.path) == entry.sha256
        assert list(ledger.finished()) == ["train-000000.tar"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / ".packing/q77/train-000000.json").unlink(), "no packer recorded this tar; delete it"),
        (lambda root: (root / ".packing/q77/train-000000.json").write_text("{"), "not readable as JSON"),
        (lambda root: (root / ".packing/q77/train-000000.json").write_text("[]"), "not what a packer writes"),
        (lambda root: (root / "q77/train-000000.idx").unlink(), r"isn't what was packed \(10240 bytes and an index\)"),
        (lambda root: (root / "q77/train-000000.tar").write_bytes(b"short"), "isn't what was packed"),
    ],
)
def test_what_is_not_as_recorded_is_named(tmp_path: Path, damage, message: str) -> None:
    with locked_root(tmp_path) as folder:
        ledger = begun(tmp_path)
        write_tar(ledger, "train-000000.tar", folder)
        damage(tmp_path)
        with pytest.raises(InputError, match=message):
            ledger.finished()


@pytest.mark.parametrize("change", [{"bytes": None}, {"crc32": None}, {"crc32": []}, {"more": 1}])
def test_a_record_of_another_form(tmp_path: Path, change: dict) -> None:
    with locked_root(tmp_path) as folder:
        ledger = begun(tmp_path)
        write_tar(ledger, "train-000000.tar", folder)
        path = tmp_path / ".packing/q77/train-000000.json"
        content = json.loads(path.read_bytes()) | change
        content = {name: value for name, value in content.items() if value is not None}
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match="not the record of a tar"):
            ledger.finished()


def test_what_killed_packers_left_is_swept(tmp_path: Path) -> None:
    with locked_root(tmp_path) as folder:
        write_tar(begun(tmp_path), "train-000000.tar", folder)
    for name in (".packing/.q77.json.part-1a", "q77/.manifest.json.part-1a", ".faces.parquet.part-1a"):
        (tmp_path / name).touch()
    (tmp_path / ".packing/work-task-0-of-3").mkdir()
    with locked_root(tmp_path):
        left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert not [name for name in left if ".part-" in name]
    assert not (tmp_path / ".packing/work-task-0-of-3").exists()
    assert {"q77/train-000000.tar", "q77/train-000000.idx", ".packing/q77.json"} <= left


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch, capsys) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    (tmp_path / ".packing/work-of-somebody").mkdir(parents=True)
    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked_root(tmp_path):
        assert (tmp_path / ".packing/work-of-somebody").exists()  # who may be at work
    assert "can't be locked (Function not implemented); take care that nobody else is at it" in capsys.readouterr().out


def test_a_record_is_durable_before_its_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash may keep any names that weren't synced: a tar's must never be kept without its record's."""
    (tmp_path / ".packing").mkdir()
    ledger = begun(tmp_path)
    synced: list[Path] = []
    monkeypatch.setattr("datasets_shards.shards.ledger.sync_path", synced.append)
    monkeypatch.setattr("datasets_shards.shards.tarwriter.sync_path", synced.append)
    write_tar(ledger, "train-000000.tar", tmp_path)
    assert synced == [tmp_path / ".packing/q77", ledger.folder]


class Name(str):
    """A tar's name that counts how often names are compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Name.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_whose_tars_are_missing_is_told_in_one_pass(tmp_path: Path) -> None:
    """Each name was looked for among all of them: hundreds of millions of comparisons for ten times FF++."""
    (tmp_path / ".packing").mkdir()
    shards = [Shard(Name(f"train-{i:06d}.tar"), "train", []) for i in range(300)]
    layout = Layout(shards, {}, INDEX_SCHEMA.empty_table(), "c23", {})
    request = PackRequest(None, None, layout, CropSettings(), JpegSettings())  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"300 of 300 tars are missing \(of tasks 0, 1, 2 of 3\): train-000000.tar, "):
        finish_sets(request, {77: begun(tmp_path)}, 3)
    assert Name.compared < len(shards)
