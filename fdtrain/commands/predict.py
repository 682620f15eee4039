"""`python -m fdtrain predict`."""

from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from datasets_shards.pool import default_workers
from fdtrain.commands.arguments import add_model
from fdtrain.config import UserError
from fdtrain.config.checks import in_range


def add_arguments(parser: ArgumentParser) -> None:
    """The model, the files, how crops are made of them and where the scores go."""
    add_model(parser)
    parser.add_argument(
        "--out",
        required=True,
        help="Table to write, .csv, .json or .parquet: a row for each file. scores.csv has a row for each frame in "
        "scores.frames.csv beside it.",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="Images, videos, folders of them, or quoted globs.")
    parser.add_argument(
        "--frames-per-video",
        "--frames_per_video",
        type=int | Literal["all"],
        default=32,
        help="Frames taken of each video, evenly spaced over the whole of it, or all.",
    )
    parser.add_argument(
        "--video_score",
        default="mean",
        help="What a video's score is of its frames': mean, median, max, or topK (top5: the mean of the 5 highest).",
    )
    parser.add_argument(
        "--crops",
        action="store_true",
        help="The files are square face crops already, taken as they are: no face is looked for.",
    )
    parser.add_argument(
        "--jpeg_quality",
        type=int | None,
        help="Compress each crop by MozJPEG at this quality first, as pack does, so that a model of that quality meets "
        "what it was trained on. Without it frames of videos get no further JPEG step.",
    )
    parser.add_argument(
        "--upsample",
        type=int | None,
        help="Times a frame is doubled before detection: smaller faces are found, four times slower each. Default: as "
        "for the model's training data.",
    )
    parser.add_argument(
        "--margin", type=float | None, help="Side of a crop over the tight face. Default: as in the training data."
    )
    parser.add_argument(
        "--align",
        type=Literal["similarity", "deepfakebench", "none"] | None,
        help="Turn and scale faces to a canonical pose, do so as DeepfakeBench does, or cut the square around the box. "
        "Default: likewise.",
    )
    parser.add_argument(
        "--annotate", type=str | None, help="New folder for a picture of each scored frame: box, score, attention."
    )
    parser.add_argument("--batch_size", type=int, default=32, help="Crops of one forward pass.")
    parser.add_argument(
        "--workers", type=int, default=default_workers(), help="Processes that read files and look for faces."
    )


def run(arguments: Namespace) -> None:
    """Score images and videos: find the faces, cut them as the model's training data, give P(fake)."""
    count = arguments.frames_per_video
    for key, low, high in (("batch_size", 1, 65_536), ("workers", 1, 1024), ("jpeg_quality", 1, 100)):
        in_range(key, arguments[key], low, high)
    in_range("upsample", arguments.upsample, 0, 3)
    in_range("margin", arguments.margin, 1, 4)
    if count != "all":
        in_range("frames_per_video", count, 1, 100_000)
    if arguments.crops:
        for key in ("upsample", "margin", "align"):
            if arguments[key] is not None:
                raise UserError(f"{key}: has no effect on --crops, which are taken as they are; leave one of them out")

    from fdtrain.predict.recipe import Wishes
    from fdtrain.predict.run import Request, predict

    wishes = Wishes(
        frames_per_video=None if count == "all" else count,
        are_crops=arguments.crops,
        jpeg_quality=arguments.jpeg_quality,
        upsample=arguments.upsample,
        margin=arguments.margin,
        align=arguments.align,
    )
    request = Request(
        model=arguments.model,
        paths=arguments.paths,
        out=Path(arguments.out),
        wishes=wishes,
        video_score=arguments.video_score,
        annotate=Path(arguments.annotate) if arguments.annotate else None,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
    )
    predict(request)
