"""What the DeepSpeed tests run under torchrun: small trainings by each engine, and what came of them as JSON.

Usage: `torchrun ... -m tests.deepspeed_driver PRECISION OUT.json WHAT...`; each WHAT is a function below, but
`memory:ENGINE:MODEL`, such as `memory:zero2:efficientnet_b4`, which has the process for itself.
"""

import functools
import json
import resource
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fdtrain.config import Config, UserError
from fdtrain.data.batch import Batch
from fdtrain.data.plan import draw_seed
from fdtrain.engines import Engine, EngineState, create_engine
from fdtrain.engines.base import Outcome
from fdtrain.engines.deepspeed import VECTOR_BYTES
from fdtrain.models import create_model, input_spec
from fdtrain.runtime import Runtime, start
from fdtrain.tasks import create_task
from tests.heads import with_large_heads

SMALL = {"reduce_bucket_size": 5000}
"""So that gradients fill more than one bucket."""

SMALL_WEIGHTS = {"stage3_param_persistence_threshold": 0}
"""So that stage 3 shares out the weights of a small model as well."""

PER_RANK = 4
"""Samples of a micro-batch."""


def configuration(kind: str, stage: int = 1, *, model: str = "meso4", **settings: Any) -> Config:
    """A run of 20 steps with dropout; `optim__lr=0.1` is `optim.lr: 0.1`."""
    config = Config()
    config.model.name = model
    config.engine.kind = "ddp" if kind == "ddp" else "deepspeed"
    if kind != "ddp":
        config.deepspeed.zero_stage = stage  # type: ignore[assignment]
        config.deepspeed.overrides = {"zero_optimization": SMALL | (SMALL_WEIGHTS if stage == 3 else {})}
    config.optim.lr, config.optim.warmup_steps, config.optim.clip_grad_norm = 3e-3, 3, 0.0
    config.train.micro_batch_size = PER_RANK
    for key, value in settings.items():
        section, name = key.split("__")
        setattr(getattr(config, section), name, value)
    config.check_engine(config.engine.kind)
    return config


def make(config: Config, runtime: Runtime, accumulation: int, side: int = 32) -> Engine:
    """An engine on a fresh task, the same one each time."""
    torch.manual_seed(0)
    options = config.model_options | {"image_size": side}
    spec = replace(input_spec(config.model.name), size=side)
    config.train.global_batch_size = PER_RANK * accumulation * runtime.world_size
    model = with_large_heads(create_model(config.model.name, **options))  # so that gradients are, too
    task = create_task(config, model, spec)
    return create_engine(config, task, runtime, 20, (PER_RANK, side), accumulation)


def micro_batch(number: int, side: int, device: torch.device) -> Batch:
    """Samples in which something can be learned: fakes are brighter."""
    generator = torch.Generator().manual_seed(number)
    labels = torch.arange(PER_RANK) % 2
    images = torch.randint(0, 156, (PER_RANK, side, side, 3), generator=generator) + 100 * labels.view(-1, 1, 1, 1)
    rows = torch.arange(PER_RANK)
    pixels = images.to(device, torch.uint8).permute(0, 3, 1, 2)
    return Batch(pixels, labels.to(device), rows, rows)


def steps(
    engine: Engine, runtime: Runtime, first: int, last: int, accumulation: int, side: int = 32
) -> tuple[list[float], list[Outcome], list[float]]:
    """Do steps and return their losses, means over the ranks, what came of them, and norms of their gradients."""
    losses: list[float] = []
    outcomes: list[Outcome] = []
    norms: list[float] = []
    for step in range(first, last):
        share = range(runtime.rank, accumulation * runtime.world_size, runtime.world_size)
        batches = [micro_batch(1000 * step + number, side, runtime.device) for number in share]
        result = engine.train_step(batches, [draw_seed(0, step, number) for number in share])
        losses.append(runtime.mean_over_ranks({"loss": result.scalars["loss"]})["loss"])
        outcomes.append(result.outcome)
        norms.append(float(result.grad_norm))
    return losses, outcomes, norms


def state_bytes(engine: Any) -> int:
    """Of the optimizer's state on this rank."""
    tensors = [value for state in engine.optimizer.state.values() for value in state.values()]
    return sum(value.numel() * value.element_size() for value in tensors if value.ndim)


def gpu_peak_bytes() -> int:
    """Of this rank's GPU, allocated by torch at most; 0 without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def train(config: Config, runtime: Runtime, count: int, accumulation: int, side: int = 32) -> dict[str, Any]:
    """Losses, weights and memory of a training."""
    engine = make(config, runtime, accumulation, side)
    engine.start_epoch(0)
    losses, outcomes, norms = steps(engine, runtime, 0, count, accumulation, side)
    scores = engine.evaluation_task().scores(micro_batch(7, side, runtime.device)).tolist()
    sizes = runtime.of_all_ranks(state_bytes(engine))
    peak = runtime.of_all_ranks(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    gpu = runtime.of_all_ranks(gpu_peak_bytes())
    found = {"losses": losses, "outcomes": outcomes, "norms": norms, "scores": scores}
    return found | {"state_bytes": sizes, "peak_rss_mb": peak, "peak_gpu_mb": [size // 2**20 for size in gpu]}


def saved_and_loaded(state: EngineState, runtime: Runtime, folder: Path) -> EngineState:
    """Through files of the kinds that a checkpoint has: none of them holds pickled code."""
    own = folder / f"state-{runtime.rank}"
    torch.save({"training": state.training, "local": state.local}, own)
    rest = torch.load(own, weights_only=True)
    weights = {}
    for name, values in (("model", state.model), ("ema", state.ema)):
        if values is not None:
            save_file({key: value.contiguous() for key, value in values.items()}, own.with_suffix(f".{name}"))
            weights[name] = load_file(own.with_suffix(f".{name}"))
    return EngineState(**rest, **weights)


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two nested states differ, to the bit."""
    if isinstance(one, Tensor):
        return [] if torch.equal(one, other) and one.dtype == other.dtype else [path]
    if isinstance(one, dict | list):
        keys = list(one) if isinstance(one, dict) else range(len(one))
        if len(one) != len(other):
            return [path]
        return [found for key in keys for found in differences(one[key], other[key], f"{path}.{key}")]
    return [] if one == other else [path]


def compare(runtime: Runtime, folder: Path) -> dict[str, Any]:
    """20 steps by each engine, with clipping off and on."""
    results = {}
    for clip in (0.0, 0.2):
        for kind, stage in [("ddp", 0), *(("zero", stage) for stage in range(4))]:
            config = configuration(kind, stage, optim__clip_grad_norm=clip)
            name = kind if kind == "ddp" else f"zero{stage}"
            results[f"{name} clip {clip}"] = train(config, runtime, 20, 2)
    return results


def resume(runtime: Runtime, folder: Path) -> dict[str, Any]:
    """Of each stage: where a resumed run's state and losses differ from the undisturbed one's."""
    results: dict[str, Any] = {}
    for stage in range(4):
        averages = 0.9 if stage < 3 else None
        config = configuration("zero", stage, optim__clip_grad_norm=0.2, optim__ema_decay=averages)
        whole = make(config, runtime, 2)
        whole.start_epoch(0)
        steps(whole, runtime, 0, 3, 2)
        state = saved_and_loaded(whole.state(), runtime, folder)
        losses = steps(whole, runtime, 3, 7, 2)
        resumed = make(config, runtime, 2)
        resumed.load_state(state)
        resumed.start_epoch(0)
        again = steps(resumed, runtime, 3, 7, 2)
        found = differences(vars(whole.state()), vars(resumed.state())) + ([] if losses == again else ["losses"])
        results[f"zero{stage}"] = sorted({name for names in runtime.of_all_ranks(found) for name in names})
        if stage == 1:
            results["other ranks"] = refusal(resumed, replace(state, local={}))
            results["other engine"] = refusal(resumed, replace(state, training={}))
            config.deepspeed.overrides = {"zero_optimization": {"reduce_bucket_size": 9000}}
            results["other settings"] = refusal(make(config, runtime, 2), state)
    return results


def refusal(engine: Engine, state: EngineState) -> str:
    """What is said to a state that doesn't suit."""
    try:
        engine.load_state(state)
    except UserError as error:
        return str(error)
    return "none"


def compare_clipped(runtime: Runtime, folder: Path) -> dict[str, Any]:
    """6 steps by each engine with clipping, in the precision of the command line."""
    engines = [("ddp", 0), *(("zero", stage) for stage in range(4))]
    return {
        kind if kind == "ddp" else f"zero{stage}": train(
            configuration(kind, stage, optim__clip_grad_norm=0.2), runtime, 6, 2
        )
        for kind, stage in engines
    }


def skip(runtime: Runtime, folder: Path) -> dict[str, Any]:
    """Of each stage: what comes of a step whose loss is infinite on one rank, though its gradient isn't, and after."""
    results = {}
    for stage in range(4):
        engine: Any = make(configuration("zero", stage), runtime, 2)
        engine.start_epoch(0)
        steps(engine, runtime, 0, 2, 2)
        before = engine.state()
        addend = torch.inf if runtime.rank == 1 else 0.0
        hook = engine.task.loss.register_forward_hook(lambda *call, addend=addend: call[-1] + addend)
        _, outcomes, _ = steps(engine, runtime, 2, 3, 2)
        hook.remove()
        changed = differences([before.model, before.local], [engine.state().model, engine.state().local])
        losses, after, _ = steps(engine, runtime, 3, 5, 2)
        found = {"outcomes": outcomes + after, "changed": changed, "losses": losses}
        results[f"zero{stage}"] = runtime.of_all_ranks(found)
    return results


def uneven(runtime: Runtime, folder: Path) -> dict[str, float]:
    """DDP's batch-norm averages after a step of four micro-batches of which rank 0 has all but one."""
    engine: Any = make(configuration("ddp"), runtime, 2)
    engine.start_epoch(0)
    batches = [micro_batch(number, 32, runtime.device) for number in range(4)]
    convolve = engine.task.model.features[:2]  # and rectify; what comes next is the first of them
    seen = [convolve(engine.task.prepare(batch.images)).transpose(0, 1).flatten(1) for batch in batches]
    kept = 0.9 ** len(batches)
    mean = (1 - kept) * torch.stack([values.mean(1) for values in seen]).mean(0)
    variance = kept + (1 - kept) * torch.stack([values.var(1) for values in seen]).mean(0)
    own = batches[3:] if runtime.rank else batches[:3]
    engine.train_step(own, list(range(len(own))))
    norm = engine.task.model.features[2]
    assert runtime.of_all_ranks(norm.running_var.tolist())[0] == norm.running_var.tolist()  # to the bit
    return {
        "mean": float((norm.running_mean - mean).abs().max()),
        "variance": float((norm.running_var - variance).abs().max()),
        "moved": float((norm.running_var - 1).abs().max()),
    }


def misaligned(runtime: Runtime, folder: Path) -> dict[str, list[str]]:
    """Modules of EfficientNet-B0 with weights that fill vectors of 16 bytes and don't start at one when used."""
    found = {}
    for stage in range(4):
        config = configuration("zero", stage, model="efficientnet_b0")
        config.deepspeed.overrides = None
        engine: Any = make(config, runtime, 1)
        engine.start_epoch(0)
        names: list[str] = []
        for name, module in engine.task.model.named_modules():
            module.register_forward_pre_hook(functools.partial(_note_misaligned, name, names))
        steps(engine, runtime, 0, 1, 1)
        found[f"zero{stage}"] = names
    return found


def _note_misaligned(name: str, names: list[str], module: nn.Module, *inputs: object) -> None:
    filling = [weight for weight in module.parameters(recurse=False) if weight.nbytes % VECTOR_BYTES == 0]
    if any(weight.data_ptr() % VECTOR_BYTES for weight in filling):
        names.append(name)


WHAT = {
    "compare": compare,
    "compare_clipped": compare_clipped,
    "resume": resume,
    "skip": skip,
    "uneven": uneven,
    "misaligned": misaligned,
}


def memory(runtime: Runtime, engine: str, model: str) -> dict[str, Any]:
    """Three steps of a model, and what each rank holds after them. Other trainings in the process would count in."""
    config = configuration(engine.rstrip("0123"), int(engine[-1]) if engine != "ddp" else 0, model=model)
    config.deepspeed.overrides = None
    held: Any = make(config, runtime, 1, 64)
    held.start_epoch(0)
    losses, _, _ = steps(held, runtime, 0, 3, 1, 64)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {"state_bytes": state_bytes(held), "rss": resident, "peak_rss": peak, "peak_gpu": gpu_peak_bytes()}
    return {"losses": losses, "ranks": runtime.of_all_ranks(found)}


def main() -> None:
    """Run some of `WHAT`; rank 0 writes what came of it."""
    precision, out = sys.argv[1], Path(sys.argv[2])
    with start(precision) as runtime:
        results = {}
        for what in sys.argv[3:]:
            if what.startswith("memory:"):
                results[what] = memory(runtime, *what.split(":")[1:])
            else:
                results[what] = WHAT[what](runtime, out.parent)
        if runtime.is_main:
            out.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
