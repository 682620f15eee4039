"""`pack`: crops into shards, every quality in one pass."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from datasets_shards.commands.arguments import SettingError, add_source_arguments, number
from datasets_shards.commands.faces import detect, face_settings
from datasets_shards.errors import InputError
from datasets_shards.jpeg.mozjpeg import check_quality
from datasets_shards.schema import METHODS, Quality, open_shard_set, parse_quality, quality_name
from datasets_shards.sources import Video, find_videos

if TYPE_CHECKING:
    from datasets_shards.faces.table import FaceTable
    from datasets_shards.shards.pack import PackRequest

QUALITIES = (77, 60, 15, 10)


def add_arguments(parser: ArgumentParser) -> None:
    """The flags of `pack`."""
    add_source_arguments(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="root folder; each quality becomes a folder in it"
    )
    parser.add_argument(
        "--qualities",
        type=_quality,
        metavar="Q",
        nargs="+",
        default=list(QUALITIES),
        help="MozJPEG qualities, 1 to 79 and 90 to 100; 'raw' is a set of lossless PNG",
    )
    parser.add_argument(
        "--faces", type=Path, metavar="FILE", help="table of faces; without it the face stage runs first"
    )
    parser.add_argument(
        "--splits",
        type=Path,
        metavar="DIR",
        help="folder with FF++'s train.json, val.json and test.json (default: SOURCE/splits, else drawn by identity)",
    )
    parser.add_argument("--seed", type=number(int, 0, 2**32 - 1), metavar="N", default=0, help="of a drawn split")
    parser.add_argument("--size", type=number(int, 16, 4096), metavar="N", default=256, help="side of a crop, pixels")
    parser.add_argument(
        "--margin", type=number(float, 1, 4), metavar="N", default=1.3, help="side of a crop over the tight face"
    )
    parser.add_argument(
        "--shard-samples",
        type=number(int, 1, 1_000_000),
        metavar="N",
        default=1024,
        help="samples a tar is meant to have",
    )


def run(args: Any) -> None:
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


def _quality(text: Any) -> Quality:
    try:
        quality = parse_quality(text)
        check_quality(quality)
        return quality
    except ValueError as error:
        raise SettingError(str(error)) from None
