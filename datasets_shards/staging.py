"""A folder that is there whole or not at all: written beside its place under a hidden name, renamed at the end.

.NAME.lock    held by the process that writes; nobody else touches the others
.NAME.part/   what isn't whole yet
.NAME.old/    what NAME was, from the moment it steps aside until the new one has its name

The names are fixed, so that a call finds what an earlier one left that was killed.
"""

import errno
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from datasets_shards.errors import InputError
from datasets_shards.locks import hold

MAKE_ROOM = "free some or choose another --out"
REMEDIES = {
    errno.ENOSPC: MAKE_ROOM,
    errno.EDQUOT: MAKE_ROOM,
    errno.EFBIG: "raise the limit on the size of files (ulimit -f) or choose another --out",
}


def must_be_new(out: Path) -> None:
    """Raise InputError unless `out` is absent or an empty folder."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file, not a folder")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"--out {out}: isn't empty; remove it or choose another --out")


@contextmanager
def staged(out: Path, check: Callable[[Path], None] = must_be_new) -> Iterator[Path]:
    """A hidden folder beside `out`, which becomes `out` when the block has ended well, and goes away when it hasn't.

    Folders above `out` are made, and go away as well. Before the hidden folder is removed, the processes that were
    started in the block are ended: one that writes on would make it again.

    Args:
        out: folder to write, the value of --out.
        check: raises InputError where `out` is there and may not be replaced. It is asked before anything is written,
            and again at the end.

    Raises:
        InputError: `check` says so, `out` is a mount point, another process writes it, or the disk is full.
        OSError: something else stops the writing.
    """
    out = out.resolve()  # a rename would replace a link, not what it points to
    if os.path.ismount(out):
        raise InputError(f"--out {out}: is a mount point, which can't be replaced; give a folder inside it")
    check(out)
    made = [folder for folder in out.parents if not folder.exists()]
    others = set(multiprocessing.active_children())
    part, old = out.with_name(f".{out.name}.part"), out.with_name(f".{out.name}.old")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _locked(out) as alone:
            _clear(out, part, old, alone)
            check(out)
            part.mkdir()
            try:
                yield part
                check(out)
                _publish(out, part, old)
            except BaseException:
                for process in set(multiprocessing.active_children()) - others:
                    process.terminate()
                    process.join()
                if old.exists() and not out.exists():
                    old.rename(out)
                shutil.rmtree(part, ignore_errors=True)  # what resists is tried again by the next call
                raise
    except BaseException as error:
        for folder in made:
            with suppress(OSError):  # not empty: somebody else uses it
                folder.rmdir()
        if isinstance(error, OSError) and error.errno in REMEDIES:
            why = str(error.strerror).lower()
            raise InputError(f"--out {out}: {why}; nothing was left there, {REMEDIES[error.errno]}") from None
        raise


@contextmanager
def _locked(out: Path) -> Iterator[bool]:
    """Hold `out` against other processes; gives whether there is a lock to be had."""
    path = out.with_name(f".{out.name}.lock")
    with path.open("a+b") as file, hold(file, path, f"--out {out}: another process is writing this folder") as alone:
        try:
            yield alone
        finally:
            path.unlink(missing_ok=True)


def _clear(out: Path, part: Path, old: Path, alone: bool) -> None:
    """Remove what a killed call left, and put the old folder back where that is the only one."""
    if not alone:
        for path in (part, old):
            if path.exists():
                remedy = "delete it" if path == part or not _is_free(out) else f"rename it to {out.name}"
                raise InputError(f"{path}: a killed call left it, unless another is under way; if none is, {remedy}")
    if old.exists() and _is_free(out):
        old.replace(out)
    for path in (part, old):
        if path.exists():
            shutil.rmtree(path)


def _publish(out: Path, part: Path, old: Path) -> None:
    if _is_free(out):
        part.replace(out)
        return
    out.rename(old)
    part.rename(out)
    shutil.rmtree(old)


def _is_free(out: Path) -> bool:
    """Whether a folder can be renamed to `out`: nothing is there, or an empty folder."""
    return not out.exists() or not any(out.iterdir())
