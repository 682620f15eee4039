"""Metrics: scikit-learn's numbers, videos as (method, video), undefined ones as NaN."""

import math
import warnings

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn import metrics as sk

from fdtrain.config import UserError
from fdtrain.metrics import (
    METRICS,
    Resampling,
    Samples,
    WeightedMetrics,
    best_threshold,
    binary_metrics,
    choose_thresholds,
    compute_metrics,
    describe,
    identity_clusters,
    jsonable,
    known_thresholds,
    paired_bootstrap,
    remarks,
    threshold_metrics,
    video_scores,
)
from fdtrain.metrics.bootstrap import MAX_CLUSTERS
from tests.predictions import simulated, table_of

TIED = st.sampled_from([0.0, 0.1, 0.5, 0.7, 1.0])
SCORES = st.one_of(TIED, st.floats(0, 1, width=32))
SAMPLES = st.lists(st.tuples(st.booleans(), SCORES, st.integers(0, 3)), min_size=1, max_size=40)
UNDEFINED = {"auc", "balanced_acc", "ap", "eer", "pauc10", "tpr_at_fpr1"}
"""Of one class alone."""


def both_defined(labels: np.ndarray, scores: np.ndarray) -> bool:
    return labels.any() and not labels.all() and scores.min() < scores.max()


def expected(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray, threshold: float) -> dict[str, float]:
    """By scikit-learn, with sample weights; of two classes and more than one score."""
    kept = weights > 0
    labels, scores, weights = labels[kept], scores[kept], weights[kept]
    fpr, tpr, _ = sk.roc_curve(labels, scores, sample_weight=weights, drop_intermediate=False)
    fine = np.linspace(0, 1, 20_001)
    return {
        "auc": sk.roc_auc_score(labels, scores, sample_weight=weights),
        "acc": sk.accuracy_score(labels, scores >= 0.5, sample_weight=weights),
        "balanced_acc": sk.balanced_accuracy_score(labels, scores >= 0.5, sample_weight=weights),
        "f1": sk.f1_score(labels, scores >= 0.5, sample_weight=weights),
        "ap": sk.average_precision_score(labels, scores, sample_weight=weights),
        "eer": fine[np.argmin(np.abs(np.interp(fine, fpr + 1e-12 * np.arange(len(fpr)), tpr) - (1 - fine)))],
        "pauc10": sk.roc_auc_score(labels, scores, sample_weight=weights, max_fpr=0.1),
        "tpr_at_fpr1": tpr[fpr <= 0.01].max(),
        "log_loss": sk.log_loss(labels, scores.astype(np.float32), sample_weight=weights, labels=[False, True]),
        "brier": sk.brier_score_loss(labels, scores, sample_weight=weights, pos_label=True),
        "acc_chosen": sk.accuracy_score(labels, scores >= threshold, sample_weight=weights),
        "f1_chosen": sk.f1_score(labels, scores >= threshold, sample_weight=weights),
    }


@settings(deadline=None, max_examples=25)
@given(SAMPLES)
def test_equal_to_scikit_learn_also_with_ties(samples: list[tuple[bool, float, int]]) -> None:
    labels, scores, _ = (np.array(column) for column in zip(*samples, strict=True))
    metrics = binary_metrics(labels, scores, 0.3)
    assert tuple(metrics) == METRICS
    assert metrics["acc"] == sk.accuracy_score(labels, scores >= 0.5)
    if both_defined(labels, scores):
        for name, value in expected(labels, scores, np.ones(len(labels)), 0.3).items():
            assert metrics[name] == pytest.approx(value, abs=2e-4 if name == "eer" else 1e-6), name
    elif labels.all() or not labels.any():
        assert {name for name, value in metrics.items() if math.isnan(value)} - {"f1", "f1_chosen"} == UNDEFINED
    else:
        assert {name for name, value in metrics.items() if math.isnan(value)} == UNDEFINED - {"balanced_acc"}


@settings(deadline=None, max_examples=25)
@given(SAMPLES, arrays.arrays(np.uint8, (3, 4), elements=st.integers(0, 3)))
def test_weighted_metrics_are_those_of_samples_repeated(
    samples: list[tuple[bool, float, int]], weights: np.ndarray
) -> None:
    """Of weights 1 the metrics are `binary_metrics`; of others those of clusters repeated so often."""
    labels, scores, clusters = (np.array(column) for column in zip(*samples, strict=True))
    weighted = WeightedMetrics(labels, scores, clusters, 4, 0.3)
    for name, value in binary_metrics(labels, scores, 0.3).items():
        found = weighted(np.ones((1, 4), np.uint8))[name][0]
        assert found == pytest.approx(value, abs=1e-9, nan_ok=True), name
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an undefined draw is no accident
        found_all = weighted(weights)
    for draw, times in enumerate(weights):
        repeated = np.repeat(np.arange(len(labels)), times[clusters])
        if len(repeated) == 0 or not both_defined(labels[repeated], scores[repeated]):
            continue
        for name, value in binary_metrics(labels[repeated], scores[repeated], 0.3).items():
            assert found_all[name][draw] == pytest.approx(value, abs=1e-9), name
        by_library = expected(labels, scores, times[clusters].astype(float), 0.3)
        assert found_all["ap"][draw] == pytest.approx(by_library["ap"], abs=1e-9)
        assert found_all["pauc10"][draw] == pytest.approx(by_library["pauc10"], abs=1e-9)


def test_calibration_error_by_hand() -> None:
    """Two bins: 0.05 said of three, of which none is fake, and 0.95 of one, which is."""
    labels, scores = np.array([False, False, False, True]), np.array([0.05, 0.05, 0.05, 0.95])
    assert binary_metrics(labels, scores)["ece"] == pytest.approx(0.05)
    assert binary_metrics(~labels, scores)["ece"] == pytest.approx(0.95)


def test_the_fakes_of_one_pair_are_videos_of_their_own() -> None:
    table = table_of(
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


@pytest.mark.parametrize(
    ("how", "first", "second"),
    [("mean", 0.5, 0.4), ("median", 0.45, 0.4), ("max", 0.9, 0.4), ("top1", 0.9, 0.4), ("top3", 0.6, 0.4)],
)
def test_a_videos_score(how: str, first: float, second: float) -> None:
    frames = [("youtube", "000", i, score) for i, score in enumerate((0.2, 0.9, 0.3, 0.6))]
    scores = video_scores(table_of([frames[0], ("youtube", "001", 0, 0.4), *frames[1:]]), how)
    assert scores["video"].to_pylist() == ["000", "001"]
    assert scores["score"].to_pylist() == pytest.approx([first, second])


@pytest.mark.parametrize("how", ["top0", "topK", "sum", "top-1", ""])
def test_an_unknown_way_is_refused(how: str) -> None:
    with pytest.raises(UserError, match=r"video_score: .* choose mean, median, max, or topK"):
        compute_metrics(table_of([("youtube", "000", 0, 0.1)]), "val", video_score=how)


def test_clusters_are_people_who_meet_in_a_fake() -> None:
    names = ["003", "000", "000_001", "001_000", "001", "004_005", "005_004", "006_003", "007"]
    rows = [("Deepfakes" if "_" in name else "youtube", name, 0, 0.5) for name in names]
    clusters = identity_clusters(table_of(rows))
    assert clusters.dtype == np.int64
    assert clusters.tolist() == [0, 1, 1, 1, 1, 2, 2, 0, 3]
    assert identity_clusters(table_of([])).tolist() == []


def test_one_class_is_undefined_not_half() -> None:
    table = table_of([("youtube", "000", 0, 0.1)])
    metrics = compute_metrics(table, "val", draws=100)
    assert math.isnan(metrics["val/video/auc"])
    assert math.isnan(metrics["val/video/auc_low"])
    assert math.isnan(metrics["val/video/f1"])
    assert metrics["val/video/acc"] == 1.0
    assert jsonable(metrics)["val/video/auc"] is None
    assert describe(metrics, "val/video/auc") == "undefined"
    assert "all of them real" in remarks(table, "val")[0]


def test_equal_scores_are_undefined_not_half() -> None:
    rng = np.random.default_rng(0)
    table = simulated(rng, pairs=6)
    constant = table.set_column(table.schema.get_field_index("score"), "score", [[np.float32(0.25)] * table.num_rows])
    metrics = compute_metrics(constant, "test", draws=100)
    for name in ("auc", "ap", "eer", "pauc10", "tpr_at_fpr1"):
        assert math.isnan(metrics[f"test/video/{name}"])
        assert math.isnan(metrics[f"test/frame/{name}_high/FaceSwap"])
    assert metrics["test/video/acc"] == pytest.approx(0.2)
    assert remarks(constant, "test") == ["test: every score is 0.25: the model tells nothing apart"]
    assert remarks(table, "test") == []
    assert math.isnan(choose_thresholds(constant)["video"])


def test_an_interval_counts_on_the_people_of_the_rarer_class() -> None:
    """Four real people among forty: what varies with them is hardly known, however many the fakes are of."""
    rng = np.random.default_rng(0)
    rows = [("youtube", f"{person:03d}", 0, rng.uniform(0, 0.7)) for person in range(4)]
    fakes = [("FaceSwap", f"{person:03d}_{person + 100}", 1, rng.uniform(0.3, 1)) for person in range(10, 50)]
    few = table_of(rows + fakes)
    metrics = compute_metrics(few, "test", draws=200)
    assert math.isfinite(metrics["test/video/auc"])
    assert math.isnan(metrics["test/video/auc_low"])
    assert "real samples or fakes are of 4 groups of people alone" in remarks(few, "test")[0]
    more = table_of([*rows, ("youtube", "004", 0, 0.5), *fakes])
    five = compute_metrics(more, "test", draws=200)
    assert remarks(more, "test") == []
    ends = (five["test/video/auc_low"], five["test/video/auc_high"])
    samples = Samples.of(more)
    whole = WeightedMetrics(samples.labels, samples.scores, samples.clusters, 45)
    resampling = Resampling(45, 200)
    drawn = whole(resampling.weights)["auc"]
    assert ends == pytest.approx(resampling.interval(five["test/video/auc"], drawn, 5))
    assert ends[0] < resampling.interval(five["test/video/auc"], drawn)[0]

    odd = table_of([*rows, ("youtube", "004", 0, 0.5), *fakes, ("Deepfakes", "900_901", 1, 0.9)])
    assert remarks(odd, "test") == [
        "test: real samples or fakes of Deepfakes are of 1 groups of people alone, 5 are needed for an interval"
    ]
    assert math.isnan(compute_metrics(odd, "test", draws=200)["test/video/auc_low/Deepfakes"])


def test_a_perfect_model_has_no_interval_and_that_is_said() -> None:
    rows = [("youtube", f"{person:03d}", 0, 0.1) for person in range(6)]
    table = table_of([*rows, *(("FaceSwap", f"{person:03d}_{person + 100}", 1, 0.9) for person in range(6))])
    assert math.isnan(compute_metrics(table, "test", draws=50)["test/video/auc_low"])
    lines = remarks(table, "test")
    assert len(lines) == 2
    assert "per video, every fake scores above every real one: an AUC of 1" in lines[1]


def test_fakes_are_compared_with_the_real_videos_of_their_own_dataset() -> None:
    """Of a detector that is perfect on FF++ and calls every actor fake, no number of FF++ knows of the actors."""
    ours = simulated(np.random.default_rng(0), pairs=6)
    actors = [("actors", f"{person:02d}__walking", 0, 0.99) for person in range(20)]
    fakes = [("DeepFakeDetection", f"{person:02d}_{person + 1:02d}__walking", 0, 0.3) for person in range(20)]
    both = pa.concat_tables([table_of(actors), ours, table_of(fakes)])
    alone, mixed = (compute_metrics(table, "test", draws=50) for table in (ours, both))
    own = {name: value for name, value in mixed.items() if not name.endswith("/DeepFakeDetection")}
    assert own == pytest.approx(alone, nan_ok=True)  # the whole test split's as well
    assert mixed["test/video/auc/DeepFakeDetection"] == 0.0
    assert mixed["test/frame/acc/DeepFakeDetection"] == 0.0
    assert choose_thresholds(both) == choose_thresholds(ours)
    assert [line for line in remarks(both, "test") if "DeepFakeDetection" not in line] == remarks(ours, "test")
    for metric in ("auc", "auc/FaceSwap"):
        assert paired_bootstrap(both, both, metric=metric).first == pytest.approx(alone[f"test/video/{metric}"])
    assert paired_bootstrap(both, both, metric="auc/DeepFakeDetection").first == 0.0

    only = compute_metrics(table_of([*actors, *fakes]), "test")
    assert only["test/video/auc"] == only["test/video/auc/DeepFakeDetection"] == 0.0
    lacking = pa.concat_tables([ours, table_of(fakes)])  # no actors: other people's real videos don't stand in
    assert math.isnan(compute_metrics(lacking, "test")["test/video/auc/DeepFakeDetection"])
    line = "test: 20 samples of DeepFakeDetection, all of them fake: what compares real and fake is undefined"
    assert line in remarks(lacking, "test")


def test_a_plain_folder_is_one_dataset_whatever_its_parts_are_called() -> None:
    rows = [("real", "ann", 0, 0.2), ("DeepFakeDetection", "bob", 0, 0.9), ("Deepfakes", "cid", 0, 0.1)]
    metrics = compute_metrics(table_of(rows), "test")
    assert metrics["test/video/auc"] == 0.5
    assert metrics["test/video/auc/DeepFakeDetection"] == 1.0
    assert metrics["test/video/auc/Deepfakes"] == 0.0


def test_of_very_many_people_several_are_drawn_together() -> None:
    count = 2 * MAX_CLUSTERS + 10
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=count)
    scores = np.clip(0.5 + 0.2 * (labels - 0.5) + rng.normal(0, 0.2, count), 0, 1)
    methods = ["FaceSwap" if label else "youtube" for label in labels]
    names = [np.base_repr(n, 36).zfill(3) for n in range(count)]  # a person each
    table = table_of(
        [(method, name, 0, float(score)) for method, name, score in zip(methods, names, scores, strict=True)]
    )
    assert Samples.of(table).clusters.max() == MAX_CLUSTERS - 1
    metrics = compute_metrics(table, "test", draws=200)
    low, high = metrics["test/frame/acc_low"], metrics["test/frame/acc_high"]
    acc = metrics["test/frame/acc"]
    # As of independent samples, which these are.
    assert (high - low) / 2 == pytest.approx(1.96 * (acc * (1 - acc) / count) ** 0.5, rel=0.25)


def test_a_diverged_model_is_an_error() -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        compute_metrics(table_of([("youtube", "000", 0, math.nan)]), "val")


@settings(deadline=None, max_examples=25)
@given(SAMPLES)
def test_no_threshold_is_better_than_the_chosen_one(samples: list[tuple[bool, float, int]]) -> None:
    labels, scores, _ = (np.array(column) for column in zip(*samples, strict=True))
    chosen = best_threshold(labels, scores)
    gains = [
        (scores[labels] >= at).mean() - (scores[~labels] >= at).mean()
        for at in [*scores, 2.0]
        if labels.any() and not labels.all()
    ]
    if not gains or max(gains) <= 0:
        assert math.isnan(chosen)
    else:
        assert (scores[labels] >= chosen).mean() - (scores[~labels] >= chosen).mean() == pytest.approx(max(gains))


def test_a_threshold_goes_with_the_validation_metrics() -> None:
    table = table_of([("youtube", "000", 0, 0.6), ("youtube", "001", 0, 0.7), ("Deepfakes", "000_001", 0, 0.9)])
    chosen = choose_thresholds(table)
    assert chosen == pytest.approx({"frame": 0.8, "video": 0.8})
    stored = jsonable(compute_metrics(table, "val") | threshold_metrics(chosen))
    assert stored["val/video/threshold"] == pytest.approx(0.8)
    metrics = compute_metrics(table, "test", thresholds=known_thresholds(stored))
    assert metrics["test/video/acc"] == pytest.approx(1 / 3)
    assert metrics["test/video/acc_chosen"] == metrics["test/video/f1_chosen/Deepfakes"] == 1.0
    assert "test/video/acc_chosen" not in compute_metrics(table, "test")
