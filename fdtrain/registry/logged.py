"""What a version holds: the model twice, as a program for whoever has MLflow, and as the folder that fdtrain opens.

The program serves two flavors of MLflow. `python_function` runs `serving.py`, which is logged with it, on image files;
`pytorch` gives the program itself, normalized pixels to logits. Neither needs this package.
"""

import json
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from datasets_shards.frames import pixels
from fdtrain.export import TOLERANCE, export_program, largest_difference
from fdtrain.models.card import MODEL_NAME, InputSpec, read_model_card, weights_file
from fdtrain.models.registered import FOLDER
from fdtrain.models.weights import open_model

PROGRAM_NAME = "model.pt2"
SERVING = Path(__file__).with_name("serving.py")
_NEEDED = ("mlflow", "torch", "numpy", "pandas", "pyvips", "pyvips-binary", "pillow")
"""Packages that `serving.py` and the decoder import, and those that hand them their input."""


class Flavor(Protocol):
    """What `mlflow.models.Model.log` calls."""

    name: str
    """For MLflow's list of models."""

    def save_model(self, path: str, mlflow_model: Any) -> None:
        """Write the logged model to the folder `path`."""


class DetectorFlavor:
    """A detector, as `python_function` and as `pytorch`.

    Args:
        folder: Its model folder.
    """

    name = "pytorch"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save_model(self, path: str, mlflow_model: Any) -> None:
        """See `Flavor`."""
        with tempfile.TemporaryDirectory(prefix="fdtrain-") as staged:
            model, card = open_model(self.folder)
            write_program(Path(staged, "model"), model, card["input"], self.folder)
            save_served(path, Path(staged, "model"), mlflow_model)
        # What mlflow.pytorch reads: the folder of `model.pt2`. Its own save_model would ask for a signature that the
        # other flavor can't have, and export the model again.
        mlflow_model.add_flavor(
            "pytorch", model_data="artifacts/model", pytorch_version=str(torch.__version__), code=None
        )
        mlflow_model.save(Path(path) / "MLmodel")
        kept = Path(path) / FOLDER
        kept.mkdir()
        for file in (weights_file(self.folder), self.folder / MODEL_NAME):
            shutil.copyfile(file, kept / file.name)


def save_served(path: str, folder: Path, mlflow_model: Any) -> None:
    """Write MLflow's `python_function` that `serving.py` makes of a folder named model.

    It has no signature: by one MLflow would take either files or pixels, not both.
    """
    import mlflow

    mlflow.pyfunc.save_model(
        path=path,
        python_model=str(SERVING),
        code_paths=[pixels.__file__],
        artifacts={"model": str(folder)},
        mlflow_model=mlflow_model,
        signature=False,
        pip_requirements=pip_requirements(),
    )
    # MLflow notes where the file lay; it looks for its name in the logged folder alone.
    mlflow_model.flavors["python_function"]["model_code_path"] = SERVING.name
    mlflow_model.save(Path(path) / "MLmodel")


def write_program(folder: Path, model: nn.Module, spec: InputSpec, source: Path) -> None:
    """Write what `serving.Detector` opens to a new folder.

    Args:
        folder: Made by this.
        model: The network.
        spec: Its input.
        source: Its model folder.

    Raises:
        FloatingPointError: the program's logits aren't the model's.
    """
    folder.mkdir(parents=True)
    # With the other memory format the program would have that of its example sewn in.
    model = model.to(memory_format=torch.contiguous_format)
    path = folder / PROGRAM_NAME
    torch.export.save(export_program(model, spec.size), path)
    difference = largest_difference(model, path, spec.size)
    if not difference <= TOLERANCE:
        raise FloatingPointError(f"{source}: the exported program's logits differ from the model's by {difference:.2g}")
    card = read_model_card(source)
    (folder / MODEL_NAME).write_text(json.dumps(card | {"input": vars(card["input"])}, indent=2))


def pip_requirements() -> list[str]:
    """What a version needs, at the versions installed here."""
    return [f"{name}=={metadata.version(name).split('+')[0]}" for name in _NEEDED]
