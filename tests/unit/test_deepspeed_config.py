"""DeepSpeed's configuration made from ours, and what may not be said against it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fdtrain.config import Config, UserError
from fdtrain.engines.create import choose_engine
from fdtrain.engines.deepspeed_config import LOGGING_KEYS, deepspeed_config, nest
from fdtrain.engines.loss_scale import LossScale
from fdtrain.runtime import Precision, Runtime

ACCUMULATION = 2


def made(precision: Precision = "fp32", **deepspeed: Any) -> dict[str, Any]:
    """Of two ranks with micro-batches of 16, two accumulated."""
    config = Config()
    config.engine.kind = "deepspeed"
    for key, value in deepspeed.items():
        setattr(config.deepspeed, key, value)
    runtime = Runtime(0, 2, torch.device("cpu"), precision, "")
    return deepspeed_config(config, runtime, ACCUMULATION)


def test_what_is_ours() -> None:
    config = made(zero_stage=2)
    assert config["train_batch_size"] == 64
    assert config["train_micro_batch_size_per_gpu"] == 16
    assert config["gradient_accumulation_steps"] == ACCUMULATION
    assert config["gradient_clipping"] == 1.0
    assert config["zero_optimization"]["stage"] == 2
    assert config["fp16"] == config["bf16"] == {"enabled": False}
    assert config["torch_autocast"]["enabled"] is False
    json.dumps(config)  # plain values


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", "bfloat16"), ("fp16", "float16")])
def test_precision_is_autocast(precision: Precision, dtype: str) -> None:
    config = made(precision)
    assert config["torch_autocast"] == {"enabled": True, "dtype": dtype, "lower_precision_safe_modules": []}
    assert config["fp16"] == config["bf16"] == {"enabled": False}


def test_every_zero_setting_of_deepspeed_is_written_out() -> None:
    """Of its own model of that section, but for what is old, for pipelines, or for another optimizer."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    left_out = {
        "zenflow",
        "cpu_offload",
        "cpu_offload_param",
        "cpu_offload_use_pin_memory",
        "stage3_gather_fp16_weights_on_model_save",
        "legacy_stage1",
        "pipeline_loading_checkpoint",
        "save_muon_momentum_buffer_in_memory",
        "leaf_module",
    }
    theirs = {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()}
    assert set(made()["zero_optimization"]) == theirs - left_out
    DeepSpeedZeroConfig(**made()["zero_optimization"])


def test_file_and_overrides_are_merged(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    buckets = {"reduce_bucket_size": 1000, "allgather_bucket_size": 2000}
    path.write_text(json.dumps({"zero_optimization": {"stage": "auto", **buckets}, "optimizer": {"type": "AdamW"}}))
    config = made(config=str(path), overrides={"zero_optimization": {"reduce_bucket_size": 3000}})
    assert config["zero_optimization"]["reduce_bucket_size"] == 3000
    assert config["zero_optimization"]["allgather_bucket_size"] == 2000
    assert config["zero_optimization"]["stage"] == 1
    assert config["zero_optimization"]["contiguous_gradients"] is True
    assert "optimizer" not in config


def test_what_says_the_same_is_no_contradiction() -> None:
    same = {"train_batch_size": 64, "gradient_clipping": 1, "bf16": {"enabled": False}}
    assert made(overrides=same) == made()
    assert made(overrides={"optimizer": {"type": "adamw", "params": {"lr": 3e-4, "betas": [0.9, 0.999]}}}) == made()


@pytest.mark.parametrize(
    ("theirs", "key", "ours"),
    [
        ({"train_batch_size": 128}, "train_batch_size 128", "train.global_batch_size"),
        ({"train_micro_batch_size_per_gpu": 8}, "train_micro_batch_size_per_gpu 8", "train.micro_batch_size"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps 4", "train.global_batch_size"),
        ({"gradient_clipping": 0.5}, "gradient_clipping 0.5", "optim.clip_grad_norm"),
        ({"gradient_clipping": True}, "gradient_clipping true", "optim.clip_grad_norm"),
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage 3", "deepspeed.zero_stage"),
        ({"fp16": {"enabled": True}}, "fp16.enabled true", "precision"),
        ({"bf16": {"enabled": True}}, "bf16.enabled true", "precision"),
        ({"fp16": {"loss_scale": 8}}, "fp16.loss_scale 8", "precision"),
        ({"torch_autocast": {"enabled": True}}, "torch_autocast.enabled true", "precision"),
        ({"optimizer": {"type": "Lamb"}}, 'optimizer.type "Lamb"', "optim.name"),
        ({"optimizer": {"params": {"lr": 1.0}}}, "optimizer.params.lr 1.0", "optim.lr"),
        ({"optimizer": {"params": {"momentum": 0.9}}}, "optimizer.params.momentum 0.9", "optim.name"),
        ({"scheduler": {"type": "WarmupLR"}}, 'scheduler.type "WarmupLR"', "optim.schedule"),
    ],
)
def test_contradictions_name_both_keys(theirs: dict[str, Any], key: str, ours: str) -> None:
    with pytest.raises(UserError) as raised:
        made(overrides=theirs)
    assert str(raised.value).startswith(f"deepspeed.overrides: {key} contradicts {ours}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"gradient_cliping": 1.0}, "gradient_cliping is no setting .*did you mean gradient_clipping"),
        ({"zero_optimization": {"reduce_bucketsize": 1}}, "did you mean zero_optimization.reduce_bucket_size"),
        ({"zero_optimization": True}, "zero_optimization is no setting"),
        ({"tensor_parallel": {"autotp_size": 2}}, "tensor_parallel.autotp_size is no setting"),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, "allowed are none and cpu"),
        ({"zero_optimization": {"zero_quantized_weights": True}}, "isn't supported"),
        (
            {"zero_optimization": {"stage3_max_live_parameters": 1}},
            "has no effect at deepspeed.zero_stage 1; .* stage 3$",
        ),
        ({"zero_optimization": {"offload_param": {"device": "cpu"}}}, "has no effect at deepspeed.zero_stage 1"),
        ({"flops_profiler": {"enabld": True}}, "did you mean flops_profiler.enabled"),
        (
            {"activation_checkpointing": {"number_checkpoints": 4}},
            "is no setting of DeepSpeed's that this engine takes",
        ),
    ],
)
def test_what_would_be_ignored_or_break_is_refused(theirs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(overrides=theirs)


def test_keys_of_logging_are_deepspeeds_own() -> None:
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.profiling.config import DeepSpeedFlopsProfilerConfig
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    theirs = {f"comms_logger.{name}" for name in CommsLoggerConfig.model_fields}
    theirs |= {f"flops_profiler.{name}" for name in vars(DeepSpeedFlopsProfilerConfig({}))}
    theirs |= {f"timers.throughput.{name}" for name in DeepSpeedThroughputTimerConfig.model_fields}
    assert set(LOGGING_KEYS) == theirs
    assert made(overrides=nest(dict.fromkeys(LOGGING_KEYS, True)))["timers"]["throughput"]["enabled"] is True
    assert "timers" not in made()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for content, message in ((None, "can't be read"), ("{", "isn't JSON"), ("[1]", "holds no JSON object")):
        path = tmp_path / "ds.json"
        if content is not None:
            path.write_text(content)
        with pytest.raises(UserError, match=rf"deepspeed\.config: .*ds\.json {message}"):
            made(config=str(path))


def check(kind: str, **settings: Any) -> None:
    """Set `section__key`, and check what the engine has to say."""
    config = Config()
    config.engine.kind = kind  # type: ignore[assignment]
    for key, value in settings.items():
        section, name = key.split("__")
        setattr(getattr(config, section), name, value)
    config.check_engine(config.engine.kind)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("ddp", {"deepspeed__zero_stage": 2}, r"deepspeed\.zero_stage: 2 has no effect here; set engine\.kind"),
        ("ddp", {"deepspeed__overrides": {}}, r"deepspeed\.overrides: .* has no effect"),
        ("deepspeed", {"multi_attention__backbone_epochs": 2}, r"multi_attention\.backbone_epochs: 2 .*engine\.kind"),
        ("auto", {"multi_attention__head_epochs": 1, "deepspeed__zero_stage": 2}, r"multi_attention\.head_epochs: 1"),
        ("deepspeed", {"optim__ema_decay": 0.9, "deepspeed__zero_stage": 3}, r"optim\.ema_decay: 0\.9"),
        ("deepspeed", {"train__compile": "on", "deepspeed__zero_stage": 3}, r"train\.compile: on"),
    ],
)
def test_what_the_engine_cannot_do(kind: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(kind, **settings)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("auto", {"multi_attention__backbone_epochs": 2, "optim__ema_decay": 0.9}),
        ("deepspeed", {"multi_attention__backbone_epochs": 2, "deepspeed__zero_stage": 0}),
        ("deepspeed", {"optim__ema_decay": 0.9, "deepspeed__zero_stage": 2}),
    ],
)
def test_what_it_can(kind: str, settings: dict[str, Any]) -> None:
    check(kind, **settings)


def test_auto_is_ddp_unless_deepspeed_is_asked_for() -> None:
    runtime = Runtime(0, 2, torch.device("cpu"), "fp32", "")
    config, model = Config(), nn.Linear(100, 100)
    assert choose_engine(config, model, runtime)[0] == "ddp"
    config.deepspeed.zero_stage = 2
    assert choose_engine(config, model, runtime) == ("deepspeed", "a setting of deepspeed.* was changed")
    config.engine.kind = "ddp"
    assert choose_engine(config, model, runtime) == ("ddp", "as configured")


def test_loss_scale_follows_torch() -> None:
    """The same overflows and good steps, `GradScaler` beside it."""
    ours = LossScale(interval=4)
    theirs = torch.amp.GradScaler("cpu", growth_interval=4)
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], 0.0)
    for is_good in (False, True, True, False, *[True] * 9, False, True):
        theirs.scale(weight.sum() * (1.0 if is_good else float("inf"))).backward()
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        ours.update(was_applied=is_good)
        assert ours.value == theirs.get_scale()
    again = LossScale(interval=4)
    again.load_state_dict(ours.state_dict())
    assert again == ours
