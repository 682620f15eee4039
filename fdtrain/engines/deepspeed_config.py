"""DeepSpeed's configuration, made from ours: every value is written out, so that no default of theirs decides."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from fdtrain.config import Config, UserError, flatten
from fdtrain.runtime import Runtime

MIXED_PRECISION_KEYS = ("fp16", "bf16", "bfloat16", "amp")
"""Blocks of DeepSpeed's own mixed precision, which casts the weights and leaves batch normalization's averages."""

LOGGING_KEYS = (
    *(f"comms_logger.{name}" for name in ("enabled", "prof_all", "prof_ops", "verbose", "debug")),
    *(f"flops_profiler.{name}" for name in ("enabled", "recompute_fwd_factor", "profile_step", "module_depth")),
    *(f"flops_profiler.{name}" for name in ("top_modules", "detailed", "output_file")),
    *(f"timers.throughput.{name}" for name in ("enabled", "synchronized")),
)
"""Of DeepSpeed, without a setting here and without a say in what is computed; not all of it would refuse others."""

NEEDS_STAGE = {
    "zero_optimization.offload_optimizer": 1,
    "zero_optimization.offload_param": 3,
    "zero_optimization.stage3_": 3,
    "zero_optimization.sub_group_size": 3,
}
"""Beginnings of keys -> the first stage of ZeRO that reads them."""

OFFLOAD_DEVICES = ("none", "cpu")

FIXED = (
    "zero_optimization.compute_grad_norm",  # the norm is logged, and tells what isn't finite
    "zero_optimization.elastic_checkpoint",
    "zero_optimization.zero_hpz_partition_size",
    "zero_optimization.zero_quantized_weights",
    "zero_optimization.zero_quantized_nontrainable_weights",
    "zero_optimization.zero_quantized_gradients",
)
"""Keys of which another value isn't supported: checkpoints, or the comparison with DDP, don't cover it."""


@dataclass(frozen=True)
class _Setting:
    """A key of DeepSpeed's whose value follows from a setting of ours.

    Args:
        value: What it is.
        key: Our setting.
    """

    value: Any
    key: str


def deepspeed_config(config: Config, runtime: Runtime, accumulation: int) -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize`: ours, with what `deepspeed.config` and `deepspeed.overrides` add.

    Args:
        config: The resolved configuration.
        runtime: This rank's surroundings; precision and world size are taken from it.
        accumulation: Micro-batches of one rank in one optimizer step.

    Raises:
        UserError: the JSON file can't be read, or a key of it or of `deepspeed.overrides` is unknown, contradicts a
            setting of ours, or asks for what the engine can't do.
    """
    owned = _owned(config, runtime, accumulation)
    merged = _merge(_free(), nest({key: setting.value for key, setting in owned.items()}))
    sources: list[tuple[str, dict[str, Any]]] = []
    if config.deepspeed.config is not None:
        sources.append((f"deepspeed.config: {config.deepspeed.config}", _read(config.deepspeed.config)))
    if config.deepspeed.overrides is not None:
        sources.append(("deepspeed.overrides", config.deepspeed.overrides))
    for source, theirs in sources:
        merged = _merge(merged, _checked(source, theirs, owned, config))
    return merged


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a.b": x}` -> `{"a": {"b": x}}`."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        place = nested
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return nested


def _owned(config: Config, runtime: Runtime, accumulation: int) -> dict[str, _Setting]:
    """What follows from our settings, by DeepSpeed's dotted keys."""
    train, dtype = config.train, runtime.autocast_dtype
    # DeepSpeed has no tf32: it is a way of multiplying fp32, and the runtime has switched it on.
    autocast = {None: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}[dtype]
    batch = "train.global_batch_size / (train.micro_batch_size x ranks)"
    return {
        "train_batch_size": _Setting(train.global_batch_size, "train.global_batch_size"),
        "train_micro_batch_size_per_gpu": _Setting(train.micro_batch_size, "train.micro_batch_size"),
        "gradient_accumulation_steps": _Setting(accumulation, batch),
        "managed_gradient_accumulation": _Setting(True, batch),
        "gradient_allreduce_op": _Setting("mean", "train.global_batch_size"),
        "gradient_clipping": _Setting(float(config.optim.clip_grad_norm), "optim.clip_grad_norm"),
        "zero_optimization.stage": _Setting(config.deepspeed.zero_stage, "deepspeed.zero_stage"),
        "torch_autocast.enabled": _Setting(dtype is not None, "precision"),
        "torch_autocast.dtype": _Setting(autocast, "precision"),
        "fp16.enabled": _Setting(False, "precision"),
        "bf16.enabled": _Setting(False, "precision"),
    }


def _free() -> dict[str, Any]:
    """DeepSpeed's settings that have none of ours beside them. Buckets are of its order for models of our size."""
    return {
        # Else the gradients of convolutions would be reduced in the precision of the forward pass, which DDP doesn't.
        "torch_autocast": {"lower_precision_safe_modules": []},
        "communication_data_type": "fp32",
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "zero_allow_untested_optimizer": False,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        "memory_breakdown": False,
        "dump_state": False,
        "disable_python_gc": False,
        "log_level": "error",
        "zero_optimization": {
            "allgather_partitions": True,
            "allgather_bucket_size": 16_000_000,
            "overlap_comm": False,
            "reduce_scatter": True,
            "reduce_bucket_size": 16_000_000,
            "use_multi_rank_bucket_allreduce": True,
            "contiguous_gradients": True,
            "round_robin_gradients": False,
            # Batch normalization on a GPU reads its weights in vectors, and fails ("misaligned address") where those of
            # a layer before it don't fill one: squeeze-and-excitation has biases of 6 and 14.
            "parameter_alignment": True,
            "compute_grad_norm": True,
            "ignore_unused_parameters": True,
            "load_from_fp32_weights": True,
            "elastic_checkpoint": False,
            "sub_group_size": 1_000_000_000,
            "offload_param": None,
            "offload_optimizer": None,
            "stage3_prefetch_bucket_size": 16_000_000,
            "stage3_param_persistence_threshold": 100_000,
            "stage3_model_persistence_threshold": 2**63 - 1,
            "stage3_max_live_parameters": 1_000_000_000,
            "stage3_max_reuse_distance": 1_000_000_000,
            "stage3_gather_16bit_weights_on_model_save": False,
            "stage3_module_granularity_threshold": 0,
            "stage3_use_all_reduce_for_fetch_params": False,
            "stage3_allgather_sequential": False,
            "zero_hpz_partition_size": 1,
            "zero_quantized_weights": False,
            "zero_quantized_nontrainable_weights": False,
            "zero_quantized_gradients": False,
            "memory_efficient_linear": False,  # it replaces torch's linear function for the whole process
            "override_module_apply": True,
            "log_trace_cache_warnings": False,
            "enable_sanity_checks": False,
        },
    }


def _read(path: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"deepspeed.config: {path} can't be read ({error.strerror}); give a JSON file") from error
    except ValueError as error:  # of decoding, or of JSON
        raise UserError(f"deepspeed.config: {path} isn't JSON ({error}); mend it, or leave it out") from error
    if not isinstance(content, dict):
        raise UserError(f"deepspeed.config: {path} holds no JSON object; it is one of DeepSpeed's configurations")
    return content


def _checked(source: str, theirs: dict[str, Any], owned: dict[str, _Setting], config: Config) -> dict[str, Any]:
    """What `theirs` adds to ours. A value "auto", as Hugging Face's files have it, stands for ours."""
    flat = {key: value for key, value in flatten(theirs).items() if value != "auto"}
    free = flatten(_free())
    added = {}
    for key, value in flat.items():
        section = key.split(".")[0]
        if section in ("optimizer", "scheduler"):
            _check_optimizer(source, key, value, config)
        elif key in owned:
            if value != owned[key].value or isinstance(value, bool) != isinstance(owned[key].value, bool):
                _contradict(source, key, value, owned[key])
        elif section in MIXED_PRECISION_KEYS:
            if key != f"{section}.enabled" or value is not False:
                _contradict(source, key, value, _Setting(config.precision, "precision"))
        elif key.startswith("zero_optimization.offload_"):
            _check_stage(source, key, value, config)
            _check_offload(source, key, value)
            added[key] = value
        elif key in FIXED and value != free[key]:
            raise UserError(f"{source}: {key} {json.dumps(value)} isn't supported by this engine; leave it out")
        elif key in free or key in LOGGING_KEYS:
            if value != free.get(key):
                _check_stage(source, key, value, config)
            added[key] = value
        else:
            nearest = get_close_matches(key, [*free, *owned, *LOGGING_KEYS], 1)
            hint = f"; did you mean {nearest[0]}?" if nearest else "; leave it out"
            raise UserError(f"{source}: {key} is no setting of DeepSpeed's that this engine takes{hint}")
    return nest(added)


def _contradict(source: str, key: str, value: object, ours: _Setting) -> None:
    raise UserError(
        f"{source}: {key} {json.dumps(value)} contradicts {ours.key}, by which it is {json.dumps(ours.value)}; "
        f"leave {key} out, or change {ours.key}"
    )


def _check_optimizer(source: str, key: str, value: object, config: Config) -> None:
    """The optimizer and the schedule are ours; the same said again does no harm."""
    optim = config.optim
    ours = {
        "optimizer.type": _Setting(optim.name, "optim.name"),
        "optimizer.params.lr": _Setting(optim.lr, "optim.lr"),
        "optimizer.params.betas": _Setting(list(optim.betas), "optim.betas"),
        "optimizer.params.eps": _Setting(optim.eps, "optim.eps"),
        "optimizer.params.weight_decay": _Setting(optim.weight_decay, "optim.weight_decay"),
    }
    same = value.lower() if key == "optimizer.type" and isinstance(value, str) else value
    if key in ours:
        if same != ours[key].value:
            _contradict(source, key, value, ours[key])
        return
    setting = ("optim.schedule", optim.schedule) if key.startswith("scheduler") else ("optim.name", optim.name)
    _contradict(source, key, value, _Setting(setting[1], setting[0]))


def _check_stage(source: str, key: str, value: object, config: Config) -> None:
    ours = config.deepspeed.zero_stage
    for beginning, stage in NEEDS_STAGE.items():
        if key.startswith(beginning) and ours < stage and value not in (None, "none"):
            raise UserError(
                f"{source}: {key} {json.dumps(value)} has no effect at deepspeed.zero_stage {ours}; "
                f"leave it out, or take stage {stage}{' or more' if stage < 3 else ''}"
            )


def _check_offload(source: str, key: str, value: object) -> None:
    if key.endswith(".device") and value not in OFFLOAD_DEVICES:
        allowed = " and ".join(OFFLOAD_DEVICES)
        raise UserError(f"{source}: {key} {json.dumps(value)}: checkpoints don't cover it; allowed are {allowed}")


def _merge(under: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` wins, key by key."""
    result = dict(under)
    for key, value in over.items():
        ours = result.get(key)
        result[key] = _merge(ours, value) if isinstance(ours, dict) and isinstance(value, dict) else value
    return result
