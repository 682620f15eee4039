"""Other people's checkpoints as ours: which network a file holds, and its weights under our names.

Every reader gives an `Imported`, whose state fits the network exactly: a name left over or missing is an error. None
runs code from a file.
"""

from collections.abc import Callable
from pathlib import Path

from fdtrain.models.imports.base import Imported
from fdtrain.models.imports.deepfakebench import read_deepfakebench
from fdtrain.models.imports.keras import read_mesonet
from fdtrain.models.imports.multiple_attention import read_multiple_attention
from fdtrain.models.imports.timm import read_timm

READERS: dict[str, Callable[[Path, str | None], Imported]] = {
    "mesonet": read_mesonet,
    "deepfakebench": read_deepfakebench,
    "multiple-attention": read_multiple_attention,
    "timm": read_timm,
}
"""Format -> its reader, called with the file and the model's name where the user gave one."""

__all__ = ["READERS", "Imported"]
