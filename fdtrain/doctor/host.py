"""The host: cores, memory, open files, ports, clock."""

import os
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import fdtrain
from fdtrain.doctor.report import Finding
from fdtrain.doctor.request import Place

GB = 1e9
RANK_MEMORY_GB = 2.0
"""What a rank takes for itself: torch, CUDA's libraries, the index, the batches under way."""

OPEN_FILES = 1024
"""A reader keeps 128 tars of each set open; pipes, sockets and libraries take some hundreds."""

DEFAULT_PORT = 29500
CLOCK_TOLERANCE = 0.01


def check_host(place: Place) -> Iterator[Finding]:
    """Cores, memory, shared memory, open files and the clock of this host."""
    yield _cores(place)
    yield _memory(place)
    yield _shared_memory(gpu_count())
    yield _open_files()
    yield _clock()


def gpu_count() -> int:
    """GPUs that the driver lists; none where there is no driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    listing = subprocess.run([program, "--list-gpus"], capture_output=True, text=True, timeout=30)
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines()) if listing.returncode == 0 else 0


def _cores(place: Place) -> Finding:
    cores, ranks = len(os.sched_getaffinity(0)), place.local_world_size
    text = os.environ.get("OMP_NUM_THREADS", "")
    here = f"{cores} for {ranks} rank{'s' * (ranks > 1)}"
    if not text:
        return Finding("ok", "cores", f"{here}; OMP_NUM_THREADS isn't set, so one rank computes on all of them")
    if not text.isdigit() or int(text) < 1:
        return Finding("warning", "cores", f"{here}; OMP_NUM_THREADS={text} is no number", "set it to cores / ranks")
    if int(text) * ranks > cores:
        return Finding(
            "warning",
            "cores",
            f"{here} of {text} threads each (OMP_NUM_THREADS): they will be in each other's way",
            f"export OMP_NUM_THREADS={max(1, cores // ranks)}",
        )
    return Finding("ok", "cores", f"{here}, OMP_NUM_THREADS={text}")


def _memory(place: Place) -> Finding:
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(lines[name].split()[0]) * 1024 / GB for name in ("MemTotal", "MemAvailable"))
    for limit, left in _cgroup_memory():
        total, free = min(total, limit / GB), min(free, left / GB)
    needed = RANK_MEMORY_GB * place.local_world_size
    detail = f"{total:.1f} GB, {free:.1f} GB free"
    if free < needed:
        remedy = "end what else runs here, or start fewer ranks"
        return Finding("warning", "memory", f"{detail}; {place.local_world_size} ranks take {needed:.0f} GB", remedy)
    return Finding("ok", "memory", detail)


def _cgroup_memory(root: Path = Path("/")) -> Iterator[tuple[int, int]]:
    """Limit and what is left of it, bytes, of this process's control group and each above it.

    A job of Slurm has its limit some levels below the top, and its steps may have none of their own.
    """
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "file")
        elif "memory" in controllers.split(","):  # version 1
            top, names = (
                root / "sys/fs/cgroup/memory",
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"),
            )
        else:
            continue
        inside = Path(os.path.normpath(path)).relative_to("/")  # a container may be shown "/.."
        for group in (top / inside, *(top / above for above in inside.parents)):
            limit = group / names[0]
            if not limit.is_file() or not (text := limit.read_text().strip()).isdigit():
                continue  # "max", or a group that a container doesn't show
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            used = int((group / names[1]).read_text()) - int(statistics[names[2]])  # the page cache gives way
            yield int(text), int(text) - used


def _shared_memory(gpus: int, folder: Path = Path("/dev/shm")) -> Finding:
    remedy = "give the container more (docker run --shm-size 8g, or --ipc host); NCCL's ranks meet there"
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return Finding("warning", "shared memory", f"{folder} isn't there or can't be written", remedy)
    usage = shutil.disk_usage(folder)
    detail = f"{folder}: {usage.total / GB:.1f} GB, {usage.free / GB:.1f} GB free"
    if usage.free < gpus * GB:
        return Finding("warning", "shared memory", f"{detail}; {gpus} GPUs want 1 GB each", remedy)
    return Finding("ok", "shared memory", detail)


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir()))
    most = "no limit" if soft == resource.RLIM_INFINITY else f"at most {soft}"
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        allowed = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
        remedy = f"ulimit -n {allowed}" + ("" if allowed >= OPEN_FILES else ", which is all that root has allowed")
        return Finding("warning", "open files", f"{most} a process; tars and sockets want {OPEN_FILES}", remedy)
    return Finding("ok", "open files", f"{most} a process, {used} in use")


def _clock(seconds: float = 0.25) -> Finding:
    wall, steady = time.time(), time.monotonic()
    time.sleep(seconds)
    drift = (time.time() - wall) - (time.monotonic() - steady)
    remedy = "let the host's clock be kept (timedatectl set-ntp true)"
    if abs(drift) > CLOCK_TOLERANCE:
        detail = f"the time of day went {drift:+.3f} s astray within {seconds} s"
        return Finding("warning", "clock", detail, remedy)
    written = Path(fdtrain.__file__).stat().st_mtime
    if written > time.time() + 60:
        return Finding("warning", "clock", f"{_now()}, before this program was installed", remedy)
    return Finding("ok", "clock", f"{_now()}, and steady")


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())


def check_ports(place: Place) -> Iterator[Finding]:
    """The port that ranks meet at, and the name that this host goes by."""
    yield _port(place)
    yield _host_name(place)


def _port(place: Place) -> Finding:
    text = os.environ.get("MASTER_PORT")
    if text is not None and not (text.isdigit() and 0 < int(text) < 65536):
        return Finding("failure", "port", f"MASTER_PORT={text} is no port", "unset it, or set it to 1024 .. 65535")
    port = int(text or DEFAULT_PORT)
    if place.world_size > 1:
        return Finding("ok", "port", f"{port}, where torchrun's ranks have met")
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a connection that died lately is in nobody's way
        try:
            sock.bind(("127.0.0.1", port))
        except OSError as error:
            # The default one is taken by whoever starts torchrun with no rendezvous; one that is set is meant.
            return Finding(
                "failure" if text else "warning",
                "port",
                f"{port}{' (MASTER_PORT)' if text else ', which torchrun takes by default,'} can't be had: "
                f"{error.strerror}",
                f"torchrun --standalone or launch/torchrun.sh finds a free one; so is {free_port()} now",
            )
    return Finding("ok", "port", f"{port} is free")


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as sock:
        sock.bind(("", 0))
        return int(sock.getsockname()[1])


def _host_name(place: Place) -> Finding:
    name = socket.gethostname()
    several = place.world_size > place.local_world_size
    try:
        address = str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        return Finding(
            "failure" if several else "warning",
            "host name",
            f"{name} can't be looked up ({error.strerror})",
            "put it into /etc/hosts, or name the network: GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME",
        )
    if several and address.startswith("127."):
        return Finding(
            "warning",
            "host name",
            f"{name} is {address}, which other hosts can't reach",
            "name the network that they share: GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME, or mend /etc/hosts",
        )
    return Finding("ok", "host name", f"{name} is {address}")
