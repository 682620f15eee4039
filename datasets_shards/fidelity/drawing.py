"""A few crops out of many: what they are, and how they are drawn."""

import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets_shards.schema import METHODS

Progress = Callable[..., Iterable[Any]]


@dataclass(frozen=True)
class Crop:
    """An uncompressed crop.

    Args:
        key: its sample key.
        method: FF++'s directory name.
        pixels: RGB uint8 [H, W, 3].
    """

    key: str
    method: str
    pixels: np.ndarray


@dataclass(frozen=True)
class CropSample:
    """The crops of a report and where they come from.

    Args:
        crops: in the order of the source.
        origin: for people: what the source is, and its digest.
    """

    crops: list[Crop]
    origin: dict[str, str]


def spread(methods: Sequence[str], videos: Sequence[str], count: int, seed: int) -> list[int]:
    """Draw `count` of the entries: methods take turns, and in each of them videos do. Their numbers, ascending.

    Args:
        methods: the method of every entry.
        videos: what tells the videos of a method apart, for every entry.
        count: how many to draw; all, if there are fewer.
        seed: shuffles videos and entries.
    """
    random = np.random.default_rng(seed)
    turns: dict[str, list[tuple[int, int]]] = defaultdict(list)
    seen: dict[tuple[str, str], int] = defaultdict(int)
    for i in random.permutation(len(methods)):
        turns[methods[i]].append((seen[methods[i], videos[i]], int(i)))
        seen[methods[i], videos[i]] += 1
    # (turn within the method, method, entry): sorting by it deals the entries out
    dealt = [
        (turn, METHODS.index(method), entry)
        for method, entries in turns.items()
        for turn, (_, entry) in enumerate(sorted(entries, key=lambda item: item[0]))
    ]
    return sorted(entry for _, _, entry in sorted(dealt)[:count])


def decode_png(data: bytes) -> np.ndarray:
    """RGB uint8 [H, W, 3] of a PNG file's content. Raises ValueError for a damaged one."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:  # a broken PNG is a SyntaxError to Pillow
        raise ValueError(f"can't be decoded ({error})") from None
