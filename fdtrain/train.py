"""The training loop: steps, validation, checkpoints, and at the end the test split, once.

It knows no model and no engine by name, and each of its steps follows from the step's number alone.
"""

import json
import math
import sys
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

from datasets_shards.schema import quality_name, write_atomic
from fdtrain.checkpoint import Checkpoint, Progress, latest_checkpoint, publish, save_checkpoint
from fdtrain.config import Config, UserError, flatten
from fdtrain.data.augment import Augmenter, augment_settings
from fdtrain.data.intake import Intake
from fdtrain.data.loader import choose_loader, load_batches
from fdtrain.data.plan import draw_seed
from fdtrain.data.reader import ShardReader
from fdtrain.data.run_data import open_data
from fdtrain.engines import DDPEngine, Engine
from fdtrain.evaluate import prediction_table, score_split, write_predictions
from fdtrain.metrics import SELECTION_METRIC, compute_metrics, jsonable
from fdtrain.models import create_model, input_spec, save_model
from fdtrain.models.weights import open_model
from fdtrain.progress import StepTimer
from fdtrain.registry import register, registered_name
from fdtrain.run_folder import RunFolder
from fdtrain.runtime import Runtime, start
from fdtrain.task import ClassificationTask
from fdtrain.tracking import Tracker, git_revision, tracking_uri

# What a resumed run may change; with anything else another the steps would not be the same run's.
MAY_CHANGE = (
    "run.",
    "loader.",
    "data.cache_",
    "checkpoint.",
    "tracking.",
    "train.epochs",
    "train.max_steps",
    "train.log_every",
)


def train(config: Config) -> None:
    """Train one model on one shard set, from its configuration to a registered model. Collective under torchrun.

    Raises:
        UserError: a setting doesn't suit the data, the device or the run folder.
        ShardSetError: the shard set can't be used.
    """
    with start(config.precision, seed=config.seed, deterministic=config.deterministic) as runtime:
        accumulation = config.accumulation(runtime.world_size)
        run = RunFolder(config.run_dir)
        # A group that torchrun restarted goes on with its own run, whatever its arguments.
        resume = config.run.resume == "auto" or runtime.restarted
        runtime.on_main(lambda: run.claim(resume))
        try:
            with run.failing(runtime.is_main):
                Trainer(config, run, runtime, accumulation).run_to_the_end()
        finally:
            run.release()


class Trainer:
    """One run on one rank.

    Args:
        config: The resolved configuration.
        run: Its folder, claimed by rank 0.
        runtime: This rank's surroundings.
        accumulation: Micro-batches of this rank in one step.
    """

    def __init__(self, config: Config, run: RunFolder, runtime: Runtime, accumulation: int) -> None:
        self.config, self.run, self.runtime, self.accumulation = config, run, runtime, accumulation
        self.data = open_data(config)
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

        designed_for = input_spec(config.model.name)
        self.spec = replace(designed_for, size=config.data.image_size or self.shard_set.crop_size)
        self.designed_size = designed_for.size
        options: dict[str, Any] = {
            "pretrained": config.model.pretrained,
            "drop_rate": config.model.drop_rate,
            "drop_path_rate": config.model.drop_path_rate,
            "image_size": self.spec.size,
        }
        self.facts = {
            "data.digest": self.data.digest,
            "data.quality_name": quality_name(config.quality),
            "git.revision": git_revision(),
        }
        self.write_model = partial(
            save_model,
            name=config.model.name,
            options=options,
            spec=self.spec,
            facts={"quality": config.quality} | self.facts,
        )
        bad = int(config.data.max_bad_share * len(self.rows["train"]) / runtime.world_size)
        self.intake = Intake(self.plan.substitutes, bad) if config.data.on_bad_sample == "skip" else Intake()
        self.progress = Progress()
        checkpoint = self._find_checkpoint()
        model = create_model(config.model.name, **options)
        self.engine: Engine = DDPEngine(
            ClassificationTask(model, self.spec),
            config.optim,
            runtime,
            self.total_steps,
            warm_up_batch=(config.train.micro_batch_size, self.shard_set.crop_size),
        )
        if checkpoint:
            self.engine.load_state(checkpoint.load(runtime))
            self.progress = checkpoint.progress
        self.tracker: Tracker | None = None

    def run_to_the_end(self) -> None:
        """Train from where the run stands, evaluate the best model and register it."""
        if self.progress.step >= self.total_steps and self.run.status().get("state") == "finished":
            self.say(f"{self.run.path}: finished already, after {self.progress.step} steps; nothing to do")
            return
        if self.runtime.is_main:
            write_atomic(self.run.config, self.config.to_yaml().encode())
            self.run.rewind_log(self.progress.step)
            self.run.write_status("running", step=self.progress.step, total_steps=self.total_steps)
            self.run.under_way = True
            if self.config.tracking.enabled:
                self.tracker = Tracker(self.config, self.facts, self.progress.mlflow_run_id)
                self.tracker.log_file(self.run.config)
        self._announce()
        status = "FAILED"
        try:
            with self.data.reader() as reader, self.data.training_reader() as training_reader:
                self._train(training_reader, reader)
                metrics = self._final_evaluation(reader)
            status = "FINISHED"
        finally:
            if self.tracker:
                self.tracker.close(status)
        if self.runtime.is_main:
            registered = self._register(metrics)
            self.run.write_status("finished", step=self.progress.step, registered=registered)

    def _find_checkpoint(self) -> Checkpoint | None:
        checkpoint = self.runtime.on_main(lambda: latest_checkpoint(self.run.checkpoints))
        if checkpoint is None:
            return None
        if checkpoint.data_digest != self.data.digest:
            raise UserError(
                f"data.root: {checkpoint.folder} was trained on a shard set with another digest; "
                "give that set, or choose another run.dir"
            )
        old, new = flatten(checkpoint.config), flatten(self.config.to_dict())
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key) and not key.startswith(MAY_CHANGE) and key != "data.root":
                raise UserError(
                    f"{key}: {new.get(key)} where {checkpoint.folder} was trained with {old.get(key)}; "
                    "a resumed run keeps it: set it back, or choose another run.dir"
                )
        return checkpoint

    def _announce(self) -> None:
        train = self.config.train
        self.say(self.runtime.describe())
        self.say(f"loader {self.loader} ({self.loader_reason}); engine ddp")
        if self.spec.size != self.designed_size:
            self.say(f"images of {self.spec.size} px; {self.config.model.name} was designed for {self.designed_size}")
        self.say(
            f"{len(self.rows['train'])} training samples at {self.data.description}: "
            f"{self.plan.steps_per_epoch} steps an epoch of {train.global_batch_size} = {train.micro_batch_size} x "
            f"{self.runtime.world_size} ranks x {self.accumulation} accumulated; {self.total_steps} steps in all"
        )
        if warning := self.augmentation.warning(self.shard_set.crop_size):
            self.say(f"warning: {warning}")
        if self.progress.step:
            self.say(f"resumed after step {self.progress.step}")

    def _train(self, training_reader: ShardReader, reader: ShardReader) -> None:
        step, runtime = self.progress.step, self.runtime
        batches = load_batches(
            self.loader,
            training_reader,
            self.plan.walk(step, self.total_steps, runtime.rank, runtime.world_size),
            batch_size=self.config.train.micro_batch_size,
            device=runtime.device,
            **self.loading,
            intake=self.intake,
        )
        timer = StepTimer(self.total_steps, step, self.config.train.global_batch_size, show=runtime.is_main)
        augmenter = Augmenter(self.augmentation, self.config.seed, self.loading["threads"])
        with closing(batches), augmenter, timer:
            while step < self.total_steps:
                with timer.waiting():
                    micro_batches = list(islice(batches, self.accumulation))
                micro_batches = [augmenter.augment(batch) for batch in micro_batches]
                numbers = range(runtime.rank, self.accumulation * runtime.world_size, runtime.world_size)
                seeds = [draw_seed(self.config.seed, step, number) for number in numbers]
                result = self.engine.train_step(micro_batches, seeds)
                step += 1
                timer.step()
                self.progress = replace(self.progress, step=step)
                if step % self.config.train.log_every == 0 or step == self.total_steps:
                    scalars = runtime.mean_over_ranks(result.scalars)
                    self._log_step(timer, scalars, float(result.grad_norm), result.lr)
                ends_epoch = step % self.plan.steps_per_epoch == 0 or step == self.total_steps
                with timer.paused():
                    if ends_epoch:
                        self._validate(reader)
                    if ends_epoch or step % self.config.checkpoint.every_steps == 0:
                        self._save_checkpoint()

    def _log_step(self, timer: StepTimer, scalars: dict[str, float], grad_norm: float, lr: float) -> None:
        if not all(map(math.isfinite, scalars.values())):
            raise FloatingPointError(
                f"step {self.progress.step}: {scalars} is not finite; lower optim.lr, or take another precision"
            )
        values = {f"train/{name}": value for name, value in scalars.items()}
        values |= {"train/grad_norm": grad_norm, "train/lr": lr} | timer.rates() | self.intake.take()
        values |= self.data.cache_counters()
        self._log(values)
        timer.report(values)

    def _validate(self, reader: ShardReader) -> None:
        """Score the validation split, and keep the model if it is the best so far."""
        table, metrics = self._score(reader, "val", self.engine.evaluation_task())
        value = metrics[SELECTION_METRIC]
        best = self.progress.best_value
        # Where the metric is undefined (one class only) there is nothing to choose by: the last model is taken.
        if best is None or value > best:
            self.progress = replace(
                self.progress, best_step=self.progress.step, best_value=None if math.isnan(value) else value
            )
            state = self.engine.state().model
            if self.runtime.is_main:
                part = self.run.path / ".best.part"
                part.mkdir(exist_ok=True)
                self.write_model(part, state, results={"step": self.progress.step, "metrics": jsonable(metrics)})
                publish(part, self.run.best)
                write_predictions(self.run.predictions("val"), table)
        self._log({name: value for name, value in metrics.items() if name.count("/") == 2})
        epoch = -(-self.progress.step // self.plan.steps_per_epoch)
        mark = ", the best so far" if self.progress.best_step == self.progress.step else ""
        self.say(f"epoch {epoch}: {SELECTION_METRIC} {value:.4f}, val/video/acc {metrics['val/video/acc']:.4f}{mark}")

    def _score(self, reader: ShardReader, split: str, task: ClassificationTask) -> tuple[Any, dict[str, float]]:
        rows = self.rows[split]
        scores = score_split(
            task,
            reader,
            rows,
            self.runtime,
            loader=self.loader,
            batch_size=self.config.train.micro_batch_size,
            **self.loading,
        )
        table = prediction_table(self.shard_set, rows, scores)
        return table, compute_metrics(table, split)

    def _save_checkpoint(self) -> None:
        """Save, unless the weights have diverged: the last good checkpoint must not give way to them."""
        state = self.engine.state()
        if not all(value.isfinite().all() for value in state.model.values() if value.is_floating_point()):
            raise FloatingPointError(
                f"step {self.progress.step}: the weights are not finite; lower optim.lr, or take another precision"
            )
        if self.tracker and self.tracker.run_id:
            self.progress = replace(self.progress, mlflow_run_id=self.tracker.run_id)
        save_checkpoint(
            self.run.checkpoints,
            state,
            self.progress,
            self.runtime,
            write_model=self.write_model,
            config=self.config.to_dict(),
            data_digest=self.data.digest,
            keep=self.config.checkpoint.keep,
        )
        if self.runtime.is_main:
            self.run.write_status("running", step=self.progress.step, total_steps=self.total_steps)

    def _final_evaluation(self, reader: ShardReader) -> dict[str, float]:
        """Validation metrics of the best model, and the test split's, which nothing before has read."""
        model, card = open_model(self.run.best)
        best = card["results"]
        task = ClassificationTask(model, self.spec).to(self.runtime.device)
        metrics = {name: math.nan if value is None else value for name, value in best["metrics"].items()}
        files = [self.run.metrics, self.run.predictions("val")]
        if len(self.rows["test"]):
            table, test = self._score(reader, "test", task)
            metrics |= test
            if self.runtime.is_main:
                write_predictions(self.run.predictions("test"), table)
            files.append(self.run.predictions("test"))
            shown = ", ".join(f"{name} {test[f'test/video/{name}']:.4f}" for name in ("auc", "acc", "f1"))
            self.say(f"test, per video, best model (step {best['step']}): {shown}")
        else:
            self.say("the test split is empty: metrics.json has validation metrics only")
        if self.runtime.is_main:
            write_atomic(self.run.metrics, json.dumps(jsonable(metrics), indent=2).encode() + b"\n")
            if self.tracker:
                self.tracker.log_metrics(metrics, best["step"])
                for path in files:
                    self.tracker.log_file(path)
        return metrics

    def _register(self, metrics: dict[str, float]) -> str | None:
        if not (self.tracker and self.config.tracking.register):
            return None
        name = registered_name(self.config.model.name, self.config.quality)
        uri = tracking_uri(self.config.tracking.uri)
        value = metrics[SELECTION_METRIC]
        try:
            if self.tracker.run_id is None:
                raise ConnectionError("MLflow has no record of this run")
            done = register(self.run.best, name, value, uri=uri, run_id=self.tracker.run_id, tags=self.facts)
        except Exception as error:  # noqa: BLE001 - any fault of a server or of the export; the trained model stays
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            print(f"warning: {name} was not registered ({reason}); the model is {self.run.best}", file=sys.stderr)
            return None
        role = "champion" if done.is_champion else "not champion"
        self.say(f"registered {done.name} version {done.version}: {role} ({done.reason})")
        return f"models:/{done.name}/{done.version}"

    def _log(self, values: dict[str, float]) -> None:
        if self.runtime.is_main:
            self.run.log(step=self.progress.step, **jsonable(values))
            if self.tracker:
                self.tracker.log_metrics(values, self.progress.step)

    def say(self, line: str) -> None:
        """Print a line for people, on rank 0, above the progress bar."""
        if self.runtime.is_main:
            from tqdm import tqdm

            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()
