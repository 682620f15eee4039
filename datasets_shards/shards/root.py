"""A root folder while somebody packs into it: who may write what, and where.

<root>/.packing.lock        held shared by the tasks of an array, exclusively by everybody else
<root>/.packing/            what is known of sets that aren't finished (see `ledger`)
<root>/.packing/work-*/     records of videos on their way into a tar; one folder per packer
<root>/q77/.*.part          tars that aren't complete
"""

import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from datasets_shards.errors import InputError
from datasets_shards.shards.ledger import LEDGER_NAME, drop_empty_sets

LOCK_NAME = ".packing.lock"


@dataclass(frozen=True)
class Task:
    """One packer out of several that share a root, such as the tasks of a Slurm array.

    Args:
        number: from 0 to `count` - 1.
        count: number of packers; each owns every `count`-th shard of the root's fixed list.
    """

    number: int = 0
    count: int = 1

    @property
    def name(self) -> str:
        """For its lock and its folder."""
        return f"task-{self.number}-of-{self.count}"


@contextmanager
def locked_root(root: Path, task: Task | None = None) -> Iterator[Path]:
    """Create `root` if need be and hold it against other packers; gives a folder to work in, which goes away again.

    A root, or a set's folder, that was created here and got no content goes away as well.

    Args:
        root: folder of the sets.
        task: with others of the same count at work beside it; None for a packer that must be alone.

    Raises:
        InputError: `root` is a file, or another process that must be alone, or has the same task, packs into it.
    """
    if root.exists() and not root.is_dir():
        raise InputError(f"--out {root}: is a file, not a folder")
    created = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    try:
        with _lock(root, LOCK_NAME, shared=task is not None):
            ledger = root / LEDGER_NAME
            if task is None:
                _sweep(root)
            ledger.mkdir(exist_ok=True)
            try:
                with _lock(ledger, f"{(task or Task()).name}.lock", shared=False):
                    work = ledger / f"work-{(task or Task()).name}"
                    shutil.rmtree(work, ignore_errors=True)
                    work.mkdir()
                    try:
                        yield work
                    finally:
                        shutil.rmtree(work, ignore_errors=True)
            finally:
                if task is None:
                    drop_empty_sets(root)
                    with suppress(OSError):  # not empty: sets are unfinished
                        ledger.rmdir()
    finally:
        if created:
            with suppress(OSError):  # not empty: the usual case
                root.rmdir()


def _sweep(root: Path) -> None:
    """Remove what killed packers left half-written; the caller is alone."""
    for part in [*root.glob("*/.*.part"), *root.glob(f"{LEDGER_NAME}/*.lock")]:
        part.unlink()
    for work in root.glob(f"{LEDGER_NAME}/work-*"):
        shutil.rmtree(work)


@contextmanager
def _lock(folder: Path, name: str, shared: bool) -> Iterator[None]:
    path = folder / name
    with path.open("a") as held:
        try:
            fcntl.flock(held, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"--out {folder}: another process is packing into this folder") from None
        except OSError as error:  # some network file systems have no locks
            print(f"warning: {path} can't be locked ({error.strerror}); take care that nobody else packs into it")
            sys.stdout.flush()
        # Whoever held the lock before may have removed the file between our opening and locking it.
        if not path.exists() or os.fstat(held.fileno()).st_ino != path.stat().st_ino:
            raise InputError(f"--out {folder}: another process was packing into this folder; try again")
        try:
            yield
        finally:
            if not shared:  # others may hold it still
                path.unlink(missing_ok=True)
