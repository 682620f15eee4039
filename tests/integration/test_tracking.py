"""Runs against real MLflow servers that die, stall, are full, and come back: nothing is lost, nothing waits."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fdtrain.cli import main
from fdtrain.config import Config
from fdtrain.tracking import Tracker, close_parent_run, connect, open_parent_run, tracker
from fdtrain.tracking.outbox import read_records, record_folders
from fdtrain.tracking.sync import attach
from tests.conftest import REPOSITORY, run_python, small_training
from tests.mlflow_server import free_port, mlflow_at, mlflow_server  # noqa: F401 - a fixture
from tests.shards import write_root

DATASETS = [
    ("training", {"name": "fdtrain-q15-train", "digest": "a" * 36, "source_type": "local", "source": "{}"}),
    ("validation", {"name": "fdtrain-q15-val", "digest": "b" * 36, "source_type": "local", "source": "{}"}),
]

FULL = b"HTTP/1.1 507 Insufficient Storage\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

Points = dict[str, list[tuple[int, float]]]


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    monkeypatch.setattr(tracker, "GATHER_S", 0.05)
    monkeypatch.setattr(tracker, "FIRST_WAIT_S", 0.2)
    monkeypatch.setattr(tracker, "LONGEST_WAIT_S", 0.2)


@pytest.fixture
def server(mlflow_server: str, monkeypatch: pytest.MonkeyPatch) -> str:  # noqa: F811
    """URI of a server that is up, set for the programs."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    return mlflow_server


def wait_until(what: Callable[[], object], seconds: float = 300) -> None:
    for _ in range(int(seconds / 0.05)):
        if what():
            return
        time.sleep(0.05)
    pytest.fail("waited in vain")


def in_log(run: Path) -> Points:
    """Name -> (step, value), of every value in `log.jsonl` but for what each rank measured, which is there alone."""
    points: Points = defaultdict(list)
    for line in (run / "log.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name in record.keys() - {"step", "by_rank"}:
            if record[name] is not None:
                points[name].append((record["step"], record[name]))
    return points


def in_mlflow(client: Any, run_id: str, names: list[str]) -> Points:
    """The same, of MLflow."""
    return {name: [(point.step, point.value) for point in client.get_metric_history(run_id, name)] for name in names}


def only_run(client: Any, name: str) -> Any:
    """The MLflow run of that name, of which there is one."""
    experiment = client.get_experiment_by_name("fdtrain").experiment_id
    (found,) = client.search_runs([experiment], f"attributes.run_name = '{name}'")
    return found


def sent_up_to(run: Path) -> int:
    """Bytes of the records that the server has."""
    path = run / "mlflow" / "001" / "sent.json"
    return json.loads(path.read_bytes())["offsets"].get("records.jsonl", 0) if path.exists() else 0


def size(run: Path) -> int:
    path = run / "mlflow" / "001" / "records.jsonl"
    return path.stat().st_size if path.exists() else 0


def settings(run: Path, **tracking: object) -> Config:
    config = Config()
    config.run.dir = str(run)
    for key, value in tracking.items():
        setattr(config.tracking, key, value)
    return config


def begin(run: Path, **tracking: object) -> Tracker:
    return Tracker(settings(run, **tracking), run, {"data.digest": "d"}, DATASETS)


@pytest.mark.long
def test_a_server_dies_and_comes_back_and_the_run_is_killed_and_resumed(
    shard_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, port, run = tmp_path / "store", free_port(), tmp_path / "tried"
    store.mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.5")
    words = {"train__epochs": 500, "train__log_every": 1, "tracking__enabled": "true", "tracking__register": "false"}
    words["optim__schedule"] = "constant"  # a cosine would end elsewhere once the run is told to end sooner
    command = [sys.executable, "-m", *small_training(shard_root, run, **words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    with ExitStack() as stack, (tmp_path / "output").open("w") as output:
        server = stack.enter_context(ExitStack())
        uri = server.enter_context(mlflow_at(store, port))
        training = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        stack.callback(training.kill)
        wait_until(lambda: sent_up_to(run) and any((run / "checkpoints").glob("step-*")))

        server.close()  # in the middle
        before = size(run)
        wait_until(lambda: size(run) > before + 10_000)
        assert training.poll() is None
        assert main(["sync", str(run)]) == 2  # under way
        server.enter_context(mlflow_at(store, port))
        before = size(run)
        wait_until(lambda: sent_up_to(run) > before)  # caught up by itself

        assert "is not taking records" in (tmp_path / "output").read_text()
        training.kill()
        training.wait()

        last = max(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*"))
        words |= {"run__resume": "auto", "train__max_steps": last + 12}
        done = run_python("-m", *small_training(shard_root, run, **words))
        assert done.returncode == 0, done.stderr
        assert f"resumed after step {last}" in done.stdout
        assert main(["sync", str(run)]) == 0

        client = connect(uri)
        record = only_run(client, "tried")
        assert record.info.status == "FINISHED"
        logged = in_log(run)
        assert {"train/loss", "val/video/auc"} <= logged.keys()
        steps = in_mlflow(client, record.info.run_id, list(logged))
        for name in ("train/loss", "train/acc", "train/lr", "val/video/auc", "val/frame/f1"):
            assert steps[name] == logged[name], name  # each step once, those done twice as well
        assert all({step for step, _ in logged[name]} <= {step for step, _ in steps[name]} for name in logged)
        times = [point.timestamp for point in client.get_metric_history(record.info.run_id, "train/loss")]
        assert times == sorted(times)
        assert len(set(times)) == len(times)  # those of the steps, not of the sending
        system = client.get_metric_history(record.info.run_id, "system/cpu_utilization_percentage")
        assert [point.step for point in system] == list(range(len(system)))
        assert len(system) > 2


def test_a_server_that_was_never_there(
    shard_root: Path, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only when the run is over does its server appear; it gets the run as if it had been there."""
    run = tmp_path / "alone"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    words = {
        "train__log_every": 1,
        "tracking__enabled": "true",
        "tracking__parent": "sweep",
        "tracking__tags": "{a: b}",
    }
    done = run_python("-m", *small_training(shard_root, run, tracking__register="false", **words))
    assert done.returncode == 0, done.stderr
    assert "is not taking records" in done.stderr
    assert f"python -m fdtrain sync {run}' sends them" in done.stderr
    assert json.loads((run / "status.json").read_bytes())["state"] == "finished"

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    assert main(["sync", str(run)]) == 0
    assert "sent" in capsys.readouterr().out
    client = connect(server)
    record = only_run(client, "alone")
    run_id, experiment = record.info.run_id, record.info.experiment_id
    assert record.info.status == "FINISHED"
    assert record.info.end_time == list(read_records(run / "mlflow/001/records.jsonl"))[-1][0]["time"]
    assert record.data.params["train.micro_batch_size"] == "4"
    assert record.data.tags["a"] == "b"
    assert client.get_run(record.data.tags["mlflow.parentRunId"]).info.run_name == "sweep"
    logged = in_log(run)
    assert in_mlflow(client, run_id, list(logged)) == logged
    metrics = json.loads((run / "metrics.json").read_bytes())
    assert record.data.metrics["test/video/auc"] == pytest.approx(metrics["test/video/auc"])
    names = {artifact.path for artifact in client.list_artifacts(run_id)}
    assert {"config.yaml", "metrics.json", "val.parquet", "test.parquet"} <= names

    digest = record.data.tags["data.digest"]
    inputs = {(part.tags[0].value, part.dataset.name, part.dataset.digest) for part in record.inputs.dataset_inputs}
    assert inputs == {
        (context, f"fdtrain-q77-{split}", digest[:36])
        for context, split in (("training", "train"), ("validation", "val"), ("testing", "test"))
    }
    profile = json.loads(record.inputs.dataset_inputs[0].dataset.profile)
    assert profile["digest"] == digest

    order = [{"field_name": "metrics.val/video/auc", "ascending": False, "dataset_name": "fdtrain-q77-val"}]
    models = client.search_logged_models([experiment], f"source_run_id = '{run_id}'", order_by=order)
    aucs = [value for _, value in logged["val/video/auc"]]
    assert len(models) == len(aucs) == 2
    assert [next(m.value for m in model.metrics if m.key == "val/video/auc") for model in models] == pytest.approx(
        sorted(aucs, reverse=True)
    )
    best = next(model for model in models if model.tags.get("fdtrain.best") == "true")
    assert models[0].model_id == best.model_id or aucs[0] == aucs[1]
    assert {Path(file.path).name for file in client.list_logged_model_artifacts(best.model_id)} >= {"model.safetensors"}
    assert Path(best.tags["fdtrain.folder"]).is_dir()

    before = (run / "mlflow/001/sent.json").stat().st_mtime_ns
    assert main(["sync", str(run)]) == 0
    assert "nothing to send" in capsys.readouterr().out
    assert (run / "mlflow/001/sent.json").stat().st_mtime_ns == before


def test_a_model_that_could_not_be_registered(
    shard_root: Path, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`sync` sends the records and says what does the rest; once that is done, there is nothing to say."""
    run = tmp_path / "unregistered"
    remedy = f"'python -m fdtrain register {run}'"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    words = {"tracking__enabled": "true", "tracking__register": "true"}
    done = run_python("-m", *small_training(shard_root, run, **words))
    assert done.returncode == 0, done.stderr
    assert f"the model is {run / 'best'}, and {remedy} registers it later" in done.stderr

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    for _ in range(2):
        assert main(["sync", str(run)]) == 0
        assert capsys.readouterr().out.endswith(f"; its model is not registered: {remedy} does it\n")

    # What it says of itself is of when it was trained, and on other data it can't be judged.
    written = (run / "config.yaml").read_text()
    changed = write_root(tmp_path / "changed", seed=1)
    (run / "config.yaml").write_text(written.replace(str(shard_root), str(changed)))
    assert main(["register", str(run)]) == 2
    assert f"data.root: the shard set has changed since {run} was trained" in capsys.readouterr().err
    (run / "config.yaml").write_text(written)
    monkeypatch.setattr("fdtrain.facts.git_revision", lambda: "of tomorrow")
    assert main(["register", str(run), "--best_of", "16"]) == 0
    assert main(["sync", str(run)]) == 0
    assert "not registered" not in capsys.readouterr().out
    name, version = json.loads((run / "status.json").read_text())["registered"].removeprefix("models:/").split("/")
    found = connect(server).get_model_version(name, version)
    assert found.tags["git.revision"] not in ("", "of tomorrow")
    assert found.tags["best_of"] == "16"
    assert "The best of 16 trials by validation" in found.description

    # Killed before it could note that: the same version, which is champion still.
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"registered": None}))
    assert main(["register", str(run)]) == 0
    assert json.loads((run / "status.json").read_text())["registered"] == status["registered"]
    assert str(connect(server).get_registered_model(name).aliases.get("champion")) == version


class Proxy:
    """A TCP proxy before a server that may stall, or answer each request with HTTP 507 itself."""

    def __init__(self, uri: str) -> None:
        self.behind = int(uri.rsplit(":", 1)[1])
        self.open = threading.Event()
        self.is_full = False
        self.held = 0  # requests that came while it stalled
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:  # closed
                return
            far = socket.create_connection(("127.0.0.1", self.behind))
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(*pair, pair[0] is near), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, is_request: bool) -> None:
        try:
            while data := source.recv(65536):
                if is_request and not self.open.is_set():
                    self.held += 1
                    self.open.wait()
                if is_request and self.is_full:
                    source.sendall(FULL)
                    break
                sink.sendall(data)
        except OSError:
            pass  # the other side has closed
        finally:
            for end in (source, sink):
                end.close()


@pytest.fixture
def proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    proxy = Proxy(server)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    yield proxy
    proxy.open.set()
    proxy.listener.close()


def test_a_server_that_stalls(proxy: Proxy, server: str, tmp_path: Path) -> None:
    """All calls return before the server has answered one request, or this would never end."""
    run = tmp_path / "stalled"
    tracked = begin(run)
    for step in range(1500):
        tracked.log_metrics({"train/loss": 1 / (step + 1), "train/none": float("nan")}, step)
    wait_until(lambda: proxy.held)
    assert tracked.run_id is None
    assert sent_up_to(run) == 0
    proxy.open.set()
    tracked.close("FINISHED")
    client = connect(server)
    record = only_run(client, "stalled")
    expected = [(step, 1 / (step + 1)) for step in range(1500)]
    assert in_mlflow(client, record.info.run_id, ["train/loss", "train/none"]) == {
        "train/loss": expected,
        "train/none": [],
    }
    assert record.info.status == "FINISHED"


def test_a_server_that_is_full(proxy: Proxy, server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "full"
    proxy.open.set()
    tracked = begin(run)
    tracked.log_metrics({"train/loss": 1.0}, 1)
    wait_until(lambda: tracked.run_id and sent_up_to(run) == size(run))
    proxy.is_full = True
    tracked.log_metrics({"train/loss": 0.5}, 2)
    said = ""

    def is_said(word: str) -> bool:
        nonlocal said
        said += capsys.readouterr().err
        return word in said

    wait_until(lambda: is_said("507"))
    proxy.is_full = False
    wait_until(lambda: is_said("takes records again"))
    assert sent_up_to(run) == size(run)
    proxy.is_full = True
    tracked.log_metrics({"train/loss": 0.4}, 3)
    tracked.close("FINISHED")
    said = capsys.readouterr().err
    assert "507" in said
    assert "has not taken 2 records" in said
    assert main(["sync", str(run)]) == 1
    assert "507" in capsys.readouterr().err
    proxy.is_full = False
    assert main(["sync", str(run)]) == 0
    assert "sent 2 records" in capsys.readouterr().out
    record = only_run(connect(server), "full")
    assert in_mlflow(connect(server), record.info.run_id, ["train/loss"]) == {
        "train/loss": [(1, 1.0), (2, 0.5), (3, 0.4)]
    }


def test_records_that_arrived_unacknowledged_are_not_doubled(server: str, tmp_path: Path) -> None:
    """Killed between the server's answer and its being written down, at worst for all records."""
    run = tmp_path / "twice"
    tracked = begin(run, parent="twice-parent")
    tracked.log_metrics({"val/video/auc": 0.5}, 4, run / "checkpoints" / "step-00000004")
    tracked.log_metrics({"train/loss": 0.5}, 5)
    tracked.close("FINISHED")
    client = connect(server)
    before = only_run(client, "twice")
    (run / "mlflow/001/sent.json").unlink()
    assert main(["sync", str(run)]) == 0
    after = only_run(client, "twice")
    assert after.info.run_id == before.info.run_id
    assert in_mlflow(client, after.info.run_id, ["train/loss"]) == {"train/loss": [(5, 0.5)]}
    assert len(after.inputs.dataset_inputs) == 2
    assert len(after.outputs.model_outputs) == 1
    (model,) = client.search_logged_models([after.info.experiment_id], f"source_run_id = '{after.info.run_id}'")
    assert [(metric.key, metric.dataset_name) for metric in model.metrics] == [("val/video/auc", "fdtrain-q15-val")]


def test_parent_and_children(server: str, tmp_path: Path) -> None:
    parent = open_parent_run(server, "fdtrain", "family", {"study": "s"})
    for name in ("first", "second"):
        begin(tmp_path / name, parent="family" if name == "first" else parent).close("FINISHED")
    close_parent_run(server, parent)
    client = connect(server)
    record = only_run(client, "family")
    assert (record.info.run_id, record.info.status, record.data.tags["study"]) == (parent, "FINISHED", "s")
    children = client.search_runs([record.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert {child.info.run_name for child in children} == {"first", "second"}
    assert open_parent_run(server, "fdtrain", "family") == parent


def test_no_parent_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert open_parent_run(f"http://127.0.0.1:{free_port()}", "fdtrain", "orphan") is None
    assert "orphan has no MLflow run yet" in capsys.readouterr().err


def test_a_killed_run_is_ended_by_sync_and_figures_are_added(server: str, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    code = (
        "import os, signal, sys; from pathlib import Path; from tests.integration.test_tracking import begin;"
        "begin(Path(sys.argv[1])).log_metrics({'train/loss': 2.0}, 7); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert run_python("-c", code, run, cwd=REPOSITORY).returncode == -signal.SIGKILL
    figures = run / "report" / "figures"
    figures.mkdir(parents=True)
    (figures / "tsne.png").write_bytes(b"png")
    attach(run, figures)
    client = connect(server)
    record = only_run(client, "killed")
    assert record.info.status == "KILLED"
    assert in_mlflow(client, record.info.run_id, ["train/loss"]) == {"train/loss": [(7, 2.0)]}
    assert [file.path for file in client.list_artifacts(record.info.run_id, "report/figures")] == [
        "report/figures/tsne.png"
    ]


def test_what_can_never_be_sent_keeps_nothing_back(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "odd"
    tracked = begin(run)
    tracked.log_file(run / "gone.txt")
    tracked.log_metrics({"a\nb": 1.0}, 1)  # no name that MLflow takes
    tracked.log_metrics({"train/loss": 1.0}, 1)
    tracked.close("FINISHED")
    said = capsys.readouterr().err
    assert "gone.txt is gone" in said
    assert said.count("can't be sent") == 2
    client = connect(server)
    record = only_run(client, "odd")
    assert record.info.status == "FINISHED"
    assert record.data.metrics == {"train/loss": 1.0}
    assert main(["sync", str(run)]) == 0
    assert "2 could not be sent" in capsys.readouterr().out


def test_files_that_can_not_be_uploaded_keep_no_metrics_back(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The store of files is another one than that of metrics: here it is gone, and comes back."""
    run, store = tmp_path / "no-store", tmp_path / "store"
    client = connect(server)
    store.write_text("no folder")
    client.create_experiment("elsewhere", artifact_location=store.as_uri())
    run.mkdir()
    (run / "config.yaml").write_text("a: 1\n")
    tracked = begin(run, experiment="elsewhere")
    tracked.log_file(run / "config.yaml")
    tracked.log_metrics({"train/loss": 1.0}, 1)
    tracked.close("FINISHED")
    assert "has not taken 1 records" in capsys.readouterr().err
    record = client.get_run(str(tracked.run_id))
    assert (record.info.status, record.data.metrics) == ("FINISHED", {"train/loss": 1.0})
    store.unlink()
    assert main(["sync", str(run)]) == 0
    assert [file.path for file in client.list_artifacts(record.info.run_id)] == ["config.yaml"]


def test_a_run_that_was_deleted_on_the_server(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It may be restored, so its records wait."""
    run = tmp_path / "deleted"
    tracked = begin(run)
    wait_until(lambda: tracked.run_id and sent_up_to(run) == size(run))
    client = connect(server)
    client.delete_run(tracked.run_id)
    tracked.log_metrics({"train/loss": 1.0}, 1)
    tracked.close("FINISHED")
    assert "has not taken 2 records" in capsys.readouterr().err
    client.restore_run(tracked.run_id)
    assert main(["sync", str(run)]) == 0
    assert only_run(client, "deleted").data.metrics == {"train/loss": 1.0}


def test_a_run_that_begins_anew(server: str, tmp_path: Path) -> None:
    """Without a checkpoint and with the same settings it is the same run; with others it is another."""
    run = tmp_path / "anew"
    first = begin(run)
    first.log_metrics({"train/loss": 1.0}, 1)
    first.close("FAILED")
    again = begin(run)
    again.log_metrics({"train/loss": 1.0}, 1)
    again.log_metrics({"train/loss": 0.9}, 2)
    again.close("FAILED")
    assert again.run_id == first.run_id
    config = settings(run)
    config.optim.lr = 1.0
    other = Tracker(config, run, {}, DATASETS)
    other.log_metrics({"train/loss": 5.0}, 1)
    other.close("FINISHED")
    assert len(record_folders(run)) == 2
    assert other.run_id not in (None, first.run_id)
    points = [in_mlflow(connect(server), str(run_id), ["train/loss"]) for run_id in (first.run_id, other.run_id)]
    assert points == [{"train/loss": [(1, 1.0), (2, 0.9)]}, {"train/loss": [(1, 5.0)]}]
