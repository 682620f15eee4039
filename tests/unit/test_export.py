"""`python -m fdtrain export`: a program that runs without the project and gives the model's logits."""

import json
from pathlib import Path

import pytest
import torch

from fdtrain.cli import main
from fdtrain.models import InputSpec, create_model, load_model, save_model

SPEC = InputSpec(64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear")
MODELS = [
    ("meso4", {"image_size": 64}),
    ("meso_inception4", {"image_size": 64, "outputs": 2}),
    ("efficientnet_b0", {}),
    ("multi_attention", {"backbone": "efficientnet_b0"}),
]


def write_model(folder: Path, name: str, options: dict) -> Path:
    torch.manual_seed(0)
    model = create_model(name, **options)
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
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("model.onnx", "must end in .pt2, the form of torch.export"),
        ("missing/model.pt2", "no such folder; make it first"),
    ],
)
def test_a_name_that_does_not_do_is_said(
    tmp_path: Path, out: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_model(tmp_path / "model", "meso4", {"image_size": 64})
    assert main(["export", "--model", str(folder), "--out", str(tmp_path / out)]) == 2
    assert message in capsys.readouterr().err


def test_a_model_that_is_not_there_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--model", str(tmp_path / "none"), "--out", str(tmp_path / "model.pt2")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
