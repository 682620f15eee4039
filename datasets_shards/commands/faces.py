"""`faces`: the face stage alone."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from datasets_shards.commands.arguments import add_source_arguments
from datasets_shards.errors import InputError
from datasets_shards.sources import Video, count_by_method, find_videos

if TYPE_CHECKING:  # what pulls in heavy packages is imported where it is used, for --help must be quick
    from datasets_shards.faces.detector import FaceSettings
    from datasets_shards.faces.table import FaceTable


def add_arguments(parser: ArgumentParser) -> None:
    """The flags of `faces`."""
    add_source_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="Parquet table to write")


def run(args: Any) -> None:
    """Find the faces in sampled frames and write them to a Parquet table; pack cuts its crops by it."""
    if args.out.is_dir():
        raise InputError(f"--out {args.out}: is a folder; give the name of a table, such as {args.out}/faces.parquet")
    if not args.out.parent.is_dir():
        raise InputError(f"--out {args.out}: the folder {args.out.parent} doesn't exist")
    videos = find_videos(args.source, args.compression)
    detect(videos, face_settings(args), args.workers).save(args.out)
    print(f"written: {args.out}")


def face_settings(args: Any, base: "FaceSettings | None" = None) -> "FaceSettings":
    """The settings of the face stage: flags that were given, over those of `base` (default: the defaults)."""
    from datasets_shards.faces.detector import FaceSettings

    base = base or FaceSettings()
    given = {name: args[name] for name in asdict(base) if args[name] is not None}
    return FaceSettings(**(asdict(base) | given))


def detect(videos: list[Video], settings: "FaceSettings", workers: int) -> "FaceTable":
    """Run the face stage and say what it found."""
    from tqdm import tqdm

    from datasets_shards.faces.table import detect_faces, report_problems

    print(f"videos: {len(videos)} {videos[0].compression} ({count_by_method(videos)})", flush=True)
    bar = partial(tqdm, total=len(videos), desc="faces", unit="video", disable=None)
    faces = detect_faces(videos, settings, workers, bar)
    for line in report_problems(faces):
        print(line)
    counts = faces.status_counts()
    found = counts.pop("ok", 0)
    dropped = ", ".join(f"{count} {status}" for status, count in counts.items()) or "none"
    print(f"faces: {found} of {faces.num_frames} frames; dropped: {dropped}")
    return faces
