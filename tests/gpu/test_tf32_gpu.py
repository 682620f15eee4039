"""`precision: tf32` multiplies in TF32, and `fp32` doesn't."""

import pytest
import torch
from torch.nn import functional

from fdtrain.runtime import start
from tests.gpu.conftest import Measured

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def errors(precision: str) -> dict[str, float]:
    """Largest error of a product of matrices and of a convolution against float64, relative to the largest value."""
    with start(precision) as runtime:
        generator = torch.Generator().manual_seed(0)
        left, right = (torch.randn(512, 512, generator=generator) for _ in range(2))
        images, weight = torch.randn(4, 64, 32, 32, generator=generator), torch.randn(64, 64, 3, 3, generator=generator)
        results = {"matmul": torch.matmul, "convolution": functional.conv2d}
        found = {}
        for name, inputs in (("matmul", (left, right)), ("convolution", (images, weight))):
            exact = results[name](*(value.double() for value in inputs))
            ours = results[name](*(value.to(runtime.device) for value in inputs)).cpu().double()
            found[name] = float((ours - exact).abs().max() / exact.abs().max())
        return found


@pytest.mark.usefixtures("precision_as_before")
def test_fp32_is_exact_and_tf32_is_not(measured: Measured) -> None:
    exact = errors("fp32")
    measured(f"fp32: relative errors {exact}")
    assert max(exact.values()) < 2e-6
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("tf32 came with Ampere")
    rough = errors("tf32")
    measured(f"tf32: relative errors {rough}")
    assert all(1e-5 < value < 5e-3 for value in rough.values())
