"""Which samples are drawn, and what the figures need of them."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from datasets_shards.columns import Columns
from datasets_shards.schema import METHODS
from fdtrain.data.batch import Batch
from fdtrain.tasks import Task


@dataclass(frozen=True)
class Samples:
    """What a figure says of its samples, N of each.

    Args:
        keys: Their names in the shard set.
        methods: How they were made.
        labels: 1 = fake.
        scores: P(fake).
    """

    keys: tuple[str, ...]
    methods: tuple[str, ...]
    labels: tuple[int, ...]
    scores: tuple[float, ...]

    @classmethod
    def of(cls, table: pa.Table, scores: np.ndarray) -> "Samples":
        """From columns key, method and label of an index, and the model's scores, float `[N]`."""
        keys, methods, labels = (tuple(table[name].to_pylist()) for name in ("key", "method", "label"))
        return cls(keys, methods, labels, tuple(scores.tolist()))

    def __len__(self) -> int:
        return len(self.keys)

    def caption(self, i: int) -> str:
        """Method, label and P(fake) of one sample, on two lines."""
        return f"{self.methods[i]}\n{'fake' if self.labels[i] else 'real'}, P(fake) {self.scores[i]:.2f}"


def choose_rows(index: Columns, rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rows from each method in turn and, within a method, from each video in turn; which ones, the seed says.

    Args:
        index: In `INDEX_SCHEMA`.
        rows: int64, those to choose from.
        count: How many, at most.
        seed: Not negative.

    Returns:
        int64 row numbers, by method: the real ones first, then the fakes in the order of `METHODS`.
    """
    method_of, names = index.codes("method")
    video_of, _ = index.codes("video")
    shuffled = np.random.default_rng(seed).permutation(rows)
    codes = sorted(np.unique(method_of[rows]).tolist(), key=lambda code: METHODS.index(names[code]))
    groups = [_videos_in_turn(shuffled[method_of[shuffled] == code], video_of) for code in codes]
    taken = [0] * len(groups)
    turn = 0
    while sum(taken) < min(count, len(rows)):
        if taken[turn] < len(groups[turn]):
            taken[turn] += 1
        turn = (turn + 1) % len(groups)
    return np.concatenate([group[:number] for group, number in zip(groups, taken, strict=True)])


def _videos_in_turn(rows: np.ndarray, video_of: np.ndarray) -> np.ndarray:
    """The first row of each video, then the second of each, and so on."""
    _, video = np.unique(video_of[rows], return_inverse=True)
    order = np.argsort(video, kind="stable")
    counts = np.bincount(video)
    number = np.empty(len(rows), np.int64)
    number[order] = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rows[np.argsort(number, kind="stable")]


@torch.inference_mode()
def score_faces(task: Task, batches: Iterable[Batch]) -> tuple[Tensor, np.ndarray]:
    """The images of all batches, uint8 `[N, 3, H, W]`, and the model's P(fake), float64 `[N]`.

    Args:
        task: In evaluation mode.
        batches: At least one.

    Raises:
        FloatingPointError: a score is not finite.
    """
    images, scores = [], []
    for batch in batches:
        images.append(batch.images)
        scores.append(task.scores(batch).cpu())
    return torch.cat(images), require_finite(torch.cat(scores), "scores").numpy()


def require_finite(values: Tensor, what: str) -> Tensor:
    """The values. Raises FloatingPointError where one isn't a number."""
    if not values.isfinite().all():
        raise FloatingPointError(f"the model gave {what} that are not finite; it diverged, lower optim.lr")
    return values
