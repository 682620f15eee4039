"""How often one of equally good models is promoted, by chance and by being the best of several."""

import numpy as np
import pyarrow as pa

from fdtrain.metrics import binary_metrics, paired_bootstrap
from tests.predictions import simulated


def promoted(rng: np.random.Generator, best_of: int, *, repeats: int, draws: int, held_out: bool) -> float:
    """Share of contests that the best of several models wins against a champion that is just as good.

    140 groups of people; the models agree on what is hard, and differ by noise of their own for each video.

    Args:
        rng: Of everything.
        best_of: Among how many models the best is chosen by AUC.
        repeats: Of the contest.
        draws: Of the bootstrap.
        held_out: Choose by one half of the groups and judge by the other, instead of by all both times.
    """
    wins = 0
    for _ in range(repeats):
        table = simulated(rng, pairs=140, frames=1, methods=("youtube", "Deepfakes"))
        first_half = np.array([int(name) < 140 for name in table["target"].to_pylist()])
        common = np.log(table["score"].to_numpy() / (1 - table["score"].to_numpy()))
        labels = table["label"].to_numpy() == 1
        scores = common + rng.normal(size=(best_of + 1, len(common)))
        chooses, judges = (first_half, ~first_half) if held_out else (np.full(len(labels), True),) * 2
        aucs = [binary_metrics(labels[chooses], each[chooses])["auc"] for each in _probabilities(scores[1:])]
        champion, candidate = (_with_scores(table, scores[place], judges) for place in (0, 1 + int(np.argmax(aucs))))
        wins += paired_bootstrap(champion, candidate, draws=draws).low > 0
    return wins / repeats


def _with_scores(table: pa.Table, scores: np.ndarray, rows: np.ndarray) -> pa.Table:
    place = table.schema.get_field_index("score")
    return table.set_column(place, "score", pa.array(_probabilities(scores))).filter(pa.array(rows))


def _probabilities(scores: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-scores))
