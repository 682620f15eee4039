"""A tar, read once from start to end, and the SHA-256 of what was read."""

import hashlib
import os
from typing import BinaryIO

CHUNK = 1 << 20


class HashedFile:
    """Reads a file from its start to its end, once, and hashes what it reads.

    Args:
        file: opened for reading, at its start.

    `size` is that of the file, `position` how far it was read, both in bytes.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.size = os.fstat(file.fileno()).st_size
        self.position = 0
        self._file = file
        self._hash = hashlib.sha256()

    def read(self, count: int = CHUNK) -> bytes:
        """Up to `count` bytes; fewer at the end."""
        content = self._file.read(count)
        self._hash.update(content)
        self.position += len(content)
        return content

    def skip(self, count: int) -> None:
        """Read over `count` bytes, a chunk at a time."""
        while count > 0 and (content := self.read(min(count, CHUNK))):
            count -= len(content)

    def finish(self) -> str:
        """Read what is left. Returns the SHA-256 of the whole file, in hexadecimal."""
        while self.read():
            pass
        return self._hash.hexdigest()
