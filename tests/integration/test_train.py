"""One training after another against a real MLflow server: run folder, metrics, registry, champion."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from datasets_shards.schema import open_shard_set
from fdtrain.cli import main
from fdtrain.data.loader import load_batches
from fdtrain.data.plan import evaluation_batches
from fdtrain.data.reader import ShardReader
from fdtrain.data.rows import split_rows
from fdtrain.metrics import PREDICTION_SCHEMA, compute_metrics
from fdtrain.models import load_model
from tests.conftest import run_python, small_training, torchrun


@pytest.fixture(scope="module")
def trained(shard_root: Path, mlflow_server: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of eight epochs on two ranks, recorded on the server."""
    run = tmp_path_factory.mktemp("runs") / "first"
    os.environ["MLFLOW_TRACKING_URI"] = mlflow_server
    words = small_training(shard_root, run, train__epochs=8, tracking__enabled="true", train__log_every=2)
    done = torchrun(2, *words)
    assert done.returncode == 0, done.stderr
    return run, done.stdout


@pytest.fixture
def on_server(mlflow_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    return mlflow_server


def test_the_run_folder_is_complete(trained: tuple[Path, str], shard_root: Path) -> None:
    run, output = trained
    assert json.loads((run / "status.json").read_bytes())["state"] == "finished"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["root"] == str(shard_root)
    assert config["train"]["epochs"] == 8
    card = json.loads((run / "best/model.json").read_bytes())
    assert card["trained_on"]["crop"] == open_shard_set(shard_root, 77).manifest.crop
    assert "precision fp32 (a CPU gains nothing from less)" in output
    assert "2 ranks over gloo on CPU" in output
    metrics = json.loads((run / "metrics.json").read_bytes())
    shard_set = open_shard_set(shard_root, 77)
    for split in ("val", "test"):
        table = pq.read_table(run / "predictions" / f"{split}.parquet")
        assert table.schema == PREDICTION_SCHEMA
        expected = shard_set.index.take(split_rows(shard_set, split), "key")["key"].to_pylist()
        assert table["key"].to_pylist() == expected  # each sample once, in the order of the index
        for name, value in compute_metrics(table, split).items():
            assert metrics[name] == pytest.approx(value), name
    assert {"test/video/auc/FaceSwap", "test/frame/f1/Deepfakes", "val/video/acc"} <= metrics.keys()


def test_mlflow_has_everything(trained: tuple[Path, str], on_server: str, shard_root: Path) -> None:
    from mlflow import MlflowClient

    run, _ = trained
    client = MlflowClient(on_server)
    version = client.get_model_version_by_alias("fdtrain-meso4-q77", "champion")
    record = client.get_run(version.run_id)
    assert record.info.status == "FINISHED"
    assert record.data.params["train.micro_batch_size"] == "4"
    assert record.data.tags["data.digest"] == open_shard_set(shard_root, 77).manifest.digest
    assert record.data.tags["git.revision"]
    steps = [metric.step for metric in client.get_metric_history(version.run_id, "train/loss")]
    assert steps == list(range(2, 33, 2))
    metrics = json.loads((run / "metrics.json").read_bytes())
    assert record.data.metrics["test/video/auc"] == pytest.approx(metrics["test/video/auc"])
    names = {artifact.path for artifact in client.list_artifacts(version.run_id)}
    assert {"config.yaml", "metrics.json", "val.parquet", "test.parquet"} <= names
    assert version.description.startswith("# fdtrain-meso4-q77\n")
    assert version.tags["data.digest"] == record.data.tags["data.digest"]
    assert float(version.tags["val/video/auc"]) == pytest.approx(metrics["val/video/auc"])


def test_the_champion_gives_the_scores_of_the_run(
    trained: tuple[Path, str], on_server: str, shard_root: Path, tmp_path: Path
) -> None:
    import mlflow

    mlflow.set_tracking_uri(on_server)
    model = mlflow.pytorch.load_model("models:/fdtrain-meso4-q77@champion")
    shard_set = open_shard_set(shard_root, 77)
    rows = split_rows(shard_set, "test")
    parts = list(evaluation_batches(rows, 16, 0, 1))
    with ShardReader(shard_set) as reader, torch.inference_mode():
        batches = load_batches("torch", reader, parts, batch_size=16, device=torch.device("cpu"), threads=1, prefetch=1)
        # meso4 takes the pixels on a scale of 0 to 1.
        scores = torch.cat([model(batch.images / 255).softmax(1)[:, 1] for batch in batches])
    predicted = pq.read_table(trained[0] / "predictions" / "test.parquet")["score"].to_numpy()
    np.testing.assert_allclose(scores.numpy(), predicted, atol=1e-6)
    served = mlflow.pyfunc.load_model("models:/fdtrain-meso4-q77@champion")
    with ShardReader(shard_set) as reader:
        np.testing.assert_allclose(served.predict([reader.read(row) for row in rows.tolist()]), predicted, atol=1e-5)

    out = tmp_path / "metrics.json"
    words = ["-m", "fdtrain", "evaluate", "--data.root", shard_root, "--data.quality", 77, "--out", out, "--model"]
    done = run_python(*words, "models:/fdtrain-meso4-q77@champion")
    assert done.returncode == 0, done.stderr
    evaluated = pq.read_table(out.with_suffix(".parquet"))["score"].to_numpy()
    np.testing.assert_allclose(evaluated, predicted, atol=1e-6)


def test_a_worse_model_does_not_become_champion(
    trained: tuple[Path, str], on_server: str, shard_root: Path, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    words = small_training(shard_root, tmp_path / "worse", train__max_steps=1, optim__lr=1e-7, tracking__enabled="true")
    done = torchrun(2, *words)
    assert done.returncode == 0, done.stderr
    assert "version 2: challenger (version 1 stays champion, since there is no interval" in done.stdout
    client = MlflowClient(on_server)
    assert client.get_model_version_by_alias("fdtrain-meso4-q77", "champion").version == "1"
    assert client.get_model_version_by_alias("fdtrain-meso4-q77", "challenger").version == "2"
    assert len(client.search_model_versions("name='fdtrain-meso4-q77'")) == 2


def test_evaluation_is_the_same_on_any_number_of_ranks(
    trained: tuple[Path, str], shard_root: Path, tmp_path: Path
) -> None:
    outputs = []
    for ranks in (1, 2, 3):
        out = tmp_path / f"{ranks}.json"
        words = ["--model", trained[0], "--data.root", shard_root, "--data.quality", "raw", "--out", out]
        done = torchrun(ranks, "fdtrain", "evaluate", *words, "--batch_size", 5)
        assert done.returncode == 0, done.stderr
        outputs.append((out.read_bytes(), out.with_suffix(".parquet").read_bytes()))
    assert outputs[0] == outputs[1] == outputs[2]


def validated(root: Path, run: Path, ranks: int) -> tuple[dict[str, float], np.ndarray, dict[str, torch.Tensor]]:
    """Validation metrics, validation scores and weights after 8 steps of 4 micro-batches."""
    settings = {"train__max_steps": 8, "train__global_batch_size": 16, "optim__lr": 1e-3, "loader__kind": "torch"}
    words = small_training(root, run, checkpoint__every_steps=99, **settings)
    done = torchrun(ranks, *words)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((run / "metrics.json").read_bytes())
    scores = pq.read_table(run / "predictions/val.parquet")["score"].to_numpy()
    defined = {name: value for name, value in metrics.items() if name.startswith("val/") and value is not None}
    return defined, scores, load_model(run).state_dict()


@pytest.fixture(scope="module")
def on_one_rank(shard_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """What `validated` gives there."""
    return validated(shard_root, tmp_path_factory.mktemp("worlds") / "run", 1)


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.long), 4])
def test_validation_is_the_same_on_any_number_of_ranks(
    on_one_rank: tuple[Any, ...], shard_root: Path, tmp_path: Path, ranks: int
) -> None:
    """The averages of batch normalization among the weights; what differs is the order of sums."""
    metrics, scores, state = validated(shard_root, tmp_path / "run", ranks)
    assert metrics == pytest.approx(on_one_rank[0], rel=1e-5)
    assert np.ptp(scores) > 1e-4
    np.testing.assert_allclose(scores, on_one_rank[1], rtol=0, atol=1e-6)
    for name, value in state.items():
        torch.testing.assert_close(value, on_one_rank[2][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_trains(shard_root: Path, tmp_path: Path, precision: str) -> None:
    run = tmp_path / "run"
    words = small_training(shard_root, run, precision=precision, train__max_steps=3, loader__kind="dali")
    done = torchrun(2, *words)
    assert done.returncode == 0, done.stderr
    assert f"precision {precision} (as configured)" in done.stdout
    assert "loader dali (as configured)" in done.stdout
    losses = [json.loads(line).get("train/loss") for line in (run / "log.jsonl").read_text().splitlines()]
    assert any(loss is not None and 0 < loss < 5 for loss in losses)
    # What it says of the test split is what anybody else finds.
    words = ["--model", run, "--data.root", shard_root, "--data.quality", 77, "--out", tmp_path / "metrics.json"]
    assert main(["evaluate", *map(str, words), "--batch_size", "4"]) == 0
    scores, own = (pq.read_table(path) for path in (tmp_path / "metrics.parquet", run / "predictions/test.parquet"))
    np.testing.assert_allclose(scores["score"].to_numpy(), own["score"].to_numpy(), rtol=0, atol=1e-7)


def test_a_second_run_into_the_folder_is_refused_in_one_line(trained: tuple[Path, str], shard_root: Path) -> None:
    before = (trained[0] / "status.json").read_bytes()
    done = run_python("-m", *small_training(shard_root, trained[0]))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "holds a run already" in done.stderr
    assert (trained[0] / "status.json").read_bytes() == before


def test_one_class_is_said_once_and_gives_no_best_value(shard_root: Path, tmp_path: Path) -> None:
    words = small_training(shard_root, tmp_path / "run", data__methods="[Deepfakes]", train__max_steps=1)
    done = run_python("-m", *words)
    assert done.returncode == 0, done.stderr
    for split in ("train", "val"):
        assert done.stdout.count(f"warning: the split '{split}' has no real samples: AUC and all else") == 1
    assert "the split 'test'" not in done.stdout
    assert "val/video/auc undefined, val/video/acc" in done.stdout
    assert "nan" not in done.stdout
    assert "best so far" not in done.stdout
