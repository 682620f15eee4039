"""The report's parts: bad input in one line, tables, and curves."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets_shards.schema import open_shard_set
from fdtrain.cli import main
from fdtrain.config import UserError
from fdtrain.data.rows import split_rows
from fdtrain.evaluation import write_predictions
from fdtrain.figures.write import Request
from fdtrain.report import inside
from fdtrain.report.content import Block, Estimate, Gain, Missing, Row, Table, estimate, holm
from fdtrain.report.inside import Drawing, inside_section
from fdtrain.report.references import PACKAGED, read_references
from fdtrain.report.runs import Run, _letters
from fdtrain.report.subsets import number_on, subset_table
from fdtrain.report.training import MAX_POINTS, thinned


@pytest.fixture
def reject(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command, which must end with exit code 2; gives its one line."""

    def run(*words: object, out: Path | None = None) -> str:
        code = main(["report", "--out", str(out or tmp_path / "out"), *map(str, words)])
        error = capsys.readouterr().err
        assert code == 2, error
        assert error.count("\n") == 1, error
        return error.removeprefix("python -m fdtrain report: error: ").rstrip("\n")

    return run


def write_run(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text("{data: {root: /nowhere, quality: 77}, model: {name: meso4}}")
    return folder


def test_bad_input_is_one_line(tmp_path: Path, reject: Callable[..., str]) -> None:
    run = write_run(tmp_path / "run")
    assert reject(tmp_path) == f"{tmp_path}: has no config.yaml, so it is no run; give folders that training wrote"
    assert reject(run, run / ".." / "run").endswith("named twice; give each run once")
    assert reject(run, "--faces", 1000).startswith("faces: 1000 is out of range")
    assert reject(run, "--no_figures", "--points", 9).startswith("points: 9 has no effect here")
    assert reject(run, "--references", tmp_path / "no.yaml").startswith("references: ")
    broken = tmp_path / "matrix.parquet"
    broken.write_bytes(b"PAR1")
    assert reject(run, "--matrix", broken).startswith(f"matrix: {broken} can't be read")
    pq.write_table(pa.table({"model": ["a"]}), broken)
    assert "has no column 'trained_on'" in reject(run, "--matrix", broken)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("mine")
    assert "isn't empty and holds no report" in reject(run, out=tmp_path / "mine")
    assert (tmp_path / "mine" / "index.html").read_text() == "mine"
    (run / "metrics.json").write_text("{")
    assert reject(run).startswith(f"{run / 'metrics.json'}: damaged")
    (run / "config.yaml").write_text("[1, 2]")
    assert reject(run).startswith(f"{run / 'config.yaml'}: not the configuration of a run")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not YAML"),
        ("sources: 3", "'sources' is missing or no list"),
        ("sources: [{citation: a, models: {}}]", r"sources\[0\]: 'protocol' is missing"),
        ("sources: [{citation: a, protocol: b, models: {M: {f1: {DF: 1}}}}]", "'f1' is no metric"),
        ("sources: [{citation: a, protocol: b, models: {M: {auc: {XY: 1}}}}]", "'XY' is no column"),
        ("sources: [{citation: a, protocol: b, models: {M: {auc: {DF: 97.5}}}}]", "97.5 is no number from 0 to 1"),
    ],
)
def test_references_that_are_none(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=problem):
        read_references(tmp_path / "mine.yaml")


def test_packaged_references_are_cited() -> None:
    found = read_references(PACKAGED)
    assert [one.name for one in found] == [
        *("Meso4", "MesoInception4", "EfficientNet-B4", "Xception", "UCF", "Multi-attentional")
    ]
    assert all("20" in one.citation and one.protocol for one in found)


def test_a_table_as_csv() -> None:
    rows = [
        Row("a, b", [Estimate(0.5, 0.25, 0.75), "x"]),
        Row("c", [Missing("why; what"), Missing("y")]),
        Row("d", [Gain(-0.125), ""]),
    ]
    content = Table("t.csv", "", ["run", "AUC", "note"], [Block("own", rows)]).csv().decode()
    assert content.splitlines() == [
        "block,run,AUC,AUC low,AUC high,note,missing",
        'own,"a, b",0.5,0.25,0.75,x,',
        "own,c,,,,,AUC: why; what; note: y",
        "own,d,-0.125,,,,",
    ]


def test_intervals_are_found_by_name() -> None:
    metrics = {
        "test/video/auc/DF": 0.9,
        "test/video/auc_low/DF": 0.8,
        "test/video/auc_high/DF": 0.95,
        "test/video/f1": None,
    }
    assert estimate(metrics, "test/video/auc/DF") == Estimate(0.9, 0.8, 0.95)
    assert estimate({"test/video/auc": 0.5, "test/video/auc_low": None}, "test/video/auc") == Estimate(0.5)
    assert estimate(metrics, "test/video/f1") is None
    assert estimate(metrics, "test/video/acc") is None


@pytest.mark.parametrize(
    ("values", "clear"),
    [
        ([0.04], [True]),
        ([0.04, 0.04], [False, False]),
        ([0.04, 0.02], [True, True]),
        ([0.06, 0.001, 0.02], [False, True, True]),
        ([0.001, 0.03, 0.02, 0.9], [True, False, False, False]),  # 0.02 is above 0.05 / 3, so 0.03 isn't looked at
    ],
)
def test_marks_are_for_gains_that_hold_among_all(values: list[float], clear: list[bool]) -> None:
    row = Row("B over A", [Gain(0.1, 0.05, 0.2, p=p) for p in values] + [Gain(0.5), Missing("why")])
    (block,), said = holm([Block("gains", [row])])
    assert [cell.is_clear for cell in block.rows[0].cells[: len(values)]] == clear
    assert f"of its {len(values)} gains hold at 5% after Holm's correction" in said
    assert holm([Block("none", [Row("A", [Estimate(0.5)])])])[1] == ""


def test_of_equally_good_models_a_table_marks_hardly_any() -> None:
    """54 comparisons of nothing: by their intervals two or three of them would be marked in each table."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(200):
        gains = [Gain(0.0, p=float(p)) for p in rng.random(54)]
        (block,), _ = holm([Block("", [Row("", gains)])])
        wrong += any(cell.is_clear for cell in block.rows[0].cells)
    assert wrong <= 20


@pytest.mark.parametrize("count", [0, 1, MAX_POINTS, MAX_POINTS + 1, 7 * MAX_POINTS + 3])
def test_a_long_curve_is_averaged(count: int) -> None:
    steps, values = np.arange(count, dtype=float), np.random.default_rng(0).normal(size=count)
    fewer, means = thinned(steps, values)
    assert len(fewer) == len(means) <= MAX_POINTS
    if count:
        assert fewer[-1] == count - 1
        size = -(-count // MAX_POINTS)
        np.testing.assert_allclose(means[0], values[:size].mean())
        np.testing.assert_allclose(means[-1], values[(len(means) - 1) * size :].mean())


def test_gains_over_another_quality_say_so() -> None:
    def run(letter: str, quality: int) -> Run:
        config = {"data.quality": quality, "data.root": "x", "model.name": "meso4"}
        card = {"trained_on": {"data.compression": "c23"}}
        return Run(letter, Path(letter), letter, "", config, {}, [], {"state": "running"}, card)

    note = "each is tested on the images of its own"
    mixed = subset_table("t", "Table", [run("A", 77), run("B", 15), run("C", 77)], [], "auc", "frame")
    heads = ["B over A, each at its own quality", "C over A", "C over B, each at its own quality"]
    assert [row.head for row in mixed.blocks[1].rows] == heads
    assert mixed.blocks[1].title == "Gain of one over another, of the same samples"
    assert note in mixed.caption
    same = subset_table("t", "Table", [run("A", 77), run("B", 77)], [], "auc", "frame")
    assert [row.head for row in same.blocks[1].rows] == ["B over A"]
    assert note not in same.caption


def test_figures_that_are_there_count_if_they_are_what_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"data.quality": 77, "data.root": "x", "data.cache_bytes": 0, "model.name": "meso4"}
    run = Run("A", tmp_path, "a", "", config, {}, [], {}, {"results": {"step": 1}})
    run.__dict__["data"] = None  # what it reads is of no account here
    drawn: list[tuple[int, int]] = []

    def draw(request: Request, out: Path) -> None:
        drawn.append((request.samples, request.points))
        out.mkdir(parents=True, exist_ok=True)
        data = {"quality": f"q{request.quality}", "split": request.split}
        record = {"model": {"results": {"step": 1}}, "data": data, "samples": request.samples, "points": request.points}
        (out / "figures.json").write_text(json.dumps(record | {"figures": {}}))

    monkeypatch.setattr(inside, "write_figures", draw)
    inside_section([run], Drawing())
    inside_section([run], Drawing())
    inside_section([run], Drawing(samples=8))
    assert drawn == [(8, 1000)]
    inside_section([run], Drawing(samples=4))
    inside_section([run], Drawing())
    assert drawn == [(8, 1000), (4, 1000)]
    inside_section([run], Drawing(samples=4, points=50))
    assert drawn[2:] == [(4, 50)]
    path = tmp_path / "report" / "figures" / "figures.json"
    for key, other in (("split", "test"), ("quality", "q15")):
        record = json.loads(path.read_bytes())
        path.write_text(json.dumps(record | {"data": record["data"] | {key: other}}))
        (reason,) = inside_section([run], Drawing(wanted=False)).missing()
        assert "has no figures of its best model on its own validation split" in reason
        drawn.clear()
        inside_section([run], Drawing())
        assert drawn == [(8, 1000)]


def test_an_evaluation_that_is_not_of_means_is_missing(shard_root: Path, tmp_path: Path) -> None:
    config = {"data.quality": 77, "data.root": "x", "model.name": "meso4"}
    card = {"trained_on": {"data.compression": "c23"}}
    shard_set = open_shard_set(shard_root, 77)
    rows = split_rows(shard_set, "test")
    scores = np.full(len(rows), 0.5, np.float32)
    own, file = tmp_path / "predictions" / "test.parquet", tmp_path / "evaluations" / "c40.parquet"
    write_predictions(own, shard_set, rows, scores)
    write_predictions(file, shard_set, rows, scores, {"scores": "d", "split": "test", "compression": "c40"})
    metrics: dict[str, float | None] = {"test/video/auc": 0.75}
    for more in ({}, {"video_score": "max"}):
        file.with_suffix(".json").write_text(json.dumps(metrics | more))
        run = Run("A", tmp_path, "a", "", config, metrics, [], {}, card)
        run.__dict__["_digest"] = "d"
        cell = number_on(run, "FF-c40", "auc", "video")
        if not more:
            assert cell == Estimate(0.75)
            continue
        assert isinstance(cell, Missing)
        why = "was evaluated with --video_score max, tables are of means; evaluate again without it"
        assert cell.reason == f"A: {file.with_suffix('.json')} {why}"


def test_letters_of_runs() -> None:
    assert [_letters(number) for number in (0, 25, 26, 51, 52, 701, 702)] == ["A", "Z", "AA", "AZ", "BA", "ZZ", "AAA"]
