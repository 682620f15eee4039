"""`python -m fdtrain report`."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from fdtrain.config.checks import in_range, without_effect
from fdtrain.figures import DEFAULT_POINTS, DEFAULT_SAMPLES, MAX_SAMPLES, MIN_POINTS
from fdtrain.report import MAX_FACES

BATCH_SIZE = 32


def add_arguments(parser: ArgumentParser) -> None:
    """The runs, what stands beside them, how much is drawn and where it goes."""
    parser.add_argument(
        "runs", nargs="+", help="Run folders; gains are over those named before. Also folders with a matrix.parquet."
    )
    parser.add_argument(
        "--out", required=True, help="Folder for index.html, figures/ and tables/; within a run it goes to MLflow too."
    )
    parser.add_argument("--matrix", nargs="+", default=[], help="Files matrix.parquet of evaluate --matrix.")
    parser.add_argument(
        "--study", type=str | None, help="The study.json of the runs' study: its cells, and their means."
    )
    parser.add_argument(
        "--references", type=str | None, help="YAML file of published figures. Default: those that come with fdtrain."
    )
    parser.add_argument(
        "--no_figures", action="store_true", help="Draw no t-SNE, attention maps or Grad-CAM for runs without them."
    )
    parser.add_argument(
        "--samples",
        type=int | None,
        help=f"Faces in those of attention and Grad-CAM; figures of others are drawn anew. Default: {DEFAULT_SAMPLES}.",
    )
    parser.add_argument(
        "--points",
        type=int | None,
        help=f"Samples in the t-SNE at most; figures of others are drawn anew. Default: {DEFAULT_POINTS}.",
    )
    parser.add_argument(
        "--batch_size", type=int, default=BATCH_SIZE, help="Samples of one forward pass, where one is drawn."
    )
    parser.add_argument(
        "--faces", type=int, default=6, help="Faces of the worst mistakes, of real and of fake ones; 0 leaves them out."
    )


def run(arguments: Namespace) -> None:
    """Write one page of what runs came to: figures, tables, and what is missing with the reasons."""
    in_range("samples", arguments.samples, 1, MAX_SAMPLES)
    in_range("points", arguments.points, MIN_POINTS)
    in_range("batch_size", arguments.batch_size, 1)
    in_range("faces", arguments.faces, 0, MAX_FACES)
    if arguments.no_figures:
        for name, default in (("samples", DEFAULT_SAMPLES), ("points", DEFAULT_POINTS), ("batch_size", BATCH_SIZE)):
            value = getattr(arguments, name)
            without_effect(name, default if value is None else value, default, "leave --no_figures out")

    from fdtrain.report.inside import Drawing
    from fdtrain.report.references import PACKAGED
    from fdtrain.report.write import Request, write_report

    request = Request(
        runs=[Path(place) for place in arguments.runs],
        matrices=[Path(place) for place in arguments.matrix],
        study=Path(arguments.study) if arguments.study else None,
        references=Path(arguments.references) if arguments.references else PACKAGED,
        faces=arguments.faces,
        drawing=Drawing(not arguments.no_figures, arguments.samples, arguments.points, arguments.batch_size),
    )
    out = Path(arguments.out)
    write_report(request, out)
    for folder in request.runs:
        if out.resolve().is_relative_to(folder.resolve()):
            from fdtrain.tracking.sync import attach

            attach(folder.resolve(), out.resolve())
