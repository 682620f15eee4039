"""Scores of different models on one scale: Platt scaling, on validation predictions.

Two parameters, since a validation split has few videos: isotonic regression would fit their noise, a temperature alone
could not move a model whose scores are all too high. Real and fake count equally in the fit, whatever the split holds
of each, so a calibrated score is P(fake) at even prior odds, and its logit the log of the likelihood ratio (N. Bruemmer
and J. du Preez, "Application-independent evaluation of speaker detection", Computer Speech and Language 20, 2006).
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from datasets_shards.schema import FAKE

CLIP = 1e-6
"""As of `fdtrain.registry.serving`."""

LEAST_SLOPE = 1e-3
"""A model whose scores say nothing, or the contrary, keeps their order and next to no weight."""


@dataclass(frozen=True)
class Calibration:
    """P = sigmoid(slope * logit(score) + offset).

    Args:
        slope: Positive: the order of a model's scores stays.
        offset: Of the log-odds.
    """

    slope: float
    offset: float

    @property
    def is_informative(self) -> bool:
        """Whether the model's scores say anything on the validation split."""
        return self.slope > LEAST_SLOPE


def fit_calibration(predictions: pa.Table) -> Calibration:
    """Fit Platt scaling (J. Platt, 1999) to the frames of a validation split.

    Each video counts the same, however many frames it has, and so do real and fake. The targets are Platt's, softened
    by the number of videos: with few of them, or classes that separate, the slope stays finite.

    Args:
        predictions: Columns of `PREDICTION_SCHEMA`, both classes among them.

    Raises:
        ValueError: there is one class only.
    """
    from scipy.optimize import minimize  # seconds

    labels = predictions["label"].to_numpy() == FAKE
    names = [f"{method}/{video}" for method, video in zip(*_columns(predictions, "method", "video"), strict=True)]
    _, video, frames = np.unique(names, return_inverse=True, return_counts=True)
    weights = 1 / frames[video]
    videos = [weights[labels == is_fake].sum() for is_fake in (False, True)]
    if not all(videos):
        raise ValueError("there are only real or only fake videos")
    real, fake = videos
    weights *= np.where(labels, 0.5 / fake, 0.5 / real)
    targets = np.where(labels, (fake + 1) / (fake + 2), 1 / (real + 2))
    scores = np.clip(predictions["score"].to_numpy().astype(np.float64), CLIP, 1 - CLIP)
    logits = np.log(scores) - np.log1p(-scores)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        slope, offset = parameters
        odds = slope * logits + offset
        errors = weights * (1 / (1 + np.exp(-odds)) - targets)
        value = (weights * (np.logaddexp(0, odds) - targets * odds)).sum()
        return float(value), np.array([(errors * logits).sum(), errors.sum()])

    found = minimize(
        loss,
        (1.0, 0.0),
        jac=True,
        method="L-BFGS-B",
        bounds=[(LEAST_SLOPE, None), (None, None)],
        options={"gtol": 1e-9},
    )
    slope, offset = found.x.tolist()
    return Calibration(slope, offset)


def _columns(table: pa.Table, *names: str) -> list[list[str]]:
    return [table[name].to_pylist() for name in names]
