"""A tar whose bytes depend on its members alone, and its index for DALI."""

import hashlib
import os
import tarfile
from pathlib import Path
from typing import BinaryIO

from datasets_shards.schema import TarEntry

DALI_INDEX_VERSION = "v1.2"
BLOCK = tarfile.BLOCKSIZE


class TarWriter:
    """Writes `path` as USTAR (mtime, uid and gid 0) and beside it the `.idx` that DALI's wds2idx would make.

    The standard library's `tarfile` makes the headers; writing the members here gives the payload's offset and the
    SHA-256 without reading the file a second time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("xb")
        self._hash = hashlib.sha256()
        self._size = 0
        self._index: list[str] = []

    def add_sample(self, key: str, members: dict[str, bytes]) -> dict[str, int]:
        """Append `<key>.<extension>` for each member, in order.

        Returns:
            The offset of each member's first byte in the tar, by extension.
        """
        offsets = {}
        components = []
        for extension, content in members.items():
            info = tarfile.TarInfo(f"{key}.{extension}")
            info.size = len(content)
            self._write(info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict"))
            offsets[extension] = self._size
            self._write(content)
            self._write(bytes(-len(content) % BLOCK))
            components.append(f"{extension} {offsets[extension]} {len(content)} {info.name}")
        self._index.append(" ".join(components))
        return offsets

    def close(self) -> TarEntry:
        """End the archive, write its index, and make both durable."""
        self._write(bytes(2 * BLOCK))
        self._write(bytes(-self._size % tarfile.RECORDSIZE))
        _sync_and_close(self._file)
        with self.path.with_suffix(".idx").open("xb") as index:
            index.write(f"{DALI_INDEX_VERSION} {len(self._index)}\n".encode())
            index.write("".join(f"{line}\n" for line in self._index).encode())
            _sync_and_close(index)
        return TarEntry(self._hash.hexdigest(), self._size, len(self._index))

    def abandon(self) -> None:
        """Close the file without ending the archive, after an error."""
        self._file.close()

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._hash.update(content)
        self._size += len(content)


def _sync_and_close(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
