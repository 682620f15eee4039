"""`python -m fdtrain export`."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from fdtrain.commands.arguments import add_model
from fdtrain.config import UserError


def add_arguments(parser: ArgumentParser) -> None:
    """The model and the file."""
    add_model(parser)
    parser.add_argument("--out", required=True, help="The .pt2 file, for torch.export.load.")


def run(arguments: Namespace) -> None:
    """Write a model as a program that runs without this project, with a batch of any size."""
    out = Path(arguments.out)
    if out.suffix != ".pt2":
        raise UserError(f"out: {out} must end in .pt2, the form of torch.export")

    from fdtrain.export import export

    export(arguments.model, out)
