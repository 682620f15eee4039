"""What survives a crash: folders that count only when complete, exact to the bit, and free of pickled code.

`checkpoints/step-00000500/` holds a model folder (`model.safetensors`, `model.json`: parameters, and buffers averaged
over the ranks), `ema.safetensors` where moving averages are kept, `training.pt` (optimizer, schedule, scaler),
`rank-00000.pt` per rank (its own buffers and generator state) and `checkpoint.json`, written last, with the SHA-256 of
each file. The folder is written under another name, synced and renamed.
"""

import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from datasets_shards.schema import file_sha256, sync_path, write_atomic
from fdtrain.config import Config, UserError, flatten
from fdtrain.engines import EngineState
from fdtrain.models.weights import EMA_NAME, WEIGHTS_NAME
from fdtrain.runtime import Runtime

FORMAT_VERSION = 2
CARD_NAME = "checkpoint.json"

# What a resumed run may change; with anything else another the steps would not be the same run's.
MAY_CHANGE = (
    "run.",
    "loader.",
    "data.cache_",
    "data.root",  # its digest is what counts
    "checkpoint.",
    "tracking.",
    "train.epochs",
    "train.max_minutes",
    "train.max_steps",
    "train.log_every",
)


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
    """

    step: int = 0
    best_step: int | None = None
    best_value: float | None = None
    mlflow_run_id: str | None = None
    nonfinite_steps: int = 0
    rescaled_steps: int = 0


class WriteModel(Protocol):
    """Writes a model folder from a state; `fdtrain.models.save_model` with everything else bound."""

    def __call__(
        self, folder: Path, state: dict[str, torch.Tensor], *, results: dict[str, Any] | None = None
    ) -> None: ...


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    progress: Progress
    world_size: int
    config: dict[str, Any]
    data_digest: str

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Check every file's hash. Raises ValueError with the damage."""
        card = json.loads((folder / CARD_NAME).read_bytes())
        if card["format_version"] != FORMAT_VERSION:
            raise ValueError(f"is of format version {card['format_version']}, this release reads {FORMAT_VERSION}")
        for name, sha256 in card["files"].items():
            if not (folder / name).is_file():
                raise ValueError(f"lacks {name}")
            if file_sha256(folder / name) != sha256:
                raise ValueError(f"has a damaged {name} (its SHA-256 differs)")
        return cls(folder, Progress(**card["progress"]), card["world_size"], card["config"], card["data_digest"])

    def load(self, runtime: Runtime) -> EngineState:
        """This rank's state. One from another world size has an empty `local`."""
        model = load_file(self.folder / WEIGHTS_NAME)
        ema = load_file(self.folder / EMA_NAME) if (self.folder / EMA_NAME).exists() else None
        training = torch.load(self.folder / "training.pt", map_location="cpu", weights_only=True)
        if self.world_size != runtime.world_size:
            return EngineState(model, training, {}, ema)
        own = torch.load(self.folder / _rank_file(runtime.rank), map_location="cpu", weights_only=True)
        torch.set_rng_state(own["rng"]["cpu"])
        if runtime.device.type == "cuda" and "cuda" in own["rng"]:  # none in a checkpoint of a CPU
            torch.cuda.set_rng_state(own["rng"]["cuda"], runtime.device)
        return EngineState(model, training, own["local"], ema)


def save_checkpoint(
    root: Path,
    state: EngineState,
    progress: Progress,
    runtime: Runtime,
    *,
    write_model: WriteModel,
    config: dict[str, Any],
    data_digest: str,
    keep: int,
) -> None:
    """Write `root/step-...` and remove all but the newest `keep`. Collective; the folder is on a disk all ranks see.

    Args:
        root: `checkpoints/` of the run.
        state: From the engine, of this rank.
        progress: How far the run has come.
        runtime: This rank's surroundings.
        write_model: Writes the model folder.
        config: The resolved configuration.
        data_digest: Digest of the shard set's manifest.
        keep: Checkpoints to keep.
    """
    folder = root / f"step-{progress.step:08d}"
    part = root / f".{folder.name}.part"
    if runtime.is_main:
        shutil.rmtree(part, ignore_errors=True)  # of a run that was killed while writing
        part.mkdir(parents=True)
    dist.barrier()
    rng = {"cpu": torch.get_rng_state()}
    if runtime.device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state(runtime.device)
    torch.save({"local": state.local, "rng": rng}, part / _rank_file(runtime.rank))
    if runtime.is_main:
        write_model(part, state.model)
        if state.ema is not None:
            save_file({name: value.cpu().contiguous() for name, value in state.ema.items()}, part / EMA_NAME)
        torch.save(state.training, part / "training.pt")
    dist.barrier()
    if runtime.is_main:
        card = {
            "format_version": FORMAT_VERSION,
            "progress": asdict(progress),
            "world_size": runtime.world_size,
            "config": config,
            "data_digest": data_digest,
            "files": {path.name: file_sha256(path) for path in sorted(part.iterdir())},
        }
        write_atomic(part / CARD_NAME, json.dumps(card, indent=2).encode() + b"\n")
        publish(part, folder)
        # A later step is of before a resume from an earlier one, and its steps are being done again.
        older = [path for path in _folders(root) if path.name < folder.name]
        later = [path for path in _folders(root) if path.name > folder.name]
        for old in later + older[: max(0, len(older) - keep + 1)]:
            shutil.rmtree(old)
    dist.barrier()


def latest_checkpoint(root: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; None where there is none at all.

    A damaged one is named on stderr and the one before it is taken.

    Raises:
        UserError: there are checkpoints, and all are damaged.
    """
    folders = _folders(root)
    for folder in reversed(folders):
        try:
            return Checkpoint.open(folder)
        except (ValueError, KeyError, TypeError, OSError) as error:
            print(f"warning: {folder} {error}; looking for the checkpoint before it", file=sys.stderr)
    if folders:
        raise UserError(f"{root}: no checkpoint is whole; remove the folder to start afresh, or choose another run.dir")
    return None


def check_same_run(checkpoint: Checkpoint, config: dict[str, Any], data_digest: str) -> None:
    """Raise UserError where a run with this configuration on this data would not be the checkpoint's, going on."""
    if checkpoint.data_digest != data_digest:
        raise UserError(
            f"data.root: {checkpoint.folder} was trained on a shard set with another digest; "
            "give that set, or choose another run.dir"
        )
    # A key that the run's release didn't have yet stood at what is its default now.
    old, new = flatten(Config().to_dict()) | flatten(checkpoint.config), flatten(config)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) and not key.startswith(MAY_CHANGE):
            raise UserError(
                f"{key}: {new.get(key)} where {checkpoint.folder} was trained with {old.get(key)}; "
                "a resumed run keeps it: set it back, or choose another run.dir"
            )


def publish(part: Path, folder: Path) -> None:
    """Sync what is in `part` and rename it to `folder`, in place of an older one.

    A crash between the two renames leaves no `folder`: what an older one held is then made again by the resumed run.
    """
    for path in [*part.iterdir(), part]:
        sync_path(path)
    old = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    part.rename(folder)
    sync_path(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _folders(root: Path) -> list[Path]:
    return sorted(root.glob("step-*")) if root.is_dir() else []


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.pt"
