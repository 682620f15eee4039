"""The tree of face crops that DeepfakeBench prepares, read by its `FaceForensics++.json` (and, where
they lie beside it, `FaceShifter.json` and `DeepFakeDetection.json`).

The crops are taken as they are: no face is looked for, nothing is resampled. See `benchmark_names` for the layout. The
tree's JSON file says which frames there are and in which split; a file that it lists and that isn't there is counted as
missing, and the rest is read.
"""

import json
import re
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from datasets_shards.errors import InputError, first_few
from datasets_shards.schema import SPLITS
from datasets_shards.sources import benchmark_names as names
from datasets_shards.sources.listing import Selection, Source, look_into, subfolders
from datasets_shards.sources.names import PARTS, choose_compression, people_of
from datasets_shards.sources.video import Video

LAYOUT = "DeepfakeBench frames"
JSON_NAME = names.json_name(names.TREE)
EXAMPLE = f"{names.tree_folder('youtube', 'c23', names.FRAMES, '000')}/000.png with {JSON_NAME}"
BESIDE = tuple(names.json_name(dataset) for dataset in ("FaceShifter", "DeepFakeDetection"))
JSON_FOLDERS = (".", names.TREE, "dataset_json", "preprocessing/dataset_json", "..", "../dataset_json")


def recognizes(root: Path) -> bool:
    """Whether there is a folder of frames where the benchmark writes them."""
    tree = _tree(root)
    return any(
        (method / compression / names.FRAMES).is_dir()
        for part in PARTS
        for method in subfolders(tree / part)
        for compression in names.COMPRESSIONS  # not masks/frames, as FF++'s masks may lie
    )


def _tree(root: Path) -> Path:
    """The folder with `original_sequences` and `manipulated_sequences`: `root`, or FaceForensics++ in it."""
    return root / names.TREE if (root / names.TREE).is_dir() else root


def read(root: Path, selection: Selection) -> Source:
    """List the videos of the JSON file.

    Raises:
        InputError: no JSON file, one of another form, several compressions and none chosen, a video in two splits, an
            asked label or a file name that the benchmark doesn't write, an unreadable folder.
    """
    path = _json_file(root, selection.json)
    labels = _load(path)
    for other in BESIDE:  # the benchmark keeps what isn't in its main file in files of their own
        if path.name == JSON_NAME and path.with_name(other).is_file():
            labels = _load(path.with_name(other)) | labels
    methods = frozenset(names.METHOD_OF_LABEL[label] for label in labels if label in names.METHOD_OF_LABEL)
    if selection.methods is not None and (chosen := methods & set(selection.methods)):
        labels = {label: splits for label, splits in labels.items() if names.METHOD_OF_LABEL.get(label) in chosen}
    if unknown := sorted(set(labels) - set(names.METHOD_OF_LABEL)):
        raise InputError(
            f"{path}: unknown labels {first_few(unknown)}; known: {', '.join(names.METHOD_OF_LABEL)}; choose some of "
            "them with --methods"
        )
    present = [
        compression
        for compression in names.COMPRESSIONS
        if any(splits.get(split, {}).get(compression) for splits in labels.values() for split in SPLITS)
    ]
    if not present:
        raise InputError(f"{path}: lists no video of any of {', '.join(names.COMPRESSIONS)}")
    compression = choose_compression(root, present, selection.compression)
    tree = _tree(root)
    videos: list[Video] = []
    split_of: dict[tuple[str, str], str] = {}
    empty: list[str] = []
    for label, splits in labels.items():
        method = names.METHOD_OF_LABEL[label]
        for split in SPLITS:
            for name, entry in splits.get(split, {}).get(compression, {}).items():
                if (method, name) in split_of:
                    if names.LABELS[method].startswith("DFD"):  # listed in all three by the benchmark, test-only here
                        continue
                    raise InputError(f"{path}: {label} {name} is in {split_of[method, name]} and in {split}")
                split_of[method, name] = split
                video = _video(root, tree, path, method, name, compression, entry)
                if video.files:
                    videos.append(video)
                else:
                    empty.append(f"{video.relative}: the JSON file lists no frame of it")
    asked = {names.METHOD_OF_LABEL[label] for label in labels}
    skipped = empty + _unlisted(root, tree, compression, set(split_of), methods - asked)
    return Source(LAYOUT, root, compression, videos, methods, splits=split_of, skipped=skipped)


def _video(root: Path, tree: Path, path: Path, method: str, name: str, compression: str, entry: Any) -> Video:
    listed = entry.get("frames") if isinstance(entry, dict) else None
    if not isinstance(listed, list) or not all(isinstance(frame, str) for frame in listed):
        raise InputError(f"{path}: {names.LABELS[method]} {name}: no list 'frames' of paths")
    folder = tree / names.tree_folder(method, compression, names.FRAMES, name).relative_to(names.TREE)
    target, source = people_of(method, name, folder)
    files = sorted({_frame(path, frame) for frame in listed})
    if twice := [file for (number, file), (other, _) in pairwise(files) if number == other]:
        raise InputError(f"{path}: {names.LABELS[method]} {name}: two files of the same frame as {first_few(twice)}")
    masks = (folder.parents[2] / c / names.MASKS / name for c in (compression, "c23"))  # c23's serve all, there
    return Video(
        method,
        name,
        target,
        source,
        compression,
        folder,
        folder.relative_to(root).as_posix(),
        files=tuple(files),
        cropped=True,
        mask=next((folder for folder in masks if folder.is_dir()), None),
    )


def _frame(path: Path, listed: str) -> tuple[int, str]:
    """Frame number and file name of a listed path, which may be of another machine and even of another system."""
    name = PurePosixPath(listed.replace("\\", "/")).name
    match = re.fullmatch(r"(\d{1,9})\.png", name)
    if match is None:
        raise InputError(f"{path}: {listed!r} isn't .../<frame number>.png")
    return int(match[1]), name


def _unlisted(
    root: Path, tree: Path, compression: str, listed: set[tuple[str, str]], others: frozenset[str]
) -> list[str]:
    """Folders of frames that the JSON file doesn't list, but for those of the methods `others`."""
    lines = []
    for part in PARTS:
        for method in subfolders(tree / part):
            if method.name in others:
                continue
            found = look_into(method / compression / names.FRAMES, root)
            lines += found.skipped
            for folder in found.folders:
                if (method.name, folder.name) not in listed:
                    lines.append(f"{folder.relative_to(root)}: not listed in the JSON file")
    return lines


def _json_file(root: Path, given: Path | None) -> Path:
    if given is not None:
        return given
    for folder in JSON_FOLDERS:
        if (root / folder / JSON_NAME).is_file():
            return root / folder / JSON_NAME
    raise InputError(f"--source {root}: DeepfakeBench frames without their {JSON_NAME}; give it with --json FILE")


def _load(path: Path) -> dict[str, dict[str, Any]]:
    """`{label: {split: {compression: {video: entry}}}}` of a data set's file."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"--json {path}: can't be read ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None
    labels = next(iter(content.values()), None) if isinstance(content, dict) and len(content) == 1 else None
    if not isinstance(labels, dict) or not all(_well_formed(splits) for splits in labels.values()):
        raise InputError(f"{path}: not of the form data set -> label -> split -> compression -> video")
    if unknown := sorted({split for splits in labels.values() for split in splits} - set(SPLITS)):
        raise InputError(f"{path}: unknown splits {first_few(unknown)}; known: {', '.join(SPLITS)}")
    return labels


def _well_formed(splits: Any) -> bool:
    return isinstance(splits, dict) and all(
        isinstance(compressions, dict) and all(isinstance(videos, dict) for videos in compressions.values())
        for compressions in splits.values()
    )
