"""A study from the command line: real trainings by torchrun and Ray, interrupted, gone on with, partly deleted."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY, run_python
from tests.integration.test_resume import processes_of
from tests.integration.test_stopping import status_of

SETTINGS = {
    "model.drop_rate": 0.1,
    "train": {"epochs": 2, "global_batch_size": 24, "micro_batch_size": 4, "log_every": 1},
    "optim": {"lr": 3e-3, "warmup_steps": 2},
}


def write_study(file: Path, root: Path, **parts: dict) -> Path:
    """A study of one small model without drawings, in a folder beside the file."""
    content = {
        "study": {"dir": str(file.with_suffix(""))},
        "models": {"meso4": {"model.name": "meso4"}},
        "settings": SETTINGS | {"data.root": str(root)} | parts.pop("settings", {}),
        "report": {"figures": False, "faces": 0},
    }
    file.write_text(yaml.safe_dump(content | parts, sort_keys=False))
    return file


def study(file: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run_python("-m", "launch.study", "--config", file, *words)


def interrupted(file: Path, run: str, number: signal.Signals) -> tuple[int, str]:
    """Start a study, and signal it once the run in a folder of it has a step; its exit code and what it printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "launch.study", "--config", str(file)]
    log = file.with_suffix("") / run / "log.jsonl"
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            while process.poll() is None and not (log.exists() and log.stat().st_size):
                time.sleep(0.02)
            process.send_signal(number)
            return process.wait(timeout=300), process.stdout.read()  # type: ignore[union-attr]
        finally:
            process.kill()


def tables(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / "report" / "tables" / name).open() as file:
        return list(csv.DictReader(file))


@pytest.mark.long
def test_a_study_is_interrupted_goes_on_is_finished_and_does_one_cell_again(shard_root: Path, tmp_path: Path) -> None:
    file = write_study(
        tmp_path / "small.yaml",
        shard_root,
        axes={"data.quality": [77, "raw"]},
        settings={"train": SETTINGS["train"] | {"global_batch_size": 4}, "tracking.enabled": False},
        evaluate={"qualities": [77, "raw"]},
    )
    folder = file.with_suffix("")
    code, printed = interrupted(file, ".study/tried/meso4-q77", signal.SIGINT)
    assert code == 128 + signal.SIGINT
    assert processes_of(folder) == []
    assert not (folder / ".study" / "tried").exists()
    assert not (folder / "meso4-q77").exists()

    code, printed = interrupted(file, "meso4-q77", signal.SIGINT)
    assert code == 128 + signal.SIGINT
    assert re.search("meso4-q77: some steps are tried, for the time it takes\nmeso4-q77: about .+\n", printed)
    assert re.search("0 of 2 trainings done; the rest takes about .*, one at a time\n\\[1/2\\] meso4-q77", printed)
    assert "the same command goes on from here" in printed
    assert processes_of(folder) == []
    assert status_of(folder / "meso4-q77")["state"] == "preempted"
    assert not (folder / "meso4-raw").exists()
    before = status_of(folder / "meso4-q77")["step"]

    done = study(file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"meso4-q77  goes on  after step {before} of 48; preempted: SIGUSR1; about" in done.stdout
    assert "by its first steps" in done.stdout
    assert "some steps are tried" not in done.stdout  # that is known by now
    assert re.search("^cell +AUC +bACC +ACC +F1 +AUC +bACC +ACC +F1 ", done.stdout, re.MULTILINE)
    assert "matrix: test/video/auc, tested on:\nmodel " in done.stdout
    assert f"resumed after step {before}" in (folder / "logs" / "meso4-q77.log").read_text()
    assert [row["missing"] for row in tables(folder, "study-cells.csv")] == ["", ""]
    assert [row["model"] for row in tables(folder, "matrix-1.csv")] == ["meso4-q77", "meso4-raw"]

    pages = [folder / "report" / "index.html", folder / "matrix" / "matrix.parquet", folder / "study.json"]
    times = [path.stat().st_mtime_ns for path in pages]
    again = study(file)
    assert again.returncode == 0
    assert "2 of 2 trainings done" in again.stdout
    assert "study small: finished already; nothing to do" in again.stdout
    assert [path.stat().st_mtime_ns for path in pages] == times

    kept, shown = status_of(folder / "meso4-q77"), done.stdout.splitlines()
    shutil.rmtree(folder / "meso4-raw")
    one = study(file)
    assert one.returncode == 0, one.stdout + one.stderr
    assert "1 of 2 trainings done; the rest takes about" in one.stdout
    assert "[1/1] meso4-raw: training" in one.stdout
    assert status_of(folder / "meso4-q77") == kept
    assert pages[0].stat().st_mtime_ns > times[0]
    assert "meso4-q77 on q77: taken from" in (folder / "logs" / "matrix.log").read_text()
    # The same numbers as before, since a cell follows from its settings.
    assert [line for line in shown if line.startswith("meso4-raw   ")] == [
        line for line in one.stdout.splitlines() if line.startswith("meso4-raw   ")
    ]


@pytest.mark.long
def test_a_cell_that_fails_at_once_is_not_timed_and_shown_as_missing(shard_root: Path, tmp_path: Path) -> None:
    train = SETTINGS["train"] | {"max_nonfinite_steps": 0}
    file = write_study(tmp_path / "bad.yaml", shard_root, settings={"train": train, "optim.lr": 1e30})
    done = study(file)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "meso4: not known how long it takes: " in done.stdout
    unknown = "0 of 1 trainings done; one at a time; how long the rest takes is unknown"
    assert done.stdout.count(unknown) == 2  # before and after the try
    assert "missing      meso4: failed: FloatingPointError: step 2: the loss" in done.stderr


@pytest.mark.long
def test_over_ray_a_cell_that_fails_is_shown_as_missing_and_stops_no_other(shard_root: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    axes = {"rate": {"good": {"optim.lr": 3e-3}, "bad": {"optim.lr": 1e30}}, "seed": [0]}
    file = write_study(
        tmp_path / "over-ray.yaml",
        shard_root,
        runner={"kind": "ray", "cpus": 1},
        axes=axes,
        settings={"train": SETTINGS["train"] | {"max_nonfinite_steps": 0}},
    )
    folder = file.with_suffix("")
    done = study(file)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "by Ray started here, 1 node: 1 CPUs and 0 GPUs for each training" in done.stdout
    assert re.search("meso4-good-seed0: about .+\n0 of 2 trainings done; the rest takes about", done.stdout)
    assert status_of(folder / "meso4-good-seed0")["state"] == "finished"
    assert "missing      meso4-bad-seed0: failed: FloatingPointError: step 2: the loss" in done.stderr
    good, bad = tables(folder, "study-cells.csv")
    assert (good["rate"], good["missing"]) == ("good", "")
    assert 0 <= float(good["AUC per video"]) <= 1
    assert bad["AUC per video"] == ""
    assert "meso4-bad-seed0: failed: FloatingPointError" in bad["missing"]
    seeds = {row["cells"]: row["seeds"] for row in tables(folder, "study-video.csv")}
    assert seeds == {"meso4-good": "1 of 1", "meso4-bad": "0 of 1"}

    from mlflow import MlflowClient

    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("fdtrain")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.info.run_name == "over-ray"]
    assert parent.info.status == "FAILED"  # as long as a cell is missing
    assert parent.data.tags["axis.rate"] == "good, bad"
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 2
    assert "report/index.html" in [entry.path for entry in client.list_artifacts(parent.info.run_id, "report")]
