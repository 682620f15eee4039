"""What computes: GPUs and their driver, NCCL, the decoders. Runs in a process of its own, which may crash or hang."""

import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from importlib import metadata

import numpy as np
import torch
import torch.distributed as dist

from fdtrain.config import CheckpointConfig
from fdtrain.doctor.disk import check_space
from fdtrain.doctor.host import gpu_count
from fdtrain.doctor.report import Finding, guarded
from fdtrain.doctor.request import Place, Request
from fdtrain.runtime import Runtime, granted_gpus, start

DALI_PACKAGE = "nvidia-dali-cuda130"
REDUCED_BYTES = {"cpu": 8 << 20, "cuda": 128 << 20}
SLOW_REDUCE_MS = 20.0
SIDE = 64


def check_device(request: Request) -> Iterator[Finding]:
    """The GPUs, what starts on them, the links between ranks, the decoders, the room for checkpoints."""
    place = Place.here()
    yield from guarded("GPU", _gpus, place)
    yield from guarded("NCCL", _nccl)
    yield from guarded("process group", _group)
    if place.local_rank == 0:
        yield from guarded("MozJPEG", _encoder)
        yield from guarded("run space", _space, request)
    if place.local_rank == 0 or torch.cuda.is_available():  # each rank's GPU, or the host's CPU once
        yield from guarded("DALI", _dali)


def _gpus(place: Place) -> Iterator[Finding]:
    if not torch.cuda.is_available():
        yield _no_gpu(gpu_count())
        return
    driver, mig, mode = _ask_driver()
    built = torch.version.cuda
    yield Finding("ok", "driver", f"{driver}; torch is built for CUDA {built}")
    if mode.startswith("Exclusive") or mode == "Prohibited":
        detail = f"compute mode {mode}: a second process on it, such as MLflow's check of a model, is refused"
        yield Finding("warning", "driver", detail, "nvidia-smi --compute-mode=DEFAULT, by root")
    several = place.world_size > 1
    if several and place.local_rank >= torch.cuda.device_count():
        detail = f"{place.local_world_size} ranks for {torch.cuda.device_count()} GPUs"
        yield Finding("failure", "GPU", detail, "lower --nproc_per_node to the number of GPUs")
        return
    for number in [place.local_rank] if several else range(torch.cuda.device_count()):
        yield _gpu(number, mig)


def _no_gpu(listed: int) -> Finding:
    granted = granted_gpus(os.environ)
    if granted and not listed:
        detail = f"{granted} grants GPUs, and torch finds none; nvidia-smi lists none either"
        return Finding("failure", "GPU", detail, "have the node's driver looked at, or leave the node out: --exclude")
    if not listed:
        return Finding(
            "ok",
            "GPU",
            "none: the same code runs on the CPU, slowly (efficientnet_b4 at 256 px trains at some 4 images/s)",
        )
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "NoDevFiles"):
        detail = f"{listed} of the host are hidden by CUDA_VISIBLE_DEVICES, so the CPU computes"
        return Finding("failure" if granted else "warning", "GPU", detail, "unset it, or ask the scheduler for a GPU")
    if torch.version.cuda is None:
        detail = f"the driver lists {listed}, and this torch ({torch.__version__}) is built without CUDA"
        return Finding("failure", "GPU", detail, "install torch's build with CUDA, from PyPI's own index")
    return Finding(
        "failure",
        "GPU",
        f"the driver lists {listed}, and torch can use none: driver {_ask_driver()[0]}, CUDA {torch.version.cuda}",
        "update the driver to one for that CUDA (nvidia-smi shows the newest that it can do)",
    )


def _ask_driver() -> tuple[str, str, str]:
    """Version, MIG mode and compute mode of the first GPU, by nvidia-smi; "unknown" where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ("unknown", "unknown", "unknown")
    command = [program, "--query-gpu=driver_version,mig.mode.current,compute_mode", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if answer.returncode or not answer.stdout.strip():
        return ("unknown", "unknown", "unknown")
    version, mig, mode = (word.strip() for word in answer.stdout.splitlines()[0].split(","))
    return version, mig, mode


def _gpu(number: int, mig: str) -> Finding:
    device = torch.device("cuda", number)
    about = torch.cuda.get_device_properties(device)
    capability = about.major, about.minor
    built_for = [int(name.removeprefix("sm_")) for name in torch.cuda.get_arch_list() if name[3:].isdigit()]
    if built_for and about.major * 10 + about.minor < min(built_for):
        detail = f"{number}: {about.name} has compute capability {about.major}.{about.minor}, too old for this torch"
        return Finding("failure", "GPU", detail, f"take a GPU of at least {min(built_for) / 10}, or an older torch")
    with torch.cuda.device(device):
        free, total = torch.cuda.mem_get_info()
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        ones = torch.ones((256, 256), device=device)
        product = float((ones @ ones).sum())
    facts = [
        f"{number}: {about.name}",
        f"{total / 1e9:.0f} GB, {free / 1e9:.0f} GB free",
        f"compute capability {about.major}.{about.minor}",
        "bf16" if bf16 else "no native bf16, so fp16",
        f"{'a' if decodes_in_hardware(capability) else 'no'} hardware JPEG decoder",
    ]
    if mig == "Enabled":
        facts.append("MIG: this is a part of a GPU, and NCCL can't join parts of one")
    detail = ", ".join(facts)
    if product != 256.0**3:
        return Finding("failure", "GPU", f"{detail}; a product of matrices came out wrong", "have the GPU looked at")
    if free < total / 2:
        return Finding("warning", "GPU", f"{detail}; others use it", "see nvidia-smi, or take another GPU")
    return Finding("ok", "GPU", detail)


def decodes_in_hardware(capability: tuple[int, int]) -> bool:
    """Whether GPUs of a compute capability decode JPEG in hardware (nvJPEG's documentation, section 1.5)."""
    # Of Ampere only the A100 and A30 (8.0) do; Ada (8.9), Hopper (9) and Blackwell (10, 12) do.
    return capability in ((8, 0), (8, 9)) or capability[0] >= 9


def _nccl() -> Iterator[Finding]:
    if dist.is_nccl_available():
        version = ".".join(map(str, torch.cuda.nccl.version()))
        yield Finding("ok", "NCCL", version if torch.cuda.is_available() else f"{version}, for GPUs; a CPU takes gloo")
    elif torch.cuda.is_available():
        detail = "this torch is built without it, and ranks on GPUs can't do without"
        yield Finding("failure", "NCCL", detail, "install torch's build with CUDA, from PyPI's own index")
    else:
        yield Finding("ok", "NCCL", "none in this torch; a CPU takes gloo")


def _group() -> Iterator[Finding]:
    with start("auto") as runtime:
        yield Finding("ok", "process group", runtime.describe())
        if runtime.world_size > 1:
            yield _all_reduce(runtime)


def _all_reduce(runtime: Runtime) -> Finding:
    """Time of a sum of one number, and speed of a sum of many. Collective."""
    kind, ranks = runtime.device.type, runtime.world_size
    small, large = (torch.ones(size // 4, device=runtime.device) for size in (4, REDUCED_BYTES[kind]))

    def timed(values: torch.Tensor) -> float:
        values.fill_(1)
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(values)
        if kind == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    timed(small)  # the first one makes the connections
    latency_ms = 1e3 * statistics.median(timed(small) for _ in range(20))
    timed(large)
    seconds = statistics.median(timed(large) for _ in range(3))
    # What each rank's link carries, whatever their number: NCCL's "bus bandwidth".
    rate = 2 * (ranks - 1) / ranks * REDUCED_BYTES[kind] / seconds / 1e9
    detail = f"{ranks} ranks: {latency_ms:.3f} ms for one number, {rate:.2f} GB/s for {REDUCED_BYTES[kind] >> 20} MB"
    if not bool((large == ranks).all()):
        return Finding("failure", "all-reduce", f"{detail}; the sum came out wrong", "NCCL_DEBUG=INFO says by what way")
    if latency_ms > SLOW_REDUCE_MS:
        remedy = "fewer ranks than cores, or a faster network: GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME"
        return Finding("warning", "all-reduce", detail, remedy)
    return Finding("ok", "all-reduce", detail)


def _encoder() -> Iterator[Finding]:
    from datasets_shards.jpeg.mozjpeg import describe_encoder, require_encoder

    require_encoder()
    yield Finding("ok", "MozJPEG", f"encodes, by {describe_encoder(77)['library']}")


def _dali() -> Iterator[Finding]:
    """One image by DALI as the loader sets it up, and by libjpeg-turbo."""
    import simplejpeg
    from nvidia.dali import fn, pipeline_def, types

    from datasets_shards.jpeg.mozjpeg import encode_jpeg

    gpu = int(os.environ.get("LOCAL_RANK", "0")) if torch.cuda.is_available() else None
    ramp = np.linspace(30, 220, SIDE).astype(np.uint8)
    content = encode_jpeg(np.stack(np.broadcast_arrays(ramp, ramp[:, None], np.uint8(90)), axis=-1), 77)

    @pipeline_def(batch_size=1, num_threads=1, device_id=gpu, prefetch_queue_depth=1)
    def decoding() -> object:
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        device = "cpu" if gpu is None else "mixed"
        return fn.decoders.image(
            encoded, device=device, output_type=types.RGB, jpeg_fancy_upsampling=True, hw_decoder_load=0.0
        )

    pipeline = decoding()
    pipeline.build()
    pipeline.feed_input("encoded", [np.frombuffer(content, np.uint8)])
    (output,) = pipeline.run()
    found = np.array(output.as_cpu().at(0) if gpu is not None else output.at(0)).astype(int)
    apart = np.abs(found - simplejpeg.decode_jpeg(content).astype(int)).mean()
    detail = f"{metadata.version(DALI_PACKAGE)}, decodes on the {'CPU' if gpu is None else 'GPU'}"
    if apart > 1:
        remedy = "train with --loader.kind torch, and report it"
        yield Finding("failure", "DALI", f"{detail}, {apart:.1f} levels away from libjpeg-turbo", remedy)
    else:
        yield Finding("ok", "DALI", f"{detail} like libjpeg-turbo (simplejpeg {metadata.version('simplejpeg')})")


def _space(request: Request) -> Iterator[Finding]:
    from fdtrain.models import create_model

    with torch.device("meta"):
        state = create_model(request.model).state_dict().values()
    # The weights and Adam's two moments of each.
    size = 3 * sum(value.numel() * value.element_size() for value in state)
    # Those kept, the best model's, and the one that is being written.
    yield check_space(request.run_dir, request.model, size, CheckpointConfig.keep + 2)
