"""What a training step costs without the trainer: `python -m tests.benchmarks.bare_loop ROOT STEPS` prints images/s.

The same model, batches, loss, optimizer, clipping and precision as the run that it is held against, all batches decoded
before, on a GPU where there is one.
"""

import sys
import time

import torch
from torch import nn

from fdtrain.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from fdtrain.data.loader import load_batches
from fdtrain.data.run_data import open_data
from fdtrain.models import InputSpec, create_model
from fdtrain.models.fast import keep_freed_memory
from fdtrain.optim import create_optimizer
from fdtrain.tasks import ClassificationTask

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MODEL, BATCH, SKIPPED = ("efficientnet_b4", 32, 10) if DEVICE.type == "cuda" else ("efficientnet_b0", 16, 4)


def main(root: str, steps: int) -> None:
    """Time the steps after the first few."""
    keep_freed_memory()
    torch.manual_seed(0)
    config = Config(
        data=DataConfig(root=root, quality=77),
        model=ModelConfig(name=MODEL),
        train=TrainConfig(global_batch_size=BATCH, micro_batch_size=BATCH),
    )
    data = open_data(config)
    with data.training_reader() as reader:
        walk = data.plan.walk(0, steps, 0, 1)
        loading = load_batches("torch", reader, walk, batch_size=BATCH, device=DEVICE, threads=1, prefetch=1)
        batches = list(loading)
    task = ClassificationTask(create_model(MODEL), InputSpec(data.shard_set.crop_size))
    task = task.to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = create_optimizer(task.model, OptimConfig())
    task.train()
    began = 0.0
    for number, batch in enumerate(batches):
        if number == SKIPPED:
            began = now()
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=DEVICE.type == "cuda"):
            loss = task(batch.images, batch.labels)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    print((steps - SKIPPED) * BATCH / (now() - began))


def now() -> float:
    """Seconds, when the device has done what it was given."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
