"""A server that asks for a password, and one that knows no logged models."""

import os
from pathlib import Path

import pytest
from mlflow import MlflowClient

from fdtrain.config import Config
from fdtrain.config.credentials import move_credentials
from fdtrain.doctor.service import check_mlflow
from fdtrain.evaluation.evaluate import _file_name
from fdtrain.tracking import Tracker
from tests.conftest import run_python, small_training
from tests.mlflow_server import guarded

SECRET = "s3cr3t-pw"


@pytest.mark.parametrize("given", ["variable", pytest.param("flag", marks=pytest.mark.long)])
def test_a_password_is_written_nowhere(
    given: str, shard_root: Path, mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the run's folder, its records, files and database of the server, the page, nor in what is printed."""
    run, page = tmp_path / "run", tmp_path / "page"
    with guarded(mlflow_server, f"ann:{SECRET}") as gate:
        secret = gate.replace("//", f"//ann:{SECRET}@")
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        flag = [f"--tracking.uri={secret}"] if given == "flag" else []
        if not flag:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", secret)
        words = small_training(shard_root, run, train__epochs=1, tracking__enabled="true", tracking__register="true")
        calls = [[*words, *flag], ["fdtrain", "doctor", *flag]]
        if not flag:  # these go by the variable alone
            calls += [["fdtrain", "sync", run], ["fdtrain", "report", "--out", page, "--no_figures", run]]
        done = [run_python("-m", *call, cwd=tmp_path) for call in calls]
    assert [one.returncode for one in done] == [0] * len(done), [one.stderr for one in done]
    said = "".join(one.stdout + one.stderr for one in done)
    assert "registered fdtrain-meso4-q77 version" in said
    assert f"{gate} answers" in said
    assert SECRET not in said
    client = MlflowClient(mlflow_server)
    records = client.search_runs([client.get_experiment_by_name("fdtrain").experiment_id])
    assert records[0].info.status == "FINISHED"
    folders = [tmp_path, *tmp_path.parent.glob("mlflow*")]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert {"config.yaml", "model.pt2"} <= {path.name for path in files}
    assert any(path.suffix == ".db" for path in files)
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_a_server_without_logged_models(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with guarded(mlflow_server, missing="logged-models") as gate:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", gate)
        tracker = Tracker(Config(), tmp_path / "old", {})
        for step in (1, 2):
            tracker.log_metrics({"val/video/auc": 0.5}, step, tmp_path)
        tracker.log_best(2, tmp_path, None)
        tracker.close("FINISHED")
        (finding,) = check_mlflow(gate)
    assert tracker.run_id
    record = MlflowClient(mlflow_server).get_run(tracker.run_id)
    assert (record.info.status, record.data.metrics) == ("FINISHED", {"val/video/auc": 0.5})
    assert (finding.level, "knows no logged models" in finding.detail) == ("warning", True)
    assert capsys.readouterr().err.count("knows no logged models") == 1


def test_credentials_go_to_their_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
    assert move_credentials("https://a:b%40c@host:5000/x") == "https://host:5000/x"
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("a", "b@c")


def test_names_never_share_a_file() -> None:
    assert _file_name("a-1") == "a-1"
    assert len({_file_name(name) for name in ("a-1", "a/1", "a 1")}) == 3
