"""The batch scripts on a real Slurm of two nodes."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from datasets_shards.schema import open_shard_set
from tests.conftest import REPOSITORY, last_step, small_training
from tests.slurm.conftest import Cluster, until
from tests.unit.conftest import write_tree

STEPS = 80


def output(folder: Path, job: str) -> str:
    """What the jobs of an id wrote, in the order of their names."""
    return "".join(path.read_text(errors="replace") for path in sorted(folder.glob(f"slurm-*-{job}*.out")))


def words_of(root: Path, run: Path, **overrides: object) -> list[str]:
    """Words for a training, without the module's name: dropout, accumulation, balance, augmentation, averages."""
    settings = {
        "train__epochs": 99,
        "train__max_steps": STEPS,
        "train__log_every": 1,
        "checkpoint__every_steps": 1000,
        "data__balance": "method",
        "augment__preset": "deepfakebench",
        "optim__ema_decay": 0.9,
    }
    return small_training(root, run, **settings | overrides)[1:]


@pytest.mark.long
def test_a_training_requeued_twice_ends_as_one_that_was_left_alone(
    slurm: Cluster, shard_root: Path, tmp_path: Path
) -> None:
    """Two nodes; once the batch shell is warned as before the time limit, once Slurm takes the nodes away."""
    left_alone, disturbed = tmp_path / "left-alone", tmp_path / "disturbed"
    job = slurm.submit("train.sbatch", *words_of(shard_root, left_alone), cwd=tmp_path, FDTRAIN_NODES=2)
    facts = slurm.wait(job)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("COMPLETED", "0:0", "0"), output(tmp_path, job)

    job = slurm.submit("train.sbatch", *words_of(shard_root, disturbed), cwd=tmp_path, FDTRAIN_NODES=2)
    stops = []
    for disturbance in (("scancel", "--signal=USR1", "--batch"), ("scontrol", "requeue")):
        began = stops[-1] if stops else 0
        goal = began + STEPS // 4

        def trained(goal: int = goal) -> bool:
            slurm.hasten(job)
            return last_step(disturbed) >= goal

        until(trained, 200, lambda: output(tmp_path, job))
        slurm.call(*disturbance, job)
        until(lambda: status_of(disturbed)["state"] == "preempted", 120, lambda: output(tmp_path, job))
        until(lambda: slurm.job(job)["JobState"] == "PENDING", 120, lambda: slurm.job(job))
        stops.append(status_of(disturbed)["step"])
        assert goal <= stops[-1] < STEPS
    facts = slurm.wait(job)
    log = output(tmp_path, job)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("COMPLETED", "0:0", "2"), log
    print(log)  # pytest -s shows it
    for number, step in enumerate(stops):
        assert f"start {number + 1} on n[1-2]: {disturbed}, which was preempted" in log
        assert f"resumed after step {step}" in log
    assert log.count("requeued, to go on from the checkpoint") == 1  # the other time Slurm did it by itself
    assert status_of(disturbed)["state"] == "finished"

    files = {path.relative_to(left_alone) for path in left_alone.rglob("*.safetensors")}
    assert files
    files.add(Path("predictions/test.parquet"))
    assert [name for name in files if (left_alone / name).read_bytes() != (disturbed / name).read_bytes()] == []
    assert losses_of(left_alone) == losses_of(disturbed)


def status_of(run: Path) -> dict:
    return json.loads((run / "status.json").read_bytes())


def losses_of(run: Path) -> dict[int, float]:
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    losses = {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}
    assert len(losses) == STEPS
    return losses


def test_an_array_trains_one_run_for_each_quality_and_says_which_failed(
    slurm: Cluster, shard_root: Path, tmp_path: Path
) -> None:
    words = words_of(shard_root, tmp_path / "run", train__max_steps=2)
    job = slurm.submit("train_array.sbatch", *words, cwd=tmp_path, FDTRAIN_QUALITIES="raw 15")
    good, bad = slurm.wait(f"{job}_0"), slurm.wait(f"{job}_1")
    log = output(tmp_path, job)
    assert (good["JobState"], good["ExitCode"]) == ("COMPLETED", "0:0"), log
    assert status_of(tmp_path / "run-raw")["state"] == "finished"
    assert (bad["JobState"], bad["ExitCode"]) == ("FAILED", "1:0"), log  # shard_root has no q15
    assert f"slurm: error: {tmp_path / 'run-q15'}: " in log


@pytest.mark.long
def test_a_task_of_an_array_is_requeued_alone(slurm: Cluster, shard_root: Path, tmp_path: Path) -> None:
    """The array's last task, whose own job id is that of the whole array."""
    words = words_of(shard_root, tmp_path / "run")
    job = slurm.submit("train_array.sbatch", *words, cwd=tmp_path, FDTRAIN_QUALITIES="77 raw")
    until(lambda: last_step(tmp_path / "run-raw") >= 5, 300, lambda: output(tmp_path, job))
    slurm.call("scancel", "--signal=USR1", "--batch", f"{job}_1")
    until(lambda: status_of(tmp_path / "run-raw")["state"] == "preempted", 300, lambda: output(tmp_path, job))
    ended = {name: slurm.wait(f"{job}_{task}") for task, name in enumerate(("run-77", "run-raw"))}
    log = output(tmp_path, job)
    assert [facts["JobState"] for facts in ended.values()] == ["COMPLETED", "COMPLETED"], log
    assert [facts["Restarts"] for facts in ended.values()] == ["0", "1"], log
    assert status_of(tmp_path / "run-raw")["state"] == "finished"


@pytest.mark.long
def test_a_job_of_a_higher_claim_takes_the_node_and_gives_it_back(
    slurm: Cluster, shard_root: Path, tmp_path: Path
) -> None:
    """Preempted with GraceTime, where Slurm tells the steps alone: once during the imports, once while it trains."""
    run = tmp_path / "run"
    job = slurm.submit("train.sbatch", *words_of(shard_root, run), cwd=tmp_path, options=["--exclude=n2"])
    under_way = (lambda: "start 0 on n1" in output(tmp_path, job), lambda: last_step(run) >= 5)
    for number, ready in enumerate(under_way):

        def reached(ready: Callable[[], bool] = ready) -> bool:
            slurm.hasten(job)
            return ready()

        until(reached, 200, lambda: output(tmp_path, job))
        urgent = ["--parsable", "--partition=urgent", "--nodelist=n1", "--output=/dev/null", "--wrap=true"]
        higher = slurm.call("sbatch", *urgent, cwd=tmp_path).strip()
        until(lambda: slurm.job(job)["JobState"] == "PENDING", 200, lambda: output(tmp_path, job))
        assert slurm.job(job)["Restarts"] == str(number + 1)
        assert slurm.wait(higher)["JobState"] == "COMPLETED"
    facts = slurm.wait(job)
    log = output(tmp_path, job)
    print(log)  # pytest -s shows it
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("COMPLETED", "0:0", "2"), log
    assert log.count("requeued, to go on from the checkpoint") == 2
    assert "Slurm ended the workers (SIGTERM) before they could save" in log
    assert status_of(run)["state"] == "finished"


def test_a_task_of_no_quality_and_a_run_of_no_folder_are_refused(slurm: Cluster, tmp_path: Path) -> None:
    jobs = {
        slurm.submit("train.sbatch", "--train.epochs", 1, cwd=tmp_path): "--run.dir: not given",
        slurm.submit("train_array.sbatch", "--run.dir", "run", cwd=tmp_path, options=["--array=9"]): "task 9:",
        slurm.submit("sweep.sbatch", cwd=tmp_path): "no command to run on the cluster",
    }
    for job, message in jobs.items():
        facts = slurm.wait(job)
        assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", "1:0")
        assert f"slurm: error: {message}" in output(tmp_path, job)


def test_tasks_pack_and_a_job_merges(slurm: Cluster, tmp_path: Path) -> None:
    source, root = write_tree(tmp_path / "ff", methods=("Deepfakes",)), tmp_path / "root"
    chosen = ("--source", source, "--frames-per-video", 1)
    faces = slurm.submit("faces.sbatch", *chosen, "--out", root / "faces.parquet", cwd=tmp_path)
    words = ("--source", source, "--out", root, "--qualities", 77, "--size", 128, "--shard-samples", 4)
    after = [f"--dependency=afterok:{faces}"]
    merge = slurm.submit("pack_array.sbatch", *words, cwd=tmp_path, options=after, FDTRAIN_PACK_TASKS=2)
    facts = slurm.wait(merge)
    assert (facts["JobState"], facts["JobName"]) == ("COMPLETED", "merge"), "".join(
        path.read_text() for path in tmp_path.glob("*.out")
    )
    packing = [path.read_text() for path in tmp_path.glob("slurm-pack-*.out")]
    assert sorted(log.count("task 0 of 2") for log in packing) == [0, 1]
    assert open_shard_set(root, 77).index.num_rows == 12


RAY_SCRIPT = """
import os, ray, sys
ray.init()
@ray.remote(num_cpus=1)
def node():
    import time
    time.sleep(1)
    return os.environ["SLURMD_NODENAME"]
print("ran on", *sorted(ray.get([node.remote(), node.remote()])))
sys.exit(3)
"""


@pytest.mark.long
def test_a_command_runs_on_a_ray_cluster_of_all_nodes(slurm: Cluster, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(RAY_SCRIPT)
    # Ray's sockets are in its folder, and the path of a socket has at most 107 characters.
    with TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        settings = {"FDTRAIN_NODES": 2, "FDTRAIN_RAY_DIR": folder}
        job = slurm.submit("sweep.sbatch", "python", script, cwd=tmp_path, **settings)
        facts = slurm.wait(job)
    log = output(tmp_path, job)
    assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", "3:0"), log
    assert "2 of 2 Ray nodes are up" in log
    assert "ran on n1 n2" in log


@pytest.mark.long
def test_a_study_submits_an_array_and_reports_when_it_has_ended(
    slurm: Cluster, shard_root: Path, tmp_path: Path
) -> None:
    content = {
        "models": {"meso4": {"model.name": "meso4"}},
        "axes": {"data.quality": [77, "raw"]},
        "runner": {"kind": "slurm"},
        "settings": {
            "data.root": str(shard_root),
            "train": {"max_steps": 2, "global_batch_size": 24, "micro_batch_size": 4},
            "optim.warmup_steps": 2,
            "tracking.enabled": False,
        },
        "report": {"figures": False, "faces": 0},
    }
    (tmp_path / "array.yaml").write_text(json.dumps(content))
    command = [sys.executable, "-m", "launch.study", "--config", "array.yaml"]

    def study(*words: str, code: int = 0, **variables: str) -> str:
        environment = slurm.environment | variables
        done = subprocess.run(
            [*command, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def following(*words: str) -> Iterator[Any]:
        with subprocess.Popen(
            [*command, *words], cwd=tmp_path, env=slurm.environment, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    # Killed while sbatch is on its way to Slurm; the array waits until all this is seen.
    sbatch = shutil.which("sbatch", path=slurm.environment["PATH"])
    go = tmp_path / "go"
    wait = f"for _ in {{1..600}}; do [[ ! -e {go} ]] || break; sleep 0.1; done"
    script = f'#!/bin/bash\nkill -KILL $(ps -o ppid= $PPID)\n{wait}\n{sbatch} --hold "$@"\n'
    (tmp_path / "sbatch").write_text(script)
    (tmp_path / "sbatch").chmod(0o755)
    killed = study(code=-signal.SIGKILL, PATH=f"{tmp_path}:{slurm.environment['PATH']}")
    assert "by a Slurm array" in killed
    assert "submitted" not in killed

    assert "submitted" not in study(code=2)  # since the folder is held until Slurm has the array
    assert slurm.call("squeue", "--noheader", "--name=array") == ""
    go.touch()
    until(lambda: slurm.call("squeue", "--noheader", "--name=array"), 60, lambda: killed)
    meanwhile = study()
    assert "submitted" not in meanwhile
    job = re.search(r"job (\d+): 2 trainings under way", meanwhile)[1]  # type: ignore[index]
    with following("--wait") as waiting:
        assert any(f"job {job}: 2 of 2 trainings under way" in line for line in waiting.stdout)
        waiting.send_signal(signal.SIGINT)
        assert f"job {job}: 2 trainings under way" in waiting.communicate(timeout=300)[0]
        assert waiting.returncode == 128 + signal.SIGINT
    slurm.call("scontrol", "release", job)

    ended = study("--wait")  # which the array doesn't mind
    log = tmp_path / "runs" / "array" / "logs" / "meso4-raw.log"
    for task in (0, 1):
        assert slurm.wait(f"{job}_{task}")["JobState"] == "COMPLETED", log.read_text()
    assert "submitted" not in ended
    assert "missing" not in ended
    assert len(re.findall(r"meso4-q?\w+ +done +trained in .*s\b", study("--dry_run"))) == 2
    assert status_of(tmp_path / "runs/array/meso4-raw")["state"] == "finished"
    assert (tmp_path / "runs/array/report/index.html").exists()
    assert "nothing to do" in study()

    shutil.rmtree(tmp_path / "runs/array/meso4-raw")
    printed = study()
    assert re.search(r"meso4-raw +to do +about .* in all, since meso4-q77 took .* s\n", printed), printed
    assert re.search(r"1 of 2 trainings done; the rest takes about .* s, if all run at once\n", printed), printed
    one = re.search(r"submitted job (\d+): an array of 1 training\njob \1: 1 training under way", printed)
    assert one, printed
    assert slurm.wait(f"{one[1]}_0")["JobState"] == "COMPLETED", log.read_text()
    ended = study()
    assert "2 of 2 trainings done" in ended
    assert f"job {one[1]}" not in ended
    assert "nothing to do" in study()


@pytest.mark.long
def test_a_sweep_runs_on_the_nodes_of_a_job(slurm: Cluster, shard_root: Path, tmp_path: Path) -> None:
    """Each trial has a worker on each node."""
    space = {"optim.lr": {"choice": [1e-3, 3e-3]}}
    settings = {"train.epochs": 1, "train.global_batch_size": 24, "train.micro_batch_size": 4}
    sweep = {
        "base": str(REPOSITORY / "configs" / "meso4.yaml"),
        "settings": settings,
        "space": space,
        "trials": 2,
        "workers": 2,
    }
    sweep |= {"calibrate": False, "storage": str(tmp_path / "sweeps"), "register": False}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    words = ("python", "-m", "launch.sweep", "--config", "sweep.yaml", "--qualities", 77, "--data.root", shard_root)
    with TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        job = slurm.submit("sweep.sbatch", *words, cwd=tmp_path, FDTRAIN_NODES=2, FDTRAIN_RAY_DIR=folder)
        facts = slurm.wait(job)
    log = output(tmp_path, job)
    assert (facts["JobState"], facts["ExitCode"]) == ("COMPLETED", "0:0"), log
    assert "a trial has 2 workers of 1 CPUs and 0 GPUs; 1 at a time" in log
    found = json.loads((tmp_path / "sweeps" / "meso4-sweep" / "q77" / "results.json").read_text())
    assert len(found["trials"]) == 2
    assert {len(trial["epochs"]) for trial in found["trials"]} == {1}
    assert (tmp_path / "configs" / "best" / "meso4-q77.yaml").exists()
