"""`faces`: the face stage alone."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from datasets_shards.commands.arguments import ALL, add_source_arguments, selection_from
from datasets_shards.errors import InputError
from datasets_shards.sources import Video, count_by_method, describe_skipped, open_source

if TYPE_CHECKING:  # what pulls in heavy packages is imported where it is used, for --help must be quick
    from datasets_shards.faces.detector import FaceSettings
    from datasets_shards.faces.table import FaceTable


def add_arguments(parser: ArgumentParser) -> None:
    """The flags of `faces`."""
    add_source_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="Parquet table to write")


def run(args: Any) -> None:
    """Find the faces in sampled frames and write them to a Parquet table; pack cuts its crops by it.

    The same call again goes on where the first was stopped, and looks only at videos that are new or have changed.
    """
    if args.out.is_dir():
        raise InputError(f"--out {args.out}: is a folder; give the name of a table, such as {args.out}/faces.parquet")
    settings = face_settings(args)
    source = open_source(args.source, selection_from(args))
    for line in describe_skipped(source):
        print(line)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    detect(source.videos, settings, args.out, args.workers)
    print(f"table of faces: {args.out}")


def face_settings(args: Any, base: "FaceSettings | None" = None) -> "FaceSettings":
    """The settings of the face stage: flags that were given, over those of `base` (default: the defaults).

    Raises:
        InputError: both --frames-per-video and --every, as a configuration file may have them.
    """
    from datasets_shards.faces.detector import FaceSettings

    base = base or FaceSettings()
    given = {name: args[name] for name in asdict(base) if args[name] is not None}
    if "every" in given:
        if "frames_per_video" in given:
            raise InputError(f"--every {args.every}: not together with --frames-per-video; give one of them")
        given["frames_per_video"] = None
    elif "frames_per_video" in given:
        given["every"] = None
        if given["frames_per_video"] == ALL:
            given["frames_per_video"] = None
    return replace(base, **given)


def detect(videos: list[Video], settings: "FaceSettings", path: Path, workers: int) -> "FaceTable":
    """Run the face stage, write its table to `path`, and say what it found."""
    from tqdm import tqdm

    from datasets_shards.faces.stage import detect_faces
    from datasets_shards.faces.table import report_problems

    print(f"videos: {len(videos)} {videos[0].compression} ({count_by_method(videos)})", flush=True)
    bar = partial(tqdm, desc="faces", unit="video", disable=None)
    faces = detect_faces(videos, settings, path, workers, bar, partial(print, flush=True))
    for line in report_problems(faces):
        print(line)
    counts = faces.status_counts()
    found = counts.pop("ok", 0)
    dropped = ", ".join(f"{count} {status}" for status, count in counts.items()) or "none"
    print(f"faces: {found} of {faces.num_frames} frames; dropped: {dropped}")
    return faces
