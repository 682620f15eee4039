"""Checkpoints: what is saved comes back to the bit; what is damaged or incomplete doesn't count."""

import functools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fdtrain.checkpoint import Checkpoint, Progress, check_same_run, latest_checkpoint
from fdtrain.config import Config, LoaderConfig, OptimConfig, UserError, flatten
from fdtrain.data.batch import Batch
from fdtrain.engines import DDPEngine, EngineState
from fdtrain.models import InputSpec, create_model, load_model, save_model
from fdtrain.runtime import Runtime, start
from fdtrain.tasks import ClassificationTask
from tests.checkpoints import save_checkpoint

SPEC = InputSpec(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear")
WRITE_MODEL = functools.partial(save_model, name="meso4", options={"image_size": 32}, spec=SPEC, facts={})


def resumed(**changed: object) -> None:
    """Go on from a checkpoint of before some settings were there, whose loader `auto` had come to torch."""
    settings = flatten(Config().to_dict()) | {"precision": "fp32", "loader.kind": "torch", "data.shuffle": "blocks"}
    del settings["data.buffer_blocks"], settings["engine.device"]
    new = settings | {"data.buffer_blocks": 8} | changed
    check_same_run(Checkpoint(Path("step-1"), Progress(), 1, settings, "digest"), new, "digest")


def test_a_resumed_run_keeps_its_decoder_and_its_buffer() -> None:
    resumed()
    resumed(**{"loader.threads": 7, "loader.prefetch": 9, "data.max_bad_share": 0.5, "engine.device": "cpu"})
    with pytest.raises(UserError, match=r"loader\.kind: dali where step-1 was trained with torch"):
        resumed(**{"loader.kind": "dali"})
    with pytest.raises(UserError, match=r"data\.buffer_blocks: 68 where step-1 was trained with 8"):
        resumed(**{"data.buffer_blocks": 68})
    before = Checkpoint(Path("step-1"), Progress(), 1, Config().to_dict(), "digest")  # that didn't say what auto was
    check_same_run(before, Config().to_dict() | {"loader": LoaderConfig(kind="dali").__dict__}, "digest")


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with start("fp32") as runtime:
        yield runtime


def save(root: Path, state: EngineState, step: int, runtime: Runtime, keep: int = 5) -> None:
    progress = Progress(step, best_step=step, best_value=0.5, mlflow_run_id="id")
    save_checkpoint(
        root, state, progress, runtime, write_model=WRITE_MODEL, config={"seed": 0}, data_digest="d", keep=keep
    )


def tiny_state(value: float = 0.0) -> EngineState:
    return EngineState({"weight": torch.full((2, 2), value)}, {"optimizer": {"lr": value}}, {"mean": torch.ones(1)})


tensors = hnp.arrays(
    dtype=st.sampled_from(["float32", "float64", "int64", "uint8"]), shape=hnp.array_shapes(max_dims=3, max_side=4)
).map(torch.from_numpy)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | tensors,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    model=st.dictionaries(st.text("abc.", min_size=1, max_size=6), tensors, min_size=1, max_size=4),
    training=st.dictionaries(st.text(max_size=5), values, max_size=3),
    local=st.dictionaries(st.text(max_size=5), tensors, max_size=3),
)
def test_any_state_comes_back_to_the_bit(
    tmp_path: Path, runtime: Runtime, model: dict, training: dict, local: dict
) -> None:
    root = tmp_path / "checkpoints"
    shutil.rmtree(root, ignore_errors=True)
    save(root, EngineState(model, training, local), 7, runtime)
    checkpoint = latest_checkpoint(root)
    assert checkpoint is not None
    assert checkpoint.progress == Progress(7, 7, 0.5, "id")
    loaded = checkpoint.load(runtime)
    torch.testing.assert_close(loaded.model, model, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(loaded.local, local, rtol=0, atol=0, equal_nan=True)
    assert repr(loaded.training) == repr(training)


def test_generator_state_comes_back(tmp_path: Path, runtime: Runtime) -> None:
    torch.manual_seed(5)
    torch.rand(3)
    save(tmp_path, tiny_state(), 1, runtime)
    expected = torch.rand(4)
    torch.manual_seed(0)
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    checkpoint.load(runtime)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("name", ["model.safetensors", "training.pt", "rank-00000.pt", "model.json", "checkpoint.json"])
def test_a_damaged_file_sends_back_to_the_checkpoint_before(
    tmp_path: Path, runtime: Runtime, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (5, 10):
        save(tmp_path, tiny_state(step), step, runtime)
    path = tmp_path / "step-00000010" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.progress.step == 5
    assert f"step-00000010 has a damaged {name}" in capsys.readouterr().err


def test_a_checkpoint_without_its_card_does_not_count(tmp_path: Path, runtime: Runtime) -> None:
    save(tmp_path, tiny_state(), 5, runtime)
    assert latest_checkpoint(tmp_path / "empty") is None
    (tmp_path / "step-00000005" / "checkpoint.json").unlink()
    with pytest.raises(UserError, match="no checkpoint is whole; remove the folder to start afresh"):
        latest_checkpoint(tmp_path)


def test_going_on_from_before_a_damaged_one_keeps_what_is_new(tmp_path: Path, runtime: Runtime) -> None:
    for step in (5, 10):
        save(tmp_path, tiny_state(), step, runtime)
    (tmp_path / "step-00000010" / "training.pt").unlink()
    save(tmp_path, tiny_state(), 7, runtime, keep=1)  # resumed from 5
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000007"]


def test_a_half_written_checkpoint_does_not_count_and_is_cleared_away(tmp_path: Path, runtime: Runtime) -> None:
    save(tmp_path, tiny_state(), 5, runtime)
    leftover = tmp_path / ".step-00000010.part"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.progress.step == 5
    save(tmp_path, tiny_state(), 10, runtime)
    assert not leftover.exists()


def test_only_the_newest_are_kept(tmp_path: Path, runtime: Runtime) -> None:
    for step in range(1, 6):
        save(tmp_path, tiny_state(), step, runtime, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]


class StagedTask(ClassificationTask):
    """Trains the classifier alone in even epochs, everything in odd ones."""

    def start_epoch(self, epoch: int) -> None:
        self.train_only(self.model if epoch % 2 else self.model.classifier)


@pytest.mark.parametrize(
    ("task_type", "options"),
    [
        (ClassificationTask, {"clip_grad_norm": 0.0}),
        (ClassificationTask, {"clip_grad_norm": 1.0, "ema_decay": 0.9}),
        (StagedTask, {"ema_decay": 0.5}),
    ],
)
def test_an_engine_goes_on_as_if_never_stopped(
    tmp_path: Path, runtime: Runtime, task_type: type[ClassificationTask], options: dict
) -> None:
    def engine() -> DDPEngine:
        torch.manual_seed(0)
        task = task_type(create_model("meso4", image_size=32), SPEC)
        return DDPEngine(task, OptimConfig(warmup_steps=3, **options), runtime, 20, (4, 32))

    generator = torch.Generator().manual_seed(1)
    batches = [
        Batch(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator), labels, labels, labels)
        for labels in torch.tensor([[0, 1, 0, 1]]).expand(12, 4)
    ]

    def do(engine: DDPEngine, step: int) -> None:
        if step % 2 == 0:  # two steps an epoch
            engine.start_epoch(step // 2)
        engine.train_step(batches[2 * step : 2 * step + 2], [step, 100 + step])

    whole = engine()
    for step in range(6):
        do(whole, step)
        if step == 2:
            before = {name: value.clone() for name, value in whole.task.state_dict().items()}
            save(tmp_path, whole.state(), 3, runtime)
            after = whole.task.state_dict()
            assert all(torch.equal(before[name], after[name]) for name in before)  # saving changes nothing
    resumed = engine()
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    resumed.load_state(checkpoint.load(runtime))
    resumed.start_epoch(1)
    for step in range(3, 6):
        do(resumed, step)
    expected, state = whole.state(), resumed.state()
    torch.testing.assert_close(state.model, expected.model, rtol=0, atol=0)
    torch.testing.assert_close(state.ema, expected.ema, rtol=0, atol=0)
    torch.testing.assert_close(state.local, expected.local, rtol=0, atol=0)


def test_a_stage_trains_only_its_parameters(runtime: Runtime) -> None:
    engine = DDPEngine(
        StagedTask(create_model("meso4", image_size=32), SPEC), OptimConfig(warmup_steps=0), runtime, 20, (2, 32)
    )
    labels = torch.tensor([0, 1])
    batch = Batch(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), labels, labels, labels)

    def moved(epoch: int) -> set[str]:
        before = {name: value.clone() for name, value in engine.task.model.state_dict().items()}
        engine.start_epoch(epoch)
        engine.train_step([batch], [epoch])
        after = engine.task.model.state_dict()
        return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}

    # Not even the batch normalization of what is frozen moves.
    assert [moved(epoch) for epoch in range(4)] == [{"classifier"}, {"features", "classifier"}] * 2


def test_moving_averages_are_what_is_evaluated(tmp_path: Path, runtime: Runtime) -> None:
    config = OptimConfig(warmup_steps=0, lr=0.1, ema_decay=0.75)
    engine = DDPEngine(ClassificationTask(create_model("meso4", image_size=32), SPEC), config, runtime, 20, (2, 32))
    engine.start_epoch(0)
    labels = torch.tensor([0, 1])
    batch = Batch(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), labels, labels, labels)
    name = "classifier.5.weight"
    average = engine.state().model[name].clone()
    for step in range(1, 40):
        engine.train_step([batch], [step])
        decay = min(0.75, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * engine.state().model[name]
    state = engine.state()
    assert state.ema is not None
    torch.testing.assert_close(state.ema[name], average, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(average, state.model[name])
    assert torch.equal(engine.evaluation_task().model.state_dict()[name], state.ema[name])
    assert state.ema["features.2.num_batches_tracked"] == 39
    save(tmp_path, state, 39, runtime)
    loaded = load_model(tmp_path / "step-00000039")
    assert torch.equal(loaded.state_dict()[name], state.ema[name])
