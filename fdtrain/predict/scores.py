"""Crops of many files through the model in whole batches, and what a video's score is."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from fdtrain.data.batch import Batch
from fdtrain.metrics import pool_scores
from fdtrain.predict.crops import FileCrops
from fdtrain.tasks import Task

Score = Callable[[np.ndarray], np.ndarray]
"""uint8 `[B, H, W, 3]` -> P(fake), float64 `[B]`."""


def to_images(crops: np.ndarray, task: Task) -> Tensor:
    """uint8 `[B, H, W, 3]` -> uint8 `[B, 3, H, W]` on the task's device, channels_last."""
    return torch.from_numpy(crops).to(task.mean.device).permute(0, 3, 1, 2)


@torch.inference_mode()
def score_crops(task: Task, crops: np.ndarray) -> np.ndarray:
    """P(fake), float64 `[B]`, of crops, uint8 `[B, H, W, 3]`.

    Args:
        task: In evaluation mode.
        crops: Of one size; where it isn't the model's they are resized as in training.

    Raises:
        FloatingPointError: a score is not finite.
    """
    none = torch.empty(0, dtype=torch.int64)  # nobody knows the labels, and there is no index
    scores = task.scores(Batch(to_images(crops, task), none, none, none)).cpu()
    if not scores.isfinite().all():
        raise FloatingPointError("the model gave scores that are not finite: it diverged in training; take another")
    return scores.numpy()


def score_files(score: Score, files: Iterable[FileCrops], batch_size: int) -> Iterator[tuple[FileCrops, np.ndarray]]:
    """Every file with the scores of its crops, float64 `[N]`, in order.

    A batch is made of the crops of as many files as it takes. No more than one is held, and no more files are waiting
    than have a crop in it, or stand behind one that has.

    Args:
        score: Called with up to `batch_size` crops of one size.
        files: Read as far as the batches need.
        batch_size: The most crops of one forward pass.
    """
    waiting: deque[tuple[FileCrops, list[float]]] = deque()
    batch: list[np.ndarray] = []
    owners: list[list[float]] = []

    def flush() -> None:
        if batch:
            for owner, value in zip(owners, score(np.stack(batch)), strict=True):
                owner.append(value)
            batch.clear()
            owners.clear()

    def finished() -> Iterator[tuple[FileCrops, np.ndarray]]:
        while waiting and len(waiting[0][1]) == len(waiting[0][0].scored):
            file, scores = waiting.popleft()
            yield file, np.array(scores, np.float64)

    for file in files:
        scores: list[float] = []
        waiting.append((file, scores))
        for crop in file.read_crops():
            if batch and batch[0].shape != crop.shape:
                flush()
            batch.append(crop)
            owners.append(scores)
            if len(batch) == batch_size:
                flush()
        yield from finished()
    flush()
    yield from finished()


def video_score(scores: np.ndarray, how: str) -> float:
    """The score of a video from those of its frames, float `[N]`, N > 0, as `fdtrain.metrics.VIDEO_SCORES` says."""
    return float(pool_scores(np.zeros(len(scores), np.int64), scores, how)[0])
