"""The training loop: steps, validation, checkpoints, and at the end the test split, once.

It knows no model and no engine by name, and each of its steps follows from the step's number alone.
"""

import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from datasets_shards.schema import one_class_warning, write_atomic
from fdtrain.checkpoint import CheckpointWriter, Progress, find_own_checkpoint
from fdtrain.checkpoint.snapshot import all_finite
from fdtrain.config import Config, UserError
from fdtrain.contest import Contest
from fdtrain.data.augment import Augmenter, augment_settings
from fdtrain.data.intake import Intake
from fdtrain.data.loader import choose_loader, load_batches
from fdtrain.data.plan import draw_seed
from fdtrain.data.reader import ShardReader
from fdtrain.data.run_data import open_data
from fdtrain.data.store import StoreError
from fdtrain.engines import Engine, EngineState, StepResult, check_sync_batchnorm, choose_engine, create_engine
from fdtrain.facts import run_facts, training_facts
from fdtrain.guard import StepGuard
from fdtrain.journal import Journal
from fdtrain.models import create_model, input_spec, save_model
from fdtrain.models.fast import keep_freed_memory
from fdtrain.optim import warmup_warning
from fdtrain.progress import ProgressBar
from fdtrain.run_folder import RunFolder
from fdtrain.runtime import Runtime, naming_lost_ranks, start
from fdtrain.selection import ModelSelection, OnEpoch
from fdtrain.stopping import Stopper, StopRequested
from fdtrain.tasks import Task, create_task
from fdtrain.telemetry.create import create_meter
from fdtrain.telemetry.loading import bad_rows, loading_totals
from fdtrain.telemetry.trace import StepTracer
from fdtrain.tracking import watch_system


def train(config: Config, on_epoch: OnEpoch | None = None, began: float | None = None) -> None:
    """Train one model on one shard set, from its configuration to a registered model. Collective under torchrun.

    Args:
        config: The resolved configuration.
        on_epoch: Told of each validation.
        began: `time.monotonic()` from which the run's time counts; now by default.

    Raises:
        UserError: a setting doesn't suit the data, the device or the run folder.
        ShardSetError: the shard set can't be used.
        StopRequested: the run was stopped, and can be gone on with.
    """
    called = time.monotonic()
    wait = config.engine.timeout_minutes
    with start(
        config.precision,
        device=config.engine.device,
        seed=config.seed,
        deterministic=config.deterministic,
        timeout_minutes=wait,
    ) as runtime:
        accumulation = config.accumulation(runtime.world_size)
        check_sync_batchnorm(config, runtime.device)
        if runtime.device.type == "cpu":
            keep_freed_memory()
        run = RunFolder(config.run_dir, called if began is None else began)
        # A group that torchrun restarted goes on with its own run, whatever its arguments.
        resume = runtime.is_restarted() or config.run.resume == "auto"
        runtime.on_main(lambda: run.claim(resume))
        if runtime.watch and runtime.is_main:
            runtime.watch.on_loss.append(partial(_note_loss, run))
        try:
            stopping = Stopper(config.train.max_minutes, called)
            with run.failing(runtime.is_main), naming_lost_ranks(runtime, wait), stopping as stopper:
                trainer = Trainer(config, run, runtime, accumulation, stopper)
                trainer.selection.on_epoch = on_epoch
                trainer.run_to_the_end()
        finally:
            run.release()


def _note_loss(run: RunFolder, reason: str) -> None:
    if run.status().get("state") == "running":
        run.write_status("failed", reason)


class Trainer:
    """One run on one rank.

    Args:
        config: The resolved configuration.
        run: Its folder, claimed by rank 0.
        runtime: This rank's surroundings.
        accumulation: Micro-batches of this rank in one step.
        stopper: Asked between steps.
    """

    def __init__(self, config: Config, run: RunFolder, runtime: Runtime, accumulation: int, stopper: Stopper) -> None:
        self.config, self.run, self.runtime, self.accumulation = config, run, runtime, accumulation
        self.stopper = stopper
        self.journal = Journal(run, runtime.is_main)
        self.data = open_data(config, lambda: stopper.is_asked)
        if len(set(runtime.of_all_ranks(self.data.digest))) > 1:
            raise UserError(
                f"data.root: {config.data.root} isn't the same shard set on all ranks; pack or upload it anew"
            )
        self.shard_set, self.rows, self.plan = self.data.shard_set, self.data.rows, self.data.plan
        self.augmentation = augment_settings(config.augment.preset, config.augment.jpeg_quality)
        self.total_steps = config.train.epochs * self.plan.steps_per_epoch
        if config.train.max_steps is not None:
            self.total_steps = min(self.total_steps, config.train.max_steps)
        self.loader, self.loader_reason = choose_loader(config.loader.kind, runtime.device)
        self.loading: dict[str, Any] = {
            "threads": config.loader.threads or runtime.decode_threads,
            "prefetch": config.loader.prefetch,
        }

        self.selection = ModelSelection(
            config,
            self.data,
            runtime,
            self.journal,
            self.loader,
            self.loading,
            check=stopper.check,
            on_failure=lambda fault: self.writer.note_failure(fault),
        )

        designed_for = input_spec(config.model.name, config.model.variant, config.multi_attention.backbone)
        self.spec = replace(designed_for, size=config.data.image_size or self.shard_set.crop_size)
        self.designed_size = designed_for.size
        options = config.model_options | {"image_size": self.spec.size}
        self.facts = run_facts(config, self.data)
        self.write_model = partial(
            save_model,
            name=config.model.name,
            options=options,
            spec=self.spec,
            facts=training_facts(config, self.data, self.facts),
        )
        bad = int(config.data.max_bad_share * len(self.rows["train"]))
        self.intake = Intake(self.plan.substitutes, bad) if config.data.on_bad_sample == "skip" else Intake()
        self.guard = StepGuard(run.nonfinite, config.train.max_nonfinite_steps, runtime, self._keys)
        self.progress = Progress()
        checkpoint = find_own_checkpoint(run, runtime, self._settings(), self.data.digest)
        if checkpoint:
            options["pretrained"] = False  # its weights are the run's own by now
        model = create_model(config.model.name, **options)
        self.meter = create_meter(config, model, self.spec, self.shard_set.crop_size, runtime)
        self.tracer = StepTracer(config.profile, run.profile, runtime, self.total_steps)
        task = create_task(config, model, self.spec)
        self._check_stages(task)
        self.engine_kind = choose_engine(config, task.model, runtime)
        warm_up_batch = (config.train.micro_batch_size, self.shard_set.crop_size)
        self.engine: Engine = create_engine(config, task, runtime, self.total_steps, warm_up_batch, accumulation)
        if checkpoint:
            self.engine.load_state(checkpoint.load(runtime))
            self.progress = checkpoint.progress
            self.intake.before = frozenset(checkpoint.progress.bad_rows)
        self.writer = CheckpointWriter(
            run.checkpoints,
            runtime,
            config.checkpoint,
            write_model=self.write_model,
            config=self._settings(),
            data_digest=self.data.digest,
            saved_step=checkpoint.progress.step if checkpoint else None,
            on_saved=lambda step: run.write_status("running", step=step, total_steps=self.total_steps),
            timeout_minutes=config.engine.timeout_minutes,
        )

    def run_to_the_end(self) -> None:
        """Train from where the run stands, evaluate the best model and register it."""
        if self.progress.step >= self.total_steps and self.run.status().get("state") == "finished":
            self.journal.say(f"{self.run.path}: finished already, after {self.progress.step} steps; nothing to do")
            return
        resumed = self.progress.step > 0
        records = self.runtime.on_main(lambda: self._begin(resumed))
        self._announce()
        contest = Contest(self.config, self.data, self.runtime, self.journal, self.selection.score)
        status = "FAILED"
        try:
            with watch_system(records), self.data.reader() as reader, self.data.training_reader() as training_reader:
                self._validate_what_was_left(reader)
                with self._stopping_alone():
                    self._train(training_reader, reader)
                    metrics = self.selection.evaluate_best(reader)
                    verdict = contest.challenge(reader)
                self.stopper.settle()
            self.writer.wait()
            if seconds := self.writer.take_seconds():
                self.journal.log(self.progress.step, seconds)
            status = "FINISHED"
        except StopRequested as stop:
            status = "KILLED"  # as MLflow calls it; the resumed run goes on with the same record
            self._leave(stop)
            raise
        finally:
            self.writer.close()
            if self.journal.tracker:
                self.journal.tracker.close(status)
        if self.runtime.is_main:
            registered = contest.register(metrics, self.facts, verdict)
            self.run.write_status("finished", step=self.progress.step, registered=registered)

    def _begin(self, resumed: bool) -> Path | None:
        """On rank 0: put on record what is trained; the folder of MLflow's records, as of `Journal.track`."""
        write_atomic(self.run.config, self.config.to_yaml().encode())
        if self.engine.settings:
            write_atomic(self.run.engine, json.dumps(self.engine.settings, indent=2).encode() + b"\n")
        self.run.rewind_log(self.progress.step)
        self.run.begin(resumed)
        self.run.write_status("running", step=self.progress.step, total_steps=self.total_steps)
        return self.journal.track(self.config, self.facts, self.data, resumed, self.progress.mlflow_run_id)

    @contextmanager
    def _stopping_alone(self) -> Iterator[None]:
        """Let a single process that is told to stop, while it waits for a store that is away, save and leave.

        Of several ranks others may be within the step that this one has no data for: they can't save it together.
        """
        try:
            yield
        except StoreError:
            if self.stopper.is_asked and self.runtime.world_size == 1:
                self.stopper.stop_alone()
            raise

    def _leave(self, stop: StopRequested) -> None:
        """Save, and say from where the run can go on.

        Raises:
            UserError: from nowhere, since no checkpoint could be written.
        """
        if self.writer.wait() != self.progress.step:
            self._save_checkpoint()
        saved, reason = self.writer.wait(), stop.reason
        if saved is None:
            raise UserError(f"{stop.reason}, and nothing to go on from: {self.writer.fault}") from stop
        if saved != self.progress.step:
            reason += f"; going on from step {saved}, since step {self.progress.step} wasn't saved: {self.writer.fault}"
        if self.runtime.is_main:
            self.run.write_status("preempted", reason, step=saved, total_steps=self.total_steps)

    def _keys(self, rows: np.ndarray) -> list[str]:
        return self.shard_set.index.take(rows, "key")["key"].to_pylist()

    def _check_stages(self, task: Task) -> None:
        task.start_epoch((self.total_steps - 1) // self.plan.steps_per_epoch)
        if not task.is_selectable:
            raise UserError(
                f"train.epochs: the run ends after {self.total_steps} steps, within the warm start, whose model can't "
                "be chosen; train longer, or shorten the warm start (multi_attention.backbone_epochs)"
            )

    def _settings(self) -> dict[str, Any]:
        """What a resumed run keeps; what `auto` comes to may be another precision or decoder on another machine."""
        settings = self.config.to_dict() | {"precision": self.runtime.precision}
        settings["loader"]["kind"] = self.loader
        if self.config.data.shuffle == "blocks":
            settings["data"]["buffer_blocks"] = self.plan.settings.buffer_blocks
        return settings

    def _announce(self) -> None:
        train = self.config.train
        self.journal.say(self.runtime.describe())
        self.journal.say(f"loader {self.loader} ({self.loader_reason}); engine {' ('.join(self.engine_kind)})")
        if self.spec.size != self.designed_size:
            self.journal.say(
                f"images of {self.spec.size} px; {self.config.model.name} was designed for {self.designed_size}"
            )
        self.journal.say(
            f"{len(self.rows['train'])} training samples at {self.data.description}: "
            f"{self.plan.steps_per_epoch} steps an epoch of {train.global_batch_size} = {train.micro_batch_size} x "
            f"{self.runtime.world_size} ranks x {self.accumulation} accumulated; {self.total_steps} steps in all"
            + (f"; {self.plan.dropped_per_epoch} samples left over in each" if self.plan.dropped_per_epoch else "")
        )
        for split, rows in self.rows.items():
            if warning := one_class_warning(split, np.unique(self.shard_set.index.numbers("label")[rows]).tolist()):
                self.journal.warn(warning)
        if warning := self.augmentation.warning(self.shard_set.crop_size):
            self.journal.warn(warning)
        if line := self.data.shuffling:
            self.journal.say(line)
        if warning := warmup_warning(self.total_steps, self.config.optim):
            self.journal.warn(warning)
        if line := self.meter.announcement:
            self.journal.say(line)
        if self.progress.step:
            self.journal.say(f"resumed after step {self.progress.step}")

    def _train(self, training_reader: ShardReader, reader: ShardReader) -> None:
        step, runtime = self.progress.step, self.runtime
        batches = load_batches(
            self.loader,
            training_reader,
            self.data.walk(step, self.total_steps, runtime.rank, runtime.world_size),
            batch_size=self.config.train.micro_batch_size,
            device=runtime.device,
            **self.loading,
            intake=self.intake,
        )
        bar = ProgressBar(self.total_steps, step, show=runtime.is_main)
        augmenter = Augmenter(self.augmentation, self.config.seed, self.loading["threads"])
        with closing(batches), augmenter, bar, self.tracer:
            self._start_epoch(step // self.plan.steps_per_epoch)
            while step < self.total_steps:
                self.tracer.begin(step + 1)
                with self.meter.phase("data_wait"):
                    micro_batches = list(islice(batches, self.accumulation))
                with self.meter.phase("augment"):
                    micro_batches = [augmenter.augment(batch) for batch in micro_batches]
                numbers = range(runtime.rank, self.accumulation * runtime.world_size, runtime.world_size)
                seeds = [draw_seed(self.config.seed, step, number) for number in numbers]
                result = self.engine.train_step(micro_batches, seeds)
                step += 1
                self.meter.step()
                bar.step()
                self.progress = self.guard.judge(result, replace(self.progress, step=step), micro_batches, seeds)
                if step % self.config.train.log_every == 0 or step == self.total_steps:
                    self._log_step(bar, result)
                ends_epoch = step % self.plan.steps_per_epoch == 0 or step == self.total_steps
                with self.meter.phase("paused"):
                    self.tracer.end(step)
                    if ends_epoch:
                        self._validate(reader)
                    if ends_epoch or step % self.config.checkpoint.every_steps == 0:
                        self._save_checkpoint(self.selection.value if ends_epoch else None)
                    if ends_epoch and step < self.total_steps:
                        self._start_epoch(step // self.plan.steps_per_epoch)
                if step < self.total_steps:
                    self.stopper.check()

    def _validate(self, reader: ShardReader) -> None:
        # Until that is done: a stop may come between two batches.
        self.progress = replace(self.progress, unvalidated_step=self.progress.step)
        self.progress = self.selection.validate(self.engine, reader, self.progress, self.write_model)

    def _validate_what_was_left(self, reader: ShardReader) -> None:
        """Where the run was stopped within a validation, do that first, and save again with what comes of it."""
        step = self.progress.step
        if step and self.progress.unvalidated_step == step:
            self.engine.start_epoch((step - 1) // self.plan.steps_per_epoch)
            self._validate(reader)
            self._save_checkpoint(self.selection.value)

    def _start_epoch(self, epoch: int) -> None:
        self.engine.start_epoch(epoch)
        self.meter.start_epoch(epoch)

    def _log_step(self, bar: ProgressBar, result: StepResult) -> None:
        """Log the means over the ranks; seconds and counts of loading are summed over them."""
        scalars = self.runtime.mean_over_ranks(result.scalars)
        values = {f"train/{name}": value for name, value in scalars.items()}
        values |= {"train/grad_norm": float(result.grad_norm), "train/lr": result.lr}
        saving = self.writer.take_seconds()
        measures = self.meter.take(self.engine.take_seconds(), saving.get("train/checkpoint_stall_s", 0.0))
        values |= measures.values
        totals, bad = loading_totals(self.intake, self.data.cache_counters(), self.runtime)
        values |= totals | saving
        self.stopper.reserve_s = values.get("train/checkpoint_write_s", self.stopper.reserve_s)
        values["train/nonfinite_steps"] = self.progress.nonfinite_steps
        values["train/rescaled_steps"] = self.progress.rescaled_steps
        self.journal.log(self.progress.step, values, by_rank=measures.by_rank)
        bar.report(values)
        if bad:
            self.intake.judge(bad)

    def _save_checkpoint(self, value: float | None = None) -> None:
        """Save; `value` is the selection metric of this very model, where it is known."""
        self.progress = replace(self.progress, bad_rows=bad_rows(self.intake, self.runtime))
        if self.journal.tracker and self.journal.tracker.run_id:
            self.progress = replace(self.progress, mlflow_run_id=self.journal.tracker.run_id)
        self.writer.save(self._finite_state, self.progress, value)

    def _finite_state(self) -> EngineState:
        """Of the engine, unless the weights have diverged: the last good checkpoint must not give way to them."""
        state = self.engine.state()
        if not all_finite(state.model.values()):
            raise FloatingPointError(
                f"step {self.progress.step}: the weights are not finite; lower optim.lr, or take another precision"
            )
        return state
