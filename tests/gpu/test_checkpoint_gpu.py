"""Checkpoints of a GPU's state: a pinned copy, written while training goes on, with the bytes of one that waits."""

import functools
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fdtrain.checkpoint import CheckpointWriter, Progress
from fdtrain.config import CheckpointConfig, OptimConfig
from fdtrain.data.batch import Batch
from fdtrain.engines import DDPEngine
from fdtrain.models import InputSpec, create_model, save_model
from fdtrain.runtime import start
from fdtrain.tasks import ClassificationTask
from tests.gpu.conftest import Measured

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

SIDE, COUNT = 64, 8
SPEC = InputSpec(SIDE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear")


def test_training_goes_on_while_a_pinned_copy_is_written(tmp_path: Path, measured: Measured) -> None:
    measured(save_both_ways(tmp_path, "efficientnet_b0", {}))


def save_both_ways(folder: Path, model: str, options: dict[str, Any]) -> str:
    """Save one state by a write that waits, and by one that goes on beside a training step; say what that took."""
    may_write = threading.Event()
    write = functools.partial(save_model, name=model, options=options, spec=SPEC, facts={})

    def write_late(*args: object, **keywords: object) -> None:
        assert may_write.wait(300)
        write(*args, **keywords)  # type: ignore[arg-type]

    with start("auto") as runtime:
        torch.manual_seed(0)
        task = ClassificationTask(create_model(model, **options), SPEC)
        engine = DDPEngine(task, OptimConfig(ema_decay=0.9), runtime, 10, warm_up_batch=(COUNT, SIDE))
        engine.start_epoch(0)
        rows = torch.arange(COUNT)
        images = torch.randint(0, 256, (COUNT, SIDE, SIDE, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        batch = Batch(images.to(runtime.device), (rows % 2).to(runtime.device), rows, rows)
        writers = {
            name: CheckpointWriter(
                folder / name,
                runtime,
                CheckpointConfig(background=name == "background"),
                write_model=write_late if name == "background" else write,
                config={},
                data_digest="",
            )
            for name in ("synchronous", "background")
        }
        stalls = {}
        try:
            engine.train_step([batch], [0])
            for name, writer in writers.items():
                began = time.perf_counter()
                writer.save(engine.state, Progress(1))
                stalls[name] = time.perf_counter() - began
            engine.train_step([batch], [1])  # waits for the device
            background = writers["background"]
            assert background._pending is not None
            assert not background._pending.done()
            buffers = list(background._snapshot._buffers.values())
            copied = [buffer for buffer in buffers if buffer.numel() > 1]
            assert copied
            assert not (folder / "background" / "step-00000001").exists()
            if runtime.device.type == "cuda":  # all but the state of the CPU's generator came from there
                assert sum(not buffer.is_pinned() for buffer in copied) <= 2
        finally:
            may_write.set()
            for writer in writers.values():
                writer.close()
    one, other = (folder / name / "step-00000001" for name in writers)
    names = sorted(path.name for path in one.iterdir())
    assert {"model.safetensors", "ema.safetensors", "training.pt", "rank-00000.pt"} < set(names)
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    size = sum(buffer.nbytes for buffer in buffers) / 1e6
    took = " and ".join(f"{1e3 * seconds:.1f} ms ({name})" for name, seconds in stalls.items())
    return f"a checkpoint of {size:.0f} MB stalls training for {took}"
