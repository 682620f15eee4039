"""What is wrong with a video or an image."""

import stat
from pathlib import Path

from datasets_shards.errors import InputError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class FrameError(InputError):
    """A video or an image that can't be decoded as far as it should; the message names the file.

    Args:
        path: the file.
        problem: what is wrong with it.
    """

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(path, problem)  # both, so that it can be pickled back from a worker
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.args[0]}: {self.problem}"


def check_file(path: Path) -> None:
    """Raise FrameError for what is no regular file: merely to open a FIFO may take for ever."""
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except OSError as error:
        missing = "a link to no file" if path.is_symlink() else "no such file"
        is_missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        raise FrameError(path, missing if is_missing else error.strerror or str(error)) from None
    if kind != stat.S_IFREG:
        raise FrameError(path, f"is {_KINDS.get(kind, 'something else')}, no file")
