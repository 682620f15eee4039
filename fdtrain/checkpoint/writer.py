"""Writes checkpoints while training goes on: one at a time, from a copy of the state, by a thread on each rank."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from datasets_shards.schema import file_sha256, sync_path
from fdtrain.checkpoint.folder import (
    TRAINING_NAME,
    Progress,
    WriteModel,
    publish,
    rank_file,
    remove_leftovers,
    remove_others,
    write_card,
)
from fdtrain.checkpoint.snapshot import Snapshot
from fdtrain.config import CheckpointConfig, TransientError, first_line
from fdtrain.engines import EngineState
from fdtrain.models.weights import EMA_NAME, WEIGHTS_NAME, save_tensors
from fdtrain.runtime import Runtime

SPARE_BYTES = 16 * 2**20
"""Left free on the disk by a checkpoint: a run whose log can't be written ends, one without a checkpoint goes on."""

T = TypeVar("T")


class CheckpointError(Exception):
    """A checkpoint wasn't written; the message names the file and the reason."""


@dataclass(frozen=True)
class _Job:
    """A checkpoint to be written by this rank.

    Args:
        progress: How far the run has come.
        value: Selection metric of the model, where it is known.
        own: Content of the rank's file.
        shared: The rest of the state; on rank 0 alone.
    """

    progress: Progress
    value: float | None
    own: dict[str, Any]
    shared: EngineState | None


class CheckpointWriter:
    """Writes the checkpoints of a run to a disk that all ranks see. Making one is collective.

    The ranks' threads talk over a process group of their own: calls in the group of training would interleave with
    training's. In each of three stages a rank does its part, tells the others how it went, and none goes on unless all
    have done theirs: rank 0 makes the folder; every rank writes, syncs and hashes its files; rank 0 writes the card,
    renames, and removes what is no longer kept. So every rank knows the fate of a checkpoint, and when a rank is killed
    the connection to it breaks, which the others' threads take for a failure like any other.

    Args:
        root: `checkpoints/` of the run.
        runtime: This rank's surroundings.
        settings: When and how.
        write_model: Writes the model folder.
        config: The resolved configuration.
        data_digest: Digest of the shard set's manifest.
        saved_step: Step of the checkpoint that the run goes on from.
        on_saved: Called with the step of a checkpoint that is complete, by the thread of rank 0.
        timeout_minutes: How long a rank's thread waits for those of the others, for the slowest disk.
    """

    def __init__(
        self,
        root: Path,
        runtime: Runtime,
        settings: CheckpointConfig,
        *,
        write_model: WriteModel,
        config: dict[str, Any],
        data_digest: str,
        saved_step: int | None = None,
        on_saved: Callable[[int], None] | None = None,
        timeout_minutes: float = 10.0,
    ) -> None:
        self.root, self.runtime, self.settings = root, runtime, settings
        self.write_model, self.config, self.data_digest, self.on_saved = write_model, config, data_digest, on_saved
        self.saved_step = saved_step
        """Step of the newest complete checkpoint; settled by `wait`."""
        self.fault: str | None = None
        """Why the last one failed; None where it didn't."""
        self._failures = 0  # in a row
        group = dist.new_group(backend="gloo", timeout=timedelta(minutes=timeout_minutes))
        assert isinstance(group, dist.ProcessGroup)  # which has all ranks
        self._group = group
        self._snapshot = Snapshot()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._stalled_s = 0.0
        self._written_s: float | None = None

    def save(self, take_state: Callable[[], EngineState], progress: Progress, value: float | None = None) -> None:
        """Save the state of this moment. Collective; waits only for the write before it and for a copy in memory.

        Args:
            take_state: Gives this rank's state; called once the write before is done.
            progress: How far the run has come.
            value: Selection metric of this very model, where it is known.

        Raises:
            UserError: on every rank, after `max_failures` writes in a row that failed on any of them.
        """
        began = time.perf_counter()
        self._settle()
        state = take_state()
        rng = {"cpu": torch.get_rng_state()}
        if self.runtime.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.runtime.device)
        shared = {"model": state.model, "training": state.training, "ema": state.ema} if self.runtime.is_main else None
        own, shared = self._snapshot.take(({"local": state.local, "rng": rng}, shared))
        # What is this rank's alone goes into `own`, on rank 0 as well.
        job = _Job(progress, value, own, EngineState(local={}, **shared) if shared else None)
        self._pending = self._thread.submit(self._write, job)
        if not self.settings.background:
            self._settle()
        self._stalled_s += time.perf_counter() - began

    def note_failure(self, fault: str) -> None:
        """Count a write of the run that failed as one of a checkpoint, on every rank."""
        self.wait()
        self.fault = fault
        self._failures += 1
        if self.runtime.is_main:
            self._warn(f"{fault}; failure {self._failures} of {self.settings.max_failures} in a row that end the run")

    def wait(self) -> int | None:
        """Wait for the write under way; `saved_step` after it."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()
        return self.saved_step

    def close(self) -> None:
        """Wait for the write under way, and end the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def take_seconds(self) -> dict[str, float]:
        """What checkpoints took since the last call, on this rank: empty where there was none.

        `train/checkpoint_stall_s`: seconds that training stood still for them; `train/checkpoint_write_s`: of the last
        write that ended, whether training went on meanwhile or not.
        """
        values = {}
        if self._stalled_s:
            values["train/checkpoint_stall_s"], self._stalled_s = self._stalled_s, 0.0
        if self._written_s is not None:
            values["train/checkpoint_write_s"], self._written_s = self._written_s, None
        return values

    def _settle(self) -> None:
        """Wait for the write under way, and let the ranks agree on whether that is the end."""
        self.wait()
        # All should have counted the same, unless some of them heard of a failure that others didn't.
        failures = torch.tensor(self._failures)
        dist.all_reduce(failures, dist.ReduceOp.MAX)
        if failures >= self.settings.max_failures:
            last = (
                "there is none before" if self.saved_step is None else f"the last good one is of step {self.saved_step}"
            )
            raise TransientError(
                f"{self.fault or 'a checkpoint failed on another rank'}; {int(failures)} in a row failed, {last} "
                "(checkpoint.max_failures); mend that and go on by --run.resume auto"
            )

    def _write(self, job: _Job) -> None:
        """In the thread."""
        began = time.perf_counter()
        step = job.progress.step
        try:
            self._write_stages(job)
        except CheckpointError as error:
            self.fault = str(error)
            self._failures += 1
            if self.runtime.is_main:
                shutil.rmtree(self._part(step), ignore_errors=True)
                last = "there is none" if self.saved_step is None else f"the last good one is of step {self.saved_step}"
                self._warn(
                    f"{error}; no checkpoint of step {step}, {last}; failure {self._failures} of "
                    f"{self.settings.max_failures} in a row that end the run"
                )
        else:
            self.fault, self._failures, self.saved_step = None, 0, step
        self._written_s = time.perf_counter() - began

    def _write_stages(self, job: _Job) -> None:
        part = self._part(job.progress.step)
        folder = self.root / f"step-{job.progress.step:08d}"
        needed = sum(self._stage(lambda: self._make(part, job)))
        written = self._stage(lambda: self._write_files(part, job, needed))
        files = {name: sha256 for names in written for name, sha256 in names.items()}
        self._stage(lambda: self._publish(part, folder, job, files))

    def _stage(self, action: Callable[[], T]) -> list[T]:
        """Do this rank's part and hear of the others' parts; what each has returned, by rank.

        Raises:
            CheckpointError: on every rank, with what went wrong on any.
        """
        result: tuple[T | None, str | None]
        try:
            result = action(), None
        except Exception as error:  # noqa: BLE001 - whatever it is, the others wait to hear of it, and it is said
            result = None, _reason(error)
        results: list[Any] = [None] * self.runtime.world_size
        try:
            dist.all_gather_object(results, result, group=self._group)
        except RuntimeError as error:
            raise CheckpointError(f"{self.root}: a rank was lost while writing ({_reason(error)})") from error
        faults = [f"{fault} (rank {rank})" for rank, (_, fault) in enumerate(results) if fault]
        if faults:
            raise CheckpointError("; ".join(faults))
        return [value for value, _ in results]

    def _make(self, part: Path, job: _Job) -> int:
        """Make the folder; bytes that this rank will put into it."""
        if job.shared is not None:
            self.root.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.root)
            part.mkdir()
        return self._snapshot.nbytes

    def _write_files(self, part: Path, job: _Job, needed: int) -> dict[str, str]:
        """Of the files that this rank has written: name -> SHA-256. `needed` are bytes of all ranks' files."""
        if not part.is_dir():
            raise CheckpointError(f"{part}: not there; run.dir has to be on a disk that all ranks see")
        free = shutil.disk_usage(part).free
        if job.shared is not None and free < needed + SPARE_BYTES:
            raise CheckpointError(
                f"{self.root}: the disk is full: {free / 1e6:.0f} MB are free, a checkpoint takes {needed / 1e6:.0f}"
            )
        own = part / rank_file(self.runtime.rank)
        with _writing(own):
            _save(job.own, own)
        written = [own]
        if job.shared is not None:
            with _writing(part / WEIGHTS_NAME):
                self.write_model(part, job.shared.model)
            if job.shared.ema is not None:
                with _writing(part / EMA_NAME):
                    save_tensors(job.shared.ema, part / EMA_NAME)
            with _writing(part / TRAINING_NAME):
                _save(job.shared.training, part / TRAINING_NAME)
            # Other ranks may be at theirs.
            written += [path for path in part.iterdir() if not path.name.startswith("rank-")]
        for path in written:
            with _writing(path):
                sync_path(path)
        return {path.name: file_sha256(path) for path in written}

    def _publish(self, part: Path, folder: Path, job: _Job, files: dict[str, str]) -> None:
        if job.shared is None:
            return
        for name in files:
            if not (part / name).is_file():
                raise CheckpointError(
                    f"{part / name}: not seen by rank 0; run.dir has to be on a disk that all ranks see"
                )
        write_card(
            part,
            job.progress,
            world_size=self.runtime.world_size,
            config=self.config,
            data_digest=self.data_digest,
            value=job.value,
            files=files,
        )
        publish(part, folder)
        # The checkpoint is complete; what goes wrong from here on doesn't change that.
        try:
            remove_others(self.root, folder, self.settings.keep, self.settings.keep_best)
            if self.on_saved:
                self.on_saved(job.progress.step)
        except OSError as error:
            self._warn(_reason(error))

    def _part(self, step: int) -> Path:
        return self.root / f".step-{step:08d}.part"

    def _warn(self, text: str) -> None:
        print(f"warning: {text}", file=sys.stderr, flush=True)


def _save(content: dict[str, Any], path: Path) -> None:
    # Given a path instead, torch opens it itself, and says nothing of why a write failed.
    with path.open("wb") as file:
        torch.save(content, file)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Whatever fails while a file is written is about that file, which not every library says."""
    try:
        yield
    except Exception as error:
        is_named = isinstance(error, OSError) and error.filename
        raise CheckpointError(_reason(error) if is_named else f"{path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, CheckpointError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return first_line(error)
