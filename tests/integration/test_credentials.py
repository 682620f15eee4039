"""A server that asks for a password, and one that knows no logged models."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from fdtrain.config import Config
from fdtrain.config.credentials import move_credentials
from fdtrain.evaluation.evaluate import _file_name
from fdtrain.tracking import Tracker
from tests.mlflow_server import guarded

SECRET = "s3cr3t-pw"


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
    assert tracker.run_id
    record = MlflowClient(mlflow_server).get_run(tracker.run_id)
    assert (record.info.status, record.data.metrics) == ("FINISHED", {"val/video/auc": 0.5})
    assert capsys.readouterr().err.count("knows no logged models") == 1


def test_credentials_go_to_their_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
    assert move_credentials("https://a:b%40c@host:5000/x") == "https://host:5000/x"
    import os

    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("a", "b@c")


def test_names_never_share_a_file() -> None:
    assert _file_name("a-1") == "a-1"
    assert len({_file_name(name) for name in ("a-1", "a/1", "a 1")}) == 3
