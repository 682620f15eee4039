"""Platt scaling of validation scores."""

import numpy as np
import pyarrow as pa
import pytest

from fdtrain.registry.calibration import LEAST_SLOPE, Calibration, fit_calibration
from fdtrain.registry.serving import calibrated


def predictions(logits: np.ndarray, labels: np.ndarray, frames: np.ndarray | int = 1) -> pa.Table:
    """One video for each logit, each of some frames with the same score."""
    repeated = np.repeat(np.arange(len(labels)), frames)
    scores = 1 / (1 + np.exp(-logits[repeated]))
    videos = [f"{i:05d}" for i in repeated]
    methods = ["FaceSwap" if label else "youtube" for label in labels[repeated]]
    return pa.table({"method": methods, "video": videos, "label": labels[repeated], "score": scores.astype(np.float32)})


def drawn(slope: float, offset: float, real: int = 4000, fake: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose calibration is known: evidence N(-+2, 4), whose log likelihood ratio is itself, distorted."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [real, fake])
    evidence = np.where(labels, 2.0, -2.0) + 2.0 * rng.normal(size=real + fake)
    return (evidence - offset) / slope, labels


@pytest.mark.parametrize(("slope", "offset"), [(1.0, 0.0), (0.7, 0.8), (2.0, -1.0)])
@pytest.mark.parametrize("fake", [4000, 16000])
def test_a_known_distortion_is_undone_whatever_the_prior(slope: float, offset: float, fake: int) -> None:
    logits, labels = drawn(slope, offset, fake=fake)
    kept = np.abs(logits) < 13  # others are clipped
    fit = fit_calibration(predictions(logits[kept], labels[kept]))
    assert fit.slope == pytest.approx(slope, rel=0.1)
    assert fit.offset == pytest.approx(offset, abs=0.15)


def test_a_video_counts_once_however_many_frames_it_has() -> None:
    logits, labels = drawn(0.5, 0.3, 40, 160)
    frames = np.random.default_rng(1).integers(1, 30, len(labels))
    once, often = fit_calibration(predictions(logits, labels)), fit_calibration(predictions(logits, labels, frames))
    assert (often.slope, often.offset) == pytest.approx((once.slope, once.offset), rel=1e-3)


def test_few_videos_that_separate_give_no_certainty() -> None:
    labels = np.array([0, 0, 1, 1])
    fit = fit_calibration(predictions(np.array([-3.0, -2.0, 2.0, 3.0]), labels))
    assert 0 < fit.slope < 2
    content = {"models": {"q77": {"calibration": {"slope": fit.slope, "offset": fit.offset}}}}
    assert 0.6 < calibrated(content, "q77", np.array([0.99]))[0] < 0.95


def test_a_model_that_is_wrong_throughout_counts_for_nothing() -> None:
    logits, labels = drawn(1.0, 0.0, 50, 50)
    fit = fit_calibration(predictions(-logits, labels))
    assert fit.slope == LEAST_SLOPE
    assert not fit.is_informative
    assert Calibration(1.0, 0.0).is_informative


def test_one_class_alone_is_said() -> None:
    with pytest.raises(ValueError, match="only real or only fake"):
        fit_calibration(predictions(np.zeros(3), np.ones(3, int)))


def test_scores_at_the_ends_stay_finite_and_in_order() -> None:
    content = {"models": {"raw": {"calibration": {"slope": 0.5, "offset": 1.0}}}}
    answers = calibrated(content, "raw", np.array([0.0, 1e-9, 0.2, 0.9, 1.0], np.float32))
    assert np.isfinite(answers).all()
    assert (np.diff(answers) >= 0).all()
