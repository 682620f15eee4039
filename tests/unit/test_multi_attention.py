"""The multi-attentional network against its slow reference, and what makes EfficientNets train faster on CPUs."""

import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fdtrain.config import UserError
from fdtrain.models.fast import Depthwise, DepthwiseSame, SiLU, speed_up
from fdtrain.models.multi_attention import MultiAttentionNetwork, MultiAttentionOutput
from fdtrain.models.multi_attention.modules import AttentionMaps
from tests.conftest import REPOSITORY
from tests.reference_multi_attention import ReferenceNetwork, ReferenceOutput

MAPS, CHANNELS = 4, 24  # of EfficientNet-B0's stage b2
SIZES = {"square": (96, 96), "odd": (97, 131)}


def small_network(seed: int = 0, **options: object) -> MultiAttentionNetwork:
    torch.manual_seed(seed)
    return MultiAttentionNetwork(backbone="efficientnet_b0", **options)


def without_dropout(**options: object) -> MultiAttentionNetwork:
    return small_network(drop_rate=0.0, map_drop_rate=0.0, **options)


def random_images(*size: int, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, *size, generator=generator).contiguous(memory_format=torch.channels_last)


def loss_of(output: MultiAttentionOutput | ReferenceOutput) -> Tensor:
    """A number that depends on every entry of the output, each with a weight of its own."""
    generator = torch.Generator().manual_seed(2)
    terms = [(part * torch.randn(part.shape, generator=generator, dtype=part.dtype)).sum() for part in output]
    return torch.stack(terms).sum()


def test_parameters_and_shapes_are_the_authors() -> None:
    with torch.device("meta"):
        network = MultiAttentionNetwork()
    assert sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad) == 18_826_068
    output = network.describe(torch.empty(2, 3, 256, 256, device="meta"))
    assert output.logits.shape == (2, 2)
    assert output.maps.shape == (2, MAPS, 16, 16)
    assert output.regions.shape == (2, MAPS, 32)
    assert network.backbone_logits(torch.empty(2, 3, 256, 256, device="meta")).shape == (2, 2)


def test_head_has_the_tensors_of_the_authors_checkpoint() -> None:
    folder = Path(os.environ.get("FDTRAIN_STATE_DICTS", REPOSITORY.parent / "shared/data/state_dicts"))
    listing = folder / "multiple_attention_mat_b4.tsv"
    if not listing.is_file():
        pytest.skip(f"no list of the authors' tensors at {listing}; set FDTRAIN_STATE_DICTS")
    modules = {
        "attentions.conv_extract": "attention.extract",
        "attentions.bn1": "attention.norm1",
        "attentions.conv2": "attention.project",
        "attentions.bn2": "attention.norm2",
        "texture_enhance.conv_extract": "texture.extract",
        **{f"texture_enhance.conv{i}": f"texture.conv{i}" for i in range(4)},
        **{f"texture_enhance.bn{i}": f"texture.norm{i}" for i in range(1, 5)},
        "texture_enhance.conv_last": "texture.conv_last",
        "texture_enhance.bn_last": "texture.norm_last",
        "projection_local.0": "local_projection.0",
        "projection_local.2": "local_projection.2",
        "project_final": "global_projection",
        "ensemble_classifier_fc.0": "classifier.0",
        "ensemble_classifier_fc.2": "classifier.2",
    }
    names = {"auxiliary_loss.feature_centers": "centers.centers", "auxiliary_loss.alpha": "centers.rate"}
    theirs, backbone = {}, 0
    for line in listing.read_text().splitlines():
        if line.startswith("#") or not line:
            continue
        key, shape, dtype = line.split("\t")
        if key.startswith("net."):
            backbone += 1
        elif key not in ("attentions.mask", "auxiliary_loss.inner_margin"):  # constants
            module, _, leaf = key.rpartition(".")
            theirs[names.get(key) or f"{modules[module]}.{leaf}"] = (shape, f"torch.{dtype}")
    with torch.device("meta"):
        state = MultiAttentionNetwork().state_dict()
    ours = {
        key: (str(tuple(value.shape)), str(value.dtype))
        for key, value in state.items()
        if not key.startswith("backbone.")
    }
    assert ours == theirs
    assert sum(key.startswith("backbone.") for key in state) == backbone


@pytest.mark.parametrize("stage", ["b1", "b2", "b3"])
def test_texture_stage(stage: str) -> None:
    width = {"b1": 16, "b2": 24, "b3": 40}[stage]
    network = without_dropout(texture_stage=stage)
    images = random_images(64, 64)
    output = network.describe(images)
    assert output.regions.shape == (3, MAPS, width)
    reference = ReferenceNetwork("b0", MAPS, int(stage[1:]))
    reference.load_state_dict(network.state_dict())
    for ours, theirs in zip(network.eval().describe(images), reference.eval().describe(images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module", params=SIZES.values(), ids=SIZES.keys())
def pair(request: pytest.FixtureRequest) -> tuple[MultiAttentionNetwork, ReferenceNetwork, Tensor]:
    """Network and reference with the same weights, and images."""
    network, reference = without_dropout(), ReferenceNetwork("b0", MAPS, 2)
    network.backbone.drop_rate = 0.0
    reference.load_state_dict(network.state_dict())
    return network, reference, random_images(*request.param)


Pair = tuple[MultiAttentionNetwork, ReferenceNetwork, Tensor]


@pytest.mark.parametrize("training", [False, True])
def test_outputs_equal_the_reference(pair: Pair, training: bool) -> None:
    network, reference, images = pair
    ours = network.train(training).describe(images)
    theirs = reference.train(training).describe(images.contiguous())
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(ours.regions.norm(dim=2), torch.ones(3, MAPS))


def test_outputs_averages_and_gradients_equal_the_reference_in_double_precision(pair: Pair) -> None:
    """In float32 the batch norms of few pixels amplify rounding; in float64 nothing is left but another order."""
    network, reference, images = pair
    state = {key: value.double() for key, value in network.state_dict().items()}
    network, reference = without_dropout().double().train(), ReferenceNetwork("b0", MAPS, 2).double().train()
    network.backbone.drop_rate = 0.0
    network.load_state_dict(state)
    reference.load_state_dict(state)
    ours, theirs = network.describe(images.double()), reference.describe(images.double().contiguous())
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)
    loss_of(ours).backward()
    loss_of(theirs).backward()
    unreached = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert unreached == ["backbone.classifier.weight", "backbone.classifier.bias"]
    gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-6, atol=1e-8, msg=name)
    for name, buffer in reference.named_buffers():
        torch.testing.assert_close(network.get_buffer(name), buffer, rtol=1e-9, atol=1e-9, msg=name)


def test_every_part_of_the_output_trains_what_it_stands_on() -> None:
    network, images = small_network().train(), random_images(96, 96)
    reached = {}
    for part in MultiAttentionOutput._fields:
        network.zero_grad(set_to_none=True)
        output = getattr(network.describe(images), part)
        (output * torch.randn(output.shape)).sum().backward()
        names = [name for name, parameter in network.named_parameters() if parameter.grad is not None]
        reached[part] = {name.split(".")[0] for name in names}
        assert all(network.get_parameter(name).grad.isfinite().all() for name in names)
    everything = {"backbone", "attention", "texture", "local_projection", "global_projection", "classifier"}
    assert reached == {
        "logits": everything,
        "maps": {"backbone", "attention"},
        "regions": {"backbone", "attention", "texture"},
    }


def test_no_gradient_reaches_the_maps_through_the_texture() -> None:
    texture = small_network().texture
    features, maps = torch.randn(2, CHANNELS, 16, 16), torch.rand(2, MAPS, 16, 16, requires_grad=True)
    texture(features, maps, torch.Size((4, 4)))[0].sum().backward()
    assert maps.grad is None


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.3), (torch.float16, 0.05)])
def test_half_precision_agrees(dtype: torch.dtype, tolerance: float) -> None:
    """Relative to the largest entry: what the last layer reads, since the logits of a new head all but cancel."""
    network, images = small_network().eval(), random_images(96, 96)
    hidden: list[Tensor] = []
    for norm in network.modules():  # as in a trained network, its averages are those of the images
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
    with torch.no_grad():
        network.train().describe(images)
        network.classifier[-1].register_forward_pre_hook(lambda _layer, inputs: hidden.append(inputs[0]))
        expected = network.eval().describe(images)
        with torch.autocast("cpu", dtype):
            half = network.describe(images)
    assert half.logits.dtype == dtype
    assert half.maps.dtype == half.regions.dtype == torch.float32
    for mine, other in [(hidden[1], hidden[0]), (half.maps, expected.maps), (half.regions, expected.regions)]:
        assert (mine.float() - other).abs().max() <= tolerance * other.abs().max()


def test_regions_are_pooled_in_float32_under_autocast() -> None:
    network, images = small_network().eval(), random_images(64, 64)
    seen: list[Tensor] = []
    network.attention.register_forward_hook(lambda _module, _inputs, maps: seen.append(maps))
    network.texture.register_forward_hook(lambda _module, _inputs, output: seen.append(output[1]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        regions = network.describe(images).regions
    maps, small = seen
    small = small.float()
    standard = (small - small.mean((2, 3), keepdim=True)) / (small.std((2, 3), keepdim=True) + 1e-8)
    expected = F.normalize(torch.einsum("bmhw,bchw->bmc", maps, standard), dim=2)
    torch.testing.assert_close(regions, expected, rtol=1e-5, atol=1e-6)


def test_seed_decides_the_dropout() -> None:
    network, images = small_network().train(), random_images(64, 64)
    runs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        runs.append(network.describe(images))
    torch.testing.assert_close(runs[0].logits, runs[1].logits, rtol=0, atol=0)
    assert not torch.equal(runs[0].logits, runs[2].logits)
    # Neither the maps nor the regions know of dropout.
    torch.testing.assert_close(runs[0].maps, runs[2].maps, rtol=0, atol=0)
    torch.testing.assert_close(runs[0].regions, runs[2].regions, rtol=0, atol=0)


def test_maps_are_dropped_whole() -> None:
    """A dropped map leaves no local row and no weight in the final pooling; what is kept is scaled up."""
    network, images = small_network(drop_rate=0.0, map_drop_rate=0.5).train(), random_images(64, 64, batch=8)
    seen: dict[str, Tensor] = {}
    network.local_projection.register_forward_pre_hook(lambda _module, inputs: seen.update(rows=inputs[0]))
    network.global_projection.register_forward_pre_hook(lambda _module, inputs: seen.update(pooled=inputs[0]))
    maps = network.describe(images).maps
    norms = seen["rows"].unflatten(1, (MAPS, CHANNELS)).norm(dim=2)
    torch.testing.assert_close(norms, 2 * norms.gt(0.5).float())
    assert 0 < norms.gt(0.5).float().mean() < 1

    final = network.backbone_features(images)[2]
    union = (maps * norms[:, :, None, None]).sum(dim=1, keepdim=True)
    weights = F.interpolate(union, size=final.shape[2:], mode="bilinear", align_corners=True) + 1e-8
    expected = (weights * final).sum((2, 3)) / weights.sum((2, 3))
    torch.testing.assert_close(seen["pooled"], expected, rtol=1e-4, atol=1e-5)


def test_without_any_map_the_final_features_are_averaged() -> None:
    network, images = small_network(drop_rate=0.0, map_drop_rate=1.0).train(), random_images(64, 64)
    seen: list[Tensor] = []
    network.global_projection.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    network.describe(images)
    torch.testing.assert_close(seen[0], network.backbone_features(images)[2].mean((2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(16, 16), (24, 24), (7, 9), (4, 4), (3, 50), (48, 31)])
def test_border_of_the_maps_is_zero(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    maps = AttentionMaps(8, MAPS)(torch.randn(2, 8, *size))
    rows, columns = (np.arange(side) * 24 // side for side in size)
    inside = np.logical_and.outer((rows >= 2) & (rows < 22), (columns >= 2) & (columns < 22))
    assert (maps[:, :, ~torch.from_numpy(inside)] == 0).all()
    assert (maps[:, :, torch.from_numpy(inside)] > 0).all()


def test_wrong_settings_are_named() -> None:
    with pytest.raises(UserError, match=r"multi_attention\.texture_stage: 'b4' is unknown; allowed are b1, b2, b3"):
        small_network(texture_stage="b4")


def test_backbone_that_does_not_suit_is_refused() -> None:
    with torch.device("meta"):
        with pytest.raises(UserError, match=r"multi_attention\.backbone: efficientnetv2_s has 6 stages, not the 7"):
            MultiAttentionNetwork(backbone="efficientnetv2_s")
        with pytest.raises(UserError, match=r"^multi_attention\.backbone: 'efficientnet_b9' "):
            MultiAttentionNetwork(backbone="efficientnet_b9")


@pytest.fixture(scope="module")
def sped_up() -> tuple[nn.Module, nn.Module]:
    """An EfficientNet-B0 as timm makes it, and its faster form."""
    torch.manual_seed(0)
    plain = timm.create_model("tf_efficientnet_b0", num_classes=2, drop_rate=0.0)
    fast = timm.create_model("tf_efficientnet_b0", num_classes=2, drop_rate=0.0)
    fast.load_state_dict(plain.state_dict())
    return plain, speed_up(fast)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_faster_network_has_the_same_outputs_and_gradients(
    sped_up: tuple[nn.Module, nn.Module], size: tuple[int, int], memory_format: torch.memory_format
) -> None:
    plain, fast = (network.to(memory_format=memory_format) for network in sped_up)
    kinds = {type(module) for module in fast.modules()}
    assert {Depthwise, DepthwiseSame, SiLU} <= kinds
    images = random_images(*size).contiguous(memory_format=memory_format)
    for network in (plain, fast):
        network.eval().zero_grad()
        network(images).square().sum().backward()
    torch.testing.assert_close(fast(images), plain(images), rtol=1e-5, atol=1e-6)
    for (name, ours), theirs in zip(fast.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert (ours.grad - theirs.grad).norm() <= 1e-4 * theirs.grad.norm() + 1e-9, name
    with torch.no_grad():
        torch.testing.assert_close(fast(images), plain(images), rtol=0, atol=0)


@pytest.mark.parametrize(("size", "stride"), [((8, 8), 1), ((5, 11), 1), ((4, 4), 1), ((9, 14), 2), ((8, 8), 2)])
def test_weight_gradient_of_a_depthwise_convolution(size: tuple[int, int], stride: int) -> None:
    torch.manual_seed(0)
    plain: nn.Conv2d = nn.Conv2d(16, 16, 5, padding=2, groups=16)
    if stride == 2:
        plain = timm.layers.Conv2dSame(16, 16, 5, stride=2, groups=16)
    images = torch.randn(2, 16, *size, requires_grad=True)
    wanted = (images, plain.weight, plain.bias)
    outputs = plain(images)
    gradient = torch.randn_like(outputs)
    expected = torch.autograd.grad(outputs, wanted, gradient)
    ours = speed_up(plain)(images)
    assert type(plain) is (Depthwise if stride == 1 else DepthwiseSame)
    torch.testing.assert_close(ours, outputs, rtol=0, atol=0)
    for mine, other in zip(torch.autograd.grad(ours, wanted, gradient), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
