"""Registered models where there is no fdtrain: in a fresh process, behind `mlflow models serve`, joined by a router."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from datasets_shards.schema import Quality, open_shard_set, quality_name
from fdtrain import contest
from fdtrain.cli import main
from fdtrain.config import UserError
from fdtrain.data.reader import ShardReader
from fdtrain.data.rows import split_rows
from fdtrain.models import InputSpec, create_model, save_model
from fdtrain.models.registered import registered_folder
from fdtrain.models.weights import open_model
from fdtrain.registry import (
    Incumbent,
    Verdict,
    conclude_version,
    crown,
    fetch_champion,
    incomparable,
    judge,
    register,
    registered_name,
)
from fdtrain.tracking import connect
from tests.conftest import small_training
from tests.heads import with_large_heads
from tests.mlflow_server import free_port, serving
from tests.shards import write_root
from tests.versions import add_version

QUALITIES: tuple[Quality, ...] = (77, 10, "raw")
SIDE = {77: 64, 10: 32, "raw": 64}  # one that resizes, as training does with data.image_size

# What runs without the project: it can't even be imported.
PREFACE = "import sys; sys.modules['fdtrain'] = sys.modules['datasets_shards'] = None\n"


def write_model(folder: Path, seed: int, side: int, quality: Quality = 77, digest: str = "") -> Path:
    torch.manual_seed(seed)
    model = with_large_heads(create_model("meso4", image_size=side))
    # Untrained, it gives every image the same score; normalized by the statistics of noise it tells them apart.
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = None  # an average over all that is seen
    with torch.no_grad():
        model.train()(torch.nn.functional.interpolate(torch.randn(16, 3, 8, 8), size=(side, side), mode="bilinear"))
    folder.mkdir(parents=True)
    spec = InputSpec(side, (0.5, 0.4, 0.5), (0.5, 0.5, 0.6), "bicubic")
    facts = {"quality": quality, "data.digest": digest}
    options = {"image_size": side}
    save_model(folder, model.state_dict(), name="meso4", options=options, spec=spec, facts=facts, results={"step": 3})
    return folder


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A registry with a champion of each quality, and the root that they are scored on."""
    base = tmp_path_factory.mktemp("registry")
    root = write_root(base / "root", QUALITIES, pairs=(1, 3, 6))
    uri = f"sqlite:///{base / 'mlflow.db'}"
    os.environ["MLFLOW_TRACKING_URI"] = uri
    client = connect(uri)
    experiment = client.create_experiment("registered", artifact_location=str(base / "artifacts"))
    for seed, quality in enumerate(QUALITIES):
        digest = open_shard_set(root, quality).manifest.digest
        folder = write_model(base / quality_name(quality), seed, SIDE[quality], quality, digest)
        run_id = client.create_run(experiment).info.run_id
        add_version(folder, registered_name("meso4", quality), uri, run_id, step=3)
    return {"base": base, "root": root, "uri": uri, "client": client, "experiment": experiment}


@pytest.fixture(autouse=True)
def _there(registry: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry["uri"])


def test_files(root: Path, quality: Quality) -> list[bytes]:
    """The image files of the test split, as they lie in the tar."""
    shard_set = open_shard_set(root, quality)
    with ShardReader(shard_set) as reader:
        return [reader.read(row) for row in split_rows(shard_set, "test").tolist()]


test_files.__test__ = False  # type: ignore[attr-defined]


def evaluated(registry: dict[str, Any], quality: Quality, on: Quality, out: Path) -> np.ndarray:
    """Scores of a champion by `python -m fdtrain evaluate`, of the test split of the set `on`."""
    place = f"models:/{registered_name('meso4', quality)}@champion"
    words = ["--data.root", str(registry["root"]), "--data.quality", str(on), "--out", str(out)]
    assert main(["evaluate", "--model", place, *words]) == 0
    return pq.read_table(out.with_suffix(".parquet"))["score"].to_numpy()


def run_alone(script: str, folder: Path, uri: str) -> Any:
    """What a Python program without the project prints as JSON on its last line; MLflow refuses pickles in it."""
    environment = os.environ | {"MLFLOW_TRACKING_URI": uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    environment.pop("PYTHONPATH", None)
    words = [sys.executable, "-c", PREFACE + script]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


ALONE = """
import base64, json, mlflow, numpy as np, pandas as pd, torch
from pathlib import Path
model = mlflow.pyfunc.load_model("models:/fdtrain-meso4-q10@champion")
files = [path.read_bytes() for path in sorted(Path(".").glob("*.img"))]
texts = [base64.encodebytes(data).decode() for data in files]  # with line breaks, as MLflow writes it
pixels = np.load("pixels.npy")
gray = np.load("gray.npy")
given = {
    "list": files, "frame": pd.DataFrame({"name": range(len(files)), "image": files}), "series": pd.Series(files),
    "texts": texts, "dictionary": {"image": files}, "array": pixels, "arrays": list(pixels), "one": files[0],
    "one array": pixels[0], "integers": pixels.astype(np.int64).tolist(), "text": texts[0],
}
answers = {how: model.predict(images).tolist() for how, images in given.items()}
refused = {}
for how, images in {"gif": [b"GIF89a"], "cut": [files[0], files[1][:200]], "floats": pixels / 255, "gray": gray,
                    "text": ["no base64!"], "range": pixels.astype(int) + 99,
                    "columns": pd.DataFrame({"a": files, "b": files})}.items():
    try:
        model.predict(images)
    except mlflow.exceptions.MlflowException as error:
        refused[how] = str(error)
program = mlflow.pytorch.load_model("models:/fdtrain-meso4-q10@champion")
logits = program(torch.zeros(3, 3, 32, 32)).tolist()
print(json.dumps({"answers": answers, "refused": refused, "logits": logits}))
"""


def test_a_version_in_a_fresh_process(registry: dict[str, Any], tmp_path: Path) -> None:
    expected = evaluated(registry, 10, 10, tmp_path / "metrics.json")
    assert np.ptp(expected) > 0.01
    files = test_files(registry["root"], 10)
    for i, content in enumerate(files):
        (tmp_path / f"{i:03d}.img").write_bytes(content)
    # Decoded by another library, within a level of what the loader has.
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(content))) for content in files])
    np.save(tmp_path / "pixels.npy", pixels)
    np.save(tmp_path / "gray.npy", pixels[..., 0])
    found, _ = run_alone(ALONE, tmp_path, registry["uri"])
    for how, scores in found["answers"].items():
        tolerance = 1e-5 if how in ("list", "frame", "series", "texts", "dictionary", "one", "text") else 5e-3
        np.testing.assert_allclose(scores, expected[: len(scores)], atol=tolerance, err_msg=how)
        assert len(scores) == (1 if how in ("one", "one array", "text") else len(files)), how
    refused = found["refused"]
    assert "image 0: is no image, by its content" in refused["gif"]
    assert "image 1: can't be decoded" in refused["cut"]
    assert "whole numbers from 0 to 255" in refused["floats"]
    assert "[H, W, 3]" in refused["gray"]
    assert "isn't base64" in refused["text"]
    assert "they are 0 to 255" in refused["range"]
    assert "the columns are a, b" in refused["columns"]
    model, _ = open_model("models:/fdtrain-meso4-q10@champion")
    with torch.no_grad():
        np.testing.assert_allclose(found["logits"], model(torch.zeros(3, 3, 32, 32)).numpy(), atol=1e-4)


def test_png_files(registry: dict[str, Any], tmp_path: Path) -> None:
    import mlflow

    expected = evaluated(registry, "raw", "raw", tmp_path / "metrics.json")
    model = mlflow.pyfunc.load_model("models:/fdtrain-meso4-raw@champion")
    np.testing.assert_allclose(model.predict(test_files(registry["root"], "raw")), expected, atol=1e-5)


def post(url: str, content: Any) -> tuple[int, Any]:
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_mlflow_models_serve(registry: dict[str, Any], tmp_path: Path) -> None:
    expected = evaluated(registry, 77, 77, tmp_path / "metrics.json")[:3]
    texts = [base64.b64encode(content).decode() for content in test_files(registry["root"], 77)[:3]]
    port = free_port()
    words = ["models", "serve", "-m", "models:/fdtrain-meso4-q77@champion", "--env-manager", "local"]
    # MLflow starts uvicorn by name.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"MLFLOW_TRACKING_URI": registry["uri"], "PATH": path}
    environment.pop("PYTHONPATH", None)
    with serving([*words, "--host", "127.0.0.1", "--port", str(port)], port, tmp_path, environment):
        url = f"http://127.0.0.1:{port}/invocations"
        for content in (
            {"dataframe_split": {"columns": ["image"], "data": [[text] for text in texts]}},
            {"dataframe_records": [{"image": text} for text in texts]},
            {"instances": [{"image": text} for text in texts]},
            {"inputs": texts},
        ):
            status, answer = post(url, content)
            assert status == 200, answer
            np.testing.assert_allclose(answer["predictions"], expected, atol=1e-5)
        status, answer = post(url, {"inputs": np.zeros((2, 64, 64, 3), int).tolist()})
        assert status == 200, answer
        assert len(answer["predictions"]) == 2
        status, answer = post(url, {"inputs": [texts[0], base64.b64encode(b"GIF89a").decode()]})
        assert status == 400
        assert "image 1: is no image, by its content" in answer["message"]


# --- the router

ROUTED = """
import json, mlflow
from pathlib import Path
model = mlflow.pyfunc.load_model("models:/fdtrain-meso4-router@champion")
files = [path.read_bytes() for path in sorted(Path(".").glob("*.img"))]
print(json.dumps({"scores": model.predict(files).tolist(), "explained": model.unwrap_python_model().explain(files)}))
"""


def test_the_router_asks_the_champion_of_the_image(
    registry: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["router", "--model", "meso4", "--data.root", str(registry["root"])]) == 0
    assert "registered fdtrain-meso4-router version 1: champion" in capsys.readouterr().out
    expected, chosen, number = [], [], 0
    for quality in (10, 77, "raw"):
        expected += evaluated(registry, quality, quality, tmp_path / "metrics.json").tolist()
        for content in test_files(registry["root"], quality):
            chosen.append(quality_name(quality))
            (tmp_path / f"{number:03d}.img").write_bytes(content)
            number += 1
    found, _ = run_alone(ROUTED, tmp_path, registry["uri"])
    explained = found["explained"]
    assert [answer["model"] for answer in explained] == chosen
    np.testing.assert_allclose([answer["uncalibrated"] for answer in explained], expected, atol=1e-5)
    assert [answer["estimate"] and answer["estimate"]["quality"] for answer in explained] == [
        None if name == "raw" else int(name[1:]) for name in chosen
    ]
    version = registry["client"].get_model_version_by_alias("fdtrain-meso4-router", "champion")
    (content,) = _metadata("models:/fdtrain-meso4-router@champion")
    for answer, score in zip(explained, found["scores"], strict=True):
        fit = content["models"][answer["model"]]["calibration"]
        logit = np.log(answer["uncalibrated"]) - np.log1p(-answer["uncalibrated"])
        assert score == pytest.approx(1 / (1 + np.exp(-fit["slope"] * logit - fit["offset"])), abs=1e-4)
    assert version.tags["q77"] == "models:/fdtrain-meso4-q77/1"
    assert "Scores are calibrated by Platt scaling" in version.description
    assert {"pooled/calibrated/val/video/auc", "pooled/uncalibrated/val/video/auc"} <= version.tags.keys()
    with pytest.raises(UserError, match="a router, which is several models; take one of models:/fdtrain-meso4-q10/1"):
        open_model("models:/fdtrain-meso4-router@champion")


def test_the_router_is_a_row_of_the_matrix(registry: dict[str, Any], tmp_path: Path) -> None:
    router = "models:/fdtrain-meso4-router@champion"
    words = ["--data.root", str(registry["root"]), "--data.quality", "10", "raw", "--draws", "100"]
    words += ["--model", router, "models:/fdtrain-meso4-q10@champion", "--matrix", "--out", str(tmp_path)]
    assert main(["evaluate", *words]) == 0
    rows = pq.read_table(tmp_path / "matrix.parquet").to_pylist()
    kinds = {(row["model"], row["trained_on"]) for row in rows}
    assert kinds == {("fdtrain-meso4-router@champion", "routed"), ("fdtrain-meso4-q10@champion", "q10")}
    aucs = {(row["trained_on"], row["tested_on"]): row["value"] for row in rows if row["metric"] == "frame/auc"}
    # Calibration leaves the order as it is; at most it rounds two scores of 2304 pairs to one.
    assert aucs["routed", "q10"] == pytest.approx(aucs["q10", "q10"], abs=1e-3)
    import mlflow

    served = mlflow.pyfunc.load_model(router)
    for quality in (10, "raw"):
        name = f"fdtrain-meso4-router@champion-on-{quality_name(quality)}-test.parquet"
        scores = pq.read_table(tmp_path / "predictions" / name)["score"].to_numpy()
        np.testing.assert_allclose(served.predict(test_files(registry["root"], quality)), scores, atol=1e-5)


def _metadata(place: str) -> list[dict[str, Any]]:
    import mlflow

    return list(mlflow.models.get_model_info(place).metadata.values())


def test_a_router_without_raw_says_so(registry: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    import mlflow

    words = ["--model", "meso4", "--qualities", "77", "q10", "--data.root", str(registry["root"])]
    assert main(["router", *words]) == 0
    capfd.readouterr()
    model = mlflow.pyfunc.load_model("models:/fdtrain-meso4-router@champion").unwrap_python_model()
    assert "warning: no champion of raw: q77 judges PNG files and pixels" in capfd.readouterr().err
    assert model.explain(np.zeros((1, 64, 64, 3), np.uint8))[0]["model"] == "q77"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "meso5"], "model: no fdtrain-meso5-q... or fdtrain-meso5-raw has a champion at sqlite:"),
        (
            ["--model", "meso4", "--qualities", "60"],
            "qualities: fdtrain-meso4-q60 has no champion at sqlite:///",
        ),
        (["--model", "meso4", "--qualities", "hi"], "qualities: quality 'hi' is neither a whole number"),
    ],
)
def test_no_router_of_what_is_not_there(
    registry: dict[str, Any], words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["router", *words, "--data.root", str(registry["root"])]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


# --- champion and challenger


def test_looking_at_a_version_leaves_nothing_behind(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a server, whose files are fetched."""
    client = connect(mlflow_server)
    run_id = client.create_run(client.create_experiment("left behind")).info.run_id
    add_version(write_model(tmp_path / "model", 0, 32), "fdtrain-left", mlflow_server, run_id, step=3)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with registered_folder("models:/fdtrain-left@champion", mlflow_server) as fetched:
        assert tmp_path / "temporary" in fetched.parents
    assert list((tmp_path / "temporary").iterdir()) == []


def test_the_champion_is_fetched_and_compared(registry: dict[str, Any], tmp_path: Path) -> None:
    name = registered_name("meso4", 10)
    assert registered_name("meso4", 10, is_mixed=True) == "fdtrain-meso4-mixed-q10"  # which no router takes
    assert fetch_champion("fdtrain-nobody-q10", registry["uri"], tmp_path / "none") is None
    incumbent = fetch_champion(name, registry["uri"], tmp_path / "incumbent")
    assert incumbent is not None
    assert (incumbent.version, incumbent.folder) == ("1", tmp_path / "incumbent")
    assert open_model(tmp_path / "incumbent")[1]["input"].size == 32
    evaluated(registry, 10, 10, tmp_path / "metrics.json")
    table = pq.read_table(tmp_path / "metrics.parquet")
    index = table.schema.get_field_index("score")
    noise = np.random.default_rng(0).random((2, len(table))).astype(np.float32)
    good = 0.3 * noise[0] + 0.7 * table["label"].to_numpy()
    worse, better = (table.set_column(index, "score", [scores.astype(np.float32)]) for scores in (noise[1], good))
    verdict = judge(incumbent, worse, better)
    assert verdict.is_champion
    assert re.search(
        r"1\.0000 against 0\.\d+ of version 1 on the same samples, difference \+0\.\d+, 95 %", verdict.reason
    )
    verdict = judge(incumbent, better, worse)
    assert not verdict.is_champion
    assert "difference -0." in verdict.reason
    verdict = judge(incumbent, better, better)  # as good is not better
    assert not verdict.is_champion
    assert verdict.reason.startswith("version 1 stays champion, since there is no interval")


def two_versions(registry: dict[str, Any], name: str) -> list[str]:
    """Numbers of two versions of a name that has no champion."""
    runs = [registry["client"].create_run(registry["experiment"]).info.run_id for _ in range(2)]
    return [register(registry["base"] / "q77", name, uri=registry["uri"], run_id=run, step=0, tags={}) for run in runs]


@pytest.mark.parametrize("best", ["1", "2", "neither"])
def test_of_two_champions_at_once_the_better_one_stays(registry: dict[str, Any], best: str) -> None:
    """Both found no champion, and took the alias before one of them looked. Of two as good the first stays."""
    name, verdicts = f"fdtrain-meso4-best-{best}", {}
    versions, both = two_versions(registry, name), threading.Barrier(2)

    class Together:
        def __getattr__(self, method: str) -> Any:
            if method == "search_model_versions":  # by which a version looks for rivals
                both.wait(60)
            return getattr(registry["client"], method)

    def duel(defender: str, attacker: str) -> Verdict:
        return Verdict(attacker == best, f"{attacker} against {defender}", defender)

    def run(version: str) -> None:
        verdicts[version] = crown(Together(), name, version, Verdict(True, "the first version"), duel)

    threads = [threading.Thread(target=run, args=(version,)) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner, loser = ("2", "1") if best == "2" else ("1", "2")
    assert str(registry["client"].get_registered_model(name).aliases["champion"]) == winner
    assert verdicts[winner].is_champion
    assert verdicts[loser] == Verdict(False, f"version {winner} became champion meanwhile: 2 against 1", winner)


def test_a_verdict_that_was_overtaken_is_given_anew(registry: dict[str, Any]) -> None:
    client, name = registry["client"], "fdtrain-meso4-q50"
    one, two = two_versions(registry, name)
    asked: list[tuple[str, str]] = []

    def duel(defender: str, attacker: str) -> Verdict:
        asked.append((defender, attacker))
        return Verdict(len(asked) > 1, "better", defender)

    assert crown(client, name, one, Verdict(True, "the first version"), duel).is_champion
    assert asked == []
    late = crown(client, name, two, Verdict(True, "the first version"), duel)
    assert (late.is_champion, asked) == (False, [(one, two)])
    assert conclude_version(name, two, late, "", uri=registry["uri"]).verdict == late
    assert client.get_registered_model(name).aliases == {"champion": 1, "challenger": 2}
    assert crown(client, name, two, Verdict(True, "the first version"), duel).is_champion
    assert client.get_registered_model(name).aliases["champion"] == 2


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({}, ""),
        ({"data.digest": "b"}, ""),
        ({"data.digest": "b", "data.people": "others"}, "it was trained on other splits"),
        ({"data.digest": "b", "data.people": None}, "it was trained on other splits"),
        ({"data.compression": "c40"}, "it was trained on videos of compression c40, and this model on c23"),
        ({"data.compression": None, "crop": None}, ""),  # by an older release
        ({"crop": {"margin": 1.0}}, r"it was trained on crops of margin 1\.0, and this model of 1\.3"),
        ({"crop": {"margin": 1.3, "library": "libvips 9"}}, ""),
    ],
)
def test_what_makes_models_incomparable(other: dict[str, Any], reason: str) -> None:
    own = {"data.digest": "a", "data.people": "all", "data.compression": "c23", "crop": {"margin": 1.3, "size": 256}}
    assert re.fullmatch(reason + (".*" if reason else ""), incomparable(own | other, own))


def test_a_run_whose_model_cannot_be_exported_is_still_finished(registry: dict[str, Any], tmp_path: Path) -> None:
    client = registry["client"]
    run_id = client.create_run(registry["experiment"]).info.run_id
    client.set_terminated(run_id, "FINISHED")
    folder = write_model(tmp_path / "model", 0, 32)
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        register(folder, "fdtrain-broken", uri=registry["uri"], run_id=run_id, step=0, tags={})
    assert client.get_run(run_id).info.status == "FINISHED"


def test_a_served_model_holds_the_pixels_of_one_image(
    registry: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 32 in a batch, and none of more than it reads; scores are those of the images one by one."""
    import mlflow

    model = mlflow.pyfunc.load_model("models:/fdtrain-meso4-q10@champion").unwrap_python_model()
    large, held, most = np.full((900, 900, 3), 90, np.uint8), [], 0
    read = model.explain.__globals__["decode"]

    def counting(image: Any, place: int) -> tuple[np.ndarray, bytes | None]:
        nonlocal most
        pixels, data = read(image, place)
        held.append(weakref.ref(pixels))
        most = max(most, sum(each() is not None for each in held))
        return pixels, data

    monkeypatch.setitem(model.explain.__globals__, "decode", counting)
    scores = [answer["p_fake"] for answer in model.explain([encode_png(large + place) for place in range(8)])]
    assert most <= 2  # the next one is read before the last one's name is given away
    alone = [model.explain([encode_png(large + place)])[0]["p_fake"] for place in range(8)]
    assert scores == pytest.approx(alone, abs=1e-6)
    huge = io.BytesIO()
    Image.new("L", (4097, 4096)).save(huge, "PNG")
    with pytest.raises(Exception, match="4097x4096 pixels, more than the 16777216 that are read"):
        model.explain([huge.getvalue()])


def encode_png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_a_run_that_was_killed_while_it_registered_does_so_once(registry: dict[str, Any]) -> None:
    client, name = registry["client"], "fdtrain-meso4-q40"
    run_id = client.create_run(registry["experiment"]).info.run_id
    words = {"uri": registry["uri"], "run_id": run_id, "tags": {}}
    numbers = [register(registry["base"] / "q77", name, step=step, **words) for step in (3, 3, 4)]
    assert numbers == ["1", "1", "2"]


def test_a_champion_that_is_broken_stays_and_is_said(
    registry: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training meets one whose files are gone, and then one that it can score: of another network and input size.

    Trained on some methods, it meets the champion on all of them.
    """
    client, name = registry["client"], "fdtrain-meso_inception4-q77"

    def add(digest: str = "") -> Path:
        run_id = client.create_run(registry["experiment"]).info.run_id
        folder = write_model(tmp_path / run_id, 6, 32, digest=digest)
        done = add_version(folder, name, registry["uri"], run_id)
        (kept,) = (registry["base"] / "artifacts" / "models" / _model_id(name, done.version)).rglob("fdtrain")
        return kept

    def train(run: str, **more: Any) -> str:
        settings: dict[str, Any] = more | {
            "model__name": "meso_inception4",
            "train__max_steps": 1,
            "train__global_batch_size": 8,
        }
        settings["tracking__enabled"] = "true"
        assert main(small_training(registry["root"], tmp_path / run, **settings)[1:]) == 0
        return capsys.readouterr().out

    shutil.rmtree(add())
    said = train("broken")
    assert f"registered {name} version 2: challenger (version 1 stays champion, since it can't be loaded: " in said
    assert f"models:/{name}/1: holds no" in said
    add("that of other data")
    assert "version 3 stays champion, since it was trained on other splits" in train("elsewhere")
    add(open_shard_set(registry["root"], 77).manifest.digest)
    # Three pairs in the validation split are too few groups for an interval; both values are there.
    judged: list[set[str]] = []

    def noting(incumbent: Incumbent, *tables: pa.Table) -> Verdict:
        judged.extend(set(table["method"].to_pylist()) for table in tables)
        return judge(incumbent, *tables)

    monkeypatch.setattr(contest, "judge", noting)
    said = train("scored", data__methods="[youtube,FaceSwap]")
    assert judged == [{"youtube", "Deepfakes", "FaceSwap"}] * 2
    assert re.search(
        r"version 6: challenger \(version 5 stays champion, since there is no interval .* 0\.\d+ against", said
    )
    assert client.get_model_version(name, "6").tags["verdict"] in said
    assert not list((tmp_path / "scored").glob(".incumbent"))
    predicted = pq.read_table(tmp_path / "scored" / "predictions" / "val.parquet")
    assert "val, per video" in client.get_model_version(name, "6").description
    assert set(predicted["method"].to_pylist()) == {"youtube", "FaceSwap"}


def _model_id(name: str, version: str) -> str:
    import mlflow

    return mlflow.models.get_model_info(f"models:/{name}/{version}").model_id
