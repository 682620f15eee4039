"""What ranks decide together: rank 0 does, and no rank leaves the others for what it alone met."""

from pathlib import Path

from tests.conftest import small_training
from tests.unit.test_watch import run_ranks

RANKS_DIFFER = """
import os, shutil, sys
from pathlib import Path
import numpy as np
from fdtrain import contest, selection
from fdtrain.cli import main
from fdtrain.data.remote import open_set
from fdtrain.evaluation.cell import Measuring, evaluate_cell
from fdtrain.metrics import SELECTION_METRIC
from fdtrain.process import exit_with
from fdtrain.registry import Incumbent
from fdtrain.runtime import start
from fdtrain.contest import Contest

root, predictions, *words = sys.argv[1:]
rank, value = int(os.environ["RANK"]), 0.5
compute_metrics, open_model = selection.compute_metrics, contest.open_model

def measured(table, split, **settings):
    # A tie on rank 0; on rank 1 each value is the least bit better than the one before.
    global value
    value = np.nextafter(value, rank)
    return compute_metrics(table, split, **settings) | {SELECTION_METRIC: 0.5 if rank == 0 else float(value)}

def find_champion(self):
    return Incumbent("1", shutil.copytree(self.run.best, self.run.path / ".incumbent"))

def opened(folder):
    model, card = open_model(folder)
    if folder.name == ".incumbent" and rank == 1:
        model.forward = lambda images: raise_error("CUDA out of memory")
    return model, card

def raise_error(text):
    raise RuntimeError(text)

def challenge(self, reader):
    verdict = ask(self, reader)
    print("verdict:", verdict.reason, flush=True)
    selection.score_split = lambda *words, **settings: raise_error("a rank was lost")
    try:
        return ask(self, reader)
    except RuntimeError as error:
        print("raised:", error, flush=True)

ask, Contest.challenge = Contest.challenge, challenge
Contest._find_champion = find_champion
selection.compute_metrics, contest.open_model, selection.DRAWS = measured, opened, 20
code = main(words)
assert code == 0

class Diverged:
    name, digest, thresholds, trained_on = "diverged", "nan", {}, "q77"

    def score(self, reader, rows, runtime):
        return np.full(len(rows), np.nan, np.float32)

with start("fp32") as runtime:
    data = open_set(root, 77, None)
    try:
        evaluate_cell(Diverged(), data, np.arange(4), Path(predictions), runtime, Measuring("test", 10))
    except FloatingPointError as error:
        print("raised:", error, flush=True)
exit_with(code)
"""


def test_rank_0_decides_and_what_one_rank_meets_all_hear_of(shard_root: Path, tmp_path: Path) -> None:
    words = small_training(shard_root, tmp_path / "run", engine__timeout_minutes=0.5)[1:]
    for code, out, err in run_ranks(RANKS_DIFFER, shard_root, tmp_path / "diverged.parquet", *words):
        assert code == 0, err
        assert "verdict: version 1 stays champion, since it can't be scored: CUDA out of memory\n" in out
        assert "raised: a rank was lost\n" in out
        assert "raised: diverged on q77: test: the model gave scores that are not finite" in out
