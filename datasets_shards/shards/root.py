"""A root folder while somebody packs into it: who may write what, and where.

<root>/.packing.lock        held shared by the tasks of an array, exclusively by everybody else
<root>/.packing/            what is known of sets that aren't finished (see `ledger`)
<root>/.packing/work-*/     tars that aren't complete, and videos on their way into one; one folder per packer
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from datasets_shards.errors import InputError
from datasets_shards.locks import hold
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

    A root, or a set's folder, that was created here and got no content goes away as well; but not with a task, since
    others may be about to use it.

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
        with _lock(root, LOCK_NAME, shared=task is not None) as alone:
            ledger = root / LEDGER_NAME
            if task is None and alone:
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
    ledger = root / LEDGER_NAME
    sets = [root / plan.stem for plan in ledger.glob("*.json")]
    for folder in (root, ledger, *sets, *(ledger / name.name for name in sets)):
        for part in folder.glob(".*.part-*"):
            part.unlink()
    for lock in ledger.glob("*.lock"):
        lock.unlink()
    for work in ledger.glob("work-*"):
        shutil.rmtree(work)
    drop_empty_sets(root)


@contextmanager
def _lock(folder: Path, name: str, shared: bool) -> Iterator[bool]:
    path = folder / name
    busy = f"--out {folder}: another process is packing into this folder"
    with path.open("a+b") as file, hold(file, path, busy, shared) as held:
        try:
            yield held
        finally:
            if not shared:  # others may hold it still
                path.unlink(missing_ok=True)
