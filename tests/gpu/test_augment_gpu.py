"""The augmentation on a GPU: the bytes of a CPU, where no rounding of floats comes between."""

import numpy as np
import pytest
import torch
from skimage.data import astronaut

from fdtrain.data.augment import PRESETS, Augmenter, AugmentSettings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

FACE = np.ascontiguousarray(astronaut()[0:256, 92:348])
COUNT = 32


def on_both(settings: AugmentSettings) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.from_numpy(np.stack([np.roll(FACE, i, 0) for i in range(COUNT)])).permute(0, 3, 1, 2)
    with Augmenter(settings, 1, threads=2) as augmenter:
        on_gpu = augmenter(images.cuda(), np.arange(COUNT))
        assert on_gpu.device.type == "cuda"
        assert on_gpu.is_contiguous(memory_format=torch.channels_last)
        return augmenter(images, np.arange(COUNT)).int(), on_gpu.cpu().int()


@pytest.mark.parametrize(
    "settings",
    [
        PRESETS["flip"],
        PRESETS["compression"],
        AugmentSettings("standard", jpeg_p=1, jpeg_quality=(1, 100)),
        AugmentSettings("blur", flip_p=0.5, blur_p=1),
    ],
    ids=lambda s: s.preset,
)
def test_whole_numbers_are_the_same(settings: AugmentSettings) -> None:
    on_cpu, on_gpu = on_both(settings)
    assert torch.equal(on_cpu, on_gpu)


def test_floats_differ_by_their_rounding_alone() -> None:
    settings = AugmentSettings("floats", flip_p=0.5, rotation_p=0.5, rotation_degrees=10, colour_p=0.5, contrast=0.1)
    on_cpu, on_gpu = on_both(settings)
    difference = (on_cpu - on_gpu).abs()
    print(f"GPU against CPU: {(difference > 0).float().mean():.2e} of the values differ, at most {difference.max()}")
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 1e-3


def test_a_batch_of_the_preset_keeps_no_secret_state() -> None:
    """Twice the same, and the same for one image alone."""
    images = torch.from_numpy(np.stack([FACE] * COUNT)).permute(0, 3, 1, 2).cuda()
    with Augmenter(PRESETS["deepfakebench"], 1) as augmenter:
        whole = augmenter(images, np.arange(COUNT))
        assert torch.equal(augmenter(images, np.arange(COUNT)), whole)
        for i in range(4):
            assert torch.equal(augmenter(images[i : i + 1], np.arange(i, i + 1)), whole[i : i + 1])
