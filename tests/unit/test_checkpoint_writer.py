"""Checkpoints that are written while training goes on: exact, and whatever happens, the last good one stays."""

import functools
import json
import multiprocessing
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fdtrain.checkpoint import CheckpointWriter, Progress, latest_checkpoint, publish, restore, take_up_checkpoint
from fdtrain.checkpoint.snapshot import Snapshot, all_finite
from fdtrain.config import CheckpointConfig, UserError
from fdtrain.engines import EngineState
from fdtrain.models import InputSpec, save_model
from fdtrain.runtime import Runtime, start
from tests.checkpoints import save_checkpoint
from tests.conftest import run_python, small_training
from tests.mlflow_server import free_port
from tests.unit.disk import largest_file

SPEC = InputSpec(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear")
WRITE_MODEL = functools.partial(save_model, name="meso4", options={"image_size": 32}, spec=SPEC, facts={})
# Children are forked from a process that has imported this module and started no thread.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload([__name__])


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with start("fp32") as runtime:
        yield runtime


@contextmanager
def writer_of(
    root: Path, runtime: Runtime, write_model: Callable = WRITE_MODEL, **options: object
) -> Iterator[CheckpointWriter]:
    config = CheckpointConfig(**options)  # type: ignore[arg-type]
    writer = CheckpointWriter(root, runtime, config, write_model=write_model, config={"seed": 0}, data_digest="d")
    try:
        yield writer
    finally:
        writer.close()


def state_of(step: int, size: int = 64) -> EngineState:
    """Of which every tensor says the step."""
    values = torch.full((size, size), float(step))
    training = {"optimizer": [{"m": values + 0.5}]}
    return EngineState({"weight": values}, training, {"mean": values[:1]}, {"weight": -values})


def says(root: Path, runtime: Runtime) -> int | None:
    """The step of the checkpoint that a resumed run takes, checked to be wholly that step's."""
    checkpoint = latest_checkpoint(root)
    if checkpoint is None:
        return None
    step = checkpoint.progress.step
    torch.testing.assert_close(vars(checkpoint.load(runtime)), vars(state_of(step)), rtol=0, atol=0)
    return step


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_training_goes_on_while_one_is_written_and_the_next_waits(tmp_path: Path, runtime: Runtime) -> None:
    may_write = threading.Event()

    def write_late(*args: object, **options: object) -> None:
        assert may_write.wait(120)
        WRITE_MODEL(*args, **options)  # type: ignore[arg-type]

    with writer_of(tmp_path, runtime, write_late) as writer:
        state, noise = state_of(1), torch.get_rng_state()
        writer.save(lambda: state, Progress(1))
        # Had it been waited for, it would not have ended.
        assert not may_write.is_set()
        assert latest_checkpoint(tmp_path) is None
        for value in (state.model["weight"], state.training["optimizer"][0]["m"], state.local["mean"]):
            value.fill_(99)  # as the next optimizer step does
        torch.rand(1)
        taken = []
        timer = threading.Timer(1.5, lambda: (taken.append(says(tmp_path, runtime)), may_write.set()))
        timer.start()
        short = writer.take_seconds()
        assert short.keys() == {"train/checkpoint_stall_s"}
        writer.save(lambda: state_of(2), Progress(2))
        timer.join()
        assert taken == [None]  # the second was waiting then
        assert writer.take_seconds()["train/checkpoint_stall_s"] > 0.3
        assert writer.wait() == 2
        assert writer.take_seconds().keys() == {"train/checkpoint_write_s"}
        assert writer.take_seconds() == {}
    assert says(tmp_path, runtime) == 2
    (tmp_path / "step-00000002" / "checkpoint.json").unlink()
    assert says(tmp_path, runtime) == 1
    assert torch.equal(torch.get_rng_state(), noise)  # which `load` has put back


def test_a_snapshot_keeps_strides_and_reuses_its_memory() -> None:
    snapshot = Snapshot()
    image = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    tree = {"a": [image, (image.double(), 3)], "b": {5: torch.ones(2, dtype=torch.bool)}, "c": None}
    first = snapshot.take(tree)
    torch.testing.assert_close(first, tree, rtol=0, atol=0)
    assert first["a"][0].stride() == image.stride()
    assert snapshot.nbytes == 24 * 4 + 24 * 8 + 2
    places = [first["a"][0].data_ptr(), first["b"][5].data_ptr()]
    again = snapshot.take({"a": [image + 1], "b": {5: torch.ones(3, dtype=torch.bool)}})
    assert again["a"][0].data_ptr() == places[0]
    assert torch.equal(again["a"][0], image + 1)
    assert again["b"][5].shape == (3,)
    assert snapshot.nbytes == 24 * 4 + 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_single_value_that_is_not_finite_is_found(bad: float) -> None:
    tensors = [torch.ones(3), torch.ones(2, 2), torch.ones(4, dtype=torch.int64)]
    assert all_finite(tensors)
    tensors[1][1, 0] = bad
    assert not all_finite(tensors)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_the_umask_says_who_may_read_a_checkpoint(tmp_path: Path, runtime: Runtime, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with writer_of(tmp_path, runtime) as writer:
            writer.save(lambda: state_of(1), Progress(1))
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "step-00000001").iterdir()}
    assert {"model.safetensors", "ema.safetensors"} <= modes.keys()
    assert modes == dict.fromkeys(modes, mode)


@pytest.mark.parametrize("background", [True, False])
def test_failures_are_warnings_until_there_are_too_many(
    tmp_path: Path, runtime: Runtime, background: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "checkpoints"
    with writer_of(root, runtime, max_failures=2, background=background) as writer:

        def save(step: int) -> int | None:
            writer.save(lambda: state_of(step), Progress(step))
            return writer.wait()

        assert save(1) == 1
        with largest_file(10_000):  # training.pt has 16 kB
            assert save(2) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"warning: {root}/.step-00000002.part/")
        assert error.count("\n") == 1
        assert "no checkpoint of step 2, the last good one is of step 1; failure 1 of 2 in a row" in error
        assert names(root) == ["step-00000001"]
        assert save(3) == 3  # so they are in a row no more
        with largest_file(10_000):
            save(4)
            if background:
                save(5)  # of which the next one hears
            with pytest.raises(UserError, match=r"model.safetensors.*; 2 in a row failed, the last .* is of step 3 "):
                save(6)
    assert says(root, runtime) == 3


def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "checkpoints"
    root.write_text("in the way")
    with writer_of(root, runtime) as writer:
        writer.save(lambda: state_of(1), Progress(1))
        assert writer.wait() is None
    assert f"warning: {root}: File exists (rank 0); no checkpoint of step 1, there is none" in capsys.readouterr().err
    with pytest.raises(UserError, match="File exists"):
        save_checkpoint(
            root, state_of(1), Progress(1), runtime, write_model=WRITE_MODEL, config={}, data_digest="d", keep=1
        )


def test_a_disk_without_room_is_not_filled(
    tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fdtrain.checkpoint.writer.SPARE_BYTES", 1 << 62)
    with writer_of(tmp_path, runtime) as writer:
        writer.save(lambda: state_of(1), Progress(1))
        assert writer.wait() is None
    assert f"{tmp_path}: the disk is full: " in capsys.readouterr().err
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("keep", "keep_best", "left"),
    [(1, 0, [6]), (2, 1, [2, 5, 6]), (1, 2, [2, 4, 6]), (3, 3, [2, 4, 5, 6]), (9, 1, [1, 2, 3, 4, 5, 6])],
)
def test_the_last_and_the_best_are_kept(
    tmp_path: Path, runtime: Runtime, keep: int, keep_best: int, left: list[int]
) -> None:
    with writer_of(tmp_path, runtime, keep=keep, keep_best=keep_best) as writer:
        for step, value in enumerate((None, 0.9, 0.7, 0.9, None, 0.8), start=1):
            writer.save(functools.partial(state_of, step, 2), Progress(step), value)
    assert names(tmp_path) == [f"step-{step:08d}" for step in left]
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.value == 0.8


def test_a_crash_between_the_two_renames_is_made_good(tmp_path: Path) -> None:
    best, part, old = tmp_path / "best", tmp_path / ".best.part", tmp_path / ".best.old"
    for number in range(3):
        part.mkdir()
        (part / "model.json").write_text(str(number))
        publish(part, best)
        assert names(tmp_path) == ["best"]
    best.rename(old)  # where a crash would leave it
    restore(best)
    assert (best / "model.json").read_text() == "2"
    best.rename(old)
    part.mkdir()
    (part / "model.json").write_text("3")
    publish(part, best)
    assert names(tmp_path) == ["best"]
    assert (best / "model.json").read_text() == "3"


def test_a_checkpoint_that_was_being_written_again_comes_back(tmp_path: Path, runtime: Runtime) -> None:
    with writer_of(tmp_path, runtime, keep=1) as writer:
        writer.save(lambda: state_of(1), Progress(1))
    (tmp_path / "step-00000001").rename(tmp_path / ".step-00000001.old")  # where a crash would leave it
    assert says(tmp_path, runtime) is None
    taken_up = take_up_checkpoint(tmp_path)
    assert taken_up is not None
    assert taken_up.progress.step == says(tmp_path, runtime) == 1


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.integers(0, 5), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(tmp_path: Path, runtime: Runtime, name: int, where: float, bit: int) -> None:
    with writer_of(tmp_path, runtime, keep=2, background=False) as writer:
        for step in (1, 2):
            writer.save(functools.partial(state_of, step), Progress(step))
    path = sorted((tmp_path / "step-00000002").iterdir())[name]
    content = bytearray(path.read_bytes())
    if path.name == "checkpoint.json":  # its white space says nothing
        content = bytearray(json.dumps(json.loads(content), separators=(",", ":")).encode())
    content[int(where * len(content))] ^= 1 << bit
    path.write_bytes(content)
    assert says(tmp_path, runtime) == 1


def save_until_killed(root: Path, told: Path, first: int, way: str, point: int) -> None:
    """Save steps from `first`, saying in `told` which are complete; die at a point of a kind."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with start("fp32") as runtime, writer_of(root, runtime, keep=2) as writer:
        if way == "in a file":
            # The kernel kills whoever writes beyond: in the midst of a file.
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        left = point

        def count(event: str, args: tuple) -> None:
            nonlocal left
            if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree") and str(
                args[0]
            ).startswith(str(root)):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        if way == "between operations":
            sys.addaudithook(count)
        for step in range(first, first + 4):
            if way == "in a file" and step == first + 2:
                resource.setrlimit(resource.RLIMIT_FSIZE, (point, resource.RLIM_INFINITY))
            writer.save(functools.partial(state_of, step), Progress(step))
            if step % 2:
                continue  # the next one finds it under way
            writer.wait()
            told.write_text(str(step))


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kills=st.lists(
        st.tuples(st.just("between operations"), st.integers(0, 130))
        | st.tuples(st.just("in a file"), st.integers(1, 17_000)),
        min_size=1,
        max_size=2,
    )
)
def test_sigkill_at_any_moment_leaves_the_last_good_one(
    tmp_path_factory: pytest.TempPathFactory, runtime: Runtime, kills: list[tuple[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("killed")
    root, told = folder / "checkpoints", folder / "told"
    told.write_text("0")
    for way, point in kills:
        before = says(root, runtime) or 0
        child = FORKED.Process(target=save_until_killed, args=(root, told, before + 1, way, point))
        child.start()
        child.join(60)
        assert child.exitcode in (0, -signal.SIGKILL, -signal.SIGXFSZ)
        after = says(root, runtime) or 0
        assert after >= max(before, int(told.read_text()))
        told.write_text("0")
    save = functools.partial(save_checkpoint, root, write_model=WRITE_MODEL, config={}, data_digest="d", keep=2)
    save(state_of(after + 1), Progress(after + 1), runtime)
    expected = [f"step-{step:08d}" for step in (after, after + 1) if step]
    assert names(root) == expected  # and nothing half written or half removed


def train_beside(root: Path, rank: int, port: int, results: "multiprocessing.Queue[tuple[int, object]]") -> None:
    """One of two ranks; the disk of rank 1 is full from step 2 on, for as long as the run lasts."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with start("fp32") as runtime, writer_of(root, runtime, max_failures=2) as writer:
        said: object = None
        try:
            for step in range(1, 9):
                if step == 3 and rank == 1:
                    writer.wait()
                    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
                writer.save(functools.partial(state_of, step), Progress(step))
                said = step
        except UserError as error:
            said = said, str(error)
        results.put((rank, said))


def test_a_disk_that_is_full_on_one_rank_ends_the_run_on_all_after_the_same_step(tmp_path: Path) -> None:
    port = free_port()
    results = FORKED.Queue()
    ranks = [FORKED.Process(target=train_beside, args=(tmp_path, rank, port, results)) for rank in range(2)]
    for process in ranks:
        process.start()
    said = dict(results.get(timeout=300) for _ in ranks)
    for process in ranks:
        process.join(30)
        assert process.exitcode == 0
    assert said[0] == said[1]
    step, error = said[0]
    assert step == 4  # 3 and 4 failed, which is known when 5 is to be saved
    assert "rank-00001.pt" in error
    assert "(rank 1); 2 in a row failed, the last good one is of step 2" in error
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_a_run_says_how_long_it_stood_still_and_how_good_its_models_are(shard_root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = small_training(shard_root, run, train__log_every=1, checkpoint__every_steps=1, checkpoint__keep=99)
    done = run_python("-m", *words)
    assert done.returncode == 0, done.stderr
    lines = list(map(json.loads, (run / "log.jsonl").read_text().splitlines()))
    stalls = [line["train/checkpoint_stall_s"] for line in lines if "train/checkpoint_stall_s" in line]
    writes = {line["step"]: line["train/checkpoint_write_s"] for line in lines if "train/checkpoint_write_s" in line}
    assert len(stalls) == 8  # the last one in a line of its own
    assert 8 in writes
    assert all(0 < seconds < 60 for seconds in [*stalls, *writes.values()])
    validated = {line["step"]: line["val/video/auc"] for line in lines if "val/video/auc" in line}
    assert validated.keys() == {4, 8}
    for step in range(1, 9):
        card = json.loads((run / "checkpoints" / f"step-{step:08d}" / "checkpoint.json").read_bytes())
        assert card["value"] == validated.get(step)
    assert json.loads((run / "status.json").read_bytes())["step"] == 8


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"checkpoint__every_steps": 1, "checkpoint__max_failures": 2}, "File exists (rank 0); 2 in a row failed"),
        ({"train__max_minutes": 1e-4}, "train.max_minutes are over, and nothing to go on from: "),
    ],
)
def test_a_run_without_any_checkpoint_has_failed(
    shard_root: Path, tmp_path: Path, settings: dict[str, object], expected: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").write_text("in the way")
    done = run_python("-m", *small_training(shard_root, run, **settings))
    assert done.returncode != 0
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    status = json.loads((run / "status.json").read_bytes())
    assert status["state"] == "failed"
    assert expected in status["reason"]
