"""`python -m fdtrain doctor`: what is in order, what isn't, what to do about it, and the exit code."""

import http.server
import json
import os
import resource
import socket
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from datasets_shards.jpeg.settings import JpegSettings
from datasets_shards.schema import ShardSetError
from fdtrain.cli import main
from fdtrain.doctor import PARTS, Finding, Place, Request, disk, host, packages, service
from fdtrain.doctor.child import look
from fdtrain.doctor.data import check_data
from fdtrain.doctor.device import _gpus, decodes_in_hardware
from fdtrain.doctor.report import from_error, guarded, render
from fdtrain.doctor.request import engine_kinds
from tests.conftest import torchrun
from tests.shards import write_root

ALONE = Place(0, 0, 1, 1)

Doctor = Callable[..., tuple[int, list[Finding], str]]


def request(root: Path | None = None, **settings: object) -> Request:
    values: dict = {
        "root": None if root is None else str(root),
        "quality": None,
        "cache_dir": None,
        "cache_bytes": 1,
        "run_dir": "runs",
        "model": "meso4",
        "tracking_uri": "sqlite:///mlflow.db",
    }
    return Request(**values | settings)


def one(findings: Iterable[Finding], what: str) -> Finding:
    (found,) = [finding for finding in findings if finding.what == what]
    return found


@pytest.fixture
def doctor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Run the command on some parts; gives its exit code, its findings and what it printed."""

    def run(only: Iterable[str], *words: object) -> tuple[int, list[Finding], str]:
        file = tmp_path / "doctor.json"
        skipped = [part for part in PARTS if part not in only]
        argv = ["doctor", "--json", file, *words, *(["--skip", *skipped] if skipped else [])]
        code = main([str(word) for word in argv])
        printed = capsys.readouterr()
        content = json.loads(file.read_text())
        findings = [Finding(**finding) for finding in content["findings"]]
        failures = [finding for finding in findings if finding.level == "failure"]
        assert content["failures"] == len(failures)
        assert code == (1 if failures else 0)
        if failures:
            assert printed.err.count("\n") == 1
            assert f"{len(failures)} of {len(findings)} checks failed: " in printed.err
        for finding in findings:
            assert "\n".join(render(finding)) in printed.out
            assert finding.remedy or finding.level == "ok"
        return code, findings, printed.out

    return run


def test_a_healthy_host(doctor: Doctor, shard_root: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    code, findings, printed = doctor(
        PARTS, "--data.root", shard_root, "--data.quality", 77, "--run.dir", runs, "--model.name", "meso4"
    )
    assert code == 0
    found = [finding.what for finding in findings]
    for what in ("Python", "packages", "cores", "memory", "shared memory", "open files", "clock", "run disk"):
        assert what in found
    for what in ("file times", "port", "host name", "MLflow", "GPU", "NCCL", "process group", "MozJPEG", "DALI"):
        assert what in found
    for what in ("run space", "data q77", "JPEG q77", "read q77"):
        assert what in found
    assert "nvJPEG's hardware decoder can take it" in one(findings, "JPEG q77").detail
    assert "baseline, 8-bit tables, 4:2:0, 3 components (64 of 64)" in one(findings, "JPEG q77").detail
    for kind in engine_kinds():
        assert "10 steps of meso4 at 64 px" in one(findings, f"dry run {kind}").detail
        assert "on q77 by the " in one(findings, f"dry run {kind}").detail
    assert printed.splitlines()[-1].startswith(f"{len(findings)} checks, ")
    assert printed.splitlines()[-1].endswith(", no failure")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["doctor.json"]  # nothing is left behind


def test_two_ranks(tmp_path: Path) -> None:
    file = tmp_path / "doctor.json"
    skip = ["--skip", *(part for part in PARTS if part not in ("packages", "host", "device"))]
    done = torchrun(2, "fdtrain", "doctor", "--run.dir", tmp_path, "--model.name", "meso4", "--json", file, *skip)
    assert done.returncode == 0, done.stderr
    findings = [Finding(**finding) for finding in json.loads(file.read_text())["findings"]]
    assert one(findings, "same versions").level == one(findings, "clocks").level == "ok"
    name = socket.gethostname()
    reduced = [finding for finding in findings if finding.what == "all-reduce"]
    assert [finding.place for finding in reduced] == [f"rank 0 on {name}", f"rank 1 on {name}"]
    assert all("2 ranks: " in finding.detail and "GB/s" in finding.detail for finding in reduced)
    assert one(findings, "memory").place == f"rank 0 on {name}"  # once for a host
    assert done.stdout.count(f"rank 1 on {name}:\n") == 1


def test_a_missing_root(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    (found,) = guarded("data", check_data, request(nowhere))
    remedy = "data.root is the folder that 'pack --out' wrote"
    assert found == Finding("failure", "data", f"{nowhere}: no such folder", remedy)
    assert render(found)[-1].strip() == f"-> {remedy}"
    nowhere.mkdir()
    (found,) = guarded("data", check_data, request(nowhere))
    assert (found.level, found.detail) == ("failure", f"{nowhere}: holds no shard set")
    (found,) = guarded("data", check_data, request(nowhere, quality=77))
    assert (found.level, found.remedy) == ("failure", "it has none at all")


def test_a_quality_without_a_root(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--data.quality", "77"]) == 2
    assert "data.quality: has no effect without data.root" in capsys.readouterr().err


def test_a_damaged_tar(tmp_path: Path) -> None:
    """The set that is whole is looked at all the same."""
    root = write_root(tmp_path / "root", (77, "raw"))
    path = root / "q77" / "train-000000.tar"
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 20_000] = bytes(20_000)
    path.write_bytes(content)
    findings = list(check_data(request(root)))
    bad = one(findings, "data q77")
    assert bad.level == "failure"
    assert f"{path}: sample " in bad.detail
    assert "CRC-32" in bad.detail + bad.remedy
    assert "pack it again" in bad.remedy
    assert one(findings, "data raw").level == "ok"
    assert "lossless PNG" in one(findings, "JPEG raw").detail


def test_sets_that_do_not_belong_together(tmp_path: Path) -> None:
    root = write_root(tmp_path / "root", (77,))
    write_root(tmp_path / "other", (10,), frames=1)
    (tmp_path / "other" / "q10").rename(root / "q10")
    (root / "best").mkdir()
    (root / "best" / "manifest.json").write_text("{}")
    findings = list(check_data(request(root)))
    assert one(findings, "data q77").level == "ok"
    assert one(findings, "data q10").level == "failure"
    assert "holds 84 samples" in one(findings, "data q10").detail
    assert one(findings, "data").detail == f"{root}/best has no quality's name, so nothing reads it"


def test_progressive_images_are_not_for_the_hardware(tmp_path: Path) -> None:
    """cjpeg's own default: progressive, with 16-bit tables at low qualities."""
    root = write_root(tmp_path / "root", (15,), pairs=(2, 1, 0), jpeg=JpegSettings(mode="progressive"))
    findings = list(check_data(request(root, quality=15)))
    assert one(findings, "data q15").level == "ok"
    coding = one(findings, "JPEG q15")
    assert coding.level == "warning"
    assert "progressive, 16-bit tables, 4:2:0" in coding.detail
    assert "nvJPEG's hardware decoder can't take it (progressive, 16-bit tables)" in coding.detail
    assert "--jpeg.mode baseline" in coding.remedy


def test_a_set_that_cannot_be_trained_on(tmp_path: Path) -> None:
    root = write_root(tmp_path / "root", (77,), pairs=(0, 0, 2))
    found = [finding for finding in check_data(request(root)) if finding.what == "data q77"]
    assert [finding.level for finding in found] == ["ok", "warning"]
    assert "no sample in the split 'train'" in found[1].detail


def test_which_gpus_decode_in_hardware() -> None:
    """A100, L4, H100 and B200 do; V100, T4 and A10 don't."""
    assert all(map(decodes_in_hardware, [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)]))
    assert not any(map(decodes_in_hardware, [(7, 0), (7, 5), (8, 6)]))


def test_a_run_folder_that_cannot_be_written(doctor: Doctor) -> None:
    code, findings, _ = doctor(["disk"], "--run.dir", "/proc/runs")  # where root may not write either
    assert code == 1
    assert one(findings, "run disk").detail.startswith("/proc: can't be written (")
    assert "choose another --run.dir" in one(findings, "run disk").remedy


def test_room_for_checkpoints(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    levels = [disk.check_space(str(tmp_path), "meso4", size, 5).level for size in (1 << 20, free // 4, free)]
    assert levels == ["ok", "warning", "failure"]


def test_a_slow_disk_and_another_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "SECONDS", 0.05)
    monkeypatch.setattr(disk, "SLOW_MB_S", 0.0)
    assert [finding.level for finding in disk.check_disk(str(tmp_path / "a" / "b"))] == ["ok", "ok", "ok"]
    monkeypatch.setattr(disk, "SLOW_MB_S", float("inf"))
    monkeypatch.setattr(disk, "MTIME_TOLERANCE_S", -1.0)  # none is near enough
    assert [finding.level for finding in disk.check_disk(str(tmp_path))] == ["warning", "warning", "ok"]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_in_use(doctor: Doctor, taken_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the one that torchrun takes by default it is a warning; one that was set is meant."""
    monkeypatch.setattr(host, "DEFAULT_PORT", taken_port)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    code, findings, _ = doctor(["ports"])
    assert (code, one(findings, "port").level) == (0, "warning")
    monkeypatch.setenv("MASTER_PORT", str(taken_port))
    code, findings, _ = doctor(["ports"])
    assert (code, one(findings, "port").level) == (1, "failure")
    assert f"{taken_port} (MASTER_PORT) can't be had: Address already in use" in one(findings, "port").detail
    assert "launch/torchrun.sh" in one(findings, "port").remedy
    monkeypatch.setenv("MASTER_PORT", "http")
    assert one(host.check_ports(ALONE), "port").detail == "MASTER_PORT=http is no port"


def test_an_mlflow_that_is_not_there(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{host.free_port()}")
    code, findings, _ = doctor(["mlflow"])
    assert (code, one(findings, "MLflow").level) == (0, "warning")
    assert "can't be reached (Connection refused)" in one(findings, "MLflow").detail
    assert "a run goes on without it" in one(findings, "MLflow").remedy


@pytest.mark.parametrize("timeout", [None, "30"])
def test_a_server_that_is_no_mlflow(timeout: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own time-out, if any, holds again afterwards."""
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    if timeout is not None:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", timeout)
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        found = one(service.check_mlflow("unused"), "MLflow")
        server.shutdown()
    assert found.level == "warning"
    assert "doesn't answer as it should" in found.detail
    assert os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT") == timeout


def test_an_mlflow_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setattr(service, "SECONDS", 0.1)
    path = tmp_path / "mlflow.db"

    def look_at() -> Finding:
        return one(service.check_mlflow(f"sqlite:///{path}"), "MLflow")

    assert look_at() == Finding("ok", "MLflow", f"sqlite:///{path}: the first run will make it")
    assert not path.exists()
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE experiments (name TEXT)")
    database.commit()
    before = path.read_bytes()
    assert look_at().level == "ok"
    assert path.read_bytes() == before
    database.execute("BEGIN EXCLUSIVE")
    assert "database is locked" in look_at().detail
    database.close()
    path.write_text("no database, but long enough to be taken for one that is damaged" * 20)
    assert (look_at().level, "file is not a database" in look_at().detail) == ("warning", True)
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE cats (name TEXT)")
    other.close()
    assert "something else than MLflow" in look_at().detail


def test_packages_out_of_range(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    real = packages.metadata.version
    versions = {"torch": "1.13.1", "timm": "99.0"}

    def version(name: str) -> str:
        if name == "mlflow":
            raise packages.metadata.PackageNotFoundError(name)
        return versions.get(name) or real(name)

    assert doctor(["packages"])[0] == 0
    monkeypatch.setattr(packages.metadata, "version", version)
    code, findings, _ = doctor(["packages"])
    assert code == 1
    assert one(findings, "torch").level == one(findings, "mlflow").level == "failure"
    assert one(findings, "torch").detail.startswith("1.13.1 is too old; ")
    assert one(findings, "torch").remedy.startswith("pip install 'torch")
    assert one(findings, "mlflow").detail.startswith("isn't installed; ")
    assert one(findings, "timm").level == "warning"
    assert "newer than what was tested" in one(findings, "timm").detail


def test_ranks_with_other_packages() -> None:
    same = {"torch": "2.14.1", "timm": "1.0.31"}
    assert one(packages.compare_packages({"a": same, "b": dict(same)}), "same versions").level == "ok"
    other = one(packages.compare_packages({"a": same, "b": {"torch": "2.14.1"}}), "same versions")
    assert (other.level, other.detail) == ("failure", "timm none at b, 1.0.31 at a")


def test_a_host_with_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    assert host._shared_memory(gpus=10**6).level == "warning"
    assert host._shared_memory(0, Path("/nowhere")).level == "warning"
    monkeypatch.setenv("OMP_NUM_THREADS", "1000")
    cores = one(host.check_host(ALONE), "cores")
    assert cores.level == "warning"
    assert cores.remedy == f"export OMP_NUM_THREADS={len(os.sched_getaffinity(0))}"
    assert one(host.check_host(Place(0, 0, 10**6, 10**6)), "memory").level == "warning"
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        assert host._open_files().remedy == "ulimit -n 1024"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert host._open_files().level == "ok"


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a node whose GPUs don't work")
def test_granted_gpus_that_do_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert one(_gpus(ALONE), "GPU").level == "ok"
    monkeypatch.setenv("SLURM_JOB_GPUS", "3")
    found = one(_gpus(ALONE), "GPU")
    assert (found.level, found.detail.startswith("SLURM_JOB_GPUS=3 grants GPUs")) == ("failure", True)


@pytest.mark.parametrize(
    ("lines", "top", "names"),
    [
        ("0::/system.slice/job_7/step_0/user\n", "sys/fs/cgroup", ("memory.max", "memory.current", "file")),
        (
            "9:cpu,cpuacct:/x\n4:memory:/system.slice/job_7/step_0/user\n0::/y\n",
            "sys/fs/cgroup/memory",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"),
        ),
    ],
)
def test_the_memory_of_a_job_in_a_deeper_control_group(
    tmp_path: Path, lines: str, top: str, names: tuple[str, str, str]
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(lines)
    job = tmp_path / top / "system.slice/job_7"
    (job / "step_0/user").mkdir(parents=True)
    for group, limit in ((job, "4000"), (job / "step_0", "max"), (job / "step_0/user", "9000")):
        for name, text in zip(names[:2], (limit, "1500"), strict=True):
            (group / name).write_text(f"{text}\n")
        (group / "memory.stat").write_text(f"anon 900\n{names[2]} 600\n")
    assert list(host._cgroup_memory(tmp_path)) == [(9000, 8100), (4000, 3100)]


def test_a_disk_that_locks_nothing(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_PATH)  # the kernel locks none of these
    try:
        found = disk._lock(descriptor, tmp_path)
    finally:
        os.close(descriptor)
    assert (found.level, found.what) == ("failure", "file locks")
    assert one(disk.check_disk(str(tmp_path)), "file locks").level == "ok"


def test_sqlite_on_a_network_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert [finding.what for finding in service.check_mlflow(uri)] == ["MLflow"]
    kinds = {mount.fstype for mount in psutil.disk_partitions(all=True)}
    monkeypatch.setattr(disk, "NETWORK_FILE_SYSTEMS", kinds)  # as if this one were
    found = one(service.check_mlflow(uri), "MLflow disk")
    assert (found.level, "sqlite can't rely on" in found.detail) == ("warning", True)


def test_a_check_that_raises() -> None:
    def check() -> Iterator[Finding]:
        yield Finding("ok", "first", "fine")
        raise RuntimeError("no such device\nand more")

    first, second = guarded("NCCL", check)
    assert first.level == "ok"
    assert (second.level, second.what, second.detail) == ("failure", "NCCL", "RuntimeError: no such device")
    assert second.remedy
    explained = from_error("data", ShardSetError("x.tar: missing; pack it again"))
    assert (explained.detail, explained.remedy) == ("x.tar: missing", "pack it again")


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        ("kill -SEGV $$", "its process was ended by SIGSEGV: some last words"),
        ("exit 3", "its process ended with exit code 3: some last words"),
        ("sleep 60", "not done within 1 s"),
    ],
)
def test_a_process_that_dies_or_hangs(
    ending: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had found before is kept."""
    program = tmp_path / "python"
    finding = Finding("ok", "GPU", "a big one")
    program.write_text(f"#!/bin/sh\necho 'noise'\necho 'finding: {finding.to_json()}'\n")
    with program.open("a") as file:
        file.write(f"echo 'some last words' >&2\n{ending}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    first, second = look("dry run ddp", "dry-run ddp", request(limit_s=1), 29500)
    assert first == finding
    assert (second.level, second.what, second.detail) == ("failure", "dry run ddp", expected)
    assert second.remedy
