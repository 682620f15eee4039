"""The sqlite database of MLflow, and the artifacts beside it."""

from pathlib import Path

from fdtrain.tracking import connect
from fdtrain.tracking.client import experiment_id


def test_a_database_that_was_moved_finds_the_artifacts_beside_it(tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("x")
    uri = f"sqlite:///{tmp_path / 'old place/mlflow.db'}"
    client = connect(uri)
    experiment = experiment_id(client, uri, "fdtrain")
    assert client.get_experiment(experiment).tags["mlflow.experimentKind"] == "custom_model_development"
    run = client.create_run(experiment).info.run_id
    client.log_artifact(run, str(tmp_path / "a file"))
    (tmp_path / "old place").rename(tmp_path / "new")
    moved = connect(f"sqlite:///{tmp_path / 'new/mlflow.db'}")
    assert [artifact.path for artifact in moved.list_artifacts(run)] == ["a file"]
    assert moved.get_run(run).info.artifact_uri == f"{(tmp_path / 'new/mlartifacts').as_uri()}/{run}/artifacts"
