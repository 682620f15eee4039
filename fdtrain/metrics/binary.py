"""What each metric is. Scores are P(fake), and "positive" means fake.

| name | what |
|---|---|
| `auc` | area under the ROC curve; a tie counts half |
| `acc`, `balanced_acc`, `f1` | at a threshold of 0.5 on P(fake); F1 of the class fake |
| `ap` | average precision, the area under the stepwise precision-recall curve |
| `eer` | equal error rate: where the ROC curve, its points joined by lines, has FPR = 1 - TPR |
| `pauc10` | area under the ROC curve up to an FPR of 10 %, standardized to 0.5 .. 1 (McClish, 1989) |
| `tpr_at_fpr1` | the highest TPR of any threshold whose FPR is at most 1 % |
| `log_loss` | mean cross entropy in nats, scores clipped to float32's epsilon |
| `brier` | mean squared difference of score and label |
| `ece` | expected calibration error: 15 equal bins of P(fake), |share of fakes - mean score| weighted by their size |
| `acc_chosen`, `f1_chosen` | as `acc` and `f1`, at the threshold chosen on the validation split |

A metric that is undefined is NaN: of one class alone everything but accuracies, log loss, Brier score, calibration
error and, where there is a fake or something is called one, F1; of scores that are all equal whatever ranks them, since
an AUC of 0.5 would be read as a finding.
"""

import math

import numpy as np

from fdtrain.metrics.names import THRESHOLD

EPSILON = float(np.finfo(np.float32).eps)
ECE_BINS = 15
MAX_FPR = 0.1
LOW_FPR = 0.01


def binary_metrics(labels: np.ndarray, scores: np.ndarray, threshold: float = math.nan) -> dict[str, float]:
    """All metrics of one sample; scikit-learn's numbers where it has the metric.

    Args:
        labels: `[N]`, 1 or True = fake.
        scores: Finite, in 0..1, `[N]`.
        threshold: The one chosen on the validation split; NaN where none is.

    Returns:
        Name -> value; the last two of `METRICS` only with a threshold.
    """
    from sklearn import config_context  # seconds, which a training step need not pay

    # The checks of its arguments would take longer than the metrics, and these are sound.
    with config_context(assume_finite=True, skip_parameter_validation=True):
        return _binary_metrics(labels.astype(bool), scores.astype(np.float64), threshold)


def _binary_metrics(labels: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, float]:
    from sklearn import metrics as sk

    if len(labels) == 0:
        return dict.fromkeys(_names(threshold), math.nan)
    both = labels.any() and not labels.all()
    ranked = both and scores.min() < scores.max()
    values = {
        "auc": math.nan,
        "acc": sk.accuracy_score(labels, scores >= THRESHOLD),
        "balanced_acc": sk.balanced_accuracy_score(labels, scores >= THRESHOLD) if both else math.nan,
        "f1": _f1(labels, scores >= THRESHOLD),
        "ap": sk.average_precision_score(labels, scores) if ranked else math.nan,
        "eer": math.nan,
        "pauc10": sk.roc_auc_score(labels, scores, max_fpr=MAX_FPR) if ranked else math.nan,
        "tpr_at_fpr1": math.nan,
        "log_loss": sk.log_loss(labels, np.clip(scores, EPSILON, 1 - EPSILON), labels=[False, True]),
        "brier": sk.brier_score_loss(labels, scores, pos_label=True),
        "ece": expected_calibration_error(labels, scores),
    }
    if ranked:
        fpr, tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
        values |= {"auc": sk.auc(fpr, tpr), "eer": equal_error_rate(fpr, tpr), "tpr_at_fpr1": tpr[fpr <= LOW_FPR].max()}
    if not math.isnan(threshold):
        values["acc_chosen"] = sk.accuracy_score(labels, scores >= threshold)
        values["f1_chosen"] = _f1(labels, scores >= threshold)
    return {name: float(value) for name, value in values.items()}


def equal_error_rate(fpr: np.ndarray, tpr: np.ndarray) -> float:
    """FPR = 1 - TPR on the curve through the points `[T]`, which go from (0, 0) to (1, 1)."""
    excess = tpr + fpr - 1
    after = int(np.argmax(excess >= 0))
    share = -excess[after - 1] / (excess[after] - excess[after - 1])
    return float(fpr[after - 1] + share * (fpr[after] - fpr[after - 1]))


def expected_calibration_error(labels: np.ndarray, scores: np.ndarray) -> float:
    """Of P(fake) in equal bins (Guo et al., ICML 2017, eq. 3, for the probability of one class).

    Args:
        labels: bool `[N]`.
        scores: In 0..1, `[N]`.
    """
    gaps = np.bincount(calibration_bins(scores), weights=labels - scores, minlength=ECE_BINS)
    return float(np.abs(gaps).sum() / len(labels))


def calibration_bins(scores: np.ndarray) -> np.ndarray:
    """Whole numbers `[N]` of 0..`ECE_BINS` - 1."""
    return np.minimum((scores * ECE_BINS).astype(np.int64), ECE_BINS - 1)


def best_threshold(labels: np.ndarray, scores: np.ndarray) -> float:
    """The threshold with the highest Youden index TPR - FPR, which is that of the highest balanced accuracy.

    It lies midway between two neighbouring scores; of several that are equally good, the one nearest to 0.5 is taken.

    Args:
        labels: bool `[N]`.
        scores: `[N]`.

    Returns:
        NaN where no threshold is better than none: one class only, or scores that are all equal or rank at random.
    """
    if labels.all() or not labels.any():
        return math.nan
    values, place = np.unique(scores, return_inverse=True)
    fakes = np.bincount(place, weights=labels)
    reals = np.bincount(place, weights=~labels)
    # Of a threshold above the i lowest values.
    gain = (np.cumsum(reals) / reals.sum() - np.cumsum(fakes) / fakes.sum())[:-1]
    if len(gain) == 0 or gain.max() <= 0:
        return math.nan
    middles = (values[1:] + values[:-1]) / 2
    best = middles[np.isclose(gain, gain.max(), rtol=0, atol=1e-12)]
    return float(best[np.argmin(np.abs(best - THRESHOLD))])


def _f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, pos_label=True, zero_division=math.nan))


def _names(threshold: float) -> list[str]:
    from fdtrain.metrics.names import METRICS

    return [name for name in METRICS if not (name.endswith("_chosen") and math.isnan(threshold))]
