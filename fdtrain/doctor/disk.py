"""The disk that runs are written to: whether it can be, how fast it is, and the time that it goes by."""

import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from fdtrain.doctor.report import Finding

BLOCK_BYTES = 4 << 20
MOST_BYTES = 512 << 20
SECONDS = 0.6
SLOW_MB_S = 50.0
MTIME_TOLERANCE_S = 2.0
NETWORK_FILE_SYSTEMS = frozenset(
    [
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "lustre",
        "gpfs",
        "beegfs",
        "ceph",
        "9p",
        "afs",
        "pvfs2",
        "wekafs",
        "panfs",
        "glusterfs",
        "fuse.sshfs",
        "fuse.glusterfs",
        "fuse.ceph",
        "fuse.juicefs",
    ]
)


def check_disk(run_dir: str) -> Iterator[Finding]:
    """Write and read in the run folder's place. Nothing is left behind."""
    folder = existing(Path(run_dir))
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
            yield _speed(file.fileno(), folder)
            yield _file_time(file.fileno(), folder)
            yield _lock(file.fileno(), folder)
    except OSError as error:
        remedy = "choose another --run.dir, or get leave to write there"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "make room, or choose another --run.dir"
        yield Finding("failure", "run disk", f"{folder}: can't be written ({error.strerror})", remedy)


def existing(path: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    here = path.absolute()
    while not here.is_dir():
        here = here.parent
    return here


def _speed(descriptor: int, folder: Path) -> Finding:
    """Bytes that reach the disk, not its cache, in about a second."""
    block = os.urandom(BLOCK_BYTES)  # a disk may compress
    began, written = time.perf_counter(), 0
    while written < MOST_BYTES and time.perf_counter() - began < SECONDS:
        written += os.write(descriptor, block)
        if written % (8 * BLOCK_BYTES) == 0:
            os.fsync(descriptor)
    os.fsync(descriptor)
    write = written / 1e6 / (time.perf_counter() - began)
    read = read_speed(descriptor, written)
    detail = (
        f"{folder}: writes {write:.0f} MB/s, reads {read:.0f} MB/s, {shutil.disk_usage(folder).free / 1e9:.1f} GB free"
    )
    if write < SLOW_MB_S:
        return Finding("warning", "run disk", detail, "checkpoints will be slow; choose --run.dir on a faster disk")
    return Finding("ok", "run disk", detail)


def read_speed(descriptor: int, size: int, seconds: float = SECONDS) -> float:
    """MB/s of reading a file from its beginning, past the page cache where the system lets go of it."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    began, position = time.perf_counter(), 0
    while position < size and time.perf_counter() - began < seconds:
        position += len(os.pread(descriptor, BLOCK_BYTES, position)) or size
    return min(position, size) / 1e6 / max(time.perf_counter() - began, 1e-9)


def _file_time(descriptor: int, folder: Path) -> Finding:
    before = time.time()
    os.utime(descriptor)  # the time that the file system, perhaps another host's, thinks it is
    apart = os.fstat(descriptor).st_mtime - before
    if abs(apart) > MTIME_TOLERANCE_S:
        detail = f"{folder} stamps its files {apart:+.1f} s off this host's time"
        return Finding("warning", "file times", detail, "let the clocks of this host and of its file server be kept")
    return Finding("ok", "file times", f"{folder} goes by this host's time")


def _lock(descriptor: int, folder: Path) -> Finding:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        detail = f"{folder}: files can't be locked ({error.strerror}), and no run starts without"
        return Finding("failure", "file locks", detail, "have it mounted with flock, or choose another --run.dir")
    return Finding("ok", "file locks", f"{folder} can lock files")


def network_file_system(path: Path) -> str:
    """Return the type of the network file system that an existing path is on; empty where it is on a local disk."""
    place = path.resolve()
    mounts = [mount for mount in psutil.disk_partitions(all=True) if place.is_relative_to(mount.mountpoint)]
    kind: str = max(mounts, key=lambda mount: len(mount.mountpoint)).fstype if mounts else ""
    return kind if kind in NETWORK_FILE_SYSTEMS else ""


def check_space(run_dir: str, model: str, checkpoint_bytes: int, kept: int) -> Finding:
    """Whether the checkpoints of a run have room.

    Args:
        run_dir: As `check_disk`.
        model: Its name.
        checkpoint_bytes: What one takes.
        kept: How many there may be at once.
    """
    folder = existing(Path(run_dir))
    free, needed = shutil.disk_usage(folder).free, checkpoint_bytes * kept
    detail = f"{folder}: {free / 1e9:.1f} GB free; {kept} checkpoints of {model} with Adam take {needed / 1e9:.2f} GB"
    if free < 2 * checkpoint_bytes:  # a new one is whole before an old one goes
        return Finding("failure", "run space", detail, "make room, or choose another --run.dir")
    if free < needed:
        return Finding("warning", "run space", detail, "make room, or lower checkpoint.keep")
    return Finding("ok", "run space", detail)
