"""`python -m fdtrain import-weights`."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from fdtrain.import_weights import FORMS


def add_arguments(parser: ArgumentParser) -> None:
    """Whose checkpoint, which file, and where the model goes."""
    parser.add_argument("--from", choices=FORMS, required=True, help="Whose checkpoint it is.")
    parser.add_argument("file", help="The checkpoint: .h5 of MesoNet, .pth or .safetensors of the others.")
    parser.add_argument("--out", required=True, help="Folder to write, a model for evaluate and predict.")
    parser.add_argument(
        "--model", type=str | None, help="Name of the network, which --from timm needs; the others find it themselves."
    )


def run(arguments: Namespace) -> None:
    """Make a model of somebody's published checkpoint."""
    from fdtrain.import_weights import import_weights

    import_weights(arguments["from"], Path(arguments.file), Path(arguments.out), arguments.model)
