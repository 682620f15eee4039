"""Predictions as arrays: frames, and the videos that they add up to."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa

from datasets_shards.schema import FACE_FORENSICS, FAKE, datasets_of
from fdtrain.config.checks import UserError
from fdtrain.metrics.clusters import by_appearance, codes, identity_clusters

MEAN = "mean"
VIDEO_SCORES = (MEAN, "median", "max")
"""How a video's score follows from those of its frames; `topK`, such as `top5`, is the mean of the K highest."""

VIDEO_SCORE = "video_score"
"""Key under which files of metrics say that it isn't the mean."""


@dataclass(frozen=True)
class Samples:
    """N frames, or N videos.

    Args:
        labels: bool `[N]`, True = fake.
        scores: float64 `[N]`, P(fake).
        methods: Whole numbers `[N]`, places in `method_names`.
        method_names: Of the methods.
        clusters: int64 `[N]`, as `identity_clusters`.
        videos: Whole numbers `[N]` from 0, in the order of their first frames: which (method, video).
    """

    labels: np.ndarray
    scores: np.ndarray
    methods: np.ndarray
    method_names: list[str]
    clusters: np.ndarray
    videos: np.ndarray

    @classmethod
    def of(cls, predictions: pa.Table) -> Self:
        """From the columns method, video, target, source, label and score of `PREDICTION_SCHEMA`."""
        methods, names = codes(predictions["method"])
        video_codes, video_names = codes(predictions["video"])
        return cls(
            labels=predictions["label"].to_numpy() == FAKE,
            scores=predictions["score"].to_numpy().astype(np.float64),
            methods=methods,
            method_names=names,
            clusters=identity_clusters(predictions),
            videos=by_appearance(methods.astype(np.int64) * len(video_names) + video_codes),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def per_video(self, how: str = "mean") -> Self:
        """One sample for each (method, video), its score as `how` says (`VIDEO_SCORES`)."""
        _, first = np.unique(self.videos, return_index=True)
        return type(self)(
            self.labels[first],
            pool_scores(self.videos, self.scores, how),
            self.methods[first],
            self.method_names,
            self.clusters[first],
            np.arange(len(first)),
        )

    def against(self, method: str = "") -> np.ndarray:
        """bool `[N]`: the fakes of one method and all real ones; everything without a method's name."""
        if not method:
            return np.ones(len(self), bool)
        return ~self.labels | (self.methods == self.method_names.index(method))

    @property
    def fake_methods(self) -> list[str]:
        """Names of the methods that there are fakes of, sorted."""
        return sorted(self.method_names[code] for code in np.unique(self.methods[self.labels]))


def by_dataset(predictions: pa.Table) -> dict[str, pa.Table]:
    """Predictions of each dataset by themselves, since no fake is compared with the real videos of another.

    The first are the headline: FaceForensics++'s, where there are any. At least one table is returned, if empty.

    Args:
        predictions: Columns of `PREDICTION_SCHEMA`.
    """
    method_of, names = codes(predictions["method"])
    used = np.unique(method_of)
    dataset = dict(zip(used.tolist(), datasets_of(names[code] for code in used), strict=True))
    found = sorted(set(dataset.values()), key=lambda name: (name != FACE_FORENSICS, name))
    if len(found) < 2:
        return {"".join(found): predictions}
    wanted = {name: [code for code in used if dataset[code] == name] for name in found}
    return {name: predictions.filter(pa.array(np.isin(method_of, part))) for name, part in wanted.items()}


def headline(predictions: pa.Table) -> pa.Table:
    """The predictions that metrics without a method's name are of."""
    return next(iter(by_dataset(predictions).values()))


def video_scores(predictions: pa.Table, how: str = "mean") -> pa.Table:
    """One row for each (method, video), in the order of their first frames.

    Args:
        predictions: Columns of `PREDICTION_SCHEMA`.
        how: As `VIDEO_SCORES`.

    Returns:
        Columns method, video, target, source, label and score (float64).
    """
    samples = Samples.of(predictions)
    _, first = np.unique(samples.videos, return_index=True)
    table = predictions.select(["method", "video", "target", "source", "label"]).take(pa.array(first))
    return table.append_column("score", pa.array(pool_scores(samples.videos, samples.scores, how)))


def pool_scores(videos: np.ndarray, scores: np.ndarray, how: str) -> np.ndarray:
    """Scores of the frames `[N]` -> scores of the videos `[V]`, float64.

    Args:
        videos: Whole numbers `[N]`, each of 0..V-1.
        scores: float64 `[N]`.
        how: As `VIDEO_SCORES`.

    Raises:
        UserError: there is no such way.
    """
    kept = parse_video_score(how) or 1
    counts = np.bincount(videos)
    if how == "mean":
        return np.bincount(videos, weights=scores) / counts
    order = np.lexsort((scores, videos))  # video by video, ascending
    ranked, ends = scores[order], np.cumsum(counts)
    if how == "median":
        starts = ends - counts
        return (ranked[starts + (counts - 1) // 2] + ranked[starts + counts // 2]) / 2
    below_top = np.repeat(ends, counts) - np.arange(len(scores))  # 1 for the highest of a video
    highest = order[below_top <= kept]
    return np.bincount(videos[highest], weights=scores[highest]) / np.minimum(counts, kept)


def parse_video_score(how: str) -> int | None:
    """K of `topK`, 1 for max, None for the other ways. Raises UserError where there is no such way."""
    if how in VIDEO_SCORES:
        return 1 if how == "max" else None
    digits = how.removeprefix("top")
    if how.startswith("top") and digits.isascii() and digits.isdigit() and int(digits) > 0:
        return int(digits)
    raise UserError(f"video_score: {how!r} is unknown; choose {', '.join(VIDEO_SCORES)}, or topK such as top5")
