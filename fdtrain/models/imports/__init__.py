"""Other people's checkpoints as ours: which network a file holds, and its weights under our names.

A reader is called with the file, and with the model's name where the user gave one. Each gives an `Imported`, whose
state fits the network exactly: a name left over or missing is an error. None runs code from a file.
"""

from fdtrain.models.imports.base import Imported
from fdtrain.models.imports.deepfakebench import read_deepfakebench
from fdtrain.models.imports.keras import read_mesonet
from fdtrain.models.imports.multiple_attention import read_multiple_attention
from fdtrain.models.imports.timm import read_timm

__all__ = ["Imported", "read_deepfakebench", "read_mesonet", "read_multiple_attention", "read_timm"]
