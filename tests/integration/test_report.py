"""`python -m fdtrain report` of real small runs, and its page in a real Chromium."""

import csv
import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from datasets_shards.page import POLICY, document
from fdtrain.cli import main
from fdtrain.metrics import paired_bootstrap
from fdtrain.report.references import PACKAGED
from tests.chromium import visit
from tests.conftest import small_training
from tests.shards import write_root

NAME = "_a <img src=http:x> & $1$"
"""Of a run's folder: what a name may hold to break a page or a figure."""


def fdtrain(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two runs that differ in frames_per_video, one that was killed, the matrix of the first two, and a c40 root."""
    folder = tmp_path_factory.mktemp("report")
    pairs = (8, 3, 6)  # five clusters of the test split have an interval, three haven't
    root = write_root(folder / "c23", (77,), pairs, compression="c23")
    other = write_root(folder / "c40", (77,), pairs, seed=1, compression="c40")
    places = {"first": folder / NAME, "second": folder / "more", "killed": folder / "killed", "root": root}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        for name, frames in (("first", 1), ("second", 2)):
            words = small_training(root, places[name], data__frames_per_video=frames, train__log_every=1)
            fdtrain(*words[1:])
    score = ("--data.quality", 77, "--draws", 100)
    matrix = folder / "matrix"
    fdtrain(
        "evaluate",
        "--matrix",
        "--model",
        places["first"],
        places["second"],
        "--data.root",
        root,
        *score,
        "--out",
        matrix,
    )
    out = places["first"] / "evaluations" / "c40.json"
    fdtrain("evaluate", "--model", places["first"], "--data.root", other, *score, "--out", out)
    places["killed"].mkdir()
    for name in ("config.yaml", "log.jsonl"):
        shutil.copy(places["second"] / name, places["killed"])
    log = places["killed"] / "log.jsonl"
    log.write_text(log.read_text() + '{"step": 9, "tra')  # cut short
    (places["killed"] / "status.json").write_text('{"state": "failed", "reason": "killed <b>"}')
    return places | {"matrix": matrix, "c40": out}


@pytest.fixture(scope="module")
def report(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of all of them."""
    out = tmp_path_factory.mktemp("out") / "report"
    places = [runs[name] for name in ("first", "second", "killed", "matrix")]
    fdtrain("report", "--out", out, *places, "--samples", 3, "--faces", 2)
    return out


class Page(HTMLParser):
    """Pictures, headings and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pictures: list[dict[str, str | None]] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.pictures.append(dict(attributes))


def table(report: Path, name: str) -> list[dict[str, str]]:
    with (report / "tables" / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_page_has_everything_in_it(report: Path, runs: dict[str, Path]) -> None:
    text = (report / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    figures = {path.name for path in (report / "figures").iterdir()}
    charts = {"training.png", "metrics.png", "roc.png", "calibration.png", "matrix-1.png"}
    assert figures == charts | {f"{kind}-{letter}.png" for kind in ("tsne", "gradcam") for letter in "AB"}
    assert len(page.pictures) >= len(figures) + 1  # and faces
    for picture in page.pictures:
        assert str(picture["src"]).startswith(("data:image/png;base64,", "data:image/jpeg;base64,"))
        assert re.search(r"\d", str(picture["alt"])), picture["alt"]  # what it shows, in numbers
    assert NAME not in text
    assert html.escape(NAME) in text
    assert "killed <b>" not in text
    assert "script" not in page.tags
    assert POLICY in text
    assert f"{runs['second'].name}: t-SNE" not in text  # the caption has the letter as well
    assert (runs["first"] / "report" / "figures" / "tsne.png").read_bytes() in [
        path.read_bytes() for path in (report / "figures").iterdir()
    ]
    digest = json.loads((runs["first"] / "best" / "model.json").read_bytes())["trained_on"]["data.digest"]
    assert digest in text
    assert "torch 2." in text


def test_table_1_has_the_metrics_the_gains_and_what_was_published(report: Path, runs: dict[str, Path]) -> None:
    rows = {row["run"]: row for row in table(report, "table-1a.csv")}
    metrics = {name: json.loads((runs[name] / "metrics.json").read_bytes()) for name in ("first", "second")}
    first, second = rows[f"A {NAME}"], rows["B more"]
    assert float(first["FF-c23"]) == pytest.approx(metrics["first"]["test/frame/auc"], rel=1e-5)
    assert float(second["DF"]) == pytest.approx(metrics["second"]["test/frame/auc/Deepfakes"], rel=1e-5)
    assert float(second["FF-c23 low"]) == pytest.approx(metrics["second"]["test/frame/auc_low"], rel=1e-5)
    elsewhere = json.loads(runs["c40"].read_bytes())
    assert float(first["FF-c40"]) == pytest.approx(elsewhere["test/frame/auc"], rel=1e-5)
    assert second["FF-c40"] == ""
    assert "FF-c40: Not evaluated on c40 videos" in second["missing"]
    assert "NT: B: its test split has no NeuralTextures" in second["missing"]
    assert "state is failed (killed <b>)" in rows["C killed"]["missing"]

    one, other = (pq.read_table(runs[name] / "predictions/test.parquet") for name in ("first", "second"))
    expected = paired_bootstrap(one, other, level="frame", metric="auc/FaceSwap")
    gain = rows["B over A"]
    assert float(gain["FS"]) == pytest.approx(expected.difference, rel=1e-5, abs=1e-9)
    assert float(gain["FS low"]) == pytest.approx(expected.low, rel=1e-5, abs=1e-9)
    assert float(gain["FS high"]) == pytest.approx(expected.high, rel=1e-5, abs=1e-9)
    published = [row for row in rows.values() if row["block"].startswith("Published")]
    assert [row["run"] for row in published][:5] == ["Meso4", "MesoInception4", "EfficientNet-B4", "Xception", "UCF"]
    assert [float(rows["UCF"][name]) for name in ("FF-c23", "FF-c40", "DF", "F2F", "FS", "NT")] == [
        *(0.9705, 0.8399, 0.9883, 0.9840, 0.9896, 0.9441)
    ]
    accuracies = {row["run"]: row for row in table(report, "table-2.csv")}["Multi-attentional"]
    assert (accuracies["FF-c23"], accuracies["FF-c40"]) == ("0.9760", "0.8869")


def test_more_frames_and_the_matrix(report: Path, runs: dict[str, Path]) -> None:
    rows = table(report, "table-3.csv")
    row = next(row for row in rows if row["runs"] == "A → B")
    assert (row["frames before"], row["frames after"], row["differ also in"]) == ("1", "2", "nothing")
    before, after = (float(row[f"AUC per video {word}"]) for word in ("before", "after"))
    assert float(row["AUC per video gain"]) == pytest.approx(after - before, abs=1e-5)
    (cell,) = [row for row in table(report, "matrix-1.csv") if row["model"] == "more"]
    values = {
        row["model"]: row
        for row in pq.read_table(runs["matrix"] / "matrix.parquet").to_pylist()
        if row["metric"] == "video/auc"
    }
    assert float(cell["q77"]) == pytest.approx(values["more"]["value"], rel=1e-5)


def test_the_worst_mistakes_are_mistakes(report: Path, runs: dict[str, Path]) -> None:
    predictions = pq.read_table(runs["first"] / "predictions/val.parquet").to_pylist()
    wrong = [row for row in predictions if (row["score"] >= 0.5) != bool(row["label"])]
    shown = table(report, "mistakes-A.csv") if (report / "tables" / "mistakes-A.csv").exists() else []
    for label in (0, 1):
        mine = sorted((abs(row["score"] - label) for row in wrong if row["label"] == label), reverse=True)
        told = [abs(float(row["P(fake)"]) - label) for row in shown if int(row["label"]) == label]
        assert len(told) <= 2
        assert bool(told) == bool(mine)
        if told:
            assert told[0] == pytest.approx(mine[0], abs=1e-4)
    assert len({(row["method"], row["video"]) for row in shown}) == len(shown)


def test_what_is_missing_is_said(report: Path) -> None:
    text = html.unescape((report / "index.html").read_text(encoding="utf-8"))
    told = text.partition('id="missing"')[2]
    for reason in (
        "C: the run's state is failed (killed <b>); metrics come when it is finished",
        "A: meso4 has no attention maps, multi_attention alone has",
        "C: has no best model yet, so there is nothing to look into",
        "Not evaluated on c40 videos",
        "C: the data digest isn't recorded (it has no model yet)",
    ):
        assert reason in told


def test_a_later_report_takes_the_place_of_an_earlier_one(
    report: Path, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    shutil.copytree(report, out)
    references = yaml.safe_load(PACKAGED.read_text())
    references["sources"][0]["models"] = {"Mine <1>": {"auc": {"NT": 0.5}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(references))
    moved = tmp_path / "moved"
    shutil.copytree(runs["second"], moved, ignore=shutil.ignore_patterns("report"))
    config = yaml.safe_load((moved / "config.yaml").read_text())
    config["data"]["root"] = str(tmp_path / "nowhere")
    (moved / "config.yaml").write_text(yaml.safe_dump(config))
    fdtrain("report", "--out", out, moved, "--references", tmp_path / "mine.yaml")
    assert not (out / "figures" / "tsne-A.png").exists()
    assert not (out / "figures" / "matrix-1.png").exists()
    record = json.loads((out / "report.json").read_bytes())
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.*") if path.parent != out) == record["files"]
    text = html.unescape((out / "index.html").read_text(encoding="utf-8"))
    assert f"A: its data can't be read: {tmp_path / 'nowhere'}: no such folder" in text
    assert "No matrix was given" in text
    assert "differ in data.frames_per_video" in text
    assert {row["run"] for row in table(out, "table-1a.csv")} == {"A moved", "Mine <1>", "Multi-attentional"}
    # The run recorded the compression of its videos.
    assert table(out, "table-1a.csv")[0]["FF-c23"] != ""
    assert "1 run, 12 sections" in capsys.readouterr().out


MEASURE = """
<script>
addEventListener("load", () => {
  const pictures = [...document.images];
  parent.postMessage({
    name: NAME, inner: innerWidth, seen: document.documentElement.clientWidth,
    wide: document.scrollingElement.scrollWidth, pictures: pictures.length,
    broken: pictures.filter((picture) => !picture.naturalWidth).length,
    silent: pictures.filter((picture) => !picture.alt.trim()).length,
    scrolling: [...document.querySelectorAll(".scroll")].filter((box) => box.scrollWidth > box.clientWidth).length,
  }, "*");
});
</script>
"""


def test_in_a_browser(report: Path, tmp_path: Path) -> None:
    """Alone in a folder, the page loads all of itself, asks nobody for anything and overflows at no width."""
    text = (report / "index.html").read_text(encoding="utf-8")
    assert POLICY in text
    text = text.replace(POLICY, "")  # the page must be good without it
    frames = {"narrow": 400, "wide": 1400, "control": 400}
    spilled = "<style>.scroll { overflow: visible !important; }</style>"
    for name in frames:
        added = MEASURE.replace("NAME", json.dumps(name)) + (spilled if name == "control" else "")
        (tmp_path / f"{name}.html").write_text(text.replace("</body>", f"{added}</body>"), encoding="utf-8")
    inner = "".join(f'<iframe src="{name}.html" width="{w}" height="900"></iframe>' for name, w in frames.items())
    (tmp_path / "all.html").write_text(
        '<!DOCTYPE html><style>iframe { border: 0 }</style><pre id="told"></pre><script>const told = {};'
        'addEventListener("message", (event) => { told[event.data.name] = event.data;'
        'document.getElementById("told").textContent = JSON.stringify(told); });</script>' + inner
    )
    dom, asked = visit(tmp_path / "all.html", tmp_path / "browser")
    told = json.loads(html.unescape(re.search(r'<pre id="told">(.*?)</pre>', dom, re.DOTALL)[1]))  # type: ignore[index]
    assert asked == []
    assert set(told) == set(frames)
    for name, width in frames.items():
        assert told[name]["inner"] == width
        assert told[name]["pictures"] > 8
        assert told[name]["broken"] == told[name]["silent"] == 0
        seen = told[name]["seen"]  # but for a scroll bar, the width
        assert width - 20 <= seen <= width
        assert (told[name]["wide"] > seen) == (name == "control")
    assert told["narrow"]["scrolling"] > 0  # wide tables, in boxes of their own


def test_a_page_that_asks_is_noticed(tmp_path: Path) -> None:
    address = "http://probe.invalid/picture.png"
    (tmp_path / "page.html").write_text(f'<img src="{address}" alt="x">')
    assert visit(tmp_path / "page.html", tmp_path / "browser")[1] == [address]
    (tmp_path / "guarded.html").write_text(document("x", f'<img src="{address}" alt="x">'))
    assert visit(tmp_path / "guarded.html", tmp_path / "another")[1] == []


def test_bins_of_calibration(runs: dict[str, Path]) -> None:
    from fdtrain.metrics.binary import ECE_BINS
    from fdtrain.report.scores import reliability

    predictions = pq.read_table(runs["second"] / "predictions/test.parquet")
    bins = reliability(predictions)
    scores, labels = predictions["score"].to_numpy(), predictions["label"].to_numpy()
    for number in range(ECE_BINS):
        upper = scores < (number + 1) / ECE_BINS if number < ECE_BINS - 1 else True
        inside = (scores >= number / ECE_BINS) & upper
        assert bins.count[number] == inside.sum()
        if inside.any():
            assert bins.mean[number] == pytest.approx(scores[inside].mean())
            assert bins.share[number] == pytest.approx(labels[inside].mean())
            assert np.isnan(bins.low[number]) or bins.low[number] <= bins.share[number] <= bins.high[number]
