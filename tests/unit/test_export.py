"""Models on their way out: `python -m fdtrain export` and the registry, and back in from there."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fdtrain.cli import main
from fdtrain.config import UserError
from fdtrain.models import InputSpec, create_model, load_model, save_model
from fdtrain.models.mesonet import MesoNet
from fdtrain.models.weights import CARD_KEY, open_model
from fdtrain.registry import Verdict
from fdtrain.tracking import connect
from tests.heads import with_large_heads
from tests.versions import add_version

NAME = "fdtrain-meso_inception4-q77"
CHAMPION = f"models:/{NAME}@champion"
SPEC = InputSpec(64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear")
MODELS = [
    ("meso4", {"image_size": 64}),
    ("meso_inception4", {"image_size": 64, "outputs": 2}),
    ("multi_attention", {"backbone": "efficientnet_b0"}),  # an EfficientNet in it
]


def write_model(folder: Path, name: str, options: dict) -> Path:
    torch.manual_seed(0)
    model = with_large_heads(create_model(name, **options))
    folder.mkdir()
    save_model(folder, model.state_dict(), name=name, options=options, spec=SPEC, facts={})
    return folder


@pytest.mark.parametrize(("name", "options"), MODELS, ids=[name for name, _ in MODELS])
def test_a_program_gives_the_logits_of_the_model_for_any_batch(tmp_path: Path, name: str, options: dict) -> None:
    folder, out = write_model(tmp_path / "model", name, options), tmp_path / "model.pt2"
    assert main(["export", "--model", str(folder), "--out", str(out)]) == 0
    files = {"model.json": ""}
    program = torch.export.load(out, extra_files=files).module()
    assert json.loads(files["model.json"])["input"]["size"] == 64
    model = load_model(folder)
    with torch.no_grad():
        for size in (1, 3, 8):
            images = torch.randn(size, 3, 64, 64)
            torch.testing.assert_close(program(images), model(images), rtol=1e-4, atol=1e-4)
        # Export asserts the dtype and the device of whatever is cast; under autocast, or elsewhere, they are others.
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(program(images), model(images), rtol=0, atol=2e-2)
        assert program.to("meta")(images.to("meta")).device.type == "meta"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_name_that_does_not_do_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_model(tmp_path / "model", "meso4", {"image_size": 64})
    assert main(["export", "--model", str(folder), "--out", str(tmp_path / "model.onnx")]) == 2
    assert "must end in .pt2, the form of torch.export" in capsys.readouterr().err


def test_the_folder_is_made(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "meso4", {"image_size": 64})
    assert main(["export", "--model", str(folder), "--out", str(tmp_path / "new" / "folder" / "model.pt2")]) == 0
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["model.pt2"]


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_model(tmp_path / "model", "meso4", {"image_size": 64})
    (tmp_path / "file").touch()
    assert main(["export", "--model", str(folder), "--out", str(tmp_path / "file" / "model.pt2")]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_a_model_that_is_not_there_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--model", str(tmp_path / "none"), "--out", str(tmp_path / "model.pt2")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --- registered models


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A registry of its own with a small network, its folder, and the URI of the tracking database."""
    from mlflow import MlflowClient

    base = tmp_path_factory.mktemp("regis#try")  # a sign that has a meaning in a URI
    uri = f"sqlite:///{base / 'mlflow.db'}"
    folder = write_model(base / "model", "meso_inception4", {"image_size": 64})
    client: MlflowClient = connect(uri)
    experiment = client.create_experiment("registered", artifact_location=str(base / "artifacts"))
    run_id = client.create_run(experiment).info.run_id
    done = add_version(folder, NAME, uri, run_id, tags={"data.digest": "x"}, text="# it")
    assert (done.name, done.version, done.verdict) == (NAME, "1", Verdict(True, "the first version"))
    return {"folder": folder, "uri": uri, "run_id": run_id, "client": client, "artifacts": base / "artifacts"}


@pytest.fixture
def registry(registered: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registered["uri"])
    return registered


def test_a_registered_model_is_the_network_itself(registry: dict[str, Any]) -> None:
    (logged,) = registry["client"].get_run(registry["run_id"]).outputs.model_outputs
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        expected = load_model(registry["folder"])(images)
        for place in (
            CHAMPION,
            f"models:/{NAME}/1",
            f"models:/{logged.model_id}",
            f"runs:/{registry['run_id']}/model",
        ):
            model, card = open_model(place)
            assert isinstance(model, MesoNet)
            assert not model.training
            assert (card["name"], card["input"]) == ("meso_inception4", SPEC)
            torch.testing.assert_close(model(images), expected, rtol=0, atol=0)


def test_a_registered_program_runs_without_the_project(registry: dict[str, Any]) -> None:
    import mlflow

    mlflow.set_tracking_uri(registry["uri"])
    program = mlflow.pytorch.load_model(CHAMPION)
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(program(images), load_model(registry["folder"])(images), rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            assert program(images).isfinite().all()


def test_export_and_figures_take_a_registered_model(registry: dict[str, Any], tmp_path: Path, shard_root: Path) -> None:
    assert main(["export", "--model", CHAMPION, "--out", str(tmp_path / "model.pt2")]) == 0
    assert (tmp_path / "model.pt2").exists()
    words = ["--data.root", str(shard_root), "--data.quality", "77", "--samples", "2", "--points", "12"]
    assert main(["figures", "--model", CHAMPION, *words, "--out", str(tmp_path / "figures")]) == 0
    names = {"figures.json", "gradcam.png", "tsne.csv", "tsne.png"}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == names


class _Code:
    """Something that a pickle would run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_a_pickle_in_the_registry_is_never_run(registry: dict[str, Any], tmp_path: Path) -> None:
    import mlflow

    mlflow.set_tracking_uri(registry["uri"])
    mark, card = tmp_path / "ran", json.loads((registry["folder"] / "model.json").read_bytes())

    def logged(metadata: dict[str, Any] | None) -> tuple[str, Path]:
        with mlflow.start_run(run_id=registry["run_id"]):
            options: dict[str, Any] = {"serialization_format": "pickle", "pip_requirements": ["torch"]}
            done = mlflow.pytorch.log_model(torch.nn.Linear(2, 2), name="other", metadata=metadata, **options)
        (pickled,) = (registry["artifacts"] / "models" / done.model_id).rglob("model.pth")
        torch.save(_Code(mark), pickled)
        return done.model_uri, pickled.parents[1]

    place, _ = logged(None)
    with pytest.raises(UserError, match=r"^models:/m-\w+: not logged by fdtrain"):
        open_model(place)
    place, folder = logged({CARD_KEY: card})
    with pytest.raises(UserError, match=r"^models:/m-\w+: holds no folder fdtrain") as caught:
        open_model(place)
    assert "\n" not in str(caught.value)
    (folder / "fdtrain").mkdir()
    without_hash = {key: value for key, value in card.items() if key != "sha256"}
    (folder / "fdtrain" / "model.json").write_text(json.dumps(without_hash))
    torch.save(_Code(mark), folder / "fdtrain" / "model.safetensors")
    with pytest.raises(UserError, match=r"^models:/m-\w+: model\.safetensors: not loadable as meso_inception4"):
        open_model(place)
    assert not mark.exists()


@pytest.mark.parametrize("place", ["models:/nothing@champion", "models:/nothing/1", f"runs:/{'0' * 32}/model"])
def test_a_registered_model_that_is_not_there_is_said_in_one_line(registry: dict[str, Any], place: str) -> None:
    with pytest.raises(UserError, match=rf"^{place}: .*MLFLOW_TRACKING_URI\)$") as caught:
        open_model(place)
    assert "\n" not in str(caught.value)
