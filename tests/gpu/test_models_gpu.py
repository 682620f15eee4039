"""The models and their tasks on a GPU: half precision, the CPU's numbers, no waiting, deterministic gradients."""

from collections.abc import Iterator

import pytest
import torch

from fdtrain.config import Config
from fdtrain.models import InputSpec, create_model
from fdtrain.tasks import Task, create_task

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

SIDE = 64
MODELS = [
    ("meso4", {"image_size": SIDE}),
    ("meso_inception4", {"image_size": SIDE}),
    ("efficientnet_b0", {}),
    ("multi_attention", {"backbone": "efficientnet_b0"}),
]


def make_task(name: str, options: dict) -> Task:
    torch.manual_seed(0)
    config = Config()
    config.model.name = name
    task = create_task(config, create_model(name, **options), InputSpec(SIDE))
    return task.to("cuda", memory_format=torch.channels_last)  # type: ignore[call-overload]


def batch(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (8, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    return images.to(device), torch.tensor([0, 1] * 4, device=device)


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("name", "options"), MODELS, ids=[name for name, _ in MODELS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_step_is_finite_in_every_precision(name: str, options: dict, dtype: torch.dtype) -> None:
    task = make_task(name, options).train()
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        result = task(*batch("cuda"))
    result["loss"].backward()
    print(f"{name} in {dtype}: loss {result['loss'].item():.4f}")
    gradients = [parameter.grad for parameter in task.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(("name", "options"), MODELS, ids=[name for name, _ in MODELS])
def test_the_logits_are_those_of_a_cpu(name: str, options: dict) -> None:
    task = make_task(name, options).eval()
    images, _ = batch("cuda")
    with torch.no_grad():
        ours = task.model(task.prepare(images)).cpu()
        task = task.cpu()
        theirs = task.model(task.prepare(images.cpu()))
    print(f"{name}: logits within {(ours - theirs).abs().max():.2e} of the CPU's")
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)  # convolutions may run in TF32


@pytest.mark.parametrize(("name", "options"), MODELS, ids=[name for name, _ in MODELS])
@pytest.mark.usefixtures("deterministic")
def test_a_deterministic_step_repeats(name: str, options: dict) -> None:
    gradients = []
    for _ in range(2):
        task = make_task(name, options).train()
        torch.manual_seed(3)
        task(*batch("cuda"))["loss"].backward()
        gradients.append([parameter.grad for parameter in task.parameters() if parameter.grad is not None])
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize(("name", "options"), MODELS, ids=[name for name, _ in MODELS])
def test_a_step_does_not_wait_for_the_device(name: str, options: dict) -> None:
    task = make_task(name, options).train()
    images, labels = batch("cuda")
    task(images, labels)["loss"].backward()  # what is chosen and made once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        task(images, labels)["loss"].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
