"""The detectors, and a model as a folder."""

from pathlib import Path

import pytest
import torch

from fdtrain.config import UserError
from fdtrain.models import InputSpec, create_model, input_spec, load_model, save_model


def test_meso4_is_the_published_network() -> None:
    model = create_model("meso4").eval()
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trainable == 27_977  # Afchar et al. 2018, section III.A
    logits = model(torch.rand(2, 3, 256, 256))
    assert logits.shape == (2, 2)
    assert (logits[:, 1] == 0).all()
    torch.testing.assert_close(logits.softmax(1)[:, 0], logits[:, 0].sigmoid())


def test_efficientnet_b4_is_the_tensorflow_form() -> None:
    model = create_model("efficientnet_b4").eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == 17_552_202
    assert {module.eps for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)} == {1e-3}
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 2)
    assert input_spec("efficientnet_b4") == InputSpec(380, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")


def test_an_option_that_a_model_lacks_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.drop_path_rate: meso4 has no such option"):
        create_model("meso4", drop_path_rate=0.1)
    with pytest.raises(UserError, match="multiples of 32"):
        create_model("meso4", image_size=100)


def test_a_model_folder_gives_the_model_back(tmp_path: Path) -> None:
    model = create_model("meso4", image_size=64).eval()
    spec = InputSpec(64, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear")
    options = {"image_size": 64, "drop_rate": None}
    save_model(tmp_path, model.state_dict(), name="meso4", options=options, spec=spec, facts={"quality": 77})
    images = torch.rand(3, 3, 64, 64)
    torch.testing.assert_close(load_model(tmp_path)(images), model(images), rtol=0, atol=0)


@pytest.mark.parametrize("damage", ["model.json", "model.safetensors"])
def test_a_damaged_model_folder_is_named(tmp_path: Path, damage: str) -> None:
    model = create_model("meso4", image_size=64)
    save_model(tmp_path, model.state_dict(), name="meso4", options={"image_size": 64}, spec=InputSpec(64), facts={})
    path = tmp_path / damage
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=damage.replace(".", r"\.")):
        load_model(tmp_path)


def test_no_model_at_all_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(UserError, match="neither a run, a checkpoint nor a model"):
        load_model(tmp_path)
