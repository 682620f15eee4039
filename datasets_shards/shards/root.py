"""A root folder while somebody packs into it: one packer at a time, and only whole sets appear."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from datasets_shards.errors import InputError

LOCK_NAME = ".packing.lock"
STAGING_NAME = ".packing"


@contextmanager
def locked_root(root: Path) -> Iterator[Path]:
    """Create `root` if need be and hold it against other packers; gives the hidden folder inside to write in.

    The hidden folder is emptied at the start (of what a killed packer left) and removed at the end. A root that was
    created here and got no content goes away again.

    Raises:
        InputError: `root` is a file, or another process packs into it.
    """
    if root.exists() and not root.is_dir():
        raise InputError(f"--out {root}: is a file, not a folder")
    created = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    try:
        with _lock(root):
            staging = root / STAGING_NAME
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            try:
                yield staging
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    finally:
        if created:
            with suppress(OSError):  # not empty: the usual case
                root.rmdir()


@contextmanager
def _lock(root: Path) -> Iterator[None]:
    path = root / LOCK_NAME
    with path.open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"--out {root}: another process is packing into this folder") from None
        # Whoever held the lock before may have removed the file between our opening and locking it.
        if not path.exists() or os.fstat(held.fileno()).st_ino != path.stat().st_ino:
            raise InputError(f"--out {root}: another process was packing into this folder; try again")
        try:
            yield
        finally:
            path.unlink()


def publish(staged: Path, final: Path) -> None:
    """Give a finished folder its name, durably. Files in it must have been synced."""
    sync_folder(staged)
    staged.rename(final)
    sync_folder(final.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
