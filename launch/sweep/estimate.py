"""How long a sweep will take: from what was measured of it before, or from some steps of one training."""

import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from datasets_shards.schema import quality_name
from fdtrain.cli import training_config
from fdtrain.config import UserError
from launch.pace import scoring_seconds, settings_to_try
from launch.sweep.cluster import Cluster, reason_of, wait_for
from launch.sweep.config import SweepConfig
from launch.sweep.plan import Plan, base_words, words_of
from launch.sweep.results import in_minutes
from launch.sweep.study import Study

STEPS = 4
"""Of the training that is tried; the last counts."""


@dataclass(frozen=True)
class Speed:
    """What a trial costs.

    Args:
        epoch: Seconds of one epoch with its validation.
        start: Seconds beside its epochs: processes, imports, data, model, and the best model's scores at the end.
        source: Where this is known from.
    """

    epoch: float
    start: float
    source: str


def expected_epochs(sweep: SweepConfig, length: int, done: int = 0) -> float:
    """Epochs that a trial goes on for on average, where ASHA stops as many as it aims at.

    Args:
        sweep: Its scheduler.
        length: Epochs at full length.
        done: Those that it has done; the rungs up to there have let it pass.
    """
    if sweep.scheduler.kind == "none":
        return float(length - done)
    factor, share, total = sweep.scheduler.reduction_factor, 1.0, 0.0
    rung = sweep.scheduler.grace_epochs
    while rung < length:
        if rung > done:
            total += share * (rung - done)
            share, done = share / factor, rung
        rung *= factor
    return total + share * (length - done)


def announce(plans: list[Plan], studies: list[Study], cluster: Cluster, parallel: int) -> None:
    """Say what will run, on what, and how long that may take."""
    sweep = plans[0].sweep
    gpus = cluster.gpus_per_worker(sweep)
    nodes = ", ".join(
        f"{name} ({room.get('CPU', 0):g} CPUs, {room.get('GPU', 0):g} GPUs)" for name, room in cluster.nodes.items()
    )
    print(f"{len(cluster.nodes)} node{'s' if len(cluster.nodes) > 1 else ''}: {nodes}")
    print(
        f"a trial has {sweep.workers} worker{'s' if sweep.workers > 1 else ''} of {sweep.cpus_per_worker} CPUs and "
        f"{gpus:g} GPUs; {parallel} at a time"
    )
    left = {plan.folder: sweep.trials for plan in plans}
    for study in studies:
        left[study.plan.folder] -= len(study.ended())
    length = max((study.full_length for study in studies), default=plans[0].base.train.epochs)
    most, likely = sum(left.values()) * length, sum(left.values()) * expected_epochs(sweep, length)
    waves = sum(math.ceil(count / parallel) for count in left.values())
    counts = ", ".join(
        f"{count} at {quality_name(plan.quality)}" for plan, count in zip(plans, left.values(), strict=True)
    )
    print(f"trials to run: {counts}; {most} epochs at most, some {likely:.0f} with {sweep.scheduler.kind}")
    speed = known_speed(studies) or (tried_speed(plans[0], cluster) if sweep.calibrate else None)
    if speed is None:
        print("time: not known yet; nothing was measured, and calibrate is false", flush=True)
        return
    longest = waves * (speed.start + length * speed.epoch)
    shortest = sum(left.values()) / parallel * speed.start + likely / parallel * speed.epoch
    print(
        f"time: {in_minutes(shortest)} to {in_minutes(max(longest, shortest))}, at {speed.epoch:.1f} s an epoch and "
        f"{speed.start:.0f} s a trial beside its epochs ({speed.source})",
        flush=True,
    )


def known_speed(studies: list[Study]) -> Speed | None:
    """By the trials so far."""
    trials = [trial for study in studies for trial in study.trials("finished", "stopped") if len(trial.epochs) > 1]
    if not trials:
        return None
    epoch = fmean(each.seconds for trial in trials for each in trial.epochs[1:])
    start = fmean(max(0.0, trial.seconds - epoch * len(trial.epochs)) for trial in trials)
    return Speed(epoch, start, f"as {len(trials)} trials before took")


def seconds_left(study: Study, parallel: int) -> float | None:
    """Until all trials of a search are at their ends, by those that are; None where these tell nothing yet."""
    speed = known_speed([study])
    if speed is None:
        return None
    sweep = study.plan.sweep
    remaining = max(sweep.trials - len(study.ended()), 0)
    done = [len(trial.epochs) for trial in study.trials("running")[:remaining]]
    done += [0] * (remaining - len(done))
    each = [
        expected_epochs(sweep, study.full_length, epochs) * speed.epoch + (0.0 if epochs else speed.start)
        for epochs in done
    ]
    return max(sum(each) / parallel, max(each, default=0.0))


def tried_speed(plan: Plan, cluster: Cluster) -> Speed:
    """By some steps of the base, in the place of one worker; more workers are taken to be as many times faster."""
    import ray

    began = time.monotonic()
    words = base_words(plan.sweep) + words_of(
        {"data.quality": plan.quality, "data.contest_share": plan.contest_share}
        | settings_to_try(plan.base, STEPS)
        | {"checkpoint.background": False, "loader.threads": plan.base.loader.threads or plan.sweep.cpus_per_worker}
    )
    task: Any = ray.remote(_try)
    task = task.options(num_cpus=plan.sweep.cpus_per_worker, num_gpus=cluster.gpus_per_worker(plan.sweep))
    try:
        answer = wait_for(
            task.remote(words, plan.sweep.cpus_per_worker, str(Path.cwd())), "the first steps of the base"
        )
    except ray.exceptions.RayError as error:
        reason = reason_of(error)
        raise UserError(f"base: the first steps of {plan.sweep.base} failed ({reason}); mend that first") from None
    rate, seconds, images, validated, steps = answer
    most = plan.base.train.max_steps
    if most is not None:
        images = min(images, most * plan.base.train.global_batch_size / plan.base.train.epochs)
    workers = rate * plan.sweep.workers
    epoch = images / workers + scoring_seconds(validated, workers)
    trained = STEPS * plan.base.train.global_batch_size / rate + scoring_seconds(validated, rate)
    start = max(0.0, time.monotonic() - began - seconds) + max(0.0, seconds - trained)
    return Speed(epoch, start, f"by {steps} steps of one worker, {rate:.0f} images/s")


class _EnoughError(Exception):
    pass


def _try(words: list[str], threads: int, directory: str) -> tuple[float, float, int, int, int]:
    """Images/s of the last step, seconds of the whole, images of an epoch and of validation, steps."""
    import contextlib
    import io
    import os

    import torch

    from fdtrain.data.run_data import open_data
    from fdtrain.run_folder import RunFolder
    from fdtrain.train import train

    with contextlib.suppress(OSError):
        os.chdir(directory)
    torch.set_num_threads(threads)
    began = time.monotonic()

    def enough(epoch: int, metrics: dict[str, float]) -> None:
        raise _EnoughError

    with tempfile.TemporaryDirectory(prefix="fdtrain-") as folder, contextlib.redirect_stdout(io.StringIO()):
        config = training_config([*words, f"--run.dir={folder}/run"])
        config.validate()
        data = open_data(config)
        with contextlib.suppress(_EnoughError):
            train(config, enough)
        seconds = time.monotonic() - began
        records = RunFolder(Path(folder) / "run").records()
        rates = [record["train/images_per_s"] for record in records if "train/images_per_s" in record]
    images = data.plan.steps_per_epoch * config.train.global_batch_size
    return rates[-1], seconds, images, len(data.rows["val"]), len(rates)
