"""`python -m fdtrain figures`: attention maps, Grad-CAM and t-SNE, against what was planted or computed by hand."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from matplotlib.colors import to_rgba
from PIL import Image
from torch import Tensor, nn

import tests.shards
from datasets_shards.schema import open_shard_set
from fdtrain.commands import figures
from fdtrain.config import UserError
from fdtrain.data.batch import Batch
from fdtrain.data.rows import split_rows
from fdtrain.figures.attention import attention_figure, attention_maps
from fdtrain.figures.embedding import embed, penultimate_features, perplexity_of, tsne_figure
from fdtrain.figures.gradcam import grad_cam, gradcam_figure
from fdtrain.figures.panels import png
from fdtrain.figures.samples import Samples, choose_rows
from fdtrain.models import InputSpec, cam_layer, create_model, save_model
from fdtrain.tasks import Task
from tests.conftest import run_python
from tests.heads import with_large_heads

SPEC = InputSpec(64, interpolation="bilinear")
MODELS: dict[str, dict[str, Any]] = {
    "meso4": {"image_size": 64},  # one output
    "meso_inception4": {"image_size": 64, "outputs": 2},
    "efficientnet_b0": {},
    "multi_attention": {"backbone": "efficientnet_b0"},
}
SAMPLES = Samples(("a", "b", "c"), ("youtube", "Deepfakes", "FaceSwap"), (0, 1, 1), (0.1, 0.9, 0.6))


def images_of(count: int, side: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(count, 3, 8, 8, generator=generator) * 255
    return nn.functional.interpolate(coarse, size=(side, side), mode="bilinear").to(torch.uint8)


def batch_of(images: Tensor) -> Batch:
    rows = torch.arange(len(images))
    return Batch(images, torch.zeros_like(rows), rows, rows)


def make_task(name: str) -> Task:
    """Random weights, but normalized by the images' own statistics, so that features differ from place to place."""
    torch.manual_seed(0)
    model = with_large_heads(create_model(name, **MODELS[name]))
    task = Task(model, SPEC)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None  # an average over all that is seen
    with torch.no_grad():
        model.train()(task.prepare(images_of(16)))
    return task.eval()


def write_model(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True)
    state = make_task(name).model.state_dict()
    save_model(folder, state, name=name, options=MODELS[name], spec=SPEC, facts={"quality": "q77"})
    return folder


def run(*words: object) -> None:
    parser = ArgumentParser(exit_on_error=False)
    figures.add_arguments(parser)
    figures.run(parser.parse_args([str(word) for word in words]))


def with_images(figure: Any) -> list[Any]:
    return [axes for axes in figure.axes if axes.images]


@pytest.fixture(scope="module")
def meso4_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("figures") / "meso4", "meso4")


# --- the command


def test_the_figures_of_a_run_go_into_its_report_and_come_out_the_same_each_time(
    tmp_path: Path, shard_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    write_model(folder / "best", "multi_attention")
    words = ("--model", folder, "--data.root", shard_root, "--data.quality", "77", "--samples", 4)
    run(*words)
    out = folder / "report" / "figures"
    names = ["attention.png", "figures.json", "gradcam.png", "tsne.csv", "tsne.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert str(out) in capsys.readouterr().out
    first = {name: (out / name).read_bytes() for name in names}
    (out / "attention.png").write_bytes(b"old")
    (out / "mine.txt").write_text("kept")
    run(*words)
    assert {name: (out / name).read_bytes() for name in names} == first
    assert (out / "mine.txt").read_text() == "kept"
    for name in ("attention.png", "gradcam.png", "tsne.png"):
        with Image.open(out / name) as image:
            image.load()
            assert image.format == "PNG"
            assert min(image.size) > 300
            assert "Software" not in image.info

    record = json.loads(first["figures.json"])
    shard_set = open_shard_set(shard_root, 77)
    assert record["data"] == {
        "root": str(shard_root),
        "quality": "q77",
        "split": "val",
        "digest": shard_set.manifest.digest,
    }
    assert (record["samples"], record["points"]) == (4, 1000)  # as they were asked for
    assert record["model"]["name"] == "multi_attention"
    assert record["model"]["trained_on"] == {"quality": "q77"}
    faces = record["figures"]["attention.png"]["samples"]
    assert faces == record["figures"]["gradcam.png"]["samples"]
    assert [face["method"] for face in faces] == ["youtube", "youtube", "Deepfakes", "FaceSwap"]
    points = list(csv.DictReader(first["tsne.csv"].decode().splitlines()))
    assert len(points) == record["figures"]["tsne.png"]["points"] == 36
    rows = split_rows(shard_set, "val")
    expected = shard_set.index.take(rows, "key", "method", "label")
    assert [point["key"] for point in points] == expected["key"].to_pylist()
    assert [point["method"] for point in points] == expected["method"].to_pylist()
    assert [int(point["label"]) for point in points] == expected["label"].to_pylist()
    scores = {point["key"]: float(point["score"]) for point in points}
    for face in faces:
        assert face["score"] == pytest.approx(scores[face["key"]], abs=1e-5)
    assert len(set(scores.values())) > 10


def test_a_model_without_attention_maps_is_said_and_leaves_none(
    tmp_path: Path, shard_root: Path, meso4_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures"
    out.mkdir()
    (out / "attention.png").write_bytes(b"another model's")
    flags = ("--data.quality", "raw", "--data.split", "train", "--samples", 3, "--points", 20, "--batch_size", 7)
    run("--model", meso4_folder, "--data.root", shard_root, "--out", out, *flags)
    assert "no attention.png: meso4 has no attention maps" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["figures.json", "gradcam.png", "tsne.csv", "tsne.png"]
    record = json.loads((out / "figures.json").read_bytes())
    assert record["figures"]["tsne.png"]["points"] == 20
    assert record["data"]["quality"] == "raw"
    assert record["data"]["split"] == "train"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "is no run folder, which the figures would go to; name a folder for them"),
        (("--out", "{model}/model.json"), "is a file; name a folder"),
        (("--out", "{new}", "--samples", "0"), "samples: 0 is out of range"),
        (("--out", "{new}", "--points", "4"), "points: 4 is out of range; allowed is at least 5"),
        (("--out", "{new}", "--batch_size", "0"), "batch_size: 0 is out of range"),
        (("--out", "{new}", "--seed", "-1"), "seed: -1 is out of range"),
        (("--out", "{new}", "--data.quality", "900"), "data.quality: quality '900'"),
    ],
)
def test_a_flag_that_does_not_do_is_said(
    tmp_path: Path, shard_root: Path, meso4_folder: Path, flags: tuple[str, ...], message: str
) -> None:
    words = [flag.format(model=meso4_folder, new=tmp_path / "new") for flag in flags]
    with pytest.raises(UserError) as error:
        run("--model", meso4_folder, "--data.root", shard_root, *words)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
    assert not (meso4_folder / "report").exists()


@pytest.mark.parametrize(
    ("methods", "pairs", "message"),
    [
        (("youtube",), (1, 3, 1), "'val' has no fake samples"),
        (("youtube", "Deepfakes"), (1, 1, 1), "'val' has 4 samples and t-SNE needs 5"),
        (("youtube", "Deepfakes"), (1, 0, 1), "'val' has no samples"),
    ],
)
def test_a_split_without_enough_to_draw_is_said(
    tmp_path: Path,
    meso4_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    methods: tuple[str, ...],
    pairs: tuple[int, int, int],
    message: str,
) -> None:
    monkeypatch.setattr(tests.shards, "METHODS", methods)
    root = tests.shards.write_root(tmp_path / "root", pairs=pairs, frames=1)
    with pytest.raises(UserError, match=message):
        run("--model", meso4_folder, "--data.root", root, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_diverged_is_said_and_leaves_nothing(tmp_path: Path, shard_root: Path) -> None:
    model = create_model("meso4", image_size=64)
    state = {key: value * float("nan") for key, value in model.state_dict().items()}
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", state, name="meso4", options={"image_size": 64}, spec=SPEC, facts={})
    with pytest.raises(FloatingPointError, match="not finite"):
        run("--model", tmp_path / "model", "--data.root", shard_root, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_reading_the_arguments_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'matplotlib', 'sklearn', 'captum'}"
    commands = "fdtrain.commands.figures, fdtrain.commands.import_weights"
    done = run_python("-c", f"import sys, {commands}; print({heavy} & sys.modules.keys())")
    assert done.stdout.strip() == "set()", done


# --- which samples


def test_samples_come_from_each_method_and_each_video_in_turn(shard_root: Path) -> None:
    index = open_shard_set(shard_root, 77).index
    rows = split_rows(open_shard_set(shard_root, 77), "val")
    chosen = choose_rows(index, rows, 17, seed=1)
    table = index.take(chosen, "method", "video")
    methods = table["method"].to_pylist()
    assert methods == ["youtube"] * 6 + ["Deepfakes"] * 6 + ["FaceSwap"] * 5
    videos = list(zip(methods, table["video"].to_pylist(), strict=True))
    assert len(set(videos)) == 17  # each method has six videos of two frames
    assert set(chosen) <= set(rows)
    assert choose_rows(index, rows, 17, seed=1).tolist() == chosen.tolist()
    assert choose_rows(index, rows, 17, seed=2).tolist() != chosen.tolist()
    assert sorted(choose_rows(index, rows, 1000, seed=1)) == rows.tolist()


def test_a_method_with_few_samples_leaves_its_turns_to_the_others(shard_root: Path) -> None:
    index = open_shard_set(shard_root, 77).index
    rows = split_rows(open_shard_set(shard_root, 77), "val")
    methods = np.array(index.take(rows, "method")["method"].to_pylist())
    few = np.concatenate([rows[methods == "youtube"][:2], rows[methods != "youtube"]])
    chosen = index.take(choose_rows(index, few, 12, seed=0), "method")["method"].to_pylist()
    assert chosen == ["youtube"] * 2 + ["Deepfakes"] * 5 + ["FaceSwap"] * 5


# --- Grad-CAM


@pytest.mark.parametrize("name", MODELS)
def test_grad_cam_is_that_of_its_equation(name: str) -> None:
    task = make_task(name)
    layer = cam_layer(name, task.model)
    images = images_of(4)

    kept: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, arguments, output: kept.append(output))
    logits = task.model(task.prepare(images))
    hook.remove()
    (features,) = kept
    (gradients,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), features)
    expected = torch.zeros(len(images), *features.shape[2:])
    for b in range(len(images)):
        for c in range(features.shape[1]):
            expected[b] += gradients[b, c].mean() * features[b, c].detach()
    expected = expected.clamp(min=0)

    peak = expected.max()
    assert peak > 1e-3
    with torch.inference_mode():
        found = grad_cam(task, layer, images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found / peak, expected / peak, rtol=1e-5, atol=1e-5)
    assert all(parameter.grad is None for parameter in task.model.parameters())
    assert not layer._forward_hooks


class Bright(nn.Module):
    """Sees bright pixels.

    Args:
        real: What their mean adds to the logit of real.
        fake: The same of fake.
    """

    def __init__(self, real: float, fake: float) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 1, 1), nn.ReLU())
        self.classifier = nn.Linear(1, 2)
        with torch.no_grad():
            self.features[0].weight.fill_(1 / 3)
            self.features[0].bias.fill_(-0.5)
            self.classifier.weight.copy_(torch.tensor([[real], [fake]]))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).mean((2, 3)))


@pytest.mark.parametrize(
    ("real", "fake", "speaks"),
    [(0.0, 2.0, True), (-2.0, 0.0, True), (2.0, 0.0, False), (1.0, 1.0, False)],
    ids=["for fake", "against real, as of one output", "for real", "for both alike"],
)
def test_heat_is_where_what_speaks_for_fake_is(real: float, fake: float, speaks: bool) -> None:
    images = torch.full((3, 3, 32, 32), 20, dtype=torch.uint8)
    images[..., 24:, 24:] = 250
    corner = torch.zeros(32, 32, dtype=torch.bool)
    corner[24:, 24:] = True
    model = Bright(real, fake)
    task = Task(model, InputSpec(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))).eval()
    model.requires_grad_(False)  # frozen weights must not cut the gradient off
    heat = grad_cam(task, model.features, images)
    assert heat.shape == (3, 32, 32)
    assert not heat[:, ~corner].any()
    assert (heat[:, corner] > 0).all() == speaks
    figure = gradcam_figure(task, model.features, images, SAMPLES)
    drawn = np.array([axes.images[1].get_array() for axes in with_images(figure) if len(axes.images) == 2])
    assert drawn.shape == (3, 32, 32)
    assert drawn.max() == (1 if speaks else 0)
    assert not drawn[:, ~corner.numpy()].any()


@pytest.mark.parametrize("count", [1, 3, 10])
def test_each_sample_has_its_face_and_its_heat_at_the_size_of_the_crop(count: int) -> None:
    task = make_task("meso4")
    samples = Samples(("key",) * count, ("Deepfakes",) * count, (1,) * count, (0.25,) * count)
    images = images_of(count, side=80)
    figure = gradcam_figure(task, cam_layer("meso4", task.model), images, samples, note="meso4, q77, val")
    panels = with_images(figure)
    faces = [axes for axes in panels if len(axes.images) == 1]
    heats = [axes for axes in panels if len(axes.images) == 2]
    assert len(faces) == len(heats) == count
    assert all(axes.images[-1].get_array().shape[:2] == (80, 80) for axes in panels)
    assert np.array_equal(faces[0].images[0].get_array(), images[0].permute(1, 2, 0))
    assert faces[0].get_title() == "Deepfakes\nfake, P(fake) 0.25"
    assert png(figure) == png(gradcam_figure(task, cam_layer("meso4", task.model), images, samples, "meso4, q77, val"))


# --- attention maps


def test_each_sample_has_its_face_and_its_maps() -> None:
    task = make_task("multi_attention")
    images = images_of(3, side=80)
    maps = attention_maps(task, images)
    with torch.no_grad():
        torch.testing.assert_close(maps, task.model.describe(task.prepare(images)).maps, rtol=1e-4, atol=1e-5)
    figure = attention_figure(task, images, SAMPLES, note="multi_attention, q77, val")
    panels = with_images(figure)
    assert len(panels) == 3 * (1 + 4)
    second = panels[5:10]
    assert np.array_equal(second[0].images[0].get_array(), images[1].permute(1, 2, 0))
    assert second[0].get_ylabel() == "Deepfakes\nfake, P(fake) 0.90"
    for m, axes in enumerate(second[1:]):
        expected = nn.functional.interpolate(maps[1:2, m : m + 1], size=(80, 80), mode="bilinear")[0, 0]
        drawn = torch.from_numpy(np.asarray(axes.images[1].get_array()))
        torch.testing.assert_close(drawn, expected / expected.max())


# --- penultimate features and t-SNE


def manual_features(task: Task, name: str, images: Tensor) -> Tensor:
    model: Any = task.model
    pixels = task.prepare(images)
    if name.startswith("meso"):
        return model.classifier[:5](model.features(pixels))
    if name == "efficientnet_b0":
        return model.forward_head(model.forward_features(pixels), pre_logits=True)
    last, model.classifier[2] = model.classifier[2], nn.Identity()
    features = model(pixels)
    model.classifier[2] = last
    return features


@pytest.mark.parametrize("name", MODELS)
def test_features_are_what_the_last_layer_gets(name: str) -> None:
    task = make_task(name)
    images = images_of(6)
    with torch.no_grad():
        expected = manual_features(task, name, images)
        logits = task.model(task.prepare(images))
    features, scores = penultimate_features(task, [batch_of(images[:4]), batch_of(images[4:])])
    assert (features.dtype, scores.dtype) == (np.float32, np.float64)
    assert expected.std(0).max() > 1e-3
    np.testing.assert_allclose(features, expected.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores, logits.softmax(1)[:, 1].numpy(), atol=1e-5)
    assert not any(part._forward_pre_hooks for part in task.model.modules())


def test_t_sne_keeps_groups_together_and_is_the_same_each_time() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1, 2], 20)
    centers = 20 * rng.normal(size=(3, 32))
    features = (centers[group] + rng.normal(size=(60, 32))).astype(np.float32)
    places = embed(features, seed=3)
    assert places.shape == (60, 2)
    distances = np.linalg.norm(places[:, None] - places, axis=2) + np.diag(np.full(60, np.inf))
    assert (group[distances.argmin(1)] == group).all()
    assert np.array_equal(embed(features, seed=3), places)


def test_t_sne_wants_five_samples_that_differ() -> None:
    rng = np.random.default_rng(0)
    assert perplexity_of(5) == pytest.approx(4 / 3)
    assert perplexity_of(1000) == 30
    assert np.isfinite(embed(rng.normal(size=(5, 16)).astype(np.float32))).all()
    with pytest.raises(UserError, match="needs 5 samples or more and there are 4"):
        embed(rng.normal(size=(4, 16)).astype(np.float32))
    with pytest.raises(UserError, match="the same for all 8 samples"):
        embed(np.ones((8, 16), np.float32))


def test_points_have_the_colour_of_their_method_and_the_shape_of_their_label() -> None:
    places = np.array([[0.0, 1], [2, 3], [4, 5]])
    (axes,) = tsne_figure(SAMPLES, places).axes
    fakes, reals = axes.collections
    assert reals.get_offsets().tolist() == [[0, 1]]
    assert sorted(fakes.get_offsets().tolist()) == [[2, 3], [4, 5]]
    colours = {
        tuple(place): tuple(colour) for place, colour in zip(fakes.get_offsets(), fakes.get_facecolors(), strict=True)
    }
    assert len(set(colours.values())) == 2
    assert len(reals.get_paths()[0].vertices) != len(fakes.get_paths()[0].vertices)
    (legend,) = axes.figure.legends
    assert [text.get_text() for text in legend.texts] == ["youtube (1)", "Deepfakes (1)", "FaceSwap (1)"]
    by_method = {text.get_text().split()[0]: line for text, line in zip(legend.texts, legend.get_lines(), strict=True)}
    assert to_rgba(by_method["Deepfakes"].get_color()) == colours[(2.0, 3.0)]
    assert to_rgba(by_method["FaceSwap"].get_color()) == colours[(4.0, 5.0)]
