"""A checkpoint on disk: what is in it, which one counts, which stay."""

import hashlib
import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from safetensors.torch import load_file

from datasets_shards.schema import file_sha256, sync_path, write_atomic
from fdtrain.config import UserError, flatten
from fdtrain.engines import EngineState
from fdtrain.models.weights import EMA_NAME, WEIGHTS_NAME
from fdtrain.runtime import Runtime

FORMAT_VERSION = 3
CARD_NAME = "checkpoint.json"
TRAINING_NAME = "training.pt"


@dataclass(frozen=True)
class Progress:
    """How far a run has come. The plan's position is the step: the next batch follows from it alone.

    Args:
        step: Optimizer steps done, counted through all epochs.
        best_step: Step of the best model so far; None before the first validation.
        best_value: Its selection metric; None where that is undefined (one class only).
        mlflow_run_id: The MLflow run that a resumed run goes on with.
        nonfinite_steps: Those of them that were skipped, since a loss or the gradient wasn't finite.
        rescaled_steps: Those that fp16's scaler skipped while it found its scale.
        unvalidated_step: A step whose validation was begun, and hasn't come to its end with the best model kept; a run
            that goes on from that very step validates first.
        bad_rows: Training samples that any rank couldn't use so far.
    """

    step: int = 0
    best_step: int | None = None
    best_value: float | None = None
    mlflow_run_id: str | None = None
    nonfinite_steps: int = 0
    rescaled_steps: int = 0
    unvalidated_step: int | None = None
    bad_rows: list[int] = field(default_factory=list)


class WriteModel(Protocol):
    """Writes a model folder from a state; `fdtrain.models.save_model` with everything else bound."""

    def __call__(
        self, folder: Path, state: dict[str, torch.Tensor], *, results: dict[str, Any] | None = None
    ) -> None: ...


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk.

    Args:
        folder: Where it is.
        progress: How far the run had come.
        world_size: Ranks that wrote it.
        config: Of the run, resolved.
        data_digest: Digest of the shard set's manifest.
        value: Selection metric of its model, where it was validated at that step.
    """

    folder: Path
    progress: Progress
    world_size: int
    config: dict[str, Any]
    data_digest: str
    value: float | None = None

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Check every file's hash. Raises ValueError with the damage, OSError where it can't be read."""
        card = _read_card(folder)
        for name, sha256 in card["files"].items():
            if not (folder / name).is_file():
                raise ValueError(f"lacks {name}")
            if file_sha256(folder / name) != sha256:
                raise ValueError(f"has a damaged {name} (its SHA-256 differs)")
        progress = Progress(**card["progress"])
        return cls(folder, progress, card["world_size"], card["config"], card["data_digest"], card["value"])

    def load(self, runtime: Runtime) -> EngineState:
        """This rank's state. One from another world size has an empty `local`."""
        model = load_file(self.folder / WEIGHTS_NAME)
        ema = load_file(self.folder / EMA_NAME) if (self.folder / EMA_NAME).exists() else None
        training = torch.load(self.folder / TRAINING_NAME, map_location="cpu", weights_only=True)
        if self.world_size != runtime.world_size:
            if runtime.is_main and flatten(self.config).get("engine.sync_batchnorm"):
                print(
                    f"warning: engine.sync_batchnorm: batch normalization goes over {runtime.world_size} micro-batches "
                    f"from here on, where {self.folder} had {self.world_size}: not the same training; go on with "
                    f"{self.world_size} ranks for that",
                    file=sys.stderr,
                )
            return EngineState(model, training, {}, ema)
        own = torch.load(self.folder / rank_file(runtime.rank), map_location="cpu", weights_only=True)
        torch.set_rng_state(own["rng"]["cpu"])
        if runtime.device.type == "cuda" and "cuda" in own["rng"]:  # none in a checkpoint of a CPU
            torch.cuda.set_rng_state(own["rng"]["cuda"], runtime.device)
        return EngineState(model, training, own["local"], ema)


def write_card(
    folder: Path,
    progress: Progress,
    *,
    world_size: int,
    config: dict[str, Any],
    data_digest: str,
    value: float | None,
    files: Mapping[str, str],
) -> None:
    """Write `checkpoint.json`, which makes a folder a checkpoint; `files` are names -> SHA-256."""
    card = {
        "format_version": FORMAT_VERSION,
        "progress": asdict(progress),
        "value": value,
        "world_size": world_size,
        "config": config,
        "data_digest": data_digest,
        "files": dict(sorted(files.items())),
    }
    card["sha256"] = _card_sha256(card)
    write_atomic(folder / CARD_NAME, json.dumps(card, indent=2).encode() + b"\n")


def _read_card(folder: Path) -> dict[str, Any]:
    try:
        card = json.loads((folder / CARD_NAME).read_bytes())
    except ValueError as error:
        raise ValueError(f"has a damaged {CARD_NAME} ({error})") from None
    if not isinstance(card, dict) or "format_version" not in card:
        raise ValueError(f"has a damaged {CARD_NAME} (no format version)")
    if card["format_version"] != FORMAT_VERSION:
        raise ValueError(f"is of format version {card['format_version']}, this release reads {FORMAT_VERSION}")
    if card.pop("sha256", None) != _card_sha256(card):
        raise ValueError(f"has a damaged {CARD_NAME} (its SHA-256 differs)")
    return card


def _card_sha256(card: dict[str, Any]) -> str:
    """Hash a card's content without that hash, whatever its spacing."""
    return hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()


def latest_checkpoint(root: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; None where there is none at all.

    A damaged one is named on stderr and the one before it is taken.

    Raises:
        UserError: there are checkpoints, and all are damaged.
    """
    folders = step_folders(root)
    for folder in reversed(folders):
        try:
            return Checkpoint.open(folder)
        except (ValueError, KeyError, TypeError, OSError) as error:
            print(f"warning: {folder} {error}; looking for the checkpoint before it", file=sys.stderr)
    if folders:
        raise UserError(f"{root}: no checkpoint is whole; remove the folder to start afresh, or choose another run.dir")
    return None


def publish(part: Path, folder: Path) -> None:
    """Sync what is in `part` and rename it to `folder`, in place of an older one.

    No file system that clusters use swaps two folders in one step. After a crash between the two renames the older one
    is beside, under a hidden name: `restore` puts it back.
    """
    for path in [*part.iterdir(), part]:
        sync_path(path)
    restore(folder)
    old = _aside(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    part.rename(folder)
    sync_path(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def restore(folder: Path) -> None:
    """Put back what `publish` had renamed when a crash came before the new folder was in its place."""
    old = _aside(folder)
    if old.is_dir() and not folder.exists():
        old.rename(folder)


def remove_others(root: Path, newest: Path, keep: int, keep_best: int) -> None:
    """Remove all checkpoints but the last `keep` up to `newest`, and the best `keep_best` of those.

    Each is renamed first, so that a crash leaves none half removed. A step later than `newest` was done before a resume
    from an earlier one, and its steps are being done again.
    """
    folders = step_folders(root)
    until_now = [folder for folder in folders if folder.name <= newest.name]
    values = {folder: value for folder in until_now if (value := _value_of(folder)) is not None}
    # Of equals the earlier is the better one, as where the best model is chosen: sorting is stable.
    best = sorted(values, key=lambda folder: -values[folder])[:keep_best]
    for folder in folders:
        if folder not in until_now[-keep:] and folder not in best:
            gone = folder.with_name(f".{folder.name}.gone")  # not as `publish` does, which is put back
            shutil.rmtree(gone, ignore_errors=True)
            folder.rename(gone)
            shutil.rmtree(gone)


def remove_leftovers(root: Path) -> None:
    """Remove what a killed run was writing, or removing."""
    for path in root.glob(".step-*"):
        shutil.rmtree(path)


def step_folders(root: Path) -> list[Path]:
    """The folders of checkpoints, whole or damaged, by their step."""
    return sorted(root.glob("step-*")) if root.is_dir() else []


def rank_file(rank: int) -> str:
    """The name of a rank's own file."""
    return f"rank-{rank:05d}.pt"


def _value_of(folder: Path) -> float | None:
    try:
        return _read_card(folder)["value"]
    except (ValueError, OSError):
        return None  # a damaged one is nobody's best


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")
