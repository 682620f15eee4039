"""The detectors, and a model as a folder."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fdtrain.config import UserError
from fdtrain.models import InputSpec, cam_layer, create_model, input_spec, load_model, model_names, save_model
from fdtrain.models.registered import registered_folder
from tests.heads import heads_of

MESONETS = ["meso4", "meso_inception4"]


@pytest.mark.parametrize(("name", "parameters"), [("meso4", 27_977), ("meso_inception4", 28_615)])
def test_mesonets_are_the_published_networks(name: str, parameters: int) -> None:
    model = create_model(name).eval()
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trainable == parameters  # Afchar et al. 2018, sections III.A and III.B
    assert input_spec(name) == InputSpec(256, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear")
    logits = model(torch.rand(2, 3, 256, 256))
    assert logits.shape == (2, 2)
    assert (logits[:, 1] == 0).all()
    torch.testing.assert_close(logits.softmax(1)[:, 0], logits[:, 0].sigmoid())


def test_meso4_keeps_the_names_that_older_run_folders_have() -> None:
    convolutions = [f"features.{index}" for index in (0, 4, 8, 12)]
    layers = {name.rpartition(".")[0] for name in create_model("meso4").state_dict()}
    assert layers == {*convolutions, *(f"features.{index}" for index in (2, 6, 10, 14)), "classifier.2", "classifier.5"}


@pytest.mark.parametrize("options", [{"outputs": 2}, {"variant": "deepfakebench"}], ids=str)
@pytest.mark.parametrize("name", MESONETS)
def test_mesonets_with_two_classes(name: str, options: dict[str, object]) -> None:
    logits = create_model(name, image_size=64, **options).eval()(torch.rand(2, 3, 64, 64))
    assert logits.shape == (2, 2)
    assert (logits != 0).all()


@pytest.mark.parametrize("options", [{}, {"outputs": 2}, {"variant": "deepfakebench"}], ids=str)
@pytest.mark.parametrize("name", MESONETS)
def test_gradients_reach_every_parameter_of_the_mesonets(name: str, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = create_model(name, image_size=64, drop_rate=0.0, **options)
    # Of both signs: the inception's first branch is a single ReLU channel, which pixels of one sign may leave at zero.
    nn.functional.cross_entropy(model(torch.randn(8, 3, 64, 64)), torch.arange(8) % 2).backward()
    assert [key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_the_variant_shares_its_normalizations() -> None:
    """DeepfakeBench's Meso4 has 4 convolutions and 2 normalizations, its MesoInception4 16 and 3; none has a bias."""
    for name, convolutions, norms in (("meso4", 4, 2), ("meso_inception4", 16, 3)):
        model = create_model(name, variant="deepfakebench")
        found = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        assert len(found) == convolutions
        assert all(module.bias is None for module in found)
        assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == norms
        assert input_spec(name, "deepfakebench") == InputSpec(256)


def test_efficientnet_b4_is_the_tensorflow_form() -> None:
    model = create_model("efficientnet_b4").eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == 17_552_202
    assert {module.eps for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)} == {1e-3}
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 2)
    assert input_spec("efficientnet_b4") == InputSpec(380, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")


# --- new heads

HEADS: dict[str, tuple[str, dict[str, object]]] = {
    "lite0": ("tf_efficientnet_lite0", {}),
    "b0": ("efficientnet_b0", {}),
    "b4": ("efficientnet_b4", {}),
    "b4-deepfakebench": ("efficientnet_b4", {"variant": "deepfakebench"}),
    "v2-s": ("efficientnetv2_s", {}),
    **{
        f"{name}-{'-'.join(map(str, options.values()))}": (name, options)
        for name in MESONETS
        for options in ({"outputs": 1}, {"outputs": 2}, {"variant": "deepfakebench"})
    },
    "multi-attention": ("multi_attention", {"backbone": "efficientnet_b0"}),
}


def rescale(inputs: Tensor, rms: float) -> Tensor:
    return inputs * (rms / inputs.square().mean().sqrt())


@pytest.mark.parametrize(("name", "options"), HEADS.values(), ids=HEADS)
def test_the_first_loss_of_a_new_head_is_that_of_a_guess(name: str, options: dict[str, object]) -> None:
    """Whatever the share of fakes, on a random backbone and on one whose features are at least as large as ImageNet's.

    The root mean square of EfficientNet-Lite0's pretrained features is 0.25 to 0.46 on these images.
    """
    torch.manual_seed(0)
    model = create_model(name, image_size=64, **options)
    images = torch.randn(4, 3, 64, 64)
    guess = math.log(2)
    for head, logits_of in zip(heads_of(model), (model, getattr(model, "backbone", None)), strict=False):
        for rms in (None, 1.0):
            hook = head.register_forward_pre_hook(lambda _, inputs, rms=rms: rescale(*inputs, rms) if rms else None)
            for training in (True, False):
                model.train(training)
                with torch.no_grad():
                    logits = logits_of(images)
                assert logits.std() > 0  # drawn, so that the layers before it learn from the first step on
                for label in (0, 1):
                    loss = nn.functional.cross_entropy(logits, torch.full((4,), label)).item()
                    assert loss == pytest.approx(guess, rel=0.1), (rms, training, label)
            hook.remove()


def test_the_seed_decides_the_heads() -> None:
    drawn = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        model = create_model("multi_attention", backbone="efficientnet_b0")
        drawn.append([head.weight for head in heads_of(model)])
    for first, again, other in zip(*drawn, strict=True):
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


@pytest.mark.parametrize("name", MESONETS)
def test_a_mesonet_begins_with_the_head_of_its_weights(name: str, tmp_path: Path) -> None:
    """And with a new one where they have another number of classes."""
    state = create_model(name, image_size=64, outputs=2).state_dict()
    state["classifier.5.weight"] = torch.ones(2, 16)
    save_file(state, tmp_path / "weights.safetensors")
    options = {"image_size": 64, "pretrained": str(tmp_path / "weights.safetensors")}
    assert torch.equal(create_model(name, outputs=2, **options).classifier[5].weight, torch.ones(2, 16))
    assert create_model(name, outputs=1, **options).classifier[5].weight.abs().max() < 0.01


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("meso4", {"drop_path_rate": 0.1}, r"model\.drop_path_rate: meso4 has no such option"),
        ("meso4", {"maps": 2}, r"multi_attention\.maps: meso4 has no such option"),
        ("multi_attention", {"outputs": 2}, r"model\.outputs: multi_attention has no such option"),
        ("efficientnet_b0", {"outputs": 2}, r"model\.outputs: efficientnet_b0 has no such option"),
        ("efficientnet_b0", {"variant": "deepfakebench"}, r"model\.variant: efficientnet_b0 has no variant"),
        ("meso4", {"variant": "deepfakebank"}, r"model\.variant: 'deepfakebank' is unknown; meso4 has deepfakebench"),
        ("meso4", {"variant": "deepfakebench", "outputs": 1}, r"model\.outputs: 1 doesn't suit meso4 .*; take 2"),
        ("meso4", {"outputs": 3}, r"model\.outputs: 3 doesn't suit meso4; take 2"),
        ("meso4", {"pretrained": True}, r"model\.pretrained: meso4 has no ImageNet weights"),
        ("meso4", {"image_size": 100}, r"100 doesn't suit meso4; it takes multiples of 32"),
        ("meso_inception4", {"image_size": 250}, r"250 doesn't suit meso_inception4; it takes multiples of 32"),
    ],
)
def test_an_option_that_a_model_lacks_is_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_model(name, **options)


@pytest.mark.parametrize(
    ("name", "right"), [("meso_inception", "meso_inception4"), ("multi_atention", "multi_attention")]
)
def test_an_unknown_name_gives_the_nearest(name: str, right: str) -> None:
    for function in (create_model, input_spec):
        with pytest.raises(UserError, match=rf"model\.name: '{name}' is unknown; did you mean {right}\?"):
            function(name)
    with pytest.raises(
        UserError, match=r"'resnet50' is unknown; known are meso4, meso_inception4, multi_attention, eff"
    ):
        create_model("resnet50")


@pytest.mark.parametrize("options", [{}, {"variant": "deepfakebench"}], ids=str)
@pytest.mark.parametrize(
    ("name", "shape"), [("meso4", (16, 16)), ("meso_inception4", (16, 16)), ("efficientnet_b4", (1792, 4))]
)
def test_grad_cam_sees_the_last_convolutional_features(
    name: str, shape: tuple[int, int], options: dict[str, object]
) -> None:
    model = create_model(name, image_size=128, **options).eval()
    seen = []
    cam_layer(name, model).register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    model(torch.rand(1, 3, 128, 128))
    channels, side = shape
    assert [tuple(size) for size in seen] == [(1, channels, side, side)]


def test_the_multi_attentional_network_gets_its_options() -> None:
    options = {"backbone": "efficientnet_b0", "maps": 2, "texture_stage": "b1", "map_drop_rate": 0.0, "drop_rate": 0.1}
    model = create_model("multi_attention", image_size=128, pretrained=False, **options).eval()
    assert (model.attention.project.out_channels, model.texture_stage) == (2, 1)
    assert (model.map_drop_rate, model.drop_rate) == (0.0, 0.1)
    assert input_spec("multi_attention") == InputSpec(380)
    assert input_spec("multi_attention", backbone="efficientnet_b0") == InputSpec(224)
    other = "tf_efficientnet_b0.ns_jft_in1k"
    assert input_spec("multi_attention", backbone=other) == input_spec(other)  # of another mean and std
    with pytest.raises(UserError, match=r"multi_attention\.backbone: 'efficientnet_b9' is unknown"):
        input_spec("multi_attention", backbone="efficientnet_b9")
    seen = []
    cam_layer("multi_attention", model).register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    assert model(torch.rand(1, 3, 128, 128)).shape == (1, 2)
    assert [tuple(size) for size in seen] == [(1, 1280, 4, 4)]


def test_names_and_sizes_are_known_without_timm() -> None:
    code = (
        "import sys; from fdtrain.models import input_spec, model_names\n"
        "for name in model_names(): input_spec(name)\n"
        "assert 'timm' not in sys.modules and 'h5py' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {"meso4", "meso_inception4", "multi_attention", "efficientnet_l2", "efficientnetv2_xl"} < set(model_names())


def test_a_model_folder_gives_the_model_back(tmp_path: Path) -> None:
    model = create_model("meso4", image_size=64).to(memory_format=torch.channels_last).eval()  # as loaded
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


def test_flipped_bits_of_weights_are_found(tmp_path: Path) -> None:
    """Which would be numbers like any others."""
    model = create_model("meso4", image_size=64)
    save_model(tmp_path, model.state_dict(), name="meso4", options={"image_size": 64}, spec=InputSpec(64), facts={})
    path = tmp_path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"options": {}, "input": {}}', "'name' is missing or no str"),
        (b'{"name": "meso4", "options": [], "input": {}}', "'options' is missing or no dict"),
        (b'{"name": "meso4", "options": {}}', "says nothing usable of the model's input"),
        (b"[]", "no JSON object"),
        (b'{"name": "\xff"}', r"damaged \('utf-8' codec can't decode"),
    ],
)
def test_a_card_that_says_too_little_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"model\.json: {message}") as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["meso4", "multi_attention"])
def test_no_drop_path_is_what_every_model_has(name: str) -> None:
    options = {"backbone": "efficientnet_b0"} if name == "multi_attention" else {}
    create_model(name, drop_path_rate=0.0, **options)


# --- the whole multi-attentional network to begin with


@pytest.fixture(scope="module")
def attention_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attention")
    torch.manual_seed(3)
    options = {"backbone": "efficientnet_b0", "maps": 3, "texture_stage": "b1"}
    state = create_model("multi_attention", **options).state_dict()
    save_model(folder, state, name="multi_attention", options=options, spec=InputSpec(64), facts={})
    return folder


def test_a_multi_attentional_network_begins_with_another(attention_folder: Path, tmp_path: Path) -> None:
    theirs = load_file(attention_folder / "model.safetensors")
    torch.save({"state_dict": {f"module.{key}": value for key, value in theirs.items()}}, tmp_path / "weights.pth")
    for place in (attention_folder, attention_folder / "model.safetensors", tmp_path / "weights.pth"):
        # The same network by another name.
        options = {"backbone": "tf_efficientnet_b0.ap_in1k", "maps": 3, "texture_stage": "b1"}
        state = create_model("multi_attention", pretrained=str(place), **options).state_dict()
        assert state.keys() == theirs.keys()
        assert all(torch.equal(state[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "timm/efficientnet_b0"}, "backbone efficientnet_b0, here timm/efficientnet_b0; set multi_att"),
        ({"maps": 4}, "maps 3, here 4"),
        ({"texture_stage": "b2"}, "texture_stage b1, here b2"),
    ],
)
def test_a_multi_attentional_network_of_another_build_is_refused(
    attention_folder: Path, options: dict[str, object], message: str
) -> None:
    own: dict[str, object] = {"backbone": "efficientnet_b0", "maps": 3, "texture_stage": "b1"}
    for place, fault in ((attention_folder, message), (attention_folder / "model.safetensors", "doesn't fit the netw")):
        if place.is_file() and "backbone" in options:
            continue  # paddings leave no trace in the weights
        with pytest.raises(UserError, match=rf"model\.pretrained: {place}: .*{fault}") as caught:
            create_model("multi_attention", pretrained=str(place), **own | options)
        assert "\n" not in str(caught.value)


def test_a_multi_attentional_network_begins_with_an_efficientnet(tmp_path: Path) -> None:
    backbone = create_model("efficientnet_b0")
    spec = input_spec("efficientnet_b0")
    save_model(tmp_path, backbone.state_dict(), name="efficientnet_b0", options={}, spec=spec, facts={})
    model = create_model("multi_attention", backbone="efficientnet_b0", pretrained=str(tmp_path))
    state = model.backbone.state_dict()
    assert all(torch.equal(state[key], value) for key, value in backbone.state_dict().items())
    with pytest.raises(UserError, match="holds efficientnet_b0, another network"):
        create_model("multi_attention", backbone="efficientnet_b1", pretrained=str(tmp_path))


def test_no_model_at_all_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(UserError, match="neither a run, a checkpoint nor a model"):
        load_model(tmp_path)
    (tmp_path / "status.json").write_text("{}")
    with pytest.raises(UserError, match="the run has no best model"):
        load_model(tmp_path)
    with pytest.raises(UserError, match="is a file; --model takes a run folder"):
        load_model(tmp_path / "status.json")
    uri = "models:/fdtrain-meso4-q77@champion"
    with pytest.raises(UserError, match="no such database"), registered_folder(uri, f"sqlite:///{tmp_path}/none.db"):
        pass
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(UserError, match="no MLflow server answers"), registered_folder(uri, "http://127.0.0.1:9"):
        pass
