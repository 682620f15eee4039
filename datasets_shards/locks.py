"""One process at a time, told by a lock file that goes away again."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from datasets_shards.errors import InputError

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)
"""What a network file system that was mounted without locks answers."""


@contextmanager
def hold(file: BinaryIO, path: Path, busy: str, shared: bool = False) -> Iterator[bool]:
    """Lock `file`, opened at `path` for reading and writing; gives whether there is a lock to be had.

    Opened for both, since NFS makes a byte-range lock of it, which wants the one for a shared and the other for an
    exclusive lock. Where the file system has no locks a warning says so, and the caller goes on without.

    Raises:
        InputError: another process holds it; the message begins with `busy`.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{busy}; wait for it") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            error.filename = str(path)
            raise
        print(f"warning: {path} can't be locked ({error.strerror}); take care that nobody else is at it", flush=True)
        yield False
        return
    # Whoever held it before may have removed the file between our opening and locking it.
    if not path.exists() or os.fstat(file.fileno()).st_ino != path.stat().st_ino:
        raise InputError(f"{busy} until this moment; try again")
    yield True
