"""Training steps of the models against the peers' and against a straightforward form, in one run: `make benchmarks`.

Prints ratios; asserts no time, since machines differ. Each contender is a process of its own, since the memory
allocator's settings hold for a process, and steps in turn with the others, several rounds; a line states the median of
the rounds' ratios, and the fastest step of each, which what else the machine does can't flatter. The first steps are
not counted. efficientnet_pytorch is no dependency of the project; the comparison with it is skipped where it can't be
imported. FDTRAIN_BENCHMARK_COMPILE=1 adds the compiled forms, which take minutes to start.

A step of the multi-attentional network is `MultiAttentionTask`'s, with all its losses and both passes, and the
optimizer's; the straightforward form is that of tests/reference_multi_attention.py with an AdamW that loops.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fdtrain.models.efficientnet
from fdtrain.config import LossConfig, MultiAttentionConfig, OptimConfig
from fdtrain.models import InputSpec, create_model
from fdtrain.models.fast import keep_freed_memory, speed_up
from fdtrain.models.multi_attention import MultiAttentionNetwork
from fdtrain.optim import create_optimizer
from fdtrain.tasks.multi_attention import MultiAttentionTask
from tests.benchmarks.table import Line
from tests.conftest import REPOSITORY
from tests.reference_multi_attention import ReferenceNetwork, ReferenceTask

SIZE, THREADS = 256, 2
SKIPPED, ROUNDS = 1, 4
MODELS = ("meso4", "meso_inception4", "efficientnet_b0", "efficientnet_b4", "efficientnetv2_s", "multi_attention")
MB = 1e6


@dataclass(frozen=True)
class Setup:
    """A training step: of which network, and how."""

    network: str
    batch: int
    channels_last: bool = False
    fused: bool = False
    faster: bool = False
    keep_memory: bool = False
    compiled: bool = False


PLAIN_B4 = Setup("timm", 8)
PLAIN_ATTENTION = Setup("multi_attention", 4)
GAINS = ("channels_last", "fused", "faster", "keep_memory")
"""In the order in which they are added, one after the other."""


def ours(setup: Setup) -> Setup:
    """With everything that fdtrain does on a CPU."""
    return replace(setup, **dict.fromkeys(GAINS, True))


class Contender:
    """A process that takes a step when told."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        environment = os.environ | {"OMP_NUM_THREADS": str(THREADS), "PYTHONPATH": _python_path()}
        # A thread that spins while it waits for one that another program has displaced makes a step ten times longer.
        environment.setdefault("OMP_WAIT_POLICY", "passive")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.test_models", json.dumps(asdict(setup))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=environment,
        )

    def step(self) -> dict[str, float]:
        """One training step: `seconds` that it took, `peak` memory of the process since the network was made, bytes."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"{self.setup} ended with exit code {self.process.wait()}"
        return json.loads(answer)

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *_error: object) -> None:
        self.process.kill()
        self.process.communicate()


def _python_path() -> str:
    return os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))


def take_turns(setups: dict[str, Setup]) -> dict[str, list[dict[str, float]]]:
    """The steps of each contender, a round after the other, without those that aren't counted."""
    with ExitStack() as stack:
        contenders = {name: stack.enter_context(Contender(setup)) for name, setup in setups.items()}
        rounds = [{name: each.step() for name, each in contenders.items()} for _ in range(SKIPPED + ROUNDS)]
    return {name: [a_round[name] for a_round in rounds[SKIPPED:]] for name in setups}


def compare(table: list[Line], setups: dict[str, Setup], asked: str) -> None:
    """Each of the contenders against the first; `asked` is of the last that isn't compiled."""
    steps = take_turns(setups)
    first, *others = steps
    baseline = [step["seconds"] for step in steps[first]]
    goal = [name for name in others if not setups[name].compiled][-1]
    for name, taken in steps.items():
        seconds = [step["seconds"] for step in taken]
        ratio = median(theirs / mine for theirs, mine in zip(baseline, seconds, strict=True))
        detail = (
            f"{setups[name].batch / median(seconds):.2f} images/s, {setups[name].batch / min(seconds):.2f} at best "
            f"({min(baseline) / min(seconds):.2f} times), {taken[-1]['peak'] / MB:.0f} MB at the peak"
        )
        table.append(Line(name, f"{ratio:.2f}", asked if name == goal else "", detail))


def one_by_one(plain: Setup, what: str) -> dict[str, Setup]:
    """The plain form, then with one gain more at a time, then compiled if that was asked for."""
    setups = {f"{what}, NCHW fp32": plain}
    for gain in GAINS:
        plain = replace(plain, **{gain: True})
        setups[f"  + {gain}"] = plain
    if os.environ.get("FDTRAIN_BENCHMARK_COMPILE"):
        setups["  + compiled"] = replace(plain, compiled=True)
    return setups


def test_efficientnet_b4(table: list[Line]) -> None:
    pytest.importorskip("efficientnet_pytorch", reason="efficientnet_pytorch is not installed")
    setups = {"efficientnet_pytorch B4, batch 8, NCHW fp32, Adam": Setup("efficientnet_pytorch", 8)}
    compare(table, setups | one_by_one(PLAIN_B4, "timm's B4"), "at least 2")


def test_multi_attention(table: list[Line]) -> None:
    setups = {"multi-attention as it reads, batch 4, NCHW fp32": Setup("reference", 4)}
    compare(table, setups | one_by_one(PLAIN_ATTENTION, "multi_attention"), "at least 1.5")


def test_multi_attention_gives_what_the_straightforward_form_gives() -> None:
    """Of the steps that are compared above: the losses, the centers, and the gradient as a whole."""
    plain, mine = _task(Setup("reference", 4)), _task(ours(Setup("multi_attention", 4)))
    mine.network.load_state_dict(plain.network.state_dict())
    scalars = []
    for step in (plain, mine):
        torch.manual_seed(1)
        scalars.append(step.scalars())
        scalars[-1]["loss"].backward()
        step.finish()
    for name, theirs in scalars[0].items():
        torch.testing.assert_close(scalars[1][name], theirs, rtol=1e-4, atol=1e-4, msg=name)
    torch.testing.assert_close(
        mine.network.get_buffer("centers.centers"), plain.network.get_buffer("centers.centers"), rtol=1e-4, atol=1e-5
    )
    wanted = {name: value.grad for name, value in plain.network.named_parameters() if value.grad is not None}
    found = {name: value.grad for name, value in mine.network.named_parameters() if value.grad is not None}
    assert found.keys() == wanted.keys()
    apart = torch.cat([(found[name] - wanted[name]).flatten() for name in wanted]).norm()
    assert apart <= 1e-3 * torch.cat([gradient.flatten() for gradient in wanted.values()]).norm()


@pytest.mark.parametrize("name", MODELS)
def test_cost_of_a_model(table: list[Line], name: str) -> None:
    _cost(table, name, lambda: create_model(name, **_options(name)))


def _cost(table: list[Line], name: str, make: Callable[[], nn.Module]) -> None:
    batch = 4
    with torch.device("meta"):
        network = make().eval()
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            network(torch.empty(1, 3, SIZE, SIZE))
    parameters = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    with Contender(ours(Setup(name, batch))) as contender:
        peak = [contender.step() for _ in range(2)][-1]["peak"]
    flops = f"{counter.get_total_flops() / 1e9:.2f} GFLOP an image of {SIZE} px"
    detail = f"{flops}, {peak / MB:.0f} MB at the peak of a training step of {batch}"
    table.append(Line(f"{name}: parameters", f"{parameters:,}", "", detail))


@dataclass(frozen=True)
class Step:
    """What a training step consists of.

    Args:
        network: What is trained.
        scalars: Forward: the "loss", and what else the step knows.
        optimizer: Moves the weights.
        finish: After the optimizer.
    """

    network: nn.Module
    scalars: Callable[[], dict[str, Tensor]]
    optimizer: torch.optim.Optimizer
    finish: Callable[[], None] = lambda: None


def _options(name: str) -> dict[str, Any]:
    """Meso4's and MesoInception4's classifiers are made for a size."""
    return {"image_size": SIZE} if name.startswith("meso") else {}


def _task(setup: Setup) -> Step:
    """The multi-attentional network's own step, or that of its reference, which has no dropout: so neither has ours."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (setup.batch, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    labels = torch.arange(setup.batch) % 2
    spec = InputSpec(SIZE)
    if setup.network == "reference":
        reference = ReferenceTask(ReferenceNetwork("b4", 4, 2).train(), spec.mean, spec.std)
        optimizer = _adamw(reference.network, setup.fused)
        return Step(reference.network, lambda: reference.training_step(images, labels), optimizer)
    with pytest.MonkeyPatch.context() as patch:
        if not setup.faster:
            patch.setattr(fdtrain.models.efficientnet, "speed_up", lambda network: network)
        network = MultiAttentionNetwork(drop_rate=0.0, map_drop_rate=0.0)
    network.backbone.drop_rate = 0.0
    task = MultiAttentionTask(network, spec, LossConfig(), MultiAttentionConfig()).train()
    if setup.channels_last:
        task = task.to(memory_format=torch.channels_last)
    else:
        prepare = task.prepare
        task.prepare = lambda images: prepare(images).contiguous()  # type: ignore[method-assign]
    if setup.compiled:
        task.compile_part("on")
    return Step(
        network, lambda: task.training_step(images, labels), _adamw(network, setup.fused), lambda: task.end_step()
    )


def _adamw(network: nn.Module, fused: bool) -> torch.optim.Optimizer:
    """That of the project, or the same rule in a loop over the tensors."""
    config = OptimConfig()
    optimizer = create_optimizer(network, config)
    if fused:
        return optimizer
    groups = [{key: group[key] for key in ("params", "weight_decay")} for group in optimizer.param_groups]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=False, foreach=False)


def _classifier(setup: Setup) -> Step:
    """Forward, cross entropy, backward and Adam of a network with two logits."""
    images, labels = torch.randn(setup.batch, 3, SIZE, SIZE), torch.arange(setup.batch) % 2
    network = _make(setup.network).train()
    if setup.faster:
        speed_up(network)
    if setup.channels_last:
        network = network.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    if setup.compiled:
        network.compile()
    optimizer = torch.optim.Adam(network.parameters(), fused=setup.fused, foreach=False)
    return Step(network, lambda: {"loss": F.cross_entropy(network(images), labels)}, optimizer)


def _make(name: str) -> nn.Module:
    if name == "efficientnet_pytorch":
        from efficientnet_pytorch import EfficientNet

        return EfficientNet.from_name("efficientnet-b4", num_classes=2)
    if name == "timm":
        import timm

        return timm.create_model("tf_efficientnet_b4", num_classes=2, drop_rate=0.4)
    return create_model(name, **_options(name))


def serve(setup: Setup) -> None:
    """Take a step for each line of the standard input, and say how long it took and what memory is needed."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    if setup.keep_memory:
        assert keep_freed_memory(), "this C library's allocator can't be told"
    step = _task(setup) if setup.network in ("reference", "multi_attention") else _classifier(setup)
    # Linux: the peak starts anew, from what is held now; getrusage would give what the parent process once held.
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    for _ in sys.stdin:
        began = time.perf_counter()
        step.network.zero_grad(set_to_none=True)
        step.scalars()["loss"].backward()
        step.optimizer.step()
        step.finish()
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "peak": _peak() - before}), flush=True)


def _peak() -> float:
    """Bytes of memory that the process held at most since the peak started anew."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    serve(Setup(**json.loads(sys.argv[1])))
