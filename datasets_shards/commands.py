"""What each command does, from parsed flags to the lines it prints."""

import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets_shards.errors import InputError
from datasets_shards.schema import METHODS, Quality, open_shard_set, quality_name
from datasets_shards.sources import Video, count_by_method, find_videos

if TYPE_CHECKING:  # what pulls in heavy packages is imported where it is used, for --help must be quick
    from datasets_shards.faces.detector import FaceSettings
    from datasets_shards.faces.table import FaceTable
    from datasets_shards.shards.pack import PackRequest


def run_demo(args: Any) -> None:
    """Write a small made-up dataset in FF++'s layout; its numbers mean nothing for real detection."""
    from datasets_shards.demo import write_demo

    print(write_demo(args.out, args.seed, args.identities, args.frames, args.workers, progress=sys.stderr.isatty()))


def run_faces(args: Any) -> None:
    """Find the faces in sampled frames and write them to a Parquet table; pack cuts its crops by it."""
    if args.out.is_dir():
        raise InputError(f"--out {args.out}: is a folder; give the name of a table, such as {args.out}/faces.parquet")
    if not args.out.parent.is_dir():
        raise InputError(f"--out {args.out}: the folder {args.out.parent} doesn't exist")
    videos = find_videos(args.source, args.compression)
    detect(videos, face_settings(args), args.workers).save(args.out)
    print(f"written: {args.out}")


def run_pack(args: Any) -> None:
    """Cut the face crops out of the videos and pack them into shards, all qualities in one pass."""
    from tqdm import tqdm

    from datasets_shards.crops.align import CropSettings
    from datasets_shards.jpeg.mozjpeg import require_mozjpeg
    from datasets_shards.shards.layout import plan_layout
    from datasets_shards.shards.pack import PackRequest, find_missing, pack_sets
    from datasets_shards.shards.root import locked_root
    from datasets_shards.splits import plan_splits

    require_mozjpeg()
    videos = find_videos(args.source, args.compression)
    splits_folder = choose_splits(args)
    splits = plan_splits(videos, splits_folder, args.seed)
    if splits.skipped:
        print(f"skipped: {len(splits.skipped)} videos that are in no file of {splits_folder}")
    used = [video for placed in splits.videos.values() for video in placed]
    if not used:
        raise InputError(f"--splits {splits_folder}: none of the {len(videos)} videos is in its files")
    with locked_root(args.out) as staging:
        faces = faces_for_pack(args, videos)
        crop = CropSettings(args.size, args.margin)
        layout = plan_layout(splits.videos, faces, args.size, args.shard_samples)
        if not layout.shards:
            raise InputError(f"--source {args.source}: no usable face in any video of the splits")
        request = PackRequest(faces, splits, layout, crop)
        missing = find_missing(args.out, request, args.qualities)
        for quality in dict.fromkeys(args.qualities):
            if quality not in missing:
                print(f"already packed: {args.out / quality_name(quality)}")
        if missing:
            bar = partial(tqdm, total=len(layout.videos), desc="packing", unit="video", disable=None)
            pack_sets(args.out, staging, request, missing, args.workers, bar)
    describe_pack(args.out, request, args.qualities)


def choose_splits(args: Any) -> Path | None:
    """`--splits`, else the source's own folder of split files, else None: drawn."""
    if args.splits is not None:
        if not args.splits.is_dir():
            raise InputError(f"--splits {args.splits}: no such folder")
        return args.splits
    own = args.source / "splits"
    if own.is_dir():
        print(f"splits: from {own}")
        return own
    print(f"splits: drawn by identity, seed {args.seed} (no --splits and no {own})")
    return None


def face_settings(args: Any, base: "FaceSettings | None" = None) -> "FaceSettings":
    """The settings of the face stage: flags that were given, over those of `base` (default: the defaults)."""
    from datasets_shards.faces.detector import FaceSettings

    base = base or FaceSettings()
    given = {name: args[name] for name in asdict(base) if args[name] is not None}
    return FaceSettings(**(asdict(base) | given))


def faces_for_pack(args: Any, videos: list[Video]) -> "FaceTable":
    """The table of `--faces`, else the one that the root keeps, else a new one, which the root then keeps.

    Raises:
        InputError: the table is about other videos or was made with other settings than the flags say.
    """
    from datasets_shards.faces.table import FaceTable

    kept = args.out / "faces.parquet"
    path = args.faces or kept
    if args.faces is None and not kept.exists():
        faces = detect(videos, face_settings(args), args.workers)
        faces.save(kept)
        return faces
    faces = FaceTable.load(path)
    # A table that somebody made is taken with its settings; one of ours must be what a new one would be.
    wanted = asdict(face_settings(args, faces.settings if args.faces else None))
    for name, value in asdict(faces.settings).items():
        if value != wanted[name]:
            flag = f"--{name.replace('_', '-')} {wanted[name]}"
            remedy = "make another table" if args.faces else "pack into another folder"
            raise InputError(f"{flag}: the faces of {path} were found with {value}; {remedy}, or ask for {value}")
    faces.check(videos, str(path))
    print(f"faces: from {path}")
    return faces


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


def describe_pack(root: Path, request: "PackRequest", qualities: list[Quality]) -> None:
    """Print what the root now holds."""
    import pyarrow.compute as pc

    drawn = request.splits.origin["origin"] == "drawn"
    why_empty = ", for there are too few people for three splits that share none" if drawn else ""
    for split, counts in request.layout.counts.items():
        methods = ", ".join(f"{counts[method]} {method}" for method in METHODS if method in counts)
        print(f"{split}: {sum(counts.values())} samples ({methods})" if counts else f"{split}: empty{why_empty}")
    for quality in dict.fromkeys(qualities):
        opened = open_shard_set(root, quality)
        total = pc.sum(opened.index["size"]).as_py()
        mean = total / opened.index.num_rows
        tars = len(opened.manifest.tars)
        print(f"{opened.folder}: {opened.index.num_rows} images, {total} bytes ({mean:.0f} each), {tars} tars")
