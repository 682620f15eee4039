"""Evaluation: predictions by pieces, cells that aren't scored twice, the matrix and what is refused."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from datasets_shards import columns
from datasets_shards.schema import check_same_samples, open_shard_set
from fdtrain.cli import main
from fdtrain.config import UserError
from fdtrain.data.remote import OpenedSet, open_set
from fdtrain.data.rows import split_rows
from fdtrain.evaluation import read_predictions, scored_table, write_predictions
from fdtrain.evaluation.cell import Measuring
from fdtrain.evaluation.evaluate import fill_matrix
from fdtrain.evaluation.matrix import MATRIX_SCHEMA, as_text, check_metric, grid, heat_map, matrix_table, write_matrix
from fdtrain.evaluation.scorers import model_digest, trained_on
from fdtrain.figures.panels import png
from fdtrain.metrics import PREDICTION_SCHEMA, compute_metrics
from fdtrain.models import create_model, input_spec, save_model
from fdtrain.models.weights import open_model
from fdtrain.runtime import start
from tests.heads import with_large_heads
from tests.shards import write_root


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two untrained models; the second one's card says that it saw two qualities."""
    import torch

    folders = []
    for seed, facts in enumerate([{"quality": 77}, {"quality": 77, "qualities": [77, 15]}]):
        torch.manual_seed(seed)
        folder = tmp_path_factory.mktemp("models") / "meso4"
        folder.mkdir()
        results = {"step": 1, "metrics": {"val/video/threshold": 0.4, "val/frame/threshold": None}}
        spec = input_spec("meso4")
        model = with_large_heads(create_model("meso4"))
        save_model(folder, model.state_dict(), name="meso4", options={}, spec=spec, facts=facts, results=results)
        folders.append(folder)
    return folders


def test_pieces_are_what_take_gives(shard_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = open_shard_set(shard_root, 77).index
    monkeypatch.setattr(columns, "BATCH_ROWS", 10)
    rows = np.array([0, 3, 9, 10, 11, 57, 167])
    pieces = list(index.pieces(rows, "key", "method"))
    assert [piece.num_rows for piece in pieces] == [3, 2, 1, 1]
    together = pa.Table.from_batches(pieces).unify_dictionaries()
    assert together["key"].to_pylist() == index.take(rows, "key")["key"].to_pylist()


def test_predictions_are_written_and_read_by_pieces(
    shard_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "BATCH_ROWS", 10)
    shard_set = open_shard_set(shard_root, 77)
    rows = split_rows(shard_set, "test")
    scores = np.random.default_rng(0).random(len(rows), np.float32)
    path = tmp_path / "new" / "test.parquet"
    write_predictions(path, shard_set, rows, scores)
    table = pq.read_table(path)
    assert table.schema == PREDICTION_SCHEMA
    assert pq.ParquetFile(path).num_row_groups > 1
    assert table["key"].to_pylist() == shard_set.index.take(rows, "key")["key"].to_pylist()
    np.testing.assert_array_equal(table["score"].to_numpy(), scores)
    assert set(table["quality"].to_pylist()) == {"q77"}
    metrics = compute_metrics(table, "test")
    assert compute_metrics(read_predictions(path), "test") == metrics
    assert compute_metrics(scored_table(shard_set, rows, scores), "test") == metrics


def evaluate(*words: object) -> int:
    return main(["evaluate", *map(str, words)])


def test_a_matrix_of_models_and_qualities(
    shard_root: Path, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "matrix"
    words = ["--data.root", shard_root, "--data.split", "train", "--draws", 100, "--out", out, "--matrix"]
    assert evaluate("--model", *models, "--data.quality", 77, "raw", *words) == 0
    first = capsys.readouterr().out
    table = pq.read_table(out / "matrix.parquet")
    assert table.schema == MATRIX_SCHEMA
    assert table.schema.metadata is None
    assert pa.csv.read_csv(out / "matrix.csv")["metric"].to_pylist() == table["metric"].to_pylist()
    assert (out / "matrix.png").read_bytes().startswith(b"\x89PNG")
    shown = grid(table, "video/auc")
    assert (shown.models, shown.trained_on, shown.tested_on) == (["meso4", "meso4-2"], ["q77", "mixed"], ["q77", "raw"])
    predicted = pq.read_table(out / "predictions" / "meso4-2-on-raw-train.parquet")
    expected = compute_metrics(predicted, "train", thresholds={"video": 0.4}, draws=100)
    assert shown.values[1, 1].tolist() == pytest.approx(
        [expected[f"train/video/auc{end}"] for end in ("", "_low", "_high")]
    )
    chosen = [record for record in table.to_pylist() if record["metric"] == "video/acc_chosen"]
    assert chosen[3]["value"] == expected["train/video/acc_chosen"]
    assert not [metric for metric in table["metric"].to_pylist() if metric.startswith("frame/acc_chosen")]
    assert as_text(shown) in first
    assert "taken from" not in first

    (out / "predictions" / "meso4-on-raw-train.parquet").unlink()
    before = (out / "matrix.parquet").read_bytes()
    assert evaluate("--model", *models, "--data.quality", 77, "raw", *words) == 0
    assert capsys.readouterr().out.count("same weights and data") == 3
    assert (out / "matrix.parquet").read_bytes() == before


def test_other_weights_or_data_are_scored_again(
    shard_root: Path, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data.root", shard_root, "--draws", 100, "--out", tmp_path / "m.json"]
    for more, reused in (
        (["--model", models[0]], False),
        (["--model", models[0], "--video_score", "top1"], True),
        (["--model", models[1]], False),
        (["--model", models[1], "--data.quality", "raw"], False),
    ):
        assert evaluate(*words, *more) == 0
        assert ("same weights and data" in capsys.readouterr().out) == reused
    metrics = json.loads((tmp_path / "m.json").read_bytes())
    assert metrics["test/video/auc"] is not None
    assert metrics["test/video/auc_low"] is None  # three pairs


def test_what_is_not_of_means_says_so(
    shard_root: Path, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", models[0], "--data.root", shard_root, "--draws", 100]
    note = "with video_score max the threshold chosen for videos isn't used"
    for more, expected in (([], None), (["--video_score", "max"], "max")):
        assert evaluate(*words, *more, "--out", tmp_path / "m.json") == 0
        assert json.loads((tmp_path / "m.json").read_bytes()).get("video_score") == expected
        assert (note in capsys.readouterr().out) == (expected is not None)
    assert evaluate(*words, "--video_score", "max", "--out", tmp_path / "m", "--matrix") == 0
    schema = pq.read_schema(tmp_path / "m" / "matrix.parquet")
    assert schema == MATRIX_SCHEMA
    assert schema.metadata[b"fdtrain.video_score"] == b"max"


def test_several_qualities_have_a_file_each(shard_root: Path, models: list[Path], tmp_path: Path) -> None:
    words = ["--model", models[0], "--data.root", shard_root, "--data.quality", "q77", "raw", "--draws", 100]
    assert evaluate(*words, "--out", tmp_path / "m.json") == 0
    written = {"m-q77.json", "m-q77.parquet", "m-raw.json", "m-raw.parquet"}
    assert {path.name for path in tmp_path.iterdir()} >= written


class Shifted:
    """A scorer that is no model: the labels, at a digest of its own."""

    trained_on, digest, thresholds = "mixed", "labels", {}

    def __init__(self, name: str) -> None:
        self.name, self.calls = name, 0

    def score(self, reader, rows, runtime) -> np.ndarray:
        self.calls += 1
        assert reader.read(int(rows[0]))[:2] == b"\xff\xd8"
        return (0.25 + 0.5 * reader.labels(rows)).astype(np.float32)


def test_anything_with_a_name_is_a_row(shard_root: Path, tmp_path: Path) -> None:
    opened: OpenedSet = open_set(str(shard_root), 77, None)
    rows = split_rows(opened.shard_set, "test")
    scorer = Shifted("router: all/qualities")
    with start("fp32") as runtime:
        for _ in range(2):
            measuring = Measuring("test", 100)
            fill_matrix([scorer], {"q77": opened}, rows, tmp_path, runtime, metric="frame/brier", measuring=measuring)
    assert scorer.calls == 1
    assert grid(pq.read_table(tmp_path / "matrix.parquet"), "video/auc").values[0, 0, 0] == 1
    assert len(list((tmp_path / "predictions").glob("router--all-qualities-*-on-q77-test.parquet"))) == 1


class Diverged(Shifted):
    """Its scores aren't finite."""

    digest = "nan"

    def score(self, reader, rows, runtime) -> np.ndarray:
        return np.full_like(super().score(reader, rows, runtime), np.nan)


def test_a_model_that_diverged_is_an_undefined_row(
    shard_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: OpenedSet = open_set(str(shard_root), 77, None)
    rows = split_rows(opened.shard_set, "test")
    names, measuring = ["bad", "good"], Measuring("test", 100)
    with start("fp32") as runtime:
        for scorers in ([Diverged("bad"), Shifted("good")], [Diverged("bad")]):
            fill_matrix(scorers, {"q77": opened}, rows, tmp_path, runtime, metric="video/auc", measuring=measuring)
            told = capsys.readouterr().out
            assert "warning: bad on q77: test: the model gave scores that are not finite" in told
            assert "bad on q77: test/video/auc undefined" in told
            table = pq.read_table(tmp_path / "matrix.parquet")
            assert list(dict.fromkeys(table["model"].to_pylist())) == names[: len(scorers)]
            values = {name: table.filter(pa.compute.equal(table["model"], name))["value"] for name in names}
            assert len(values["bad"]) > 0
            assert values["bad"].null_count == len(values["bad"])
            if len(scorers) > 1:
                assert len(values["good"]) == len(values["bad"])
                assert grid(table, "video/auc").values[1, 0, 0] == 1


def test_one_model_that_diverged_is_named(
    shard_root: Path, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, card = open_model(models[0])
    state = {name: tensor * float("nan") if "bias" in name else tensor for name, tensor in model.state_dict().items()}
    folder = tmp_path / "diverged"
    folder.mkdir()
    save_model(folder, state, name="meso4", options={}, spec=card["input"], facts={}, results={})
    assert evaluate("--model", folder, "--data.root", shard_root, "--out", tmp_path / "m.json") == 1
    assert "error: diverged on q77: test: the model gave scores that are not finite" in capsys.readouterr().err


def test_a_metric_of_no_fakes_is_refused_before_scoring(
    shard_root: Path, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", models[0], "--data.root", shard_root, "--out", tmp_path / "m", "--matrix"]
    for method in ("NoSuch", "youtube"):  # the other has real samples alone
        assert evaluate(*words, "--metric", f"video/auc/{method}") == 2
        message = f"error: metric: 'video/auc/{method}': the split has no fakes of '{method}'; there are Deepfakes, "
        assert message in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_a_matrix_is_written_before_a_metric_is_missed(tmp_path: Path) -> None:
    table = matrix_table([("a", "q77", "q77", {"test/video/auc": 0.9})], "test")
    with pytest.raises(UserError, match="'video/f1_chosen' was not measured"):
        write_matrix(table, "video/f1_chosen", tmp_path)
    assert pq.read_table(tmp_path / "matrix.parquet").equals(table)
    assert (tmp_path / "matrix.csv").exists()


def test_an_undefined_cell_is_drawn_and_said() -> None:
    cells = [("a", "q77", "q77", {"test/video/auc": 0.9}), ("a", "q77", "raw", {"test/video/auc": np.nan})]
    table = matrix_table(cells, "test")
    assert table["value"].to_pylist() == [0.9, None]
    text = as_text(grid(table, "video/auc"))
    assert "undefined" in text
    assert "95 %" not in text
    assert png(heat_map(grid(table, "video/auc"))).startswith(b"\x89PNG")


def test_sets_of_other_samples_are_refused(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_root(tmp_path / "root", (77,), pairs=(1, 1, 1))
    other = write_root(tmp_path / "other", (15,), pairs=(1, 1, 2))
    (other / "q15").rename(root / "q15")
    words = ["--model", models[0], "--data.root", root, "--data.quality", 77, 15, "--out", tmp_path / "m", "--matrix"]
    assert evaluate(*words) == 2
    assert "q15: holds 48 samples" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()
    with pytest.raises(ValueError, match="holds"):
        check_same_samples(open_shard_set(root, 77), open_shard_set(root, 15))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "a", "b", "--out", "m.json"], "model: 2 models; add --matrix"),
        (["--model", "a", "--out", "m.json", "--metric", "frame/ap"], "metric: has an effect with --matrix only"),
        (["--model", "a", "--out", "m.json", "--matrix"], "out: m.json: a matrix is a folder"),
        (["--model", "a", "--out", "m", "--matrix", "--metric", "auc"], "metric: 'auc' is unknown"),
        (["--model", "a", "--out", "m.json", "--data.quality", "15", "q15"], "data.quality: 15 15 names one twice"),
        (["--model", "a", "--out", "m.json", "--draws", "10"], "draws: 10 is out of range; allowed is at least 100"),
        (["--model", "a", "--out", "m.json", "--video_score", "best"], "video_score: 'best' is unknown"),
    ],
)
def test_arguments_that_do_not_go_together(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(*words, "--data.root", "x") == 2
    assert capsys.readouterr().err.startswith(f"python -m fdtrain evaluate: error: {message}")


def test_what_a_card_says_of_its_training() -> None:
    facts = {"q77": {"quality": 77}, "raw": {"quality": "raw", "qualities": ["raw"]}, "q15": {"quality": "q15"}}
    facts |= {"mixed": {"quality": 77, "qualities": [77, 15]}, "unknown": {"imported": {}}}
    assert {name: trained_on({"trained_on": fact}) for name, fact in facts.items()} == {name: name for name in facts}
    with pytest.raises(UserError, match="metric"):
        check_metric("video/acu")


def test_a_models_digest_is_its_weights_and_its_input(models: list[Path]) -> None:
    from dataclasses import replace

    model, card = open_model(models[0])
    state = model.state_dict()
    digest = model_digest(card, state)
    assert digest == model_digest(card | {"results": None}, state)
    assert digest != model_digest(card | {"input": replace(card["input"], size=64)}, state)
    assert digest != model_digest(card, open_model(models[1])[0].state_dict())
