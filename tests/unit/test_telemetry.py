"""What training costs: phases, FLOPs against numbers by hand, peak rates, traces."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fdtrain.config import Config, ModelConfig, MultiAttentionConfig, ProfileConfig, TrainConfig, UserError
from fdtrain.models import InputSpec, create_model
from fdtrain.runtime import Runtime, start
from fdtrain.tasks import ClassificationTask
from fdtrain.telemetry.clock import PhaseClock
from fdtrain.telemetry.flops import StepFlops, count_flops
from fdtrain.telemetry.meter import PARTS, StepMeter
from fdtrain.telemetry.peak import Precision, peak_flops
from fdtrain.telemetry.trace import StepTracer


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with start("fp32") as runtime:
        yield runtime


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("NVIDIA A100-SXM4-40GB", "bf16", 312),
        ("NVIDIA A100-PCIE-40GB", "tf32", 156),
        ("NVIDIA L4", "fp16", 121),
        ("NVIDIA L40S", "fp32", 91.6),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H100 NVL", "bf16", 835.5),
        ("NVIDIA H200", "fp32", 67),
        ("NVIDIA A10", "bf16", 125),
        ("Tesla V100-SXM2-16GB", "fp16", 125),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("Tesla V100-SXM2-16GB", "bf16", None),  # has no such units
        ("Tesla T4", "tf32", None),
        ("NVIDIA A10G", "bf16", None),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", "bf16", None),
        ("NVIDIA A40-8Q", "bf16", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("NVIDIA GeForce RTX 4090 D", "bf16", None),
        ("NVIDIA GeForce RTX 3090 Ti", "bf16", None),
        ("CPU", "fp32", None),
    ],
)
def test_the_peak_rate_is_that_of_the_very_device(name: str, precision: Precision, expected: float | None) -> None:
    assert peak_flops(name, precision) == (None if expected is None else pytest.approx(expected * 1e12))


def flops_of(config: Config, side: int) -> StepFlops:
    options = config.model_options | {"image_size": side}
    return StepFlops(config, create_model(config.model.name, **options), InputSpec(side), side)


def test_flops_of_meso4_are_those_counted_by_hand() -> None:
    config = Config(model=ModelConfig(name="meso4"), train=TrainConfig(compile="on"))
    # Of the paper's table: kernel area x channels in x channels out, at 64 px halved by each pooling, then 2x2.
    first = 2 * 64**2 * 9 * 3 * 8
    others = 2 * (32**2 * 25 * 8 * 8 + 16**2 * 25 * 8 * 16 + 8**2 * 25 * 16 * 16 + 2 * 2 * 16 * 16 + 16)
    counted = flops_of(config, 64)
    before = torch.get_rng_state()
    # Backward takes as much for the weights and as much for the input, which the images need not.
    assert counted.per_image(0) == 2 * first + 3 * others
    assert torch.equal(before, torch.get_rng_state())


class Depthwise(ClassificationTask):
    """Its convolution has a group for each of three channels."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Conv2d(3, 3, 5, padding=2, groups=3), nn.Conv2d(3, 2, 1)), InputSpec(8))

    def training_step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": self.model(self.prepare(images)).mean()}


def test_a_depthwise_convolution_counts_no_other_channel() -> None:
    depthwise, pointwise = 2 * 64 * 25 * 3, 2 * 64 * 3 * 2
    assert count_flops(Depthwise(), 4, 8) == 4 * (2 * depthwise + 3 * pointwise)


def test_flops_follow_what_is_trained_and_the_second_pass() -> None:
    settings = MultiAttentionConfig(backbone="efficientnet_b0", backbone_epochs=1, head_epochs=1)
    config = Config(model=ModelConfig(name="multi_attention"), multi_attention=settings)
    counted = flops_of(config, 64)
    backbone, head, whole = (counted.per_image(epoch) for epoch in range(3))
    assert backbone < head < whole
    single = MultiAttentionConfig(backbone="efficientnet_b0", augmented_weight=0, match_weight=0)
    once = flops_of(Config(model=ModelConfig(name="multi_attention"), multi_attention=single), 64).per_image(0)
    # Two passes, and between them the blur at half size: 11 taps, down over 5 more columns at each side, then across.
    blur = 2 * 3 * 11 * (32 * 42 + 32 * 32)
    assert whole == 2 * once + blur


def test_a_clock_adds_up_the_phases_that_end_well() -> None:
    clock = PhaseClock(torch.device("cpu"))
    for _ in range(2):
        with clock.phase("a"):
            time.sleep(0.01)
    with pytest.raises(ZeroDivisionError), clock.phase("b"):
        _ = 1 / 0
    clock.add("a", -0.005)
    seconds = clock.take()
    assert list(seconds) == ["a"]
    assert seconds["a"] >= 0.015
    assert clock.take() == {}


def test_the_parts_of_a_step_add_up_and_give_the_utilization(runtime: Runtime) -> None:
    meter = StepMeter(runtime, images_per_step=8, peak_flops=1e9, flops_per_image=lambda epoch: 1e4 * epoch)
    meter.start_epoch(1)
    for _ in range(2):
        with meter.phase("data_wait"):
            time.sleep(0.01)
        meter.step()
    with meter.phase("paused"):
        time.sleep(0.5)
    engine = {"forward_backward": 0.004, "communication": 0.002, "optimizer": 0.001, "communication_hidden": 9.0}
    measures = meter.take(engine, checkpoint_stall_s=0.4)
    values = measures.values
    step = values["train/time/step"]
    assert 0.01 <= step < 0.4
    assert step == pytest.approx(sum(values[f"train/time/{name}"] for name in (*PARTS, "other")))
    assert values["train/time/forward_backward"] == 0.002  # of each of the two
    assert values["train/time/checkpoint_stall"] == 0.2
    assert values["train/images_per_s"] == pytest.approx(8 / step)
    assert values["train/data_wait"] == pytest.approx(values["train/time/data_wait"] / step)
    assert values["train/mfu"] == pytest.approx(8 * 1e4 / step / 1e9)
    assert values["train/memory/peak_rss"] > 50e6
    assert measures.by_rank["train/time/step"] == [step]


def test_without_a_known_peak_there_is_no_utilization(runtime: Runtime) -> None:
    meter = StepMeter(runtime, images_per_step=8)
    meter.start_epoch(0)
    meter.step()
    engine = dict.fromkeys(("forward_backward", "communication", "optimizer"), 0.0)
    assert "train/mfu" not in meter.take(engine, 0.0).values


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ProfileConfig(steps=(0, 3)), r"profile.steps\[0\]: 0 is out of range"),
        (ProfileConfig(steps=(5, 3)), r"profile.steps\[1\]: 3 is out of range; allowed is at least 5"),
        (ProfileConfig(ranks=[0]), r"profile.ranks: \[0\] has no effect without profile.steps"),
        (ProfileConfig(steps=(1, 3), ranks=[-1]), "profile.ranks: -1 is out of range"),
        (ProfileConfig(steps=(1, 11)), r"profile.steps: \[1, 11\] where the run has 10 steps"),
        (ProfileConfig(steps=(1, 3), ranks=[0, 2]), "profile.ranks: 2 where the ranks are 0 to 0"),
    ],
)
def test_a_trace_that_would_not_come_is_refused(
    config: ProfileConfig, expected: str, runtime: Runtime, tmp_path: Path
) -> None:
    def make() -> None:
        config.validate()
        StepTracer(config, tmp_path, runtime, total_steps=10)

    with pytest.raises(UserError, match=expected):
        make()


def test_what_was_traced_of_a_run_that_stops_is_written(runtime: Runtime, tmp_path: Path) -> None:
    with StepTracer(ProfileConfig(steps=(2, 5)), tmp_path / "profile", runtime, total_steps=10) as tracer:
        for step in (1, 2, 3):
            tracer.begin(step)
            torch.ones(4).sum()
            tracer.end(step)
    names = sorted(path.name for path in (tmp_path / "profile").iterdir())
    assert names == [f"steps-00000002-00000003-rank-00000.{end}" for end in ("json.gz", "txt")]
