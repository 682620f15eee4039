"""`unpack`: a set back as files, in the layout of a benchmark."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from datasets_shards.commands.arguments import add_workers_argument
from datasets_shards.errors import InputError
from datasets_shards.schema import FAKE, SPLITS, ShardSet, open_shard_set, parse_quality

if TYPE_CHECKING:
    from datasets_shards.benchmark import Unpacked

LAYOUTS = ("deepfakebench",)


def add_arguments(parser: ArgumentParser) -> None:
    """The flags of `unpack`."""
    parser.add_argument("set", type=Path, metavar="SET", help="a set, such as ROOT/q77 or ROOT/raw")
    parser.add_argument("--as", choices=LAYOUTS, required=True, help="the layout to write: that of DeepfakeBench")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder to write FaceForensics++/ and dataset_json/ in; must be absent or empty",
    )
    add_workers_argument(parser)


def run(args: Any) -> None:
    """Write a set as DeepfakeBench's tree of crops, landmarks and masks, with the JSON files that its trainers read.

    Its loader opens the JSON files' paths, ./FaceForensics++/..., from the folder in which its scripts are started:
    link the tree there. In training/config/train_config.yaml and test_config.yaml set lmdb to False and
    dataset_json_folder to DIR/dataset_json (rgb_dir isn't used, and label_dict has all labels as it comes); in the YAML
    file of the detector set compression to the set's raw, c23 or c40. The command ends by printing these lines.
    """
    from tqdm import tqdm

    from datasets_shards.benchmark import unpack_benchmark

    opened = open_set(args.set)
    bar = partial(tqdm, total=len(opened.manifest.tars), desc="unpacking", unit="tar", disable=None)
    unpacked = unpack_benchmark(opened, args.out, args.workers, bar)
    describe(opened, unpacked, args.out.resolve())


def open_set(folder: Path) -> ShardSet:
    """Open the set at `<root>/<quality>`. Raises InputError where that is no quality's name."""
    folder = folder.resolve()
    try:
        quality = parse_quality(folder.name)
    except ValueError:
        there = sorted(path.parent.name for path in folder.glob("*/manifest.json"))
        hint = f"; it holds the sets {', '.join(there)}: add one of them to the path" if there else ""
        raise InputError(f"{folder}: is no set, whose folder is named such as q77 or raw{hint}") from None
    return open_shard_set(folder.parent, quality)


def describe(opened: ShardSet, unpacked: "Unpacked", out: Path) -> None:
    """Print what was written, and what to set in DeepfakeBench."""
    from datasets_shards.benchmark import JSON_FOLDER
    from datasets_shards.sources.benchmark_names import DATASETS, LABELS, TREE

    for split in SPLITS:
        counts = {label: unpacked.count(label, split) for label in LABELS.values()}
        words = [f"{label} {videos} videos, {frames} frames" for label, (videos, frames) in counts.items() if videos]
        print(f"{split}: {'; '.join(words) or 'empty'}")
    frames, fakes = opened.index.num_rows, opened.index["label"].to_pylist().count(FAKE)
    masks = sum(len(m) for splits in unpacked.masks.values() for videos in splits.values() for m in videos.values())
    print(f"landmarks: {unpacked.landmarks} of {frames} frames have them; masks: {masks} of {fakes} fake frames")
    wanted = dict.fromkeys(label for dataset in unpacked.datasets for label in DATASETS[dataset])
    if lacking := [label for label in wanted if label not in unpacked.frames]:
        print(f"note: the set has no {', '.join(lacking)}; the JSON files have that part, empty")
    print(f"written: {out / TREE}, {out / JSON_FOLDER}/{{{','.join(unpacked.datasets)}}}.json")
    print("in DeepfakeBench's folder, from which its paths count:")
    print(f"  ln -s {out / TREE} {TREE}")
    print("in its training/config/train_config.yaml and test_config.yaml:")
    print("  lmdb: False")
    print(f"  dataset_json_folder: {out / JSON_FOLDER}")
    print("in the YAML file of the detector:")
    print(f"  compression: {unpacked.compression}")
    print(f"  resolution: {opened.crop_size}  # the crops' own size, in whose pixels the landmarks are")
    if unpacked.landmarks < frames:
        print("  with_landmark: False  # not all frames have landmarks")
