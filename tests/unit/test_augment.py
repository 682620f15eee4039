"""The augmentation: each operation against an independent computation, and independence of batch, order and threads."""

import io
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from skimage.data import astronaut
from torch import Tensor

from datasets_shards.jpeg.mozjpeg import encode_jpeg
from fdtrain.config import UserError
from fdtrain.data.augment import PRESETS, Augmenter, AugmentSettings, augment_settings
from fdtrain.data.augment.jpeg import (
    encode,
    encode_by_pillow,
    quantization_tables,
    recompress,
    recompress_tensors,
    torchvision_encoder,
)
from fdtrain.data.augment.ops import BLUR_KERNELS, YIQ
from fdtrain.data.augment.pipeline import apply_operations, draw_operations
from fdtrain.data.augment.settings import Tables

FACE = np.ascontiguousarray(astronaut()[30:126, 160:240])  # 96 rows, 80 columns
RANDOM = np.random.default_rng(0)
NOISE = RANDOM.integers(0, 256, FACE.shape, dtype=np.uint8)
POSITIONS = np.array([3, 10**12, 5, 0, 77, 8, 1234567, 42])
EVERYTHING = replace(PRESETS["deepfakebench"], preset="all", scale_p=0.5, scale=(0.2, 1.25))


def batch(count: int) -> Tensor:
    """uint8 `[B, 3, H, W]`, channels_last: faces, each shifted."""
    images = np.stack([np.roll(FACE, 5 * i, 0) for i in range(count)])
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def augment(images: Tensor, chosen: AugmentSettings, positions: np.ndarray, seed: int = 1, threads: int = 1) -> Tensor:
    with Augmenter(chosen, seed, threads) as augmenter:
        return augmenter(images, positions)


def one(image: np.ndarray, chosen: AugmentSettings, position: int = 0) -> np.ndarray:
    """`[H, W, 3]` -> `[H, W, 3]`."""
    images = torch.from_numpy(image)[None].permute(0, 3, 1, 2)
    return augment(images, chosen, np.array([position]))[0].permute(1, 2, 0).numpy()


def test_a_flip_is_exact_and_its_input_stays() -> None:
    images = batch(8)
    before = images.clone()
    result = augment(images, AugmentSettings("test", flip_p=0.5), POSITIONS)
    flips = draw_operations(AugmentSettings("test", flip_p=0.5), 1, POSITIONS).flip
    assert 0 < flips.sum() < 8
    for image, changed, flip in zip(images, result, flips, strict=True):
        assert torch.equal(changed, image.flip(2) if flip else image)
    assert torch.equal(images, before)
    assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("scale", [(0.5, 2), (0.1, 0.3)], ids=["near", "many reflections"])
@pytest.mark.parametrize("position", range(4))
def test_an_affine_map_agrees_with_scipy(position: int, scale: tuple[float, float]) -> None:
    chosen = AugmentSettings("test", flip_p=0.5, rotation_p=1, rotation_degrees=30, scale_p=1, scale=scale)
    drawn = draw_operations(chosen, 1, np.array([position]))
    matrix = drawn.maps[0].astype(float)[::-1, ::-1]  # (y, x), as scipy counts
    centre = (np.array(FACE.shape[:2]) - 1) / 2
    offset = centre - matrix @ centre
    channels = [
        # "mirror" is the reflection about the centres of the edge pixels.
        ndimage.affine_transform(FACE[..., i].astype(float), matrix, offset, order=1, mode="mirror")
        for i in range(3)
    ]
    difference = np.abs(one(FACE, chosen, position) - np.stack(channels, -1))
    assert difference.max() <= 0.51  # rounding, and float32 coordinates


def test_a_positive_angle_turns_anticlockwise_and_the_flip_comes_first() -> None:
    chosen = AugmentSettings("test", flip_p=0.5, rotation_p=1, rotation_degrees=20)
    seen = set()
    for position in range(16):
        drawn = draw_operations(chosen, 1, np.array([position]))
        source = FACE[:, ::-1] if drawn.flip[0] else FACE
        inverse = drawn.maps[0]
        angle = np.rad2deg(np.arcsin(inverse[1, 0]))
        expected = ndimage.rotate(source.astype(float), angle, order=1, mode="mirror", reshape=False)
        assert np.abs(one(FACE, chosen, position) - expected).max() <= 0.51
        seen.add((bool(drawn.flip[0]), bool(angle > 0)))
    assert len(seen) == 4


@pytest.mark.parametrize("image", [FACE, NOISE], ids=["face", "noise"])
@pytest.mark.parametrize(("size", "sigma"), [(3, 0.8), (5, 1.1), (7, 1.4)])
def test_a_blur_is_a_gaussian(image: np.ndarray, size: int, sigma: float) -> None:
    result = one(image, AugmentSettings("test", blur_p=1, blur_sizes=(size,)))
    kernel = np.array([*BLUR_KERNELS[size][:0:-1], *BLUR_KERNELS[size]])
    total = image.astype(np.int64)
    for axis in range(2):
        total = ndimage.correlate1d(total, kernel, axis, mode="mirror")
    scale = kernel.sum() ** 2
    assert np.array_equal(result, (2 * total + scale) // (2 * scale))  # a half rounded up
    gaussian = ndimage.gaussian_filter(image.astype(float), sigma, axes=(0, 1), mode="mirror", radius=size // 2)
    # OpenCV's whole numbers are near a Gaussian: 0.25 for 0.239 at the side of 3.
    assert np.abs(result - gaussian).mean() < (2 if image is NOISE else 0.5)


def test_a_colour_change_agrees_with_a_formula_for_each_pixel() -> None:
    chosen = replace(PRESETS["deepfakebench"], flip_p=0, rotation_p=0, blur_p=0, jpeg_p=0, colour_p=1)
    kinds = set()
    for position in range(6):
        drawn = draw_operations(chosen, 1, np.array([position]))
        matrix, shift = drawn.colours[0, :, :3].astype(float), drawn.colours[0, :, 3].astype(float)
        result = one(FACE, chosen, position)
        expected = np.clip(np.einsum("cd,hwd->hwc", matrix, FACE.astype(float)) + shift, 0, 255)
        assert np.abs(result - expected).max() <= 0.501
        if np.allclose(matrix, matrix[0, 0] * np.eye(3)):
            kinds.add("brightness and contrast")
            assert 0.9 <= matrix[0, 0] <= 1.1
            assert np.abs(shift).max() <= 25.5
        else:
            kinds.add("hue")
            # Luma stays, grey stays grey, and chroma turns by at most 40 degrees and stretches by at most 0.3.
            in_yiq = YIQ @ matrix @ np.linalg.inv(YIQ)
            assert np.allclose(in_yiq[0], [1, 0, 0], atol=1e-4)
            assert np.allclose(matrix.sum(1), 1, atol=2e-4)
            turn = complex(in_yiq[1, 1], in_yiq[2, 1])
            assert 0.7 <= abs(turn) <= 1.3
            assert abs(np.rad2deg(np.angle(turn))) <= 40.01
    assert len(kinds) == 2


@pytest.mark.parametrize("tables", ["standard", "mozjpeg"])
def test_jpeg_is_a_round_trip_through_libjpeg_turbo(tables: Tables) -> None:
    chosen = AugmentSettings("test", jpeg_p=1, jpeg_quality=(1, 100), jpeg_tables=tables)
    for position in range(5):
        quality = int(draw_operations(chosen, 1, np.array([position])).quality[0])
        file = encode(FACE, quality, tables)
        expected = simplejpeg.decode_jpeg(file, "RGB", fastdct=False, fastupsample=False)
        assert np.array_equal(one(FACE, chosen, position), expected)


def test_the_standard_tables_are_what_pillow_writes_at_a_quality() -> None:
    for quality in (1, 40, 50, 77, 95, 96, 100):
        stream = io.BytesIO()
        Image.fromarray(FACE).save(stream, "JPEG", quality=quality, subsampling="4:2:0")
        assert bytes(encode(FACE, quality, "standard")) == stream.getvalue()
        assert encode_by_pillow(FACE, quality, "standard") == stream.getvalue()


def test_torchvision_still_encodes() -> None:
    """Without it Pillow writes the same bytes, but slower: time to look for another encoder."""
    assert torchvision_encoder() is not None


@pytest.mark.parametrize("quality", [10, 15, 60, 77])
def test_the_mozjpeg_tables_are_those_of_the_shards(quality: int) -> None:
    with Image.open(io.BytesIO(encode_jpeg(FACE, quality))) as packed:
        assert packed.format == "JPEG"
        theirs = packed.quantization  # type: ignore[attr-defined]
        sampling = [component[1:3] for component in packed.layer]  # type: ignore[attr-defined]
    ours = quantization_tables("mozjpeg", np.array([quality]))[:, 0].reshape(2, 64).tolist()
    assert [theirs[0], theirs.get(1, theirs[0])] == ours
    with Image.open(io.BytesIO(bytes(encode(FACE, quality, "mozjpeg")))) as made:
        assert [component[1:3] for component in made.layer] == sampling  # type: ignore[attr-defined]


@settings(max_examples=40, deadline=None)
@given(
    quality=st.integers(1, 100),
    tables=st.sampled_from(["standard", "mozjpeg"]),
    height=st.integers(8, 40),
    width=st.integers(8, 40),
    kind=st.sampled_from(["face", "noise", "black and white"]),
)
def test_the_codec_in_tensors_has_the_pixels_of_libjpeg_turbo(
    quality: int, tables: Tables, height: int, width: int, kind: str
) -> None:
    """What a GPU runs, here on a CPU: any quality, any size, also such that no block fits."""
    source = {"face": FACE, "noise": NOISE, "black and white": np.where(NOISE < 128, 0, 255).astype(np.uint8)}[kind]
    images = torch.from_numpy(source[None, :height, :width].copy())
    in_tensors = recompress_tensors(images, np.array([quality]), tables)
    assert torch.equal(in_tensors, recompress(images.clone(), np.array([quality]), tables))


def test_the_codec_in_tensors_takes_mixed_qualities() -> None:
    images = batch(4).permute(0, 2, 3, 1).contiguous()
    quality = np.array([95, 10, 85, 95])  # 4:4:4, 4:2:0, 4:2:2, 4:4:4
    in_tensors = recompress_tensors(images, quality, "mozjpeg")
    assert torch.equal(in_tensors, recompress(images.clone(), quality, "mozjpeg"))


@pytest.mark.parametrize("chosen", [EVERYTHING, PRESETS["compression"]], ids=lambda s: s.preset)
def test_an_image_has_the_same_bytes_in_any_batch_and_order_and_on_any_threads(chosen: AugmentSettings) -> None:
    images = batch(8)
    usual = torch.get_num_threads()
    whole = augment(images, chosen, POSITIONS)
    try:
        for torch_threads, threads in ((1, 3), (2, 1), (2, 2)):
            torch.set_num_threads(torch_threads)
            assert torch.equal(augment(images, chosen, POSITIONS, threads=threads), whole)
            assert torch.get_num_threads() == torch_threads
    finally:
        torch.set_num_threads(usual)
    order = np.random.default_rng(1).permutation(8)
    assert torch.equal(augment(images[order], chosen, POSITIONS[order]), whole[order])
    parts = [augment(images[i : i + 3], chosen, POSITIONS[i : i + 3]) for i in range(0, 8, 3)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(augment(images, chosen, POSITIONS, seed=2), whole)
    assert not torch.equal(augment(images, chosen, POSITIONS + 1), whole)


def test_a_batch_at_once_gives_the_bytes_of_one_image_after_the_other() -> None:
    """A GPU applies each operation to all of its images; a CPU goes image by image."""
    images = batch(24)
    positions = np.arange(24)
    pixels = images.permute(0, 2, 3, 1).contiguous()
    before = pixels.clone()
    at_once = apply_operations(pixels, draw_operations(EVERYTHING, 1, positions), EVERYTHING)
    assert torch.equal(pixels, before)
    assert torch.equal(at_once.permute(0, 3, 1, 2), augment(images, EVERYTHING, positions))


def test_operations_come_as_often_as_they_should() -> None:
    count = 20_000
    drawn = draw_operations(PRESETS["deepfakebench"], 5, np.arange(count))
    deviation = 4 * np.sqrt(0.25 / count)  # four standard deviations of a share of one half
    shares = [drawn.flip, drawn.warps, drawn.blur_size > 0, drawn.recolours, drawn.quality > 0]
    for share in shares:
        assert abs(share.mean() - 0.5) < deviation
    for i, first in enumerate(shares):
        for second in shares[i + 1 :]:
            assert abs((first == second).mean() - 0.5) < deviation  # drawn for themselves
    for size, share in ((3, 0.1), (5, 0.2), (7, 0.2)):
        assert abs((drawn.blur_size == size).mean() - share) < deviation
    qualities = np.bincount(drawn.quality, minlength=101)
    assert qualities[40:].min() > 100  # expected 164
    assert qualities[1:40].sum() == 0
    angles = np.rad2deg(np.arcsin(drawn.maps[drawn.warps, 1, 0]))
    assert 9.9 < angles.max() <= 10
    assert -10 <= angles.min() < -9.9
    assert abs(angles.mean()) < 4 * 20 / np.sqrt(12 * len(angles))
    linear = np.isclose(drawn.colours[:, 0, 1], 0)
    assert abs(linear.mean() - 0.5) < deviation


def test_another_range_changes_no_other_draw() -> None:
    positions = np.arange(500)
    first = draw_operations(PRESETS["deepfakebench"], 5, positions)
    second = draw_operations(replace(PRESETS["deepfakebench"], flip_p=0, jpeg_quality=(10, 20)), 5, positions)
    assert np.array_equal(first.quality > 0, second.quality > 0)
    assert np.array_equal(first.blur_size, second.blur_size)
    assert np.array_equal(first.colours, second.colours)


def test_presets() -> None:
    assert list(PRESETS) == ["none", "flip", "deepfakebench", "compression"]
    assert PRESETS["none"].does_nothing
    images = batch(2)
    assert augment(images, PRESETS["none"], np.arange(2)) is images
    assert augment(images[:0], PRESETS["flip"], np.arange(0)).shape == (0, 3, 96, 80)
    assert augment_settings("compression", (15, 77)).jpeg_quality == (15, 77)
    assert augment_settings("flip") is PRESETS["flip"]


def test_a_warning_where_the_grid_is_lost() -> None:
    for name in ("none", "flip", "compression"):
        assert PRESETS[name].warning(256) is None
        assert not PRESETS[name].resamples
    assert PRESETS["deepfakebench"].resamples
    warning = PRESETS["deepfakebench"].warning(256)
    assert warning is not None
    assert "\n" not in warning
    assert "rotation: 50% of the images are resampled, which destroys it" in warning
    assert "blur weakens its traces in 50%" in warning
    both = EVERYTHING.warning(256)
    assert both is not None
    assert "rotation and scale: 75% of the images are resampled" in both
    moved = PRESETS["flip"].warning(250)
    assert moved is not None
    assert "16 does not divide the width 250" in moved


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: augment_settings("deepfake"), "augment.preset: there is no 'deepfake'; choose one of none, flip"),
        (lambda: augment_settings("flip", (10, 20)), "augment.jpeg_quality: preset 'flip' compresses nothing"),
        (lambda: augment_settings("compression", (77, 10)), "augment.jpeg_quality: (77, 10)"),
        (lambda: augment_settings("compression", (0, 10)), "augment.jpeg_quality: (0, 10)"),
        (lambda: AugmentSettings("x", flip_p=1.5), "augment.flip_p: 1.5"),
        (lambda: AugmentSettings("x", rotation_degrees=-1), "augment.rotation_degrees: -1"),
        (lambda: AugmentSettings("x", scale=(2.0, 1.0)), "augment.scale: (2.0, 1.0)"),
        (lambda: AugmentSettings("x", blur_sizes=(4,)), "augment.blur_sizes: (4,)"),
        (lambda: AugmentSettings("x", contrast=2), "augment.contrast: 2"),
    ],
)
def test_bad_settings_are_named(make: Callable[[], AugmentSettings], words: str) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_threads_end_and_errors_surface() -> None:
    before = threading.active_count()
    with Augmenter(PRESETS["compression"], 0, threads=3) as augmenter:
        assert threading.active_count() == before + 3
        tall = torch.zeros(1, 3, 70_000, 2, dtype=torch.uint8)  # JPEG's sides end at 65,535
        with pytest.raises(OSError, match="broken data stream"):
            augmenter(tall, np.arange(1))
    assert threading.active_count() == before
