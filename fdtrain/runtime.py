"""What a process of a run stands on: its place among the ranks, its device, its precision."""

import gc
import hashlib
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist

# Its functions take the default group of the moment of import as a default value, and keep it for good. DDP imports it
# when there is one: gloo's threads would outlive the group, and one that lets go of a tensor while the interpreter ends
# aborts the process ("terminate called without an active exception").
import torch.distributed.nn.functional
from torch.distributed.rendezvous import rendezvous

from datasets_shards.schema import ShardSetError
from fdtrain.config import HostError, TransientError, UserError, first_line
from fdtrain.process import exit_without_cleanup
from fdtrain.stopping import StopRequested
from fdtrain.watch import RankWatch

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
T = TypeVar("T")


@dataclass(frozen=True)
class Runtime:
    """One rank's surroundings.

    Args:
        rank: Rank in the whole group.
        world_size: Number of ranks.
        device: The device of this rank.
        precision: Precision of the forward and backward passes.
        precision_reason: Why that one.
        watch: Hears of ranks that are lost; None where there is one rank.
        before_leaving: Called before the process group is left, by whoever else keeps hold of it.
    """

    rank: int
    world_size: int
    device: torch.device
    precision: Precision
    precision_reason: str
    watch: RankWatch | None = None
    before_leaving: list[Callable[[], None]] = field(default_factory=list)

    @property
    def is_main(self) -> bool:
        """Whether this rank writes and prints."""
        return self.rank == 0

    @property
    def device_name(self) -> str:
        """The name that CUDA gives the device, or "CPU"."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """dtype for autocast; None where there is nothing to cast to."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)

    def autocast(self) -> torch.autocast:
        """Context of a forward pass."""
        dtype = self.autocast_dtype
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    @property
    def decode_threads(self) -> int:
        """This rank's share of the cores of its host."""
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return max(1, len(os.sched_getaffinity(0)) // ranks_here)

    def on_main(self, action: Callable[[], T]) -> T:
        """Do something on rank 0 and give every rank its result. Collective.

        Raises:
            Exception: rank 0 met one; it is raised on every rank, so that none waits for the others. The other ranks
                raise those that mean something to the user as what they are, and of the rest a HostError.
        """
        outcome: list[tuple[T | None, type[Exception] | None, str]] = [(None, None, "")]
        fault: Exception | None = None
        if self.is_main:
            try:
                outcome = [(action(), None, "")]
            except (UserError, ShardSetError, FloatingPointError) as error:
                fault, outcome = error, [(None, type(error), str(error))]
            except Exception as error:  # noqa: BLE001 - whatever it is, the others wait to hear of it
                fault, outcome = error, [(None, HostError, f"rank 0: {type(error).__name__}: {first_line(error)}")]
        dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
        if fault is not None:
            raise fault
        result, kind, text = outcome[0]
        if kind is not None:
            raise kind(text)
        return result  # type: ignore[return-value]

    def mean_over_ranks(self, scalars: Mapping[str, torch.Tensor | float]) -> dict[str, float]:
        """Scalars of this rank -> their means over all ranks. Collective; waits for the device."""
        values = torch.stack([torch.as_tensor(value, dtype=torch.float64).cpu() for value in scalars.values()])
        dist.all_reduce(values)
        return dict(zip(scalars, (values / self.world_size).tolist(), strict=True))

    def by_rank(self, scalars: Mapping[str, float]) -> dict[str, list[float]]:
        """Numbers of this rank, under the same names on each -> those of all ranks, by rank. Collective."""
        own = torch.tensor(list(scalars.values()), dtype=torch.float64)
        ranks = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(ranks, own)
        return dict(zip(scalars, torch.stack(ranks, dim=1).tolist(), strict=True))

    def of_all_ranks(self, value: T) -> list[T]:
        """Gather a small value of each rank, by rank, on every rank. Collective, but for a rank that is `alone`."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def alone(self) -> "Runtime":
        """Return the surroundings of this rank without the others, for what it does while they do something else."""
        return replace(self, rank=0, world_size=1)

    def is_restarted(self) -> bool:
        """Whether torchrun started this group again after a failure (`--max-restarts`). Collective.

        Each node counts the failures of its own ranks alone.
        """
        return any(self.of_all_ranks(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0))

    def describe(self) -> str:
        """One line for people."""
        backend = dist.get_backend()
        ranks = f"{self.world_size} rank{'s' if self.world_size > 1 else ''}"
        return f"{ranks} over {backend} on {self.device_name}; precision {self.precision} ({self.precision_reason})"


@contextmanager
def start(
    precision: str = "auto",
    *,
    device: str = "auto",
    seed: int = 0,
    deterministic: bool = False,
    timeout_minutes: float = 10.0,
) -> Iterator[Runtime]:
    """Join the process group that torchrun announces, or make a group of one; leave it at the end.

    A single process takes the same path as many, so there is one path to test. After an error the group of many ranks
    isn't left, but ends with the process: an orderly end waits for all ranks, of which some may wait for this one, and
    the error is shown later.

    Args:
        precision: The setting `precision`.
        device: The setting `engine.device`.
        seed: Seeds torch's global generators, from which initial weights are drawn: the same on every rank.
        deterministic: The setting `deterministic`.
        timeout_minutes: The setting `engine.timeout_minutes`.

    Raises:
        UserError: there is no such device, or it can't do that precision.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    place = choose_device(device)
    chosen, reason = choose_precision(precision, place)
    torch.manual_seed(seed)
    # Torch's own default has TF32 on in convolutions, so that fp32 would be less than it says.
    torch.set_float32_matmul_precision("high" if chosen == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = chosen == "tf32"
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)

    timeout = timedelta(minutes=timeout_minutes)
    dist.init_process_group(
        # gloo beside nccl carries what lives on the CPU: flags, hashes, generator states.
        "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo",
        store=_meet(rank, world_size, timeout) if "RANK" in os.environ else dist.HashStore(),
        rank=rank,
        world_size=world_size,
        timeout=timeout,
        device_id=place if place.type == "cuda" else None,
    )
    watch = RankWatch(rank, world_size, timeout_minutes) if world_size > 1 else None
    runtime = Runtime(rank, world_size, place, chosen, reason, watch)
    last_words = ""
    try:
        yield runtime
    except StopRequested:  # on every rank
        raise
    except BaseException as error:
        last_words = f"{type(error).__name__}: {first_line(error)}"
        raise
    finally:
        if watch is None or watch.leave(last_words):
            while runtime.before_leaving:
                runtime.before_leaving.pop()()
            gc.collect()  # those who hold a group hold each other
            dist.destroy_process_group()
        else:
            exit_without_cleanup()


@contextmanager
def naming_lost_ranks(runtime: Runtime, timeout_minutes: float) -> Iterator[None]:
    """What gloo and NCCL say when a rank is gone or hangs becomes a line that says so.

    Args:
        runtime: This rank's surroundings.
        timeout_minutes: The setting `engine.timeout_minutes`.

    Raises:
        HostError: a rank was lost, or didn't answer in time.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost_rank(error):
            raise
        cause = runtime.watch.cause() if runtime.watch else None
        cause = cause or f"a rank was lost, or didn't answer within engine.timeout_minutes ({timeout_minutes:g})"
        raise HostError(
            f"{cause}; see what the others say, mend that and go on by --run.resume auto ({first_line(error)})"
        ) from error


def is_lost_rank(error: RuntimeError) -> bool:
    """Whether an error says that another rank is gone or hangs."""
    # Gloo's errors have no class of their own, but name the file that they come from.
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


def _meet(rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """A store that these very processes have for themselves. Collective.

    torchrun (2.14) keeps one store over its restarts, and a group that is started again would find in it the addresses
    of the processes before, wait for them and hang. Nothing in the environment says which start this is: each node
    counts its own failures. So each rank puts down a word that is new, reads those of all, and counts itself among
    those that have read the same. All have, only once every word is of a process that lives.

    Raises:
        UserError: some rank didn't come in time.
    """
    store, *_ = next(rendezvous("env://", rank, world_size, timeout=timeout))
    store.set(f"fdtrain/arrived/{rank}", uuid.uuid4().hex)
    places = [f"fdtrain/arrived/{each}" for each in range(world_size)]
    deadline = time.monotonic() + timeout.total_seconds()
    counted = set()
    while True:
        try:
            words = store.multi_get(places)
        except dist.DistStoreError:
            absent = [str(each) for each, place in enumerate(places) if not store.check([place])]
            raise TransientError(
                f"engine.timeout_minutes: rank {', '.join(absent)} didn't come; see above why"
            ) from None
        name = hashlib.sha256(b"".join(words)).hexdigest()
        if store.add(f"fdtrain/{name}", 0 if name in counted else 1) == world_size:
            return dist.PrefixStore(name, store)
        counted.add(name)
        if time.monotonic() > deadline:
            raise TransientError("engine.timeout_minutes: a rank that was there before a restart didn't come again")
        time.sleep(0.02)


def granted_gpus(environment: Mapping[str, str]) -> str:
    """Return the variable that says GPUs were granted to this process, as NAME=VALUE; empty where none does."""
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    if visible == "-1":  # Slurm writes no such thing: a person chose the CPU
        return ""
    given = {name: environment.get(name, "") for name in ("SLURM_GPUS_ON_NODE", "SLURM_JOB_GPUS")}
    given["SLURM_GPUS_ON_NODE"] = given["SLURM_GPUS_ON_NODE"].lstrip("0")
    given["CUDA_VISIBLE_DEVICES"] = visible.replace("NoDevFiles", "")
    return next((f"{name}={value}" for name, value in given.items() if value), "")


def choose_device(setting: str) -> torch.device:
    """Resolve the setting `engine.device` for this rank, and make it CUDA's current device.

    Raises:
        UserError: no GPU can be used where one is required or was granted, or fewer than ranks.
    """
    if setting != "cpu" and torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if device.index >= torch.cuda.device_count():
            raise UserError(f"--nproc_per_node: more ranks than this host's {torch.cuda.device_count()} GPUs; lower it")
        torch.cuda.set_device(device)
        return device
    remedy = "see what nvidia-smi and python -m fdtrain doctor say on this node"
    if setting == "cuda":
        raise UserError(f"engine.device: cuda, and torch finds no GPU; {remedy}, or set it to auto or cpu")
    if setting == "auto" and (granted := granted_gpus(os.environ)):
        raise UserError(
            f"engine.device: {granted} grants GPUs, and torch finds none; {remedy}, or take the CPU on purpose: "
            "--engine.device cpu, for other commands CUDA_VISIBLE_DEVICES=-1"
        )
    return torch.device("cpu")


def choose_precision(precision: str, device: torch.device) -> tuple[Precision, str]:
    """Resolve the setting for a device, with the reason. Raises UserError for what the device can't do."""
    on_gpu = device.type == "cuda"
    if precision == "auto":
        if not on_gpu:
            return "fp32", "a CPU gains nothing from less"
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "the GPU computes in it natively, and it needs no loss scaling"
        return "fp16", "the GPU has no native bf16"
    if precision == "tf32" and not on_gpu:
        raise UserError("precision: tf32 exists on NVIDIA GPUs only; take fp32, bf16 or auto on a CPU")
    if precision == "tf32" and torch.cuda.get_device_capability(device) < (8, 0):
        raise UserError("precision: this GPU has no tf32, which came with Ampere; take fp32, fp16 or auto")
    if precision == "bf16" and on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError("precision: this GPU has no native bf16; take fp16 or auto")
    if precision == "fp16" and not on_gpu:
        print("warning: precision fp16 is many times slower than fp32 on a CPU", file=sys.stderr)
    assert precision in ("fp32", "tf32", "bf16", "fp16")
    return precision, "as configured"  # type: ignore[return-value]
