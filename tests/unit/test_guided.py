"""Attention-guided augmentation against scipy and loops over pixels."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from fdtrain.tasks.guided import NOISE, blurred, degrade, degraded, draw_maps, soft_threshold
from tests.reference_multi_attention import degrade_by_equation, draw


def uniform(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


IMAGES = uniform(1, 3, 3, 26, 33) * 2 - 1
MAPS = uniform(2, 3, 4, 5, 6) * 3


def resized(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, the corners' centers onto each other: `[h, w]` -> `[height, width]`, pixel by pixel."""
    result = np.empty((height, width))
    for row in range(height):
        for column in range(width):
            y = row * (plane.shape[0] - 1) / (height - 1)
            x = column * (plane.shape[1] - 1) / (width - 1)
            top, left = min(int(y), plane.shape[0] - 2), min(int(x), plane.shape[1] - 2)
            (a, b), (c, d) = plane[top : top + 2, left : left + 2]
            down, right = y - top, x - left
            result[row, column] = (1 - down) * ((1 - right) * a + right * b) + down * ((1 - right) * c + right * d)
    return result


def reference(image: np.ndarray, attention: np.ndarray, t: float, z: float, noise: np.ndarray) -> np.ndarray:
    """One image `[3, H, W]` under one map `[h, w]`, in double precision."""
    height, width = image.shape[1:]
    shares = resized(attention, height, width)
    shares /= shares.max() + 1e-8
    bottom = 1 / (1 + np.exp(t * z))
    shares = (1 / (1 + np.exp(-(shares - t) * z)) - bottom) / (1 - bottom)
    result = np.empty_like(image)
    for channel, plane in enumerate(image):
        small = resized(plane, height // 2, width // 2)
        small = ndimage.gaussian_filter(small, 7, radius=5, mode="mirror") + 0.1 * noise[channel]
        result[channel] = plane * (1 - shares) + resized(small, height, width) * shares
    return result


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_image_is_degraded_as_the_equations_say(layout: torch.memory_format) -> None:
    images = IMAGES.contiguous(memory_format=layout)
    torch.manual_seed(5)
    result, chosen = degrade(images, MAPS)
    # The same draws, in the documented order.
    torch.manual_seed(5)
    draws = draw(images, MAPS)
    assert torch.equal(draws.chosen, chosen)
    # The form of the whole step's reference too, which the benchmark compares with.
    slow = degrade_by_equation(IMAGES.double(), MAPS.double(), draws)
    for index, number in enumerate(chosen):
        image, attention, noise = (
            value.double().numpy() for value in (IMAGES[index], MAPS[index, number], draws.noise[index])
        )
        expected = reference(image, attention, draws.threshold, draws.zoom, noise)
        np.testing.assert_allclose(result[index].numpy(), expected, atol=2e-6)
        np.testing.assert_allclose(slow[index].numpy(), expected, atol=1e-12)
        assert np.abs(expected - image).max() > 0.2


def test_maps_are_drawn_by_the_root_of_their_sum() -> None:
    sums = torch.tensor([[0.0, 3.0, 24.0, 99.0], [0.0, 0.0, 0.0, 0.0]])  # weights 1, 2, 5, 10 and equal ones
    maps = (sums / 4).view(2, 4, 1, 1, 1).expand(2, 4, 1, 2, 2).flatten(2, 3)
    draws = 20_000
    torch.manual_seed(0)
    chosen = draw_maps(maps.repeat_interleave(draws, 0)).view(2, draws)
    shares = torch.stack([chosen.eq(number).float().mean(1) for number in range(4)], 1)
    expected = torch.tensor([[1, 2, 5, 10], [4.5, 4.5, 4.5, 4.5]]) / 18
    # Four standard deviations of a share of 20,000.
    assert ((shares - expected).abs() < 4 * (expected * (1 - expected) / draws).sqrt()).all()


def test_t_and_z_are_drawn_once_per_batch_within_their_ranges() -> None:
    """Where the map is 1 and the image 1, with no gray to blur, what is left of the image tells t and z apart."""
    seen = []
    ones = torch.ones(2, 3, 24, 24)
    attention = torch.ones(2, 1, 3, 3)
    for seed in range(50):
        torch.manual_seed(seed)
        result, _ = degrade(ones, attention)
        torch.manual_seed(seed)
        draw_maps(attention)
        torch.rand(2)
        share = ((result - 1) / (degraded(ones) - 1)).flatten(1).median(1).values
        torch.testing.assert_close(share[0], share[1], rtol=1e-3, atol=1e-3)
        seen.append(float(share[0]))
    corners = [
        float(soft_threshold(torch.tensor(1.0), torch.tensor(t), torch.tensor(z)))
        for t in (0.4, 0.6)
        for z in (3.0, 5.0)
    ]
    assert min(corners) - 1e-3 < min(seen) < max(seen) < max(corners) + 1e-3
    assert max(seen) - min(seen) > 0.5 * (max(corners) - min(corners))


def test_the_soft_threshold_keeps_0_and_rises() -> None:
    values = soft_threshold(torch.linspace(0, 1, 11), torch.tensor(0.5), torch.tensor(4.0))
    assert float(values[0]) == 0
    assert (values.diff() > 0).all()
    assert float(soft_threshold(torch.tensor(1e4), torch.tensor(0.5), torch.tensor(4.0))) == pytest.approx(1)


def test_a_place_that_no_map_sees_stays() -> None:
    maps = torch.zeros(3, 4, 5, 6)
    maps[:, :, :2] = 1
    result, _ = degrade(IMAGES, maps)
    below = slice(26 * 3 // 4, None)
    assert torch.equal(result[:, :, below], IMAGES[:, :, below])
    assert not torch.equal(result, IMAGES)


def test_the_noise_is_white_at_half_size() -> None:
    torch.manual_seed(0)
    noisy = degraded(torch.zeros(1, 3, 257, 257))
    assert noisy.shape == (1, 3, 257, 257)
    # Bilinear means lower the deviation of what lies between the half-size pixels.
    assert 0.5 * NOISE < float(noisy.std()) < NOISE
    assert float(noisy[:, :, ::256, ::256].abs().max()) > 0  # corners fall onto corners


def test_blur_is_scipy_s() -> None:
    expected = ndimage.gaussian_filter(IMAGES.double().numpy(), (0, 0, 7, 7), radius=(0, 0, 5, 5), mode="mirror")
    np.testing.assert_allclose(blurred(IMAGES).numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(blurred(torch.ones(1, 2, 9, 9)).numpy(), 1, atol=1e-6)


def test_a_seed_repeats_it_and_another_does_not() -> None:
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(degrade(IMAGES, MAPS))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][0], results[2][0])


def test_no_gradient_and_the_input_stays() -> None:
    images, before = IMAGES.clone().contiguous(memory_format=torch.channels_last).requires_grad_(), IMAGES.clone()
    result, chosen = degrade(images, MAPS.clone().requires_grad_())
    assert not result.requires_grad
    assert torch.equal(images, before)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert chosen.dtype == torch.int64


def test_it_is_fp32_under_autocast() -> None:
    half = MAPS.bfloat16()
    torch.manual_seed(1)
    expected, _ = degrade(IMAGES, half.float())
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result, _ = degrade(IMAGES, half)
    assert torch.equal(result, expected)
