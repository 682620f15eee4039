"""What survives a crash: folders that count only when complete, exact to the bit, and free of pickled code.

`checkpoints/step-00000500/` holds a model folder (`model.safetensors`, `model.json`), `ema.safetensors` where moving
averages are kept, `training.pt` (optimizer, schedule, scaler), `rank-00000.pt` per rank (its generator state and, under
ZeRO, its share of the optimizer's) and `checkpoint.json`, written last, with the SHA-256 of each file. The folder is
written under another name, synced and renamed, by a thread that training doesn't wait for.
"""

from fdtrain.checkpoint.folder import (
    CARD_NAME,
    FORMAT_VERSION,
    Checkpoint,
    Progress,
    WriteModel,
    latest_checkpoint,
    publish,
    restore,
)
from fdtrain.checkpoint.resume import MAY_CHANGE, check_same_run, find_own_checkpoint, take_up_checkpoint
from fdtrain.checkpoint.writer import CheckpointWriter

__all__ = [
    "CARD_NAME",
    "FORMAT_VERSION",
    "MAY_CHANGE",
    "Checkpoint",
    "CheckpointWriter",
    "Progress",
    "WriteModel",
    "check_same_run",
    "find_own_checkpoint",
    "latest_checkpoint",
    "publish",
    "restore",
    "take_up_checkpoint",
]
