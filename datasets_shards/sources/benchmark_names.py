"""How DeepfakeBench names FaceForensics++: labels, folders of the tree, and the JSON files over them.

Facts from its repository, github.com/SCLBD/DeepfakeBench: `preprocessing/preprocess.py` writes the tree,
`preprocessing/rearrange.py` the JSON files, and `training/dataset/abstract_dataset.py` reads both:

    FaceForensics++/original_sequences/{youtube,actors}/<compression>/frames/<video>/<frame>.png
    FaceForensics++/manipulated_sequences/<method>/<compression>/frames/<video>/<frame>.png

with `landmarks/<video>/<frame>.npy` and `masks/<video>/<frame>.png` beside `frames`. A JSON file is
`{dataset: {label: {split: {compression: {video: {"label": ..., "frames": [...], "masks": [...]}}}}}}`.

Reader and writer share this module, so it imports nothing but names.
"""

from pathlib import PurePosixPath

from datasets_shards.schema import REAL_METHODS

TREE = "FaceForensics++"
"""The folder of the tree under the benchmark's image root, and the data set of the JSON file over all of it."""

COMPRESSIONS = ("raw", "c23", "c40")
FRAMES, LANDMARKS, MASKS = "frames", "landmarks", "masks"

LABELS = {
    "youtube": "FF-real",
    "Deepfakes": "FF-DF",
    "Face2Face": "FF-F2F",
    "FaceSwap": "FF-FS",
    "NeuralTextures": "FF-NT",
    "FaceShifter": "FF-FH",
    "actors": "DFD_real",
    "DeepFakeDetection": "DFD_fake",
}
"""The benchmark's label of each method (FF++'s directory name)."""

METHOD_OF_LABEL = {label: method for method, label in LABELS.items()}

DATASETS = {
    "FaceForensics++": ("FF-real", "FF-DF", "FF-F2F", "FF-FS", "FF-NT"),
    "FF-DF": ("FF-real", "FF-DF"),
    "FF-F2F": ("FF-real", "FF-F2F"),
    "FF-FS": ("FF-real", "FF-FS"),
    "FF-NT": ("FF-real", "FF-NT"),
    "FaceShifter": ("FF-real", "FF-FH"),
    "DeepFakeDetection": ("DFD_real", "DFD_fake"),
}
"""The labels in each data set's JSON file, `<data set>.json`."""


def json_name(dataset: str) -> str:
    """The file of a data set: "FF-DF" -> "FF-DF.json"."""
    return f"{dataset}.json"


def tree_folder(method: str, compression: str, kind: str, video: str) -> PurePosixPath:
    """Folder of a video's files, from the image root; `kind` is one of `FRAMES`, `LANDMARKS` and `MASKS`."""
    part = "original_sequences" if method in REAL_METHODS else "manipulated_sequences"
    return PurePosixPath(TREE, part, method, compression, kind, video)


def json_path(method: str, compression: str, kind: str, video: str, frame: int) -> str:
    """A file as our JSON files name it: "./FaceForensics++/...", from the folder in which the trainers are started.

    The dot decides: the loader takes such a path as it is, in every version. Before any other it puts its `rgb_dir` and
    a backslash since it has that setting, which gives no file anywhere but on Windows.
    """
    return f"./{tree_folder(method, compression, kind, video) / file_name(kind, frame)}"


def file_name(kind: str, frame: int) -> str:
    """Name of a frame's file: the frame's number in the video with three digits, 7 -> "007.png", "007.npy"."""
    return f"{frame:03d}.{'npy' if kind == LANDMARKS else 'png'}"


def beside_frame(path: str, kind: str) -> str:
    """The landmarks or mask of the crop at `path`, .../frames/<video>/<frame>.png.

    The benchmark replaces "frames" wherever the path holds it; here only the folder two levels above the file is, so
    that a root with that word in its name still works.

    Raises:
        ValueError: `path` isn't of that form.
    """
    place = PurePosixPath(path)
    if len(place.parts) < 3 or place.parts[-3] != FRAMES or place.suffix != ".png":
        raise ValueError(f"{path!r} isn't .../{FRAMES}/<video>/<frame>.png")
    suffix = ".npy" if kind == LANDMARKS else ".png"
    return str(place.parents[2] / kind / place.parent.name / f"{place.stem}{suffix}")
