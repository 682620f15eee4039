"""Intervals: what is resampled, how often they hold, and the difference of two models."""

import math

import numpy as np
import pytest

from fdtrain.config import UserError
from fdtrain.metrics import Resampling, compute_metrics, paired_bootstrap
from tests.contests import promoted
from tests.coverage import coverage
from tests.predictions import simulated, table_of


def test_a_draw_takes_as_many_clusters_as_there_are() -> None:
    resampling = Resampling(70, 1000)
    draws, left_out = resampling.weights[:1000], resampling.weights[1000:]
    assert (draws.sum(1) == 70).all()
    assert draws.mean(0) == pytest.approx(1, abs=0.2)
    np.testing.assert_array_equal(left_out, 1 - np.eye(70))
    np.testing.assert_array_equal(Resampling(70, 1000).weights, resampling.weights)
    many = Resampling(1000, 10).weights[10:]
    assert len(many) == 200
    assert (many.sum(1) == 995).all()


def test_the_interval_of_a_mean_is_students() -> None:
    """Of a normal sample's mean everybody knows the interval."""
    sample = np.random.default_rng(3).normal(size=40)
    resampling = Resampling(40, 20_000)
    means = resampling.weights @ sample / resampling.weights.sum(1)
    low, high = resampling.interval(sample.mean(), means)
    reach = 2.0227 * sample.std(ddof=1) / math.sqrt(40)
    assert (low, high) == pytest.approx((sample.mean() - reach, sample.mean() + reach), abs=0.1 * reach)


def test_an_interval_that_resampling_cannot_know_is_undefined() -> None:
    resampling = Resampling(70, 200)
    values = np.random.default_rng(0).normal(size=270)
    assert math.isnan(resampling.interval(math.nan, values)[0])
    assert math.isnan(resampling.interval(0.5, np.full(270, 0.5))[0])
    assert math.isnan(resampling.interval(0.0, np.where(np.arange(270) % 10, values, math.nan))[0])
    assert math.isfinite(resampling.interval(0.0, np.where(np.arange(270) % 25, values, math.nan))[0])
    few = compute_metrics(simulated(np.random.default_rng(0), pairs=4), "test", draws=200)
    assert math.isnan(few["test/video/auc_low"])
    assert 0.5 < few["test/video/auc"] < 1


def test_intervals_have_agreed_names_and_hold_their_metric() -> None:
    table = simulated(np.random.default_rng(1), pairs=20)
    metrics = compute_metrics(table, "test", draws=300)
    plain = compute_metrics(table, "test")
    assert metrics == compute_metrics(table, "test", draws=300)
    assert {name: metrics[name] for name in plain} == plain
    assert len(metrics) == 3 * len(plain)
    assert metrics["test/video/auc_low/FaceSwap"] < metrics["test/video/auc/FaceSwap"]
    for name, value in plain.items():
        split, level, metric, *method = name.split("/")
        low, high = (metrics["/".join([split, level, metric + end, *method])] for end in ("_low", "_high"))
        assert low <= value <= high or metric == "ece", name  # of which a draw is larger by its own noise


def test_clusters_cover_what_videos_and_frames_do_not() -> None:
    repetitions = 40
    found = coverage(np.random.default_rng(0), shift=2.2, repetitions=repetitions, draws=150, frames=2)
    assert found["published"] >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / repetitions)
    assert found["frames"] < found["videos"] < found["published"]


def test_a_better_model_is_found_out_where_its_interval_overlaps() -> None:
    """What two models find hard in common doesn't count for or against either."""
    rng = np.random.default_rng(0)
    first = simulated(rng, pairs=30)
    logits = np.log(first["score"].to_numpy() / (1 - first["score"].to_numpy()))
    better = logits + 0.5 * first["label"].to_numpy() + 0.1 * rng.normal(size=len(logits))
    second = first.set_column(8, "score", [(1 / (1 + np.exp(-better))).astype(np.float32)])
    order = rng.permutation(second.num_rows)
    found = paired_bootstrap(first, second.take(order), draws=500)
    intervals = [compute_metrics(table, "val", draws=500) for table in (first, second)]
    assert intervals[0]["val/video/auc_high"] > intervals[1]["val/video/auc_low"]
    assert found.first == pytest.approx(intervals[0]["val/video/auc"])
    assert found.difference == pytest.approx(found.second - found.first)
    assert 0 < found.low < found.difference < found.high
    assert found.share_better > 0.99
    assert found.p < 0.01
    back = paired_bootstrap(second, first, draws=500, metric="auc/FaceSwap", level="frame")
    assert back.high < 0
    worse_loss = paired_bootstrap(first, first, metric="log_loss", draws=500)
    assert worse_loss.difference == 0
    assert math.isnan(worse_loss.low)  # a model against itself: no draw differs
    assert not worse_loss.low > 0


def test_what_cannot_be_compared_is_refused() -> None:
    table = table_of([("youtube", "000", 0, 0.1), ("Deepfakes", "000_001", 0, 0.9)])
    other = table_of([("youtube", "000", 0, 0.1), ("Deepfakes", "000_001", 1, 0.9)])
    with pytest.raises(UserError, match="different samples"):
        paired_bootstrap(table, other)
    with pytest.raises(UserError, match="'acu' is unknown; choose one of auc, acc"):
        paired_bootstrap(table, table, metric="acu")
    with pytest.raises(UserError, match="fakes of Deepfakes only"):
        paired_bootstrap(table, table, metric="auc/FaceSwap")
    with pytest.raises(FloatingPointError):
        paired_bootstrap(table, table.set_column(8, "score", [np.array([np.nan, 1], np.float32)]))


def test_the_best_of_many_wins_by_luck_only_where_it_is_judged_by_those_who_chose_it() -> None:
    """`tests/benchmarks/test_contests.py` has the figures."""
    chance = [promoted(np.random.default_rng(0), 16, repeats=12, draws=100, held_out=held) for held in (False, True)]
    assert chance[1] < chance[0]
