"""What a registered model runs, without this project: from image files, or pixels, to P(fake).

This file is logged with every version, as it stands ("models from code"), and the decoder of images beside it, so that
neither needs the project. Its folder "model" holds either a detector (`model.pt2`, a torch.export program, and
`model.json`, which says what input it takes) or a router (`router.json`, and a detector in a folder for each quality).
Nothing in it is unpickled.
"""

import base64
import binascii
import json
import struct
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel
from torch.nn import functional

try:
    from datasets_shards.frames.pixels import ImageError, decode_image
except ModuleNotFoundError:  # served without the project
    from pixels import ImageError, decode_image  # type: ignore[import-not-found,no-redef]  # the logged copy

BATCH = 32
MAX_PIXELS = 1 << 24
"""The limit for an image: 50 MB of RGB, and 200 MB more while it is resized. A face crop has a hundredth of it."""
CLIP = 1e-6
"""Scores nearer than this to 0 or 1 count as this: their log-odds would be infinite."""

# ITU-T T.81, tables K.1 (luma) and K.2 (chroma): libjpeg, libjpeg-turbo and whatever is built on them.
STANDARD_LUMA = """
    16 11 10 16 24 40 51 61   12 12 14 19 26 58 60 55   14 13 16 24 40 57 69 56   14 17 22 29 51 87 80 62
    18 22 37 56 68 109 103 77   24 35 55 64 81 104 113 92   49 64 78 87 103 121 120 101   72 92 95 98 112 100 103 99
"""
STANDARD_CHROMA = """
    17 18 24 47 99 99 99 99   18 21 26 66 99 99 99 99   24 26 56 99 99 99 99 99   47 66 99 99 99 99 99 99
    99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99
"""
# By N. Robidoux, for luma and chroma alike: the default of MozJPEG's cjpeg.
MOZJPEG = """
    16 16 16 18 25 37 56 85   16 17 20 27 34 40 53 75   16 20 24 31 43 62 91 135   18 27 31 40 53 74 106 156
    25 34 43 53 69 94 131 189   37 40 62 74 94 124 169 238
    56 53 91 106 131 169 226 311   85 75 135 156 189 238 311 418
"""
ENCODERS = ("MozJPEG", "libjpeg")
_SOI, _SOS, _DQT = 0xD8, 0xDA, 0xDB
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # without DHT, JPG and DAC
_STANDALONE = {0x01, *range(0xD0, 0xD9)}


class QualityEstimate(NamedTuple):
    """What the quantization tables of a JPEG say.

    Args:
        quality: 1 to 100. Where tables of several qualities are equal (all entries 255), the lowest of them.
        encoder: Whose tables they are, or are nearest to: one of `ENCODERS`.
        distance: Mean difference of the tables' logarithms; 0: these very tables.
    """

    quality: int
    encoder: str
    distance: float


def estimate_quality(data: bytes) -> QualityEstimate | None:
    """The quality at which a JPEG was compressed; None where its headers can't be read.

    The tables of luma and chroma (or of luma alone in a grey image) are compared with those of both encoders at every
    quality, where 8-bit entries end at 255. Tables of neither encoder get the nearest one's quality.
    """
    tables = _quantization_tables(data)
    if not tables:
        return None
    distances = np.zeros((2, 100))
    for part, (entries, ends_at) in enumerate(tables):
        candidates = np.minimum(_candidates()[:, :, part], ends_at)
        distances += np.abs(np.log(candidates) - np.log(np.maximum(entries, 1))).mean(-1) / len(tables)
    best = distances.min()
    quality = int(np.flatnonzero(distances.min(0) == best)[0]) + 1
    return QualityEstimate(quality, ENCODERS[int(distances[:, quality - 1].argmin())], float(best))


@cache
def _candidates() -> np.ndarray:
    """Tables of each encoder, each quality from 1, luma and chroma, in zigzag order, int64 `[2, 100, 2, 64]`."""
    base = np.array([(MOZJPEG.split(), MOZJPEG.split()), (STANDARD_LUMA.split(), STANDARD_CHROMA.split())], int)
    rows, columns = np.indices((8, 8)).reshape(2, 64)
    diagonal = rows + columns
    zigzag = np.lexsort((np.where(diagonal % 2, rows, columns), diagonal))
    quality = np.arange(1, 101)
    percent = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)  # libjpeg's jpeg_quality_scaling
    return np.maximum((base[:, None, :, zigzag] * percent[:, None, None] + 50) // 100, 1)


def _quantization_tables(data: bytes) -> list[tuple[np.ndarray, int]]:
    """Luma's and chroma's table in zigzag order, each with the largest entry that its width allows."""
    tables: dict[int, tuple[np.ndarray, int]] = {}
    used: list[int] = []
    try:
        for marker, content in _segments(data):
            if marker == _DQT:
                tables |= _parse_tables(content)
            elif marker in _FRAMES:
                used = list(dict.fromkeys(content[8::3]))[:2]
        return [tables[identifier] for identifier in used]
    except (struct.error, IndexError, KeyError):
        return []


def _segments(data: bytes) -> Iterable[tuple[int, bytes]]:
    """Marker and content of each segment before the first scan."""
    position = 2
    while (marker := data[position + 1]) != _SOS and data[position] == 0xFF:
        if marker == 0xFF or marker in _STANDALONE:  # fill bytes, markers without content
            position += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        yield marker, data[position + 4 : position + 2 + length]
        position += 2 + length


def _parse_tables(content: bytes) -> dict[int, tuple[np.ndarray, int]]:
    found = {}
    while content:
        wide, identifier = content[0] >> 4, content[0] & 15
        end = 129 if wide else 65
        entries = struct.unpack_from(">64H" if wide else ">64B", content, 1)
        found[identifier] = np.array(entries), 32767 if wide else 255
        content = content[end:]
    return found


class Detector:
    """One model.

    Args:
        folder: With `model.pt2` and `model.json`.
    """

    def __init__(self, folder: Path) -> None:
        self.input = json.loads((folder / "model.json").read_bytes())["input"]
        self.mean, self.std = (torch.tensor(self.input[name]).view(1, 3, 1, 1) * 255 for name in ("mean", "std"))
        self.program: Any = torch.export.load(folder / "model.pt2").module()

    @torch.inference_mode()
    def scores(self, images: list[torch.Tensor]) -> np.ndarray:
        """Return P(fake), float64 `[N]`, of images as `prepare` gives them."""
        logits = self.program(torch.cat(images))
        # As in evaluation (`fake_probability`), or the scores would be others.
        real, fake = logits.double().unbind(1)
        return torch.sigmoid(fake - real).numpy()

    def prepare(self, image: np.ndarray, data: bytes | None = None) -> torch.Tensor:
        """Make the network's input, float32 `[1, 3, side, side]`, of RGB uint8 `[H, W, 3]` of any size."""
        # As in training and evaluation (`Task.prepare`), or the scores would be others.
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
        side = self.input["size"]
        if pixels.shape[-2:] != (side, side):
            mode = self.input["interpolation"]
            pixels = functional.interpolate(pixels, size=(side, side), mode=mode, antialias=True).clamp(0, 255)
        return (pixels - self.mean) / self.std

    def explain(self, images: list[torch.Tensor]) -> list[dict[str, Any]]:
        """One dictionary for each image, see `Served.explain`."""
        return [{"p_fake": float(score)} for score in self.scores(images)]


class Routed(NamedTuple):
    """An image on its way to one of a router's models.

    Args:
        model: Its name.
        estimate: Of the image's quality; None of what is no JPEG.
        prepared: As of `Detector.prepare`.
    """

    model: str
    estimate: QualityEstimate | None
    prepared: torch.Tensor


class Router:
    """The champions of several qualities, of which each image is judged by one.

    Args:
        folder: With `router.json` and a folder of each model.
    """

    def __init__(self, folder: Path) -> None:
        self.content = json.loads((folder / "router.json").read_bytes())
        self.models = {name: Detector(folder / name) for name in self.content["models"]}
        if self.content["note"]:
            print(f"warning: {self.content['note']}", file=sys.stderr)

    def prepare(self, image: np.ndarray, data: bytes | None = None) -> Routed:
        """Choose an image's model and make its input; `data` is the file, where it is a JPEG."""
        estimate = None if data is None else estimate_quality(data)
        name = choose_model(self.content, estimate)
        return Routed(name, estimate, self.models[name].prepare(image))

    def explain(self, images: list[Routed]) -> list[dict[str, Any]]:
        """One dictionary for each image, see `Served.explain`."""
        answers: list[dict[str, Any]] = [{}] * len(images)
        for name in dict.fromkeys(image.model for image in images):
            places = [i for i, image in enumerate(images) if image.model == name]
            raw = self.models[name].scores([images[i].prepared for i in places])
            for i, score, p_fake in zip(places, raw, calibrated(self.content, name, raw), strict=True):
                estimate = images[i].estimate
                answers[i] = {
                    "p_fake": float(p_fake),
                    "model": name,
                    "uncalibrated": float(score),
                    "estimate": None if estimate is None else estimate._asdict(),
                }
        return answers


def choose_model(content: dict[str, Any], estimate: QualityEstimate | None) -> str:
    """Name of the model for an image: the nearest quality's, of two the lower; the `other` one for what is no JPEG."""
    if estimate is None or not any(model["quality"] is not None for model in content["models"].values()):
        return content["other"]
    by_distance = {
        (abs(model["quality"] - estimate.quality), model["quality"]): name
        for name, model in content["models"].items()
        if model["quality"] is not None
    }
    return by_distance[min(by_distance)]


def calibrated(content: dict[str, Any], name: str, scores: np.ndarray) -> np.ndarray:
    """Scores of one model of a router on the scale that all of them share: sigmoid(slope * logit(score) + offset)."""
    calibration = content["models"][name]["calibration"]
    clipped = np.clip(np.asarray(scores, np.float64), CLIP, 1 - CLIP)
    logits = np.log(clipped) - np.log1p(-clipped)
    return 1 / (1 + np.exp(-(calibration["slope"] * logits + calibration["offset"])))


class Served(PythonModel):
    """The model as MLflow's `python_function`."""

    def load_context(self, context: Any) -> None:
        """Open the logged folder."""
        folder = Path(context.artifacts["model"])
        self.model: Any = Router(folder) if (folder / "router.json").exists() else Detector(folder)

    # MLflow checks what it is given by this hint, and for an array it checks nothing.
    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """P(fake) of each image, float64 `[N]`.

        Args:
            context: MLflow's.
            model_input: Images: a list, a Series, or the column "image" (or the only one) of a DataFrame or dictionary.
                Each is an image file (JPEG, PNG, WebP, TIFF, AVIF, BMP) as bytes, the same in base64, or RGB pixels
                from 0 to 255, `[H, W, 3]`. One image alone or an array `[N, H, W, 3]` will do too.
            params: There are none.

        Raises:
            MlflowException: something else is among them; served, it is answered with 400.
        """
        return np.array([answer["p_fake"] for answer in self.explain(model_input)], np.float64)

    def explain(self, model_input: Any) -> list[dict[str, Any]]:
        """A dictionary for each image: "p_fake"; of a router also "model", its score "uncalibrated", and "estimate"."""
        images = as_list(model_input)
        answers: list[dict[str, Any]] = []
        for first in range(0, len(images), BATCH):
            part = images[first : first + BATCH]
            # One at a time: of 32 large images the pixels would take gigabytes, what the network reads takes little.
            answers += self.model.explain([self.model.prepare(*decode(each, first + i)) for i, each in enumerate(part)])
        return answers


def as_list(model_input: Any) -> list[Any]:
    """The images of whatever MLflow hands over, see `Served.predict`."""
    if hasattr(model_input, "columns") or isinstance(model_input, dict):
        names = list(model_input.keys())
        if "image" not in names and len(names) != 1:
            raise _refused(f"the columns are {', '.join(map(str, names)) or 'none'}; one named image is needed")
        model_input = model_input["image" if "image" in names else names[0]]
    if isinstance(model_input, (bytes, bytearray, str)):
        return [model_input]
    if isinstance(model_input, np.ndarray) and model_input.ndim == 3:
        return [model_input]
    if isinstance(model_input, np.ndarray) and model_input.ndim == 0:
        return as_list(model_input.item())
    return list(model_input)


def decode(image: Any, place: int) -> tuple[np.ndarray, bytes | None]:
    """RGB uint8 `[H, W, 3]`, as the packer and `predict` read it, and the file if it is a JPEG."""
    if isinstance(image, str):
        try:
            image = base64.b64decode("".join(image.split()), validate=True)
        except (binascii.Error, ValueError):
            raise _refused(f"image {place}: a text that isn't base64; give the file's bytes in base64") from None
    if not isinstance(image, (bytes, bytearray)):
        return _pixels(image, place), None
    data = bytes(image)
    try:
        return decode_image(data, MAX_PIXELS), data if data.startswith(b"\xff\xd8\xff") else None
    except ImageError as error:
        raise _refused(f"image {place}: {error}; give the bytes of an image file, cut to the face") from None


def _pixels(image: Any, place: int) -> np.ndarray:
    try:
        pixels = np.asarray(image)
    except ValueError:  # rows of different lengths
        pixels = np.empty(0)
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or not pixels.size or pixels.dtype.kind not in "iu":
        raise _refused(
            f"image {place}: {pixels.dtype} {list(pixels.shape)}; pixels are whole numbers from 0 to 255, RGB [H, W, 3]"
        )
    if pixels.min() < 0 or pixels.max() > 255:
        raise _refused(f"image {place}: pixels from {pixels.min()} to {pixels.max()}; they are 0 to 255")
    return pixels.astype(np.uint8)


def _refused(message: str) -> MlflowException:
    return MlflowException.invalid_parameter_value(message)


mlflow.models.set_model(Served())
