"""The records of a run on its own disk, and `sync` where it can do nothing."""

import json
import threading
from pathlib import Path

import pytest

from fdtrain.cli import main
from fdtrain.config import Config, UserError
from fdtrain.run_folder import RunFolder
from fdtrain.tracking.client import lasting_uri
from fdtrain.tracking.outbox import RECORDS, Outbox, Sent, new_folder, read_records, record_folders


def test_records_come_back_in_their_order_from_any_offset(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "a" / RECORDS)
    for step in range(5):
        outbox.append("metrics", {"step": step}, at=step)
    outbox.close()
    records = list(read_records(tmp_path / "a" / RECORDS))
    assert [(record["step"], record["time"]) for record, _ in records] == [(step, step) for step in range(5)]
    later = read_records(tmp_path / "a" / RECORDS, records[2][1])
    assert [record["step"] for record, _ in later] == [3, 4]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_that_was_cut_short_is_dropped(tmp_path: Path, cut: int) -> None:
    path = tmp_path / RECORDS
    outbox = Outbox(path)
    outbox.append("metrics", {"step": 1, "values": {"train/loss": 0.5}})
    outbox.append("metrics", {"step": 2, "values": {"train/loss": 0.5}})
    outbox.close()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - cut)
    assert [record["step"] for record, _ in read_records(path)] == [1]
    again = Outbox(path)
    again.append("metrics", {"step": 3})
    again.close()
    assert [record["step"] for record, _ in read_records(path)] == [1, 3]


def test_threads_share_a_file(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / RECORDS)
    threads = [
        threading.Thread(target=lambda: [outbox.append("metrics", {"step": step}) for step in range(200)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(record["step"] for record, _ in read_records(tmp_path / RECORDS)) == sorted([*range(200)] * 4)


@pytest.mark.parametrize("line", ["{", "[]", '{"kind": "end"}'])
def test_damage_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / RECORDS).write_text('{"kind": "end", "time": 1}\n' + line + "\n")
    with pytest.raises(UserError, match=r"records\.jsonl: damaged before byte"):
        list(read_records(tmp_path / RECORDS))
    (tmp_path / "sent.json").write_text("{}}")
    with pytest.raises(UserError, match=r"sent\.json: damaged"):
        Sent.load(tmp_path, "sqlite:///a.db")


def test_another_server_has_nothing_yet(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / RECORDS)
    outbox.append("end", {"status": "FINISHED"})
    outbox.close()
    sent = Sent("http://one", run_id="r", offsets={RECORDS: (tmp_path / RECORDS).stat().st_size})
    sent.save(tmp_path)
    assert Sent.load(tmp_path, "http://one") == sent
    assert (sent.left(tmp_path), Sent.load(tmp_path, "http://two").left(tmp_path)) == (0, 1)


def test_folders_are_counted_on(tmp_path: Path) -> None:
    for number in range(1, 4):
        folder = new_folder(tmp_path)
        assert folder.name == f"{number:03d}"
        Outbox(folder / RECORDS).close()
    assert [folder.name for folder in record_folders(tmp_path)] == ["001", "002", "003"]


def test_what_is_written_down_of_a_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert lasting_uri("sqlite:///runs/mlflow.db") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert lasting_uri("https://me:secret@host:5000/a") == "https://host:5000/a"


def test_sync_says_why_it_can_do_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fault(path: Path) -> str:
        assert main(["sync", str(path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "is no run folder" in fault(tmp_path / "none")
    assert "holds nothing for MLflow" in fault(tmp_path)
    outbox = Outbox(tmp_path / "mlflow" / "001" / RECORDS)
    outbox.append("run", {"uri": "sqlite:///a.db"})
    running = RunFolder(tmp_path)
    running.claim(resume=True)
    assert "the run is under way" in fault(tmp_path)
    assert json.loads((tmp_path / "mlflow/001" / RECORDS).read_text())["kind"] == "run"  # left as it was
    running.release()


@pytest.mark.parametrize(
    ("key", "value"),
    [("parent", "it's mine"), ("parent", ""), ("tags", {"mlflow.parentRunId": "x"}), ("tags", {"fdtrain.uid": "x"})],
)
def test_settings(key: str, value: object) -> None:
    config = Config()
    setattr(config.tracking, key, value)
    with pytest.raises(UserError, match=rf"^tracking\.{key}: "):
        config.tracking.validate()


def test_settings_without_effect() -> None:
    config = Config()
    config.tracking.enabled, config.tracking.parent = False, "sweep"
    with pytest.raises(UserError, match=r"tracking\.parent: sweep has no effect"):
        config.tracking.validate()
