"""`python -m fdtrain figures`."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from fdtrain.commands.arguments import add_model, add_shard_set, shard_set_quality
from fdtrain.config import UserError
from fdtrain.config.checks import in_range
from fdtrain.figures import DEFAULT_POINTS, DEFAULT_SAMPLES, MAX_SAMPLES, MIN_POINTS


def add_arguments(parser: ArgumentParser) -> None:
    """The model, the data, how much is drawn and where it goes."""
    add_model(parser)
    add_shard_set(
        parser, "val", "The test split is read once, at the end of a run; choices made by looking at it spoil it."
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=DEFAULT_SAMPLES,
        help="Faces in attention.png and gradcam.png, taken from each method in turn.",
    )
    parser.add_argument(
        "--points",
        type=int,
        default=DEFAULT_POINTS,
        help="Samples in tsne.png at most, as many of each method as there are.",
    )
    parser.add_argument("--seed", type=int, default=0, help="Of the choice of samples and of t-SNE.")
    parser.add_argument("--out", type=str | None, help="Folder to write. Default: report/figures in the run folder.")


def run(arguments: Namespace) -> None:
    """Draw what a model looks at: attention maps, Grad-CAM, t-SNE."""
    quality = shard_set_quality(arguments)
    in_range("samples", arguments.samples, 1, MAX_SAMPLES)
    in_range("points", arguments.points, MIN_POINTS)
    in_range("seed", arguments.seed, 0, 2**32 - 1)
    out = _folder(arguments.model, arguments.out)

    from fdtrain.figures.write import Request, write_figures

    request = Request(
        model=arguments.model,
        root=arguments.data.root,
        cache_dir=arguments.data.cache_dir,
        cache_bytes=arguments.data.cache_bytes,
        quality=quality,
        split=arguments.data.split,
        samples=arguments.samples,
        points=arguments.points,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
    )
    write_figures(request, out)
    if arguments.out is None:
        from fdtrain.tracking.sync import attach

        attach(Path(arguments.model), out)


def _folder(model: str, out: str | None) -> Path:
    """Where the figures go. Raises UserError where neither `model` nor `out` says."""
    if out is None:
        from fdtrain.models.card import model_folder

        place = Path(model)
        # A run is a folder whose model lies deeper in it; a URI is none at all.
        if model.startswith(("models:/", "runs:/")) or model_folder(place) == place:
            raise UserError(f"out: {model} is no run folder, which the figures would go to; name a folder for them")
        return place / "report" / "figures"
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out: {folder} is a file; name a folder")
    return folder
