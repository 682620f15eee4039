"""A step whose loss or gradient isn't finite changes nothing, and is counted; too many end the run."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fdtrain.checkpoint import Progress
from fdtrain.config import OptimConfig
from fdtrain.data.batch import Batch
from fdtrain.engines import DDPEngine, StepResult
from fdtrain.guard import StepGuard
from fdtrain.models import InputSpec, create_model
from fdtrain.runtime import Runtime, start
from fdtrain.tasks import ClassificationTask
from tests.conftest import run_python, torchrun

SPEC = InputSpec(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear")
LABELS = torch.tensor([0, 1])


class Poisoned(ClassificationTask):
    """Its loss, or its gradient, is what a test wants it to be."""

    factor: float | None = None
    addend = 0.0

    def training_step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        result = super().training_step(images, labels)
        loss = result["loss"]
        if self.factor is not None:
            loss = loss * self.factor
        return result | {"loss": loss + self.addend}


def batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Batch(images, LABELS, torch.tensor([5, 7]), LABELS)


def engine_of(runtime: Runtime) -> tuple[DDPEngine, Poisoned]:
    torch.manual_seed(0)
    task = Poisoned(create_model("meso4", image_size=32), SPEC)
    engine = DDPEngine(task, OptimConfig(warmup_steps=0, ema_decay=0.9), runtime, 20, (2, 32))
    engine.start_epoch(0)
    return engine, task


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with start("fp32") as runtime:
        yield runtime


@pytest.mark.parametrize(
    ("factor", "addend"),
    [(float("nan"), 0.0), (float("inf"), 0.0), (None, float("inf")), (1e38, 0.0)],
    ids=["nan", "inf", "an infinite loss with a finite gradient", "a finite loss with an infinite gradient"],
)
def test_a_bad_step_changes_nothing_but_the_schedule(runtime: Runtime, factor: float | None, addend: float) -> None:
    engine, task = engine_of(runtime)
    assert engine.train_step([batch()], [1]).outcome == "applied"
    before = engine.state()
    kept = {name: value.clone() for name, value in before.model.items()}
    averages = {name: value.clone() for name, value in (before.ema or {}).items()}
    step = before.training["optimizer"]["state"][0]["step"].clone()
    task.factor, task.addend = factor, addend
    result = engine.train_step([batch(1)], [2])
    assert result.outcome == "nonfinite"
    task.factor, task.addend = None, 0.0
    after = engine.state()
    torch.testing.assert_close(after.model, kept, rtol=0, atol=0)
    torch.testing.assert_close(after.ema, averages, rtol=0, atol=0)
    assert after.training["optimizer"]["state"][0]["step"] == step
    assert after.training["schedule"]["last_epoch"] == 2
    assert engine.train_step([batch(2)], [3]).outcome == "applied"


def test_a_step_leaves_the_filters_of_warnings_to_other_threads(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = engine_of(runtime)
    step = engine.schedule.step

    def while_another_thread_sets_one() -> None:
        warnings.filterwarnings("ignore", "of another thread")
        step()

    monkeypatch.setattr(engine.schedule, "step", while_another_thread_sets_one)
    engine.train_step([batch()], [1])
    assert any(pattern and pattern.pattern == "of another thread" for _, pattern, *_ in warnings.filters)


def test_fp16_finds_its_scale_and_that_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    with start("fp16") as runtime:
        engine, task = engine_of(runtime)
        task.factor = 1e2  # at the scaler's first scale of 65536 such gradients overflow
        outcomes = [engine.train_step([batch(seed)], [seed]).outcome for seed in range(12)]
        assert outcomes[0] == "rescaled"
        assert "applied" in outcomes
        assert "nonfinite" not in outcomes
        task.factor = float("nan")
        assert engine.train_step([batch()], [20]).outcome == "nonfinite"


def test_bad_steps_are_counted_put_on_record_and_end_the_run(
    tmp_path: Path, runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    guard = StepGuard(tmp_path / "nonfinite", 1, runtime, lambda rows: [f"key-{row}" for row in rows])
    nothing = torch.zeros(())
    good = StepResult({"loss": nothing}, nothing, 0.1)
    bad = StepResult({"loss": nothing + float("nan")}, nothing + float("inf"), 0.1, "nonfinite")
    progress = guard.judge(good, Progress(step=1), [batch()], [11])
    assert progress == Progress(step=1)
    rescaled = StepResult({"loss": nothing}, nothing, 0.1, "rescaled")
    progress = guard.judge(rescaled, progress, [batch()], [11])
    assert (progress.rescaled_steps, progress.nonfinite_steps) == (1, 0)
    progress = guard.judge(bad, Progress(step=2, rescaled_steps=1), [batch()], [12])
    assert (progress.rescaled_steps, progress.nonfinite_steps) == (1, 1)
    assert "step 2 was skipped: the loss of rank 0 is not finite" in capsys.readouterr().out
    record = json.loads((tmp_path / "nonfinite/step-00000002.json").read_bytes())
    (micro_batch,) = record["ranks"][0]["micro_batches"]
    assert micro_batch == {"draw_seed": 12, "rows": [5, 7], "keys": ["key-5", "key-7"]}
    with pytest.raises(FloatingPointError, match=r"step 3: the loss of rank 0 .* number 2 .* allows 1; .*00000003"):
        guard.judge(bad, Progress(step=3, nonfinite_steps=1), [batch()], [13])


TWO_RANKS = r"""
import sys
from fdtrain.runtime import start
from tests.unit.test_guard import batch, engine_of

with start("fp32") as runtime:
    engine, task = engine_of(runtime)
    task.addend = float("inf") if runtime.rank == 1 else 0.0
    outcomes = [engine.train_step([batch(runtime.rank)], [1]).outcome]
    task.addend = 0.0
    outcomes.append(engine.train_step([batch(runtime.rank)], [2]).outcome)
    sys.stdout.write(f"{runtime.rank} {outcomes}\n")  # in one piece, unlike print
"""


def test_what_one_rank_meets_all_ranks_skip(tmp_path: Path) -> None:
    script = tmp_path / "two_ranks.py"
    script.write_text(TWO_RANKS)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script]
    done = run_python(*words)
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        assert f"{rank} ['nonfinite', 'applied']" in done.stdout


def test_a_run_that_diverges_ends_with_one_line_and_keeps_its_last_checkpoint(shard_root: Path, tmp_path: Path) -> None:
    from tests.integration.test_resume import training

    run = tmp_path / "run"
    words = training(shard_root, run, optim__lr=1e30, optim__clip_grad_norm=0, train__max_nonfinite_steps=2)
    done = torchrun(2, *words)
    assert done.returncode != 0
    assert "number 3 of this kind, and train.max_nonfinite_steps allows 2; its samples are in" in done.stderr
    assert done.stderr.count("python -m fdtrain: error: rank ") == 2
    status = json.loads((run / "status.json").read_bytes())
    assert status["state"] == "failed"
    assert "is not finite" in status["reason"]
    assert len(list((run / "nonfinite").iterdir())) == 3
