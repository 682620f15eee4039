"""From a model to its numbers: scores, predictions as Parquet, metrics, and matrices of models and qualities."""

from fdtrain.evaluation.predictions import read_origin, read_predictions, scored_table, write_predictions
from fdtrain.evaluation.scorers import ModelScorer, Scorer
from fdtrain.evaluation.scoring import score_split

__all__ = [
    "ModelScorer",
    "Scorer",
    "read_origin",
    "read_predictions",
    "score_split",
    "scored_table",
    "write_predictions",
]
