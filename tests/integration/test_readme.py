"""The README's commands do what it says, in its order: from made-up videos to a registered model."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fdtrain.tracking import connect
from tests.conftest import REPOSITORY, run_python

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]  # all commands are run before the first test
NOT_RUN = ("make ", "mlflow ui")  # the first two would run this test; the last one serves until it is stopped


def readme_commands() -> list[str]:
    """Every command of the README's shell blocks, a continued line joined."""
    blocks = re.findall(r"```bash\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line and not line.startswith(NOT_RUN)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder in which the README's commands were run, and what each printed."""
    path = tmp_path_factory.mktemp("readme")
    (path / "configs").symlink_to(REPOSITORY / "configs")
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    launchers = {"python": ["-m"], "torchrun": ["-m", "torch.distributed.run", "--standalone"]}
    outputs = {}
    for command in readme_commands():
        program, *words = shlex.split(command)
        words = words[1:] if program == "python" else words
        line = [sys.executable, *launchers[program], *words]
        done = subprocess.run(line, cwd=path, env=environment, capture_output=True, text=True, timeout=1500)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        outputs[command] = done.stdout
    return path, outputs


def test_every_command_of_the_readme_works(folder: tuple[Path, dict[str, str]]) -> None:
    path, outputs = folder

    def printed(*words: str) -> str:
        """What the one command printed in which all these words stand."""
        [output] = [output for command, output in outputs.items() if all(word in command for word in words)]
        return output

    assert (path / "runs/demo-data/ffpp").is_dir()
    found, frames = map(int, re.search(r"faces: (\d+) of (\d+) frames", printed("datasets_shards pack")).groups())  # type: ignore[union-attr]
    assert found >= 0.95 * frames
    assert {"q77", "q60", "q15", "q10", "raw"} <= {entry.name for entry in (path / "runs/demo-data/shards").iterdir()}
    assert "q15, without decoding, nothing wrong" in printed("verify")
    assert "registered fdtrain-meso4-q77 version 1: champion" in printed("--run.dir runs/meso4-one")
    assert "registered fdtrain-meso4-q15 version 1: champion" in printed("--train.epochs 2")
    for run in ("meso4-one", "meso4-two"):  # of six real videos and 24 fakes
        learned = json.loads((path / "runs" / run / "metrics.json").read_bytes())
        assert learned["test/video/auc"] > 0.8, run
    doctor = printed("doctor")
    assert "dry run deepspeed" in doctor
    assert "no failure" in doctor
    assert "resumed after step" in printed("--run.resume auto")
    metrics = json.loads((path / "runs/meso4-two-on-q60.json").read_bytes())
    assert f"test/video/auc {metrics['test/video/auc']:.4f}" in printed("evaluate")
    assert (path / "runs/meso4-two-on-q60.parquet").exists()
    predicted = printed("predict")
    assert "(as its training data)" in predicted
    assert "scored 5 of 5 files" in predicted
    assert (path / "runs/scores.frames.csv").exists()
    assert "gradcam.png" in printed("figures")
    assert (path / "runs/meso4-two/report/figures/tsne.png").stat().st_size > 10_000
    assert "meso4, 160 px, any batch" in printed("export")
    assert (path / "runs/meso4-q15.pt2").exists()
    assert "runs/report/index.html: 2 runs, 12 sections" in printed("fdtrain report")
    assert (path / "runs/report/index.html").stat().st_size > 300_000
    assert "runs/fidelity/index.html" in printed("fidelity")
    assert (path / "runs/fidelity/index.html").stat().st_size > 100_000
    assert "FaceForensics++" in printed("unpack")
    assert (path / "runs/deepfakebench/dataset_json/FF-NT.json").exists()
    assert "nothing" in printed("sync")  # to send: the server had it all
    assert "registered fdtrain-meso4-router version 1: champion" in printed("router")


def test_a_report_within_a_run_is_its_artifact(
    folder: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = folder
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    words = ("--out", "runs/meso4-one/page", "runs/meso4-one", "--no_figures", "--faces", 0)
    done = run_python("-m", "fdtrain", "report", *words, cwd=path)
    assert done.returncode == 0, done.stderr
    client = connect(f"sqlite:///{path / 'runs/mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments, "attributes.run_name = 'meso4-one'")
    assert "page/index.html" in [file.path for file in client.list_artifacts(run.info.run_id, "page")]


def test_the_demo_ends_with_its_table(folder: tuple[Path, dict[str, str]]) -> None:
    path, _ = folder  # whose videos and shards are the demo's own: it makes neither again
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    words = [
        sys.executable,
        "-m",
        "launch.demo",
        "--out",
        "runs",
        "--axes.trained_at",
        "{q10: {data.quality: 10}}",
        "--train.epochs",
        "1",
    ]
    for attempt in ("first", "second"):
        done = subprocess.run(words, cwd=path, env=environment, capture_output=True, text=True, timeout=1500)
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(r"^meso4-q10 +(0|1)\.\d{3}", done.stdout, re.MULTILINE), done.stdout
        assert "test/video/auc, tested on:" in done.stdout
        assert re.search(r"^smoke-meso4-q10 +q10 +[^ ]+ ", done.stdout, re.MULTILINE), done.stdout
        assert (path / "runs/smoke-meso4-q10/metrics.json").exists()
        assert (path / "runs/smoke/report/index.html").exists()
        assert "They mean nothing for real detection." in done.stdout
        assert "mlflow ui --backend-store-uri sqlite:///" in done.stdout
        assert "already packed" in done.stdout
        assert ("nothing to do" in done.stdout) == (attempt == "second")
