"""Ten training steps of a small model by an engine: the shortest way through everything that a run goes through."""

import math
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import cast

import torch

from datasets_shards.schema import quality_name
from fdtrain.config import Config, EngineConfig
from fdtrain.data.batch import Batch
from fdtrain.data.loader import choose_loader, load_batches
from fdtrain.data.plan import draw_seed
from fdtrain.data.remote import is_remote
from fdtrain.data.run_data import open_data
from fdtrain.doctor.data import find_qualities
from fdtrain.doctor.report import Finding
from fdtrain.doctor.request import Request
from fdtrain.engines import create_engine
from fdtrain.models import create_model, input_spec
from fdtrain.runtime import Runtime, start
from fdtrain.tasks import create_task

STEPS = 10
SIDE = 64
MICRO_BATCH = 4
MODEL = "meso4"


def check_engine(request: Request, kind: str) -> Iterator[Finding]:
    """Train on the shard set, or on noise where there is none on a disk. Collective; writes nothing."""
    what = f"dry run {kind}"
    if request.root is not None and is_remote(request.root):  # ten steps would fetch most of its tars
        request = replace(request, root=None)
    with start("auto") as runtime, ExitStack() as stack:
        config = _config(request, kind, runtime.world_size)
        if request.root is None:
            source, images, side = "generated images", _generated(runtime), SIDE
        else:
            data = open_data(config)
            reader = stack.enter_context(data.training_reader())
            loader, _ = choose_loader("auto", runtime.device)
            images = load_batches(
                loader,
                reader,
                data.walk(0, STEPS, runtime.rank, runtime.world_size),
                batch_size=MICRO_BATCH,
                device=runtime.device,
                threads=runtime.decode_threads,
                prefetch=2,
            )
            source, side = f"{quality_name(config.quality)} by the {loader} loader", data.shard_set.crop_size
        batches = stack.enter_context(closing(images))
        spec = replace(input_spec(MODEL), size=SIDE)
        task = create_task(config, create_model(MODEL, image_size=SIDE), spec)
        engine = create_engine(
            config, task, runtime, STEPS, (MICRO_BATCH, side), config.accumulation(runtime.world_size)
        )
        engine.start_epoch(0)
        losses, began = [], 0.0
        for step, batch in enumerate(batches):
            if step == 1:  # the first step makes what the others use
                began = time.perf_counter()
            result = engine.train_step([batch], [draw_seed(config.seed, step, runtime.rank)])
            losses.append(float(result.scalars["loss"]))
            if not math.isfinite(losses[-1]):
                detail = f"the loss of step {step + 1} is {losses[-1]} in {runtime.precision} on {source}"
                yield Finding("failure", what, detail, "try --precision fp32; if that is no better, report it")
                return
        rate = (STEPS - 1) / (time.perf_counter() - began)
        assert len(losses) == STEPS
        yield Finding(
            "ok",
            what,
            f"{STEPS} steps of {MODEL} at {SIDE} px in {runtime.precision} on {source}: loss {losses[0]:.3f} -> "
            f"{losses[-1]:.3f}, {rate:.1f} steps/s",
        )


def _config(request: Request, kind: str, world_size: int) -> Config:
    config = Config()
    config.model.name = MODEL
    config.data.root = request.root or ""
    if request.root is not None:
        config.data.quality = cast(int, find_qualities(request)[0][0])
    config.data.image_size = SIDE
    config.engine = EngineConfig(kind=kind)  # type: ignore[arg-type]
    config.optim.warmup_steps = 1
    config.train.max_steps = STEPS
    config.train.micro_batch_size, config.train.global_batch_size = MICRO_BATCH, MICRO_BATCH * world_size
    return config


def _generated(runtime: Runtime) -> Generator[Batch, None, None]:
    generator = torch.Generator().manual_seed(runtime.rank)
    for step in range(STEPS):
        images = torch.randint(0, 256, (MICRO_BATCH, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)
        numbers = torch.arange(MICRO_BATCH) + MICRO_BATCH * (step * runtime.world_size + runtime.rank)
        labels = (numbers % 2).to(runtime.device)
        yield Batch(images.to(runtime.device).permute(0, 3, 1, 2), labels, numbers, numbers)
