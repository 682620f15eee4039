"""A progressive set trains, through both loaders, and evaluates like any other."""

import json
from pathlib import Path

import pytest

from datasets_shards.schema import open_shard_set
from tests.conftest import run_python, small_training
from tests.unit.conftest import datasets_shards, write_tree


@pytest.fixture(scope="module")
def progressive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a set packed with `jpeg: {mode: progressive}` in a configuration file."""
    folder = tmp_path_factory.mktemp("progressive")
    write_tree(folder / "tree", ("Deepfakes",))
    (folder / "pack.yaml").write_text(
        "jpeg:\n  mode: progressive\nqualities: [15]\nsize: 64\nframes_per_video: 4\nupsample: 0\n"
    )
    words = ("pack", "--config", folder / "pack.yaml", "--source", folder / "tree", "--out", folder / "root")
    done = datasets_shards(*words)
    assert done.returncode == 0, done.stderr
    checked = datasets_shards("verify", folder / "root/q15")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "mozjpeg progressive" in checked.stdout
    return folder / "root"


@pytest.mark.parametrize("loader", ["torch", "dali"])
def test_it_trains_and_evaluates(progressive: Path, tmp_path: Path, loader: str) -> None:
    encoder = open_shard_set(progressive, 15).manifest.encoder
    assert (encoder["mode"], encoder["table_bits"]) == ("progressive", 16)
    data = {"data__quality": 15, "loader__kind": loader, "train__epochs": 1, "train__global_batch_size": 8}
    done = run_python("-m", *small_training(progressive, tmp_path / "run", **data))
    assert done.returncode == 0, done.stderr
    words = ("--model", tmp_path / "run", "--data.root", progressive, "--data.quality", 15)
    done = run_python("-m", "fdtrain", "evaluate", *words, "--out", tmp_path / "metrics.json")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_bytes())
    trained = json.loads((tmp_path / "run/metrics.json").read_bytes())
    assert metrics["test/frame/auc"] == trained["test/frame/auc"]
    assert 0 <= metrics["test/frame/auc"] <= 1
