"""What a run goes on from: the newest checkpoint of its folder, if it is of this very run."""

from pathlib import Path
from typing import Any

from fdtrain.checkpoint.folder import Checkpoint, latest_checkpoint, restore
from fdtrain.config import NO_OTHER_MODEL, Config, UserError, flatten
from fdtrain.data.draws import BUFFER_BLOCKS
from fdtrain.run_folder import RunFolder
from fdtrain.runtime import Runtime

# What a resumed run may change; with anything else another the steps would not be the same run's. The engine that
# `engine.kind` comes to is no less fixed, but `auto` may have come to the one that is named now: engines compare that.
MAY_CHANGE = (
    *NO_OTHER_MODEL,
    "engine.kind",
    "train.epochs",
    "train.max_steps",
    "train.max_nonfinite_steps",
    "train.test",
    "data.max_bad_share",
)


def find_own_checkpoint(
    run: RunFolder, runtime: Runtime, settings: dict[str, Any], data_digest: str
) -> Checkpoint | None:
    """What the run that holds a folder goes on from; None where it begins. Collective.

    Args:
        run: The folder, claimed by rank 0.
        runtime: This rank's surroundings.
        settings: The resolved configuration.
        data_digest: Digest of the shard set's manifest.

    Raises:
        UserError: there are checkpoints, and all are damaged, or the newest is of another run.
    """

    def look() -> Checkpoint | None:
        restore(run.best)
        return take_up_checkpoint(run.checkpoints)

    checkpoint = runtime.on_main(look)
    if checkpoint is not None:
        check_same_run(checkpoint, settings, data_digest)
    return checkpoint


def take_up_checkpoint(root: Path) -> Checkpoint | None:
    """`latest_checkpoint`, for the run that holds the folder and goes on.

    A crash may have come while a checkpoint was being written again, as it is after a validation that a stop had cut
    short; the older one is put back first.
    """
    for old in root.glob(".step-*.old"):
        restore(root / old.name.removeprefix(".").removesuffix(".old"))
    return latest_checkpoint(root)


def check_same_run(checkpoint: Checkpoint, config: dict[str, Any], data_digest: str) -> None:
    """Raise UserError where a run with this configuration on this data would not be the checkpoint's, going on."""
    if checkpoint.data_digest != data_digest:
        raise UserError(
            f"data.root: {checkpoint.folder} was trained on a shard set with another digest; "
            "give that set, or choose another run.dir"
        )
    # A key that the run's release didn't have yet stood at what is its default now.
    old, new = flatten(Config().to_dict()) | flatten(checkpoint.config), flatten(config)
    if old["data.shuffle"] == "blocks" and old["data.buffer_blocks"] is None:
        old["data.buffer_blocks"] = BUFFER_BLOCKS  # of before that could be set
    for key in sorted(old.keys() | new.keys()):
        if key in ("precision", "loader.kind") and old[key] == "auto":
            continue  # of before checkpoints said what that had come to
        if old.get(key) != new.get(key) and not key.startswith(MAY_CHANGE):
            raise UserError(
                f"{key}: {new.get(key)} where {checkpoint.folder} was trained with {old.get(key)}; "
                "a resumed run keeps it: set it back, or choose another run.dir"
            )
