"""EfficientNets: names and what they stand for, padding, regularization, and weights to begin with."""

import time
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import Conv2dSame, DropPath
from torch import nn

from fdtrain.config import UserError
from fdtrain.models import InputSpec, create_model, input_spec, save_model
from fdtrain.models.efficientnet import EFFICIENTNETS
from fdtrain.models.fast import DepthwiseSame

# Table 2 of the project's report.
SIZES = (224, 240, 260, 300, 380, 456, 528, 600, 672, 800)
DROP_RATES = (0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5, 0.5, 0.5)
NAMES = [*(f"efficientnet_b{scale}" for scale in range(9)), "efficientnet_l2"]


def test_sizes_and_dropouts_are_those_of_the_report() -> None:
    assert [(EFFICIENTNETS[name].size, EFFICIENTNETS[name].drop_rate) for name in NAMES] == list(
        zip(SIZES, DROP_RATES, strict=True)
    )


@pytest.mark.parametrize("name", EFFICIENTNETS)
def test_own_names_agree_with_timm_about_weights_and_input(name: str) -> None:
    known = EFFICIENTNETS[name]
    assert known.timm_name in timm.list_pretrained(f"tf_{name}.*")
    facts = timm.get_pretrained_cfg(known.timm_name)
    size = (facts.test_input_size or facts.input_size)[-1]
    assert facts.num_classes == 1000
    assert input_spec(name) == InputSpec(size, facts.mean, facts.std, facts.interpolation)


def test_the_first_name_is_padded_as_in_tensorflow_and_the_prefixed_one_as_in_torch() -> None:
    ours, timms = create_model("efficientnet_b0"), create_model("timm/efficientnet_b0")
    assert sum(isinstance(module, Conv2dSame | DepthwiseSame) for module in ours.modules()) == 5
    assert not any(isinstance(module, Conv2dSame | DepthwiseSame) for module in timms.modules())
    assert ours.drop_rate == 0.2
    assert input_spec("efficientnet_b0") == InputSpec(224)
    assert input_spec("timm/efficientnet_b0").mean == (0.485, 0.456, 0.406)
    assert input_spec("tf_efficientnet_b4.ns_jft_in1k").mean == (0.485, 0.456, 0.406)
    assert input_spec("tf_efficientnetv2_b0") == InputSpec(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic")


def test_a_network_under_timms_name() -> None:
    model = create_model("tf_efficientnet_lite0").eval()
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 2)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("tf_efficientnet_b4", 0.4),
        ("tf_efficientnet_b1.ns_jft_in1k", 0.2),
        ("timm/efficientnet_b2", 0.3),
        ("tf_efficientnet_lite0", 0.0),  # not among those that have a rate of their own
    ],
)
def test_a_networks_dropout_does_not_depend_on_the_name_that_it_goes_by(name: str, rate: float) -> None:
    with torch.device("meta"):
        assert create_model(name).drop_rate == rate
        assert create_model(name, drop_rate=0.15).drop_rate == 0.15


def test_dropout_and_drop_path_are_set() -> None:
    model = create_model("efficientnet_b0", drop_rate=0.35, drop_path_rate=0.2)
    assert model.drop_rate == 0.35
    rates = [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]
    assert 0.15 < max(rates) < 0.2  # of 16 blocks, the last
    assert not any(isinstance(module, DropPath) for module in create_model("efficientnet_b0").modules())
    # Dropped features change from pass to pass, and the classifier's dropout alone is enough for that.
    torch.manual_seed(0)
    model = create_model("efficientnet_b0")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    images = torch.rand(2, 3, 64, 64)
    assert not torch.equal(model(images), model(images))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("efficientnet_b9", r"'efficientnet_b9' is unknown; did you mean efficientnet_b\d\?"),
        ("eficientnet_b4", r"'eficientnet_b4' is unknown; did you mean efficientnet_b4\?"),
        ("timm/efficientnet_bb0", r"'timm/efficientnet_bb0' is unknown; did you mean timm/efficientnet_b0\?"),
        ("tf_efficientnet_lite9", r"is unknown; did you mean tf_efficientnet_lite\d\?"),
        ("efficientnet_b0.ra_in1k", r"two networks; write tf_efficientnet_b0.ra_in1k .* timm/efficientnet_b0.ra_in1k"),
        ("tf_efficientnet_b8.aa_in1k", r"timm has no such weights; it has ap_in1k, ra_in1k"),
    ],
)
def test_an_unknown_name_gives_the_nearest(name: str, message: str) -> None:
    for function in (create_model, input_spec):
        with pytest.raises(UserError, match=r"model\.name: .*" + message):
            function(name)


def test_gradients_reach_every_parameter_and_odd_sizes_work() -> None:
    torch.manual_seed(0)
    model = create_model("efficientnet_b0", drop_rate=0.0)
    logits = model(torch.rand(4, 3, 97, 131))
    assert logits.shape == (4, 2)
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1, 0])).backward()
    assert [key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_pretrained_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub's client by itself would try again for most of a minute."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"tf_efficientnet_b0.ap_in1k \(http://127.0.0.1:9: Connection refused"):
        create_model("efficientnet_b0", pretrained=True)
    assert time.monotonic() - began < 10
    with pytest.raises(UserError, match=r"could not get the weights of efficientnet_b6 \(No pretrained weights exist"):
        create_model("timm/efficientnet_b6", pretrained=True)


@pytest.fixture(scope="module")
def b0() -> nn.Module:
    torch.manual_seed(1)
    return create_model("efficientnet_b0").eval()


@pytest.fixture
def folder(tmp_path: Path, b0: nn.Module) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    save_model(path, b0.state_dict(), name="efficientnet_b0", options={}, spec=InputSpec(256), facts={})
    return path


def test_weights_of_a_folder_or_a_file_to_begin_with(folder: Path, b0: nn.Module, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "best").mkdir(parents=True)
    for file in folder.iterdir():
        (run / "best" / file.name).write_bytes(file.read_bytes())
    file = tmp_path / "weights.pth"
    # As DataParallel names them, in a checkpoint, without the counters that old files lack.
    state = {f"module.{key}": value for key, value in b0.state_dict().items() if not key.endswith("batches_tracked")}
    torch.save({"epoch": 3, "state_dict": state}, file)
    images = torch.rand(2, 3, 64, 64)
    for place in (folder, run, file, folder / "model.safetensors"):
        model = create_model("efficientnet_b0", pretrained=str(place)).eval()
        torch.testing.assert_close(model(images), b0(images), rtol=0, atol=0)


def test_averaged_weights_are_taken_where_there_are_any(folder: Path, b0: nn.Module) -> None:
    averaged = {key: value + 1 if key == "classifier.bias" else value for key, value in b0.state_dict().items()}
    save_file(averaged, folder / "ema.safetensors")
    model = create_model("efficientnet_b0", pretrained=str(folder))
    torch.testing.assert_close(model.classifier.bias, averaged["classifier.bias"], rtol=0, atol=0)


def test_a_classifier_of_other_classes_is_left_out_and_noted(
    folder: Path, b0: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    save_file(state | {"classifier.weight": torch.ones(1000, 1280), "classifier.bias": torch.ones(1000)}, path)
    model = create_model("efficientnet_b0", pretrained=str(path))
    torch.testing.assert_close(model.conv_stem.weight, b0.conv_stem.weight, rtol=0, atol=0)
    assert model.classifier.weight.shape == (2, 1280)
    assert "classifier.weight, classifier.bias start anew" in capsys.readouterr().out


def test_another_normalization_is_noted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create_model("tf_efficientnet_b0.ns_jft_in1k", pretrained=str(folder))
    assert "was trained with mean (0.5, 0.5, 0.5)" in capsys.readouterr().out


def test_weights_that_do_not_fit_are_named_on_both_sides(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    state["stem.weight"] = state.pop("conv_stem.weight")
    state["bn1.weight"] = torch.ones(7)
    save_file(state, path)
    with pytest.raises(UserError) as caught:
        create_model("efficientnet_b0", pretrained=str(path))
    assert str(caught.value) == (
        f"model.pretrained: {path}: doesn't fit the network: 1 left over: stem.weight; 1 missing: conv_stem.weight; "
        "1 of another shape: bn1.weight 7 for 32"
    )


def test_places_that_hold_no_such_weights(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.pretrained: .*nowhere: no such file or folder"):
        create_model("efficientnet_b0", pretrained=str(tmp_path / "nowhere"))
    for other in ("efficientnet_b1", "timm/efficientnet_b0"):
        with pytest.raises(UserError, match=r"model\.pretrained: .*model: holds efficientnet_b0, another network"):
            create_model(other, pretrained=str(folder))
    b4 = tmp_path / "b4"
    b4.mkdir()
    options = {"variant": "deepfakebench"}
    save_model(b4, {"x": torch.zeros(1)}, name="efficientnet_b4", options=options, spec=InputSpec(256), facts={})
    with pytest.raises(UserError, match=r"holds efficientnet_b4, variant deepfakebench, another network"):
        create_model("efficientnet_b4", pretrained=str(b4))
