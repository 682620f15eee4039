"""What the runs of trials that were ended from outside are left with."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from mlflow import MlflowClient

from fdtrain.run_folder import RunFolder
from launch.sweep.config import SweepConfig
from launch.sweep.plan import Plan, make_plan
from launch.sweep.records import settle
from launch.sweep.study import Epoch, Study
from tests.conftest import REPOSITORY
from tests.mlflow_server import free_port

RUN = """
import sys, time
from pathlib import Path
from fdtrain.config import Config
from fdtrain.run_folder import RunFolder
from fdtrain.tracking.tracker import Tracker

run = RunFolder(Path(sys.argv[1]))
run.claim(resume=False)
run.write_status("running", step=6)
config = Config()
config.tracking.uri = sys.argv[2]
tracker = Tracker(config, run.path, {})
tracker.log_metrics({"val/video/auc": 0.75}, 6)
if sys.argv[3] == "finished":
    run.write_status("finished", step=6)
    tracker.close("FINISHED")
while not tracker.run_id and not tracker.fault:
    time.sleep(0.1)
print("ready", flush=True)
time.sleep(600)
"""
"""A training that holds its folder and has told MLflow of itself."""


def plan_in(folder: Path) -> Plan:
    base = str(REPOSITORY / "configs" / "meso4.yaml")
    settings = {"data.root": "somewhere", "train.epochs": 3}
    space = {"optim.lr": {"loguniform": [1e-4, 1e-2]}}
    return make_plan(SweepConfig(base=base, settings=settings, space=space, trials=1, storage=str(folder)), 77)


def training(plan: Plan, number: int, state: str, uri: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    words = [sys.executable, "-c", RUN, str(plan.trial_folder(number)), uri, state]
    process = subprocess.Popen(
        words, env=environment | {"PYTHONPATH": str(REPOSITORY)}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def one_trial(plan: Plan, state: str) -> Study:
    study = Study(plan, resume=False)
    number = study.ask()
    study.report(number, Epoch(1, 0.75, 2.0))
    study.end(number, state, 5.0)  # type: ignore[arg-type]
    return study


def status_in_mlflow(uri: str) -> str:
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("fdtrain").experiment_id])
    assert run.data.metrics["val/video/auc"] == 0.75
    return run.info.status


def test_a_stopped_trial_whose_process_is_still_there_is_waited_for(tmp_path: Path) -> None:
    """Ray kills its workers, and doesn't say when they are gone."""
    plan = plan_in(tmp_path)
    study = one_trial(plan, "stopped")
    process = training(plan, 0, "stopped", plan.base.tracking.uri)
    timer = threading.Timer(2.0, process.kill)
    timer.start()
    settle(study)
    timer.join()
    process.wait(300)
    assert RunFolder(plan.trial_folder(0)).status()["state"] == "preempted"
    assert status_in_mlflow(plan.base.tracking.uri) == "KILLED"


def test_what_a_finished_trial_could_not_send_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its server wasn't there while it ran; another is when the sweep ends."""
    nobody = f"http://127.0.0.1:{free_port()}"
    there = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", nobody)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    plan = plan_in(tmp_path)
    study = one_trial(plan, "finished")
    training(plan, 0, "finished", nobody).kill()

    settle(study)
    assert f"MLflow at {nobody} is not taking records" in capsys.readouterr().err

    monkeypatch.setenv("MLFLOW_TRACKING_URI", there)
    settle(study)
    assert capsys.readouterr().err == ""
    assert RunFolder(plan.trial_folder(0)).status()["state"] == "finished"
    assert status_in_mlflow(there) == "FINISHED"
