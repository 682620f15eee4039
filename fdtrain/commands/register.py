"""`python -m fdtrain register`."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from fdtrain.config import HostError, UserError


def add_arguments(parser: ArgumentParser) -> None:
    """The run."""
    parser.add_argument("run", help="Run folder of a finished run whose best model isn't registered.")
    parser.add_argument(
        "--best_of",
        type=int,
        default=1,
        help="Among how many runs this one was chosen by validation, such as the trials of a sweep.",
    )


def run(arguments: Namespace) -> None:
    """Register the best model of a run that is finished."""
    from fdtrain.cli import training_config

    path = Path(arguments.run)
    if not (path / "config.yaml").is_file():
        raise UserError(f"RUN: {path} is no run folder; name one, such as runs/meso4-q15")
    config = training_config(["--config", str(path / "config.yaml")])

    from fdtrain.registering import register_run

    if arguments.best_of < 1:
        raise UserError(f"--best_of: {arguments.best_of} is out of range; allowed is at least 1")
    if register_run(path, config, arguments.best_of) is None:
        raise HostError(f"{path}: not registered, see above; the same command tries again")
