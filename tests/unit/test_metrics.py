"""Metrics: scikit-learn's numbers, videos as (method, video), undefined ones as NaN."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from fdtrain.metrics import PREDICTION_SCHEMA, binary_metrics, compute_metrics, jsonable, video_scores


def predictions(rows: list[tuple[str, str, int, float]]) -> pa.Table:
    """From (method, video, frame, score)."""
    return pa.Table.from_pylist(
        [
            {
                "key": f"{method}-{video}-{frame:05d}",
                "split": "test",
                "method": method,
                "video": video,
                "target": video[:3],
                "source": video[4:],
                "frame": frame,
                "label": int(method != "youtube"),
                "score": score,
                "quality": "q77",
            }
            for method, video, frame, score in rows
        ],
        schema=PREDICTION_SCHEMA,
    )


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.1, 0.5, 0.7, 1.0])), min_size=1))
def test_equal_to_scikit_learn_also_with_ties(pairs: list[tuple[int, float]]) -> None:
    labels, scores = (np.array(values) for values in zip(*pairs, strict=True))
    metrics = binary_metrics(labels, scores)
    assert metrics["acc"] == accuracy_score(labels, scores >= 0.5)
    if len(set(labels.tolist())) == 2:
        assert metrics["auc"] == (
            roc_auc_score(labels, scores) if len(set(scores.tolist())) > 1 else pytest.approx(math.nan, nan_ok=True)
        )
        assert metrics["f1"] == f1_score(labels, scores >= 0.5)
    else:
        assert math.isnan(metrics["auc"])


def test_the_fakes_of_one_pair_are_videos_of_their_own() -> None:
    table = predictions(
        [
            ("youtube", "000", 0, 0.1),
            ("youtube", "000", 9, 0.3),
            ("Deepfakes", "000_001", 0, 0.9),
            ("FaceSwap", "000_001", 0, 0.1),
            ("FaceSwap", "000_001", 9, 0.2),
        ]
    )
    videos = {(row["method"], row["video"]): row["score"] for row in video_scores(table).to_pylist()}
    assert videos == pytest.approx(
        {("youtube", "000"): 0.2, ("Deepfakes", "000_001"): 0.9, ("FaceSwap", "000_001"): 0.15}
    )
    metrics = compute_metrics(table, "test")
    assert metrics["test/video/auc"] == 0.5
    assert metrics["test/video/auc/Deepfakes"] == 1.0
    assert metrics["test/video/auc/FaceSwap"] == 0.0
    assert metrics["test/frame/acc"] == pytest.approx(3 / 5)


def test_one_class_is_undefined_not_half() -> None:
    metrics = compute_metrics(predictions([("youtube", "000", 0, 0.1)]), "val")
    assert math.isnan(metrics["val/video/auc"])
    assert math.isnan(metrics["val/video/f1"])
    assert metrics["val/video/acc"] == 1.0
    assert jsonable(metrics)["val/video/auc"] is None


def test_a_diverged_model_is_an_error() -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        compute_metrics(predictions([("youtube", "000", 0, math.nan)]), "val")
