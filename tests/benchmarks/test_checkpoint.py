"""What a checkpoint of EfficientNet-B4 with Adam costs training, written while it waits and while it goes on.

Prints seconds and ratios; asserts no time, since machines differ. Real optimizer steps of the real model; on a CPU of
small images so that it takes minutes; with larger ones a step is longer, and the shares of training time are smaller.
The two ways take turns. A checkpoint costs what the steps from it to the end of its write take longer than undisturbed
ones, the stall included: writing takes cores and memory bandwidth from training, which the stall alone doesn't show.
"""

import functools
import shutil
import time
from pathlib import Path
from statistics import median

import torch

from fdtrain.checkpoint import CheckpointWriter, Progress, latest_checkpoint
from fdtrain.config import CheckpointConfig, OptimConfig
from fdtrain.data.batch import Batch
from fdtrain.engines import DDPEngine
from fdtrain.models import create_model, input_spec, save_model
from fdtrain.models.fast import keep_freed_memory
from fdtrain.runtime import start
from fdtrain.tasks import ClassificationTask

SIZE, BATCH, UNDISTURBED = (380, 32, 20) if torch.cuda.is_available() else (64, 4, 4)
ROUNDS, EVERY = 3, 500


def test_what_a_checkpoint_costs(tmp_path: Path) -> None:
    keep_freed_memory()
    spec = input_spec("efficientnet_b4", None)
    with start("auto") as runtime:
        task = ClassificationTask(create_model("efficientnet_b4", pretrained=False), spec)
        engine = DDPEngine(task, OptimConfig(name="adam"), runtime, 10_000, warm_up_batch=(BATCH, SIZE))
        engine.start_epoch(0)
        labels = torch.arange(BATCH) % 2
        images = torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8, device=runtime.device)
        batch = Batch(images.contiguous(memory_format=torch.channels_last), labels.to(images.device), labels, labels)

        def step() -> float:
            began = time.perf_counter()
            engine.train_step([batch], [0])
            return time.perf_counter() - began

        for _ in range(3):
            step()
        write_model = functools.partial(save_model, name="efficientnet_b4", options={}, spec=spec, facts={})
        writers = {
            name: CheckpointWriter(
                tmp_path / name,
                runtime,
                CheckpointConfig(keep=1, background=background),
                write_model=write_model,
                config={},
                data_digest="",
            )
            for name, background in (("synchronous", False), ("background", True))
        }
        plain, stalls, costs, writes = [], {name: [] for name in writers}, {name: [] for name in writers}, []  # type: ignore[var-annotated]
        for number in range(ROUNDS + 1):
            for name, writer in writers.items():
                undisturbed = [step() for _ in range(UNDISTURBED)]
                usual = median(undisturbed)
                writer.save(engine.state, Progress(number))
                seconds = writer.take_seconds()
                stall, steps = seconds["train/checkpoint_stall_s"], []
                while "train/checkpoint_write_s" not in seconds:
                    steps.append(step())
                    seconds |= writer.take_seconds()
                assert writer.wait() == number
                if number:  # the first of each makes its buffers
                    plain += undisturbed
                    stalls[name].append(stall)
                    costs[name].append(stall + sum(steps) - len(steps) * usual)
                    writes.append(seconds["train/checkpoint_write_s"])
        for writer in writers.values():
            writer.close()
        checkpoint = latest_checkpoint(tmp_path / "background")
        assert checkpoint is not None
        assert checkpoint.progress.step == ROUNDS
        size = sum(path.stat().st_size for path in checkpoint.folder.iterdir())
        shutil.rmtree(tmp_path / "background")
    usual = median(plain)
    print(f"\na checkpoint of {size / 1e6:.0f} MB; a step of {BATCH} images of {SIZE} px takes {usual:.3f} s")
    print(f"writing takes {median(writes):.2f} s; shares are of {EVERY} steps; medians of {ROUNDS} checkpoints")
    for name in writers:
        stall, cost = median(stalls[name]), median(costs[name])
        shares = f"{stall / EVERY / usual:.4%} and {cost / EVERY / usual:.4%}"
        print(f"{name:<12} stall {stall:.3f} s, cost with slower steps {cost:.3f} s: {shares} of training time")
    ratio = median(stalls["synchronous"]) / median(stalls["background"])
    print(f"stall, synchronous / background: {ratio:.1f}")
