"""`python -m fdtrain sync`."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """The run."""
    parser.add_argument("run", help="Run folder. MLFLOW_TRACKING_URI names another server than the run was for.")


def run(arguments: Namespace) -> None:
    """Send to MLflow what it has missed of a run."""
    from fdtrain.tracking.sync import sync

    print(sync(Path(arguments.run)))
