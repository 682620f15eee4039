"""DeepSpeed against DDP, on real processes: the same losses, exact resumes, steps that are skipped, what ranks hold."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_python, small_training, torchrun

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed runs on Linux")

STAGES = ("zero0", "zero1", "zero2", "zero3")

SAME = 6
"""Steps whose losses agree within rounding.

Later one activation of millions may lie so near to a kink that rounding decides its side: weights of one engine that
differ by a millionth at the start have losses that differ by .006 after 20 steps.
"""


def drive(folder: Path, precision: str, *what: str, ranks: int = 2) -> dict[str, Any]:
    """What `tests.deepspeed_driver` found on so many ranks."""
    out = folder / "out.json"
    done = torchrun(ranks, "tests.deepspeed_driver", precision, out, *what)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "is deprecated" not in done.stderr
    assert "DeepSpeed" not in done.stdout
    return json.loads(out.read_text())


THREADS = """
import sys
from pathlib import Path
from fdtrain.runtime import Runtime, start
from tests.deepspeed_driver import configuration, make, steps

def train(stage: int, runtime: Runtime) -> None:
    engine = make(configuration("zero", stage), runtime, 2)
    engine.start_epoch(0)
    steps(engine, runtime, 0, 2, 2)

for stage in map(int, sys.argv[1:]):
    with start("fp32") as runtime:
        train(stage, runtime)
    print(stage, *((task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()))
"""


def test_no_thread_outlives_the_groups_of_an_engine() -> None:
    """See tests/unit/test_runtime.py. Of stage 3 they do: DeepSpeed keeps its modules in a stack and a cache."""
    done = run_python("-c", THREADS, 0, 1, 2)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "2"]
    assert [line for line in lines if "gloo" in line] == []


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Everything in fp32, from one start of the processes."""
    return drive(tmp_path_factory.mktemp("deepspeed"), "fp32", "compare", "resume", "skip", "uneven")


def test_micro_batches_that_are_shared_out_unevenly_count_alike(found: dict[str, Any]) -> None:
    assert found["uneven"]["moved"] > 0.1
    assert max(found["uneven"]["mean"], found["uneven"]["variance"]) < 1e-6


@pytest.mark.parametrize("clip", [0.0, 0.2])
def test_losses_are_those_of_ddp(found: dict[str, Any], clip: float) -> None:
    """20 steps with dropout and accumulation, and the scores of the evaluated copy after them."""
    ddp = found["compare"][f"ddp clip {clip}"]
    assert min(ddp["losses"][-5:]) < 0.7 * ddp["losses"][0]  # so that there is something to compare
    if clip:
        assert max(ddp["norms"]) > clip  # it does clip
        assert ddp["losses"] != found["compare"]["ddp clip 0.0"]["losses"]
    for stage in STAGES:
        zero = found["compare"][f"{stage} clip {clip}"]
        assert set(zero["outcomes"]) == {"applied"}
        assert zero["losses"][:SAME] == pytest.approx(ddp["losses"][:SAME], abs=1e-5), stage
        assert zero["norms"][:SAME] == pytest.approx(ddp["norms"][:SAME], rel=1e-4), stage
        assert zero["losses"] == pytest.approx(ddp["losses"], abs=0.03), stage
        assert zero["scores"] == pytest.approx(ddp["scores"], abs=0.03), stage


def test_each_rank_holds_its_share_of_the_optimizer(found: dict[str, Any]) -> None:
    held = {name: found["compare"][f"{name} clip 0.0"] for name in ("ddp", *STAGES)}
    for name, values in held.items():
        sizes = [f"{size / 1e3:.1f} kB" for size in values["state_bytes"]]
        print(f"{name}: the optimizer's state on each rank: {sizes}; peak RSS {values['peak_rss_mb']} MB")
    whole = held["ddp"]["state_bytes"][0]
    assert held["zero0"]["state_bytes"] == [whole, whole]
    for stage in STAGES[1:]:
        for size in held[stage]["state_bytes"]:
            assert whole / 2 <= size < 0.51 * whole, stage  # with what fills up the last share


@pytest.mark.parametrize("ranks", [1, 2])
def test_weights_start_where_a_gpu_may_read_vectors(tmp_path: Path, ranks: int) -> None:
    """Else batch normalization fails there: CUDA error, misaligned address."""
    used = drive(tmp_path, "fp32", "misaligned", ranks=ranks)["misaligned"]
    assert used == {stage: [] for stage in STAGES}


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_is_the_undisturbed_one_to_the_bit(found: dict[str, Any], stage: str) -> None:
    """Weights, each rank's buffers and share of the optimizer's state, moving averages (but for stage 3), losses."""
    assert found["resume"][stage] == []


def test_states_that_do_not_suit_are_refused(found: dict[str, Any]) -> None:
    said = found["resume"]
    assert said["other ranks"].startswith("deepspeed.zero_stage: 1 keeps a share of the optimizer's state on each rank")
    assert "model.pretrained" in said["other ranks"]
    assert said["other engine"].startswith("engine.kind: the checkpoint is of ddp")
    assert "reduce_bucket_size is 9000 where the checkpoint was trained with 5000" in said["other settings"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_with_an_infinite_loss_on_one_rank_changes_nothing(found: dict[str, Any], stage: str) -> None:
    for rank in found["skip"][stage]:
        assert rank["outcomes"] == ["nonfinite", "applied", "applied"]
        assert rank["changed"] == []
        assert all(loss < 1 for loss in rank["losses"])


def test_fp16_finds_its_scale_as_under_ddp(tmp_path: Path) -> None:
    """The first steps overflow; the same ones do on all engines, and clipping sees gradients without the scale."""
    found = drive(tmp_path, "fp16", "compare_clipped")["compare_clipped"]
    ddp = found["ddp"]
    assert ddp["outcomes"][0] == "rescaled"
    assert ddp["outcomes"][-3:] == ["applied"] * 3
    for stage in STAGES:
        assert found[stage]["outcomes"] == ddp["outcomes"], stage
        assert found[stage]["losses"] == pytest.approx(ddp["losses"], abs=2e-3), stage
        assert found[stage]["norms"] == pytest.approx(ddp["norms"], rel=0.1), stage


@pytest.mark.long
def test_a_run_goes_on_and_refuses_another_number_of_ranks(shard_root: Path, tmp_path: Path) -> None:
    """The program as a user calls it: checkpoints on disk, ZeRO 2, moving averages."""
    settings: dict[str, Any] = {
        "engine__kind": "deepspeed",
        "deepspeed__zero_stage": 2,
        "optim__schedule": "constant",
        "optim__ema_decay": 0.9,
        "train__log_every": 1,
        "train__epochs": 3,
        "run__resume": "auto",
    }
    run, whole = tmp_path / "run", tmp_path / "whole"
    first = torchrun(2, *small_training(shard_root, run, train__max_steps=5, **settings))
    assert first.returncode == 0, first.stderr[-3000:]
    assert "engine deepspeed (as configured)" in first.stdout
    given = json.loads((run / "engine.json").read_text())
    assert (given["zero_optimization"]["stage"], given["train_micro_batch_size_per_gpu"]) == (2, 4)
    assert given["zero_optimization"]["overlap_comm"] is False  # a default that no setting of ours speaks of
    refused = torchrun(1, *small_training(shard_root, run, train__max_steps=7, **settings))
    assert refused.returncode != 0
    assert "deepspeed.zero_stage: 2 keeps a share of the optimizer's state on each rank" in refused.stderr
    assert "Traceback" not in refused.stderr.split("deepspeed.zero_stage")[0]
    for folder in (run, whole):
        done = torchrun(2, *small_training(shard_root, folder, train__max_steps=7, **settings))
        assert done.returncode == 0, done.stderr[-3000:]
    # The run that stopped after five steps has validated once more, and shows it in no weight.
    for name in ("model.safetensors", "ema.safetensors"):
        one, other = (folder / "checkpoints" / "step-00000007" / name for folder in (run, whole))
        assert one.read_bytes() == other.read_bytes(), name
