"""What launch/torchrun.sh and slurm/submit.sh make of their surroundings."""

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.slurm.conftest import Cluster, environment_of_jobs, until


def run(script: str, *words: object, cwd: Path, **settings: object) -> subprocess.CompletedProcess[str]:
    environment = environment_of_jobs(cwd)
    environment |= {name: str(value) for name, value in settings.items()}
    command = [str(REPOSITORY / script), *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def test_a_rank_for_each_gpu_with_its_share_of_the_cores(tmp_path: Path) -> None:
    settings = {"CUDA_VISIBLE_DEVICES": "0,1", "OMP_NUM_THREADS": ""}
    done = run("launch/torchrun.sh", "--no-python", "env", cwd=tmp_path, **settings)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^LOCAL_WORLD_SIZE=(.*)$", done.stdout, re.MULTILINE) == ["2", "2"]
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert re.findall(r"^OMP_NUM_THREADS=(.*)$", done.stdout, re.MULTILINE) == [str(threads)] * 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"FDTRAIN_RANKS": "two"}, "FDTRAIN_RANKS: 'two' is no number of ranks; give 1 or more"),
        (
            {"FDTRAIN_RANKS": 3, "CUDA_VISIBLE_DEVICES": "0,1"},
            "FDTRAIN_RANKS: 3 ranks, and there are 2 GPUs here; a rank needs its own",
        ),
        (
            {"SLURM_NNODES": 2, "SLURM_NODEID": 0},
            "this is a job of 2 nodes, and here is one of them: srun --ntasks-per-node=1 launch/torchrun.sh ...",
        ),
        (
            {"SLURM_STEP_NODELIST": "n1", "SLURM_NODEID": 0, "SLURM_STEP_NUM_NODES": 1, "SLURM_STEP_NUM_TASKS": 4},
            "4 tasks on 1 nodes; torchrun starts the ranks itself: srun --ntasks-per-node=1",
        ),
    ],
)
def test_what_cannot_be_launched_is_said_in_a_line(tmp_path: Path, settings: dict, message: str) -> None:
    done = run("launch/torchrun.sh", "-m", "fdtrain", cwd=tmp_path, **settings)
    assert done.returncode == 1
    assert done.stderr == f"launch/torchrun.sh: error: {message}\n"


def test_gpus_that_slurm_granted_and_the_driver_has_lost(tmp_path: Path) -> None:
    """A dead driver isn't one rank on the CPU; without nvidia-smi, as in a container, Slurm's number counts."""
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'No devices were found'\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    settings = environment_of_jobs(tmp_path) | {"SLURM_GPUS_ON_NODE": "2", "OMP_NUM_THREADS": "1"}
    del settings["CUDA_VISIBLE_DEVICES"]

    def ranks(**more: str) -> subprocess.CompletedProcess[str]:
        words = [str(REPOSITORY / "launch/torchrun.sh"), "--no-python", "printenv", "LOCAL_WORLD_SIZE"]
        return subprocess.run(words, env=settings | more, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    dead = {"PATH": f"{tmp_path}:{settings['PATH']}"}
    done = ranks(**dead)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        r"launch/torchrun.sh: error: Slurm granted 2 GPUs on .*, and nvidia-smi lists none; .*\n", done.stderr
    )
    assert ranks(**dead, FDTRAIN_RANKS="1").stdout == "1\n"
    if shutil.which("nvidia-smi", path=settings["PATH"]) is None:
        assert ranks().stdout == "2\n2\n"


def test_help_and_no_words_at_all(tmp_path: Path) -> None:
    for script in ("launch/torchrun.sh", "slurm/submit.sh"):
        asked, empty = run(script, "--help", cwd=tmp_path), run(script, cwd=tmp_path)
        assert asked.stdout.startswith(f"Usage: {script} ")
        assert (asked.returncode, empty.returncode, empty.stderr) == (0, 2, asked.stdout)


def test_a_node_that_finds_nobody_says_which_it_is(slurm: Cluster, tmp_path: Path) -> None:
    settings = {
        "SLURM_CONF": slurm.environment["SLURM_CONF"],
        "SLURM_JOB_ID": 7,
        "SLURM_STEP_NODELIST": "n[1-2]",
        "SLURM_STEP_NUM_NODES": 2,
        "SLURM_NODEID": 1,
        "SLURMD_NODENAME": "n2",
        "FDTRAIN_JOIN_SECONDS": 1,
    }
    done = run("launch/torchrun.sh", "-m", "fdtrain", cwd=tmp_path, **settings)
    assert done.returncode == 1
    assert "error: node n2: 127.0.0.1:20007, where the nodes meet, didn't answer within 1 s" in done.stderr


def test_a_node_that_never_comes_is_named(slurm: Cluster, tmp_path: Path) -> None:
    """On n2 something else hangs where the launcher should run."""
    script = tmp_path / "node.sh"
    launcher = REPOSITORY / "launch" / "torchrun.sh"
    script.write_text(f'[[ $SLURM_NODEID == 1 ]] && exec sleep 60\nexec "{launcher}" -m fdtrain\n')
    words = ["srun", "--nodes=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1", "bash", str(script)]
    environment = slurm.environment | {"FDTRAIN_JOIN_SECONDS": "2"}
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "error: node n2 didn't come within 2 s; see what became of it above" in done.stderr


def test_settings_become_the_flags_of_sbatch(tmp_path: Path) -> None:
    settings = {
        "FDTRAIN_ACCOUNT": "forensics",
        "FDTRAIN_PARTITION": "gpu",
        "FDTRAIN_TIME": "12:00:00",
        "FDTRAIN_NODES": 2,
        "FDTRAIN_GPUS": 4,
        "FDTRAIN_GPU_TYPE": "a100",
        "FDTRAIN_CPUS": 32,
        "FDTRAIN_CPU_PARTITION": "cpu",
        "FDTRAIN_QUALITIES": "77 15",
        "FDTRAIN_PACK_TASKS": 3,
        "FDTRAIN_PACK_CPUS": 16,
    }

    def calls(name: str) -> list[str]:
        script = REPOSITORY / "slurm" / name
        done = run("slurm/submit.sh", "--dry-run", "--qos=long", script, "--config", "a b", cwd=tmp_path, **settings)
        assert done.returncode == 0, done.stderr
        return [line.replace(f" --qos=long {script} --config a\\ b ", "") for line in done.stdout.splitlines()]

    own = "sbatch --account=forensics --time=12:00:00"
    gpus = f"{own} --partition=gpu --nodes=2 --cpus-per-task=32 --gres=gpu:a100:4"
    cores = f"{own} --partition=cpu --cpus-per-task=16"
    assert calls("train.sbatch") == [f"{gpus} --signal=B:USR1@120"]
    assert calls("train_array.sbatch") == [f"{gpus} --signal=B:USR1@120 --array=0-1"]
    assert calls("sweep.sbatch") == [f"{gpus} --signal=B:USR1@120"]
    assert calls("faces.sbatch") == [cores]
    packing, merging = calls("pack_array.sbatch")
    assert packing == f"{cores} --array=0-2 --output=slurm-%x-%A_%a.out"
    assert merging.startswith(f"{cores} --qos=long --job-name=merge")
    assert "--dependency=afterok:ARRAY" in merging


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        ({"FDTRAIN_GPUS": 4}, "--cpus-per-task=32 --gres=gpu:4"),
        ({"FDTRAIN_GPUS": 4, "FDTRAIN_CPUS_PER_GPU": 6}, "--cpus-per-task=24 --gres=gpu:4"),
        ({"FDTRAIN_GPUS": 8, "FDTRAIN_PRESET": "a100"}, "--cpus-per-task=96 --mem=640G --gres=gpu:a100:8"),
        (
            {"FDTRAIN_GPUS": 2, "FDTRAIN_PRESET": "l4", "FDTRAIN_MEM": "9G"},
            "--cpus-per-task=16 --mem=9G --gres=gpu:l4:2",
        ),
        ({"FDTRAIN_CONSTRAINT": "x&y"}, "--constraint=x\\&y"),
    ],
)
def test_what_a_training_asks_for(tmp_path: Path, settings: dict, flags: str) -> None:
    more = {"FDTRAIN_QOS": "long", "FDTRAIN_MAIL": "me@here"}
    script = REPOSITORY / "slurm" / "train.sbatch"
    done = run("slurm/submit.sh", "--dry-run", script, cwd=tmp_path, **settings, **more)
    everybody = "--qos=long --mail-user=me@here --mail-type=END\\,FAIL --nodes=1"
    assert done.stdout == f"sbatch {everybody} {flags} --signal=B:USR1@120 {script} \n"


def test_a_preset_that_is_none(tmp_path: Path) -> None:
    done = run("slurm/submit.sh", "--dry-run", REPOSITORY / "slurm/train.sbatch", cwd=tmp_path, FDTRAIN_PRESET="h100")
    assert done.returncode == 1
    assert done.stderr.startswith("slurm/settings.sh: error: FDTRAIN_PRESET: 'h100' is none; take a100, l4,")


def test_a_prefix_stands_before_torchrun(tmp_path: Path) -> None:
    settings = {"FDTRAIN_COMMAND_PREFIX": "env 'IN=a container'"}
    done = run("launch/torchrun.sh", "--no-python", "printenv", "IN", cwd=tmp_path, **settings)
    assert done.stdout == "a container\n", done.stderr


def test_empty_settings_are_left_to_slurm(tmp_path: Path) -> None:
    done = run("slurm/submit.sh", "--dry-run", REPOSITORY / "slurm/sweep.sbatch", "true", cwd=tmp_path)
    assert done.stdout == f"sbatch --nodes=1 --signal=B:USR1@120 {REPOSITORY}/slurm/sweep.sbatch true \n"


def test_no_script_names_an_account_a_partition_or_a_gpu() -> None:
    for script in (REPOSITORY / "slurm").glob("*.sbatch"):
        flags = re.findall(r"^#SBATCH --([a-z-]+)", script.read_text(), re.MULTILINE)
        assert flags
        assert not {"account", "partition", "gres", "gpus", "gpus-per-node", "nodes", "time", "qos"} & set(flags)


class BatchScript:
    """slurm/train.sh alone, among programs that say what they were called with, with a new status for each start."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, folder / "run"
        (folder / "bin").mkdir()
        self.program("scontrol", f'echo "$@" >>{folder}/asked')
        self.program("sleep", "true")
        self.time = 0

    def program(self, name: str, what: str) -> None:
        (self.folder / "bin" / name).write_text(f"#!/bin/sh\n{what}\n")
        (self.folder / "bin" / name).chmod(0o755)

    def status(self, state: str, step: int) -> str:
        self.time += 1
        return json.dumps({"state": state, "step": step, "time": self.time})

    def start(
        self, ends: str = "", code: int = 0, warned: bool = False, **variables: str
    ) -> tuple[int, str, list[str]]:
        """One start whose srun leaves a status, if any; gives its exit code, what it said, and what was requeued."""
        (self.folder / "now").write_text(ends)
        warn = "trap '' USR1; kill -USR1 $PPID; /bin/sleep 0.3; " if warned else ""
        leave = f"mkdir -p {self.run}; cp {self.folder}/now {self.run}/status.json; " if ends else ""
        self.program("srun", f"{warn}{leave}exit {code}")
        settings = {"FDTRAIN_HOME": str(REPOSITORY), "SLURM_JOB_ID": "7", "SLURM_NNODES": "1"}
        settings |= {"SLURM_JOB_NODELIST": "n1", "FDTRAIN_VENV": "", "FDTRAIN_SETUP": f"PATH={self.folder}/bin:$PATH"}
        command = ["bash", str(REPOSITORY / "slurm" / "train.sh"), "--run.dir", str(self.run)]
        environment = environment_of_jobs(self.folder) | settings | variables
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        asked = self.folder / "asked"
        requeued = asked.read_text().splitlines() if asked.exists() else []
        asked.unlink(missing_ok=True)
        return done.returncode, done.stdout + done.stderr, requeued


@pytest.fixture
def batch(tmp_path: Path) -> BatchScript:
    return BatchScript(tmp_path)


@pytest.mark.parametrize(
    ("array", "job"), [({}, "7"), ({"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}, "7_3")]
)
def test_a_preempted_run_is_requeued(batch: BatchScript, array: dict[str, str], job: str) -> None:
    for step in (40, 41):
        code, said, requeued = batch.start(batch.status("preempted", step), 1, **array)
        assert (code, requeued) == (0, [f"requeue {job}"]), said
        assert f"preempted after {step} steps" in said


def test_a_start_that_was_warned_and_came_no_step_further_is_not_requeued(batch: BatchScript) -> None:
    assert batch.start(batch.status("preempted", 40), 1, warned=True)[2] == ["requeue 7"]
    code, said, requeued = batch.start(batch.status("preempted", 40), 1, warned=True)
    assert (code, requeued) == (1, [])
    assert "no step further than the start before, so it isn't requeued; give the job more time" in said


@pytest.mark.parametrize("before", ["", "preempted", "running", "failed"])
def test_a_step_that_slurm_ended_is_requeued(batch: BatchScript, before: str) -> None:
    """SIGTERM during the imports, whatever stood in the folder; three starts in a row are enough."""
    if before:
        batch.run.mkdir()
        (batch.run / "status.json").write_text(batch.status(before, 40))
    for start in (1, 2, 3):
        code, said, requeued = batch.start(code=143)
        assert (code, requeued) == ((0, ["requeue 7"]) if start < 3 else (1, [])), said
    assert "three starts came no step further" in said
    assert batch.start(code=143, SLURM_JOB_ID="8")[2] == ["requeue 8"]
    assert batch.start(batch.status("preempted", 41), 143, SLURM_JOB_ID="8")[2] == ["requeue 8"]
    assert not (batch.run / ".starts").exists()


def test_sigterm_twice_at_one_step_or_before_a_save_is_requeued(batch: BatchScript) -> None:
    assert batch.start(batch.status("preempted", 40), 143)[2] == ["requeue 7"]
    assert batch.start(batch.status("preempted", 40), 143)[2] == ["requeue 7"]
    assert batch.start(batch.status("running", 50), 143)[2] == ["requeue 7"]


def test_what_failed_is_not_requeued(batch: BatchScript) -> None:
    failed = json.dumps({"state": "failed", "step": 3, "time": 9, "reason": "loss is NaN"})
    for ends, code in ((failed, 1), (failed.replace("9", "10"), 143), ("", 1)):
        assert batch.start(ends, code)[::2] == (1, [])


def test_a_sweep_is_stopped_before_the_time_limit_and_requeued(batch: BatchScript) -> None:
    """slurm/sweep.sbatch alone, on a Ray that is none."""
    words, there = batch.folder / "words", batch.folder / "there"
    sweep = f"trap 'exit 130' TERM; echo $* >{words}; touch {there}; while :; do /bin/sleep 0.1; done"
    batch.program("python", f'case "$2" in launch.sweep) {sweep} ;; *) echo 127.0.0.1 ;; esac')
    batch.program("scontrol", f'[ "$1" = show ] && echo n1 || echo "$@" >>{batch.folder}/asked')
    batch.program("srun", "exec /bin/sleep 60")
    batch.program("ray", "true")
    batch.program("sleep", '[ "$1" = 60 ] || exec /bin/sleep "$1"')
    settings = {"FDTRAIN_HOME": str(REPOSITORY), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "FDTRAIN_VENV": ""}
    settings |= {"SLURM_CPUS_ON_NODE": "1", "FDTRAIN_SETUP": f"PATH={batch.folder}/bin:$PATH"}
    command = ["bash", str(REPOSITORY / "slurm/sweep.sbatch"), "python", "-m", "launch.sweep", "--config", "c"]
    environment = environment_of_jobs(batch.folder) | settings
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
        until(there.exists, 60, lambda: job.poll())
        job.send_signal(signal.SIGUSR1)
        said = job.communicate(timeout=60)[0]
    assert words.read_text() == "-m launch.sweep --config c --resume\n"
    assert (batch.folder / "asked").read_text() == "requeue 7\n", said
    assert "the command ended with exit code 130" in said
