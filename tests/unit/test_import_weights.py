"""Other people's checkpoints: the same outputs as the code that they were made for, and what is refused.

The references are independent: `efficientnet_pytorch`, Keras, and DeepfakeBench's MesoNets written out under the names
of their tensors.
"""

import json
import os
import pickle
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from efficientnet_pytorch import EfficientNet
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from fdtrain.cli import main
from fdtrain.config import UserError
from fdtrain.import_weights import FORMS, import_weights, read
from fdtrain.models import InputSpec, create_model, load_model
from fdtrain.models.state import fit
from tests.heads import with_large_heads
from tests.reference_multi_attention import ReferenceNetwork

SHARED = Path(__file__).parents[3] / "shared" / "data"
SHAPES, MESONET = SHARED / "state_dicts", SHARED / "mesonet"
DEEPFAKEBENCH = ["efficientnetb4", "meso4", "meso4Inception"]
TOLERANCE = 1e-4


def pictures(count: int, side: int) -> Tensor:
    """`[count, 3, side, side]` in -1..1: noise over large squares, for noise alone looks the same to a deep network."""
    generator = torch.Generator().manual_seed(side)
    squares = functional.interpolate(torch.rand(count, 3, 4, 4, generator=generator), (side, side))
    return squares * 1.6 + torch.rand(count, 3, side, side, generator=generator) * 0.4 - 1


def randomise(model: nn.Module, images: Tensor | None = None) -> None:
    """Statistics and scales of normalizations off their defaults, so that none of them could be swapped unseen.

    With images, the statistics are near theirs: those of no image would drown an image's effect on a deep network.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.7, 1.3)
        nn.init.normal_(norm.bias, std=0.1)
        norm.momentum = 1.0
    model.eval()
    if images is not None:
        for norm in norms:
            norm.train()
        with torch.no_grad():
            model(images)
    for norm in norms:
        norm.running_mean += torch.randn_like(norm.running_mean) * 0.1 * norm.running_var.sqrt()
        norm.running_var *= torch.rand_like(norm.running_var) * 0.4 + 1
    model.eval()


@cache
def published_b4(stem: nn.Module | None = None, image_size: int = 380) -> nn.Module:
    """efficientnet_pytorch's B4 with random weights and two classes, DeepfakeBench's with its stem."""
    torch.manual_seed(0)
    model = EfficientNet.from_name("efficientnet-b4", num_classes=2, image_size=image_size)
    if stem is not None:
        model._conv_stem = stem
    randomise(model, pictures(4, 128))
    nn.init.normal_(model._fc.weight, std=1.0)
    return model


def random_tensors(shapes: Path) -> dict[str, Tensor]:
    """A state dict of the names and shapes of a list in ../shared; skips the test where that isn't there."""
    if not shapes.exists():
        pytest.skip(f"needs {shapes.name} of ../shared")
    generator = torch.Generator().manual_seed(0)
    state = {}
    for line in shapes.read_text().splitlines()[1:]:
        name, shape, _ = line.split("\t")
        size = [int(side) for side in shape.strip("()").split(",") if side.strip()]
        state[name] = torch.rand(size, generator=generator) * 0.5 + 0.1
    return state


def close(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std(dim=0).max() > 0.01, "an output that depends on no image"
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


def imported(form: str, state: dict[str, Tensor], folder: Path, name: str | None = None) -> nn.Module:
    torch.save(state, folder / "weights.pth")
    import_weights(form, folder / "weights.pth", folder / "model", name)
    return load_model(folder / "model")


# ---- DeepfakeBench


def test_deepfakebench_b4_gives_the_outputs_of_its_own_code(tmp_path: Path) -> None:
    reference = published_b4(nn.Conv2d(3, 48, kernel_size=3, stride=2, bias=False))
    state = {f"module.backbone.efficientnet.{key}": value for key, value in reference.state_dict().items()}
    for part in ("weight", "bias"):
        state[f"module.backbone.last_layer.{part}"] = state.pop(f"module.backbone.efficientnet._fc.{part}")
    model = imported("deepfakebench", state, tmp_path)
    with torch.inference_mode():
        for size in (256, 224):
            images = pictures(2, size)
            close(model(images), reference(images))


def deepfakebench_meso4(state: dict[str, Tensor], images: Tensor) -> Tensor:
    norms = {"conv1": "bn1", "conv2": "bn1", "conv3": "bn2", "conv4": "bn2"}
    return _dense(state, _shared(state, images, norms))


def deepfakebench_meso_inception4(state: dict[str, Tensor], images: Tensor) -> Tensor:
    for block in (1, 2):

        def convolve(name: str, inputs: Tensor, dilation: int, block: int = block) -> Tensor:
            weight = state[f"backbone.Incption{block}_{name}.weight"]
            padding = dilation * (weight.shape[-1] // 2)
            return functional.conv2d(inputs, weight, padding=padding, dilation=dilation)

        branches = [convolve("conv1", images, 1)]
        for branch in (2, 3, 4):
            branches.append(convolve(f"conv{branch}_2", convolve(f"conv{branch}_1", images, 1), branch - 1))
        images = functional.max_pool2d(_norm(state, f"Incption{block}_bn", torch.cat(branches, dim=1)), 2)
    return _dense(state, _shared(state, images, {"conv1": "bn1", "conv2": "bn1"}))


def _shared(state: dict[str, Tensor], images: Tensor, norms: dict[str, str]) -> Tensor:
    for name, norm in norms.items():
        images = functional.relu(functional.conv2d(images, state[f"backbone.{name}.weight"], padding="same"))
        images = functional.max_pool2d(_norm(state, norm, images), 4 if name == list(norms)[-1] else 2)
    return images


def _norm(state: dict[str, Tensor], name: str, images: Tensor) -> Tensor:
    parts = [state[f"backbone.{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    return functional.batch_norm(images, *parts, eps=1e-5)


def _dense(state: dict[str, Tensor], features: Tensor) -> Tensor:
    hidden = functional.linear(features.flatten(1), state["backbone.fc1.weight"], state["backbone.fc1.bias"])
    hidden = functional.leaky_relu(hidden, 0.1)
    return functional.linear(hidden, state["backbone.fc2.weight"], state["backbone.fc2.bias"])


def deepfakebench_mesonet(inception: bool) -> dict[str, Tensor]:
    """Random weights under DeepfakeBench's names."""
    shapes: dict[str, tuple[int, ...]] = {}
    if inception:
        for block, channels, point in ((1, 3, 1), (2, 11, 2)):
            shapes[f"Incption{block}_conv1.weight"] = (point, channels, 1, 1)
            for branch, width in ((2, 4), (3, 4), (4, 2)):
                shapes[f"Incption{block}_conv{branch}_1.weight"] = (width, channels, 1, 1)
                shapes[f"Incption{block}_conv{branch}_2.weight"] = (width, width, 3, 3)
        shapes |= {"conv1.weight": (16, 12, 5, 5), "conv2.weight": (16, 16, 5, 5)}
        norms = {"Incption1_bn": 11, "Incption2_bn": 12, "bn1": 16}
    else:
        shapes |= {"conv1.weight": (8, 3, 3, 3), "conv2.weight": (8, 8, 5, 5)}
        shapes |= {"conv3.weight": (16, 8, 5, 5), "conv4.weight": (16, 16, 5, 5)}
        norms = {"bn1": 8, "bn2": 16}
    shapes |= {"fc1.weight": (16, 1024), "fc1.bias": (16,), "fc2.weight": (2, 16), "fc2.bias": (2,)}
    torch.manual_seed(2)
    state = {name: torch.randn(shape) / max(1, int(np.prod(shape[1:]))) ** 0.5 for name, shape in shapes.items()}
    for norm, channels in norms.items():
        state |= {f"{norm}.weight": torch.rand(channels) + 0.5, f"{norm}.bias": torch.randn(channels) * 0.1}
        state |= {
            f"{norm}.running_mean": torch.randn(channels) * 0.1,
            f"{norm}.running_var": torch.rand(channels) + 0.5,
        }
        state[f"{norm}.num_batches_tracked"] = torch.tensor(7)
    return {f"backbone.{name}": value for name, value in state.items()}


@pytest.mark.parametrize("inception", [False, True], ids=["meso4", "meso4Inception"])
def test_deepfakebench_mesonets_give_the_outputs_of_their_equations(tmp_path: Path, inception: bool) -> None:
    state = deepfakebench_mesonet(inception)
    model = imported("deepfakebench", state, tmp_path)
    images = pictures(2, 256)
    reference = deepfakebench_meso_inception4 if inception else deepfakebench_meso4
    with torch.inference_mode():
        close(model(images), reference(state, images))


@pytest.mark.parametrize("detector", DEEPFAKEBENCH)
def test_deepfakebench_names_and_shapes_as_published(tmp_path: Path, detector: str) -> None:
    state = random_tensors(SHAPES / f"deepfakebench_{detector}.tsv")
    model = imported("deepfakebench", {f"module.{key}": value for key, value in state.items()}, tmp_path)
    loaded = model.state_dict()
    assert sum(value.numel() for value in loaded.values()) == sum(value.numel() for value in state.values())
    with torch.inference_mode():
        assert model(torch.rand(1, 3, 256, 256)).shape == (1, 2)


# ---- the multi-attentional network


@cache
def multiple_attention() -> dict[str, Tensor]:
    """Random weights under the names of its authors, on efficientnet_pytorch's own B4."""
    backbone = published_b4(image_size=256)
    state = {f"net.{key}": value for key, value in backbone.state_dict().items()}
    convolutions = {"attentions.conv_extract": (160, 160, 3, 3), "texture_enhance.conv_extract": (32, 32, 3, 3)}
    convolutions |= {"texture_enhance.conv0": (128, 32, 5, 5), "texture_enhance.conv_last": (128, 128, 1, 1)}
    convolutions |= {f"texture_enhance.conv{index}": (128, 32 * index, 3, 3) for index in (1, 2, 3)}
    linear = {"projection_local.0": (256, 128), "projection_local.2": (256, 256), "project_final": (256, 1792)}
    linear |= {"ensemble_classifier_fc.0": (256, 512), "ensemble_classifier_fc.2": (2, 256)}
    for name, shape in (convolutions | linear).items():
        scale = 2 / float(np.prod(shape[1:])) ** 0.5  # an image's effect reaches the end
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(shape) * scale, torch.randn(shape[0]) * 0.1
    state["attentions.conv2.weight"] = torch.randn(4, 160, 1, 1) * 0.1
    norms = {"attentions.bn1": 160, "attentions.bn2": 4, "texture_enhance.bn_last": 128}
    norms |= {f"texture_enhance.bn{index}": 128 * index for index in (1, 2, 3, 4)}
    for name, channels in norms.items():
        norm = nn.BatchNorm2d(channels)
        randomise(norm)
        state |= {f"{name}.{key}": value for key, value in norm.state_dict().items()}
    state["attentions.mask"] = functional.pad(torch.ones(1, 1, 20, 20), (2, 2, 2, 2))
    state["auxiliary_loss.feature_centers"] = torch.randn(4, 32)
    state["auxiliary_loss.alpha"] = torch.tensor(0.045)
    state["auxiliary_loss.inner_margin"] = torch.tensor([0.25, -0.75])
    return state


def test_multiple_attention_goes_into_our_network(tmp_path: Path) -> None:
    state = multiple_attention()
    torch.save({"logs": {"epoch": 3}, "state_dict": state}, tmp_path / "mat.pth")
    import_weights("multiple-attention", tmp_path / "mat.pth", tmp_path / "model")
    model: Any = load_model(tmp_path / "model")
    torch.testing.assert_close(model.centers.centers, state["auxiliary_loss.feature_centers"], atol=0, rtol=0)
    torch.testing.assert_close(model.centers.rate, state["auxiliary_loss.alpha"], atol=0, rtol=0)
    card = json.loads((tmp_path / "model" / "model.json").read_text())
    assert card["trained_on"]["imported"]["margins"] == [0.25, -0.75]
    assert (card["name"], card["options"]["maps"], card["options"]["texture_stage"]) == ("multi_attention", 4, "b2")
    images = pictures(2, 256)
    reference = published_b4(image_size=256)
    with torch.inference_mode():
        close(model.backbone_logits(images), reference(images))
        ours, theirs = model.describe(images), straightforward(state, model.backbone).describe(images)
    close(ours.logits, theirs.logits)
    for mine, other in ((ours.maps, theirs.maps), (ours.regions, theirs.regions)):
        close(mine.flatten(1), other.flatten(1))


def straightforward(state: dict[str, Tensor], backbone: nn.Module) -> ReferenceNetwork:
    """The reference with the authors' head on a backbone whose own outputs are compared already."""
    network = ReferenceNetwork("b4", 4, 2).eval()
    network.backbone.load_state_dict(backbone.state_dict())
    layers = [
        ("attentions.conv_extract", network.attention["extract"]),
        ("attentions.bn1", network.attention["norm1"]),
        ("attentions.conv2", network.attention["project"]),
        ("attentions.bn2", network.attention["norm2"]),
        ("texture_enhance.conv_extract", network.texture["extract"]),
        ("texture_enhance.conv0", network.texture["conv0"]),
        ("texture_enhance.bn1", network.texture["norm1"]),
        ("texture_enhance.conv1", network.texture["conv1"]),
        ("texture_enhance.bn2", network.texture["norm2"]),
        ("texture_enhance.conv2", network.texture["conv2"]),
        ("texture_enhance.bn3", network.texture["norm3"]),
        ("texture_enhance.conv3", network.texture["conv3"]),
        ("texture_enhance.bn4", network.texture["norm4"]),
        ("texture_enhance.conv_last", network.texture["conv_last"]),
        ("texture_enhance.bn_last", network.texture["norm_last"]),
        ("projection_local.0", network.local_projection[0]),
        ("projection_local.2", network.local_projection[2]),
        ("project_final", network.global_projection),
        ("ensemble_classifier_fc.0", network.classifier[0]),
        ("ensemble_classifier_fc.2", network.classifier[2]),
    ]
    for name, layer in layers:
        layer.load_state_dict({key: state[f"{name}.{key}"] for key in layer.state_dict()})
    return network


def test_multiple_attention_names_and_shapes_as_published(tmp_path: Path) -> None:
    state = random_tensors(SHAPES / "multiple_attention_mat_b4.tsv")
    assert state.keys() == multiple_attention().keys()
    state["attentions.mask"] = functional.pad(torch.ones(1, 1, 20, 20), (2, 2, 2, 2))
    model = imported("multiple-attention", {"state_dict": state}, tmp_path)
    dropped = sum(state[key].numel() for key in ("attentions.mask", "auxiliary_loss.inner_margin"))
    total = sum(value.numel() for value in state.values())
    assert sum(value.numel() for value in model.state_dict().values()) == total - dropped


def test_another_border_mask_is_refused(tmp_path: Path) -> None:
    state = multiple_attention() | {"attentions.mask": torch.ones(1, 1, 24, 24)}
    with pytest.raises(UserError, match=r"attentions\.mask is not ones with a border of two zeros"):
        imported("multiple-attention", state, tmp_path)


# ---- timm, and the project's B4 against the reference


def test_b4_gives_the_outputs_of_efficientnet_pytorch() -> None:
    """With paddings made for the input's size; those of its default, 380, aren't SAME at 256."""
    state = {key: value for key, value in multiple_attention().items() if key.startswith("net.")}
    reference = published_b4(image_size=256)
    from fdtrain.models.imports.base import b4_names

    model = create_model("efficientnet_b4").eval()
    fit(model, {ours: state[theirs] for theirs, ours in b4_names("net.", "", "net._fc").items()}, "reference")
    images = pictures(2, 256)
    with torch.inference_mode():
        close(model(images), reference(images))


def test_a_detector_of_timms(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = with_large_heads(create_model("tf_efficientnet_lite0")).eval()
    save_file(model.state_dict(), tmp_path / "lite.safetensors")
    import_weights("timm", tmp_path / "lite.safetensors", tmp_path / "model", "tf_efficientnet_lite0")
    images = pictures(2, 64)
    with torch.inference_mode():
        close(load_model(tmp_path / "model")(images), model(images))
    with pytest.raises(UserError, match=r"can't say which network it holds, .* name it with --model"):
        import_weights("timm", tmp_path / "lite.safetensors", tmp_path / "other")
    save_file(model.state_dict() | {"classifier.weight": torch.ones(1000, 1280)}, tmp_path / "lite.safetensors")
    with pytest.raises(UserError, match=r"1000 classes, where a detector has 2; .* model\.pretrained"):
        import_weights("timm", tmp_path / "lite.safetensors", tmp_path / "other", "tf_efficientnet_lite0")


# ---- MesoNet


@pytest.fixture(scope="module")
def keras() -> ModuleType:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    assert keras.backend.backend() == "torch"
    return keras


def published_mesonet(keras: ModuleType, inception: bool) -> Any:
    """Afchar et al. 2018 and its released code, but for the sigmoid at the end: its output is z."""
    layers = keras.layers

    def convolve(inputs: Any, width: int, kernel: int, dilation: int = 1) -> Any:
        layer = layers.Conv2D(width, kernel, dilation_rate=dilation, padding="same", activation="relu")
        return layer(inputs)

    def pooled(inputs: Any, pool: int = 2) -> Any:
        return layers.MaxPooling2D(pool, padding="same")(layers.BatchNormalization()(inputs))

    def branches(inputs: Any, a: int, b: int, c: int, d: int) -> Any:
        long = [convolve(convolve(inputs, width, 1), width, 3, rate) for rate, width in ((1, b), (2, c), (3, d))]
        return layers.Concatenate()([convolve(inputs, a, 1), *long])

    inputs = features = keras.Input((256, 256, 3))
    if inception:
        features = pooled(branches(features, 1, 4, 4, 2))
        features = pooled(branches(features, 2, 4, 4, 2))
    else:
        features = pooled(convolve(features, 8, 3))
        features = pooled(convolve(features, 8, 5))
    features = pooled(convolve(features, 16, 5))
    features = layers.Flatten()(pooled(convolve(features, 16, 5), 4))
    hidden = layers.Dense(16)(layers.Dropout(0.5)(features))
    hidden = layers.Dropout(0.5)(layers.LeakyReLU(negative_slope=0.1)(hidden))
    return keras.Model(inputs, layers.Dense(1)(hidden))


def z_of_keras(model: Any, images: Tensor) -> Tensor:
    return torch.from_numpy(model.predict(images.permute(0, 2, 3, 1).numpy(), verbose=0))[:, 0]


@pytest.mark.parametrize("inception", [False, True], ids=["meso4", "meso_inception4"])
def test_mesonet_as_keras_writes_it(keras: ModuleType, tmp_path: Path, inception: bool) -> None:
    reference = published_mesonet(keras, inception)
    random = np.random.default_rng(0)
    for layer in reference.layers:
        layer.set_weights(
            [
                random.uniform(0.5, 1.5, weight.shape)
                if "variance" in variable.path or "gamma" in variable.path
                else weight + random.normal(0, 0.1, weight.shape)
                for variable, weight in zip(layer.weights, layer.get_weights(), strict=True)
            ]
        )
    whole, weights = tmp_path / "whole.h5", tmp_path / "weights.h5"
    reference.save(whole)
    with h5py.File(whole) as source, h5py.File(weights, "w") as target:  # as Keras 2 saved weights alone
        group = source["model_weights"]
        target.attrs.update(group.attrs)
        for name in group:
            source.copy(group[name], target, name)
    images = pictures(3, 256) / 2 + 0.5
    expected = z_of_keras(reference, images)
    for file in (whole, weights):
        import_weights("mesonet", file, tmp_path / f"model-{file.stem}")
        with torch.inference_mode():
            logits = load_model(tmp_path / f"model-{file.stem}")(images)
        close(logits[:, 0], expected)
        assert (logits[:, 1] == 0).all()


@pytest.mark.parametrize(("name", "inception"), [("Meso4_DF.h5", False), ("MesoInception_DF.h5", True)])
def test_mesonet_as_published(keras: ModuleType, tmp_path: Path, name: str, inception: bool) -> None:
    if not (MESONET / name).exists():
        pytest.skip(f"needs {name} of ../shared")
    reference = published_mesonet(keras, inception)
    reference.load_weights(MESONET / name)
    import_weights("mesonet", MESONET / name, tmp_path / "model")
    torch.manual_seed(0)
    images = pictures(3, 256) / 2 + 0.5
    with torch.inference_mode():
        close(load_model(tmp_path / "model")(images)[:, 0], z_of_keras(reference, images))


# ---- the command, and what it refuses


def test_the_command_writes_a_model_that_says_where_it_came_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "meso4.pth", tmp_path / "models" / "meso4"
    torch.save(deepfakebench_mesonet(False), file)
    assert main(["import-weights", "--from", "deepfakebench", str(file), "--out", str(out)]) == 0
    card = json.loads((out / "model.json").read_text())
    source = card["trained_on"]["imported"]
    assert (source["format"], source["file"], len(source["sha256"])) == ("deepfakebench", "meso4.pth", 64)
    assert (card["name"], card["options"]["variant"]) == ("meso4", "deepfakebench")
    assert card["input"] == {"size": 256, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    assert {path.name for path in out.iterdir()} == {"model.json", "model.safetensors"}
    assert capsys.readouterr().out.startswith(f"{out}: meso4 with ")

    assert main(["import-weights", "--from", "deepfakebench", str(file), "--out", str(out)]) == 2
    assert f"out: {out} exists and isn't an empty folder; name another" in capsys.readouterr().err
    assert main(["import-weights", "--from", "deepfake", str(file), "--out", "x"]) == 2
    assert "'deepfakebench'" in capsys.readouterr().err
    assert main(["import-weights", "--from", "deepfakebench", "--out", "x"]) == 2
    assert "file" in capsys.readouterr().err


@pytest.mark.parametrize("form", FORMS)
def test_the_command_knows_every_format(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model"
    command = [
        "import-weights",
        "--from",
        form,
        str(tmp_path / "nowhere"),
        "--out",
        str(out),
        "--model",
        "efficientnet_b0",
    ]
    assert main(command) == 2
    assert capsys.readouterr().err.endswith("nowhere: no such file\n")
    assert not out.exists()


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    imported("deepfakebench", deepfakebench_mesonet(True), tmp_path)


def test_names_left_over_and_missing_are_listed(tmp_path: Path) -> None:
    state = deepfakebench_mesonet(False)
    state["backbone.extra.weight"] = state.pop("backbone.fc2.bias")
    with pytest.raises(UserError) as caught:
        imported("deepfakebench", state, tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'weights.pth'}: not the network that it seems to be: 1 left over: backbone.extra.weight; "
        "1 missing: backbone.fc2.bias"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pth"]


@pytest.mark.parametrize("form", FORMS)
def test_a_file_of_something_else_is_refused(tmp_path: Path, form: str) -> None:
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"weights\.pth: "):
        import_weights(
            form, tmp_path / "weights.pth", tmp_path / "model", "efficientnet_b0" if form == "timm" else None
        )


def test_another_network_than_the_named_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds meso4, not efficientnet_b4; leave --model out"):
        imported("deepfakebench", deepfakebench_mesonet(False), tmp_path, "efficientnet_b4")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".h5"])
@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_damaged_file_is_named(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"weights{suffix}"
    form = "mesonet" if suffix == ".h5" else "deepfakebench"
    state = deepfakebench_mesonet(False)
    if suffix == ".pth":
        torch.save(state, path)
    elif suffix == ".safetensors":
        save_file(state, path)
    else:
        with h5py.File(path, "w") as file:
            file.create_dataset("data", data=np.zeros(1000))
    content = path.read_bytes()
    path.write_bytes({"truncated": content[:-500], "garbage": b"no weights at all" * 99, "empty": b""}[damage])
    with pytest.raises(UserError, match=rf"weights\{suffix}: .*(damaged|not readable)") as caught:
        import_weights(form, path, tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


class _Code:
    """Something that a pickle would run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("plain", [False, True], ids=["torch", "pickle"])
def test_a_file_that_needs_unpickling_is_refused(tmp_path: Path, plain: bool, recwarn: pytest.WarningsRecorder) -> None:
    path, mark = tmp_path / "weights.pth", tmp_path / "ran"
    content = deepfakebench_mesonet(False) | {"code": _Code(mark)}
    if plain:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=r"weights\.pth: refused, since unpickling it can run code") as caught:
        import_weights("deepfakebench", path, tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert not mark.exists()
    assert not recwarn.list  # the refusal is the only line


def test_an_archive_with_a_damaged_directory_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(deepfakebench_mesonet(False), path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"PK\x01\x02", b"PK\x00\x00"))  # the entries of its directory
    with pytest.raises(UserError, match=r"weights\.pth: damaged \(.*\); fetch it again") as caught:
        import_weights("deepfakebench", path, tmp_path / "model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["TorchScript", "torch.export"])
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_a_program_is_refused_as_one(tmp_path: Path, kind: str, recwarn: pytest.WarningsRecorder) -> None:
    path, network = tmp_path / "weights.pth", nn.Linear(2, 2)
    if kind == "TorchScript":
        torch.jit.script(network).save(path)
    else:
        program = torch.export.export(network, (torch.ones(1, 2),))
        torch.export.save(program, path.with_suffix(".pt2"))
        path.with_suffix(".pt2").rename(path)
    recwarn.clear()
    with pytest.raises(UserError) as caught:
        import_weights("deepfakebench", path, tmp_path / "model")
    assert str(caught.value) == (
        f"{path}: refused, since it holds a program ({kind}), not weights alone; where you trust it, load it elsewhere "
        "and save its state dict alone, as safetensors"
    )
    assert not recwarn.list


def test_a_checkpoint_of_other_things_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": [1, 2]}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"holds no state dict: no tensors are epoch, model; save the state dict alone"):
        import_weights("deepfakebench", tmp_path / "weights.pth", tmp_path / "model")


def test_imported_models_take_the_input_that_they_were_trained_on(tmp_path: Path) -> None:
    torch.save(multiple_attention(), tmp_path / "mat.pth")
    assert read("multiple-attention", tmp_path / "mat.pth").spec == InputSpec(380)
    torch.save(deepfakebench_mesonet(True), tmp_path / "meso.pth")
    assert read("deepfakebench", tmp_path / "meso.pth").spec == InputSpec(256)
