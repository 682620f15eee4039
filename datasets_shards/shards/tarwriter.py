"""A tar whose bytes depend on its members alone, and its index for DALI."""

import hashlib
import os
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from datasets_shards.schema import TarEntry, naming, part_of, sync_path

DALI_INDEX_VERSION = "v1.2"
BLOCK = tarfile.BLOCKSIZE
COPY_BYTES = 1 << 20


class Component(NamedTuple):
    """One member of a sample, where a file of tar records holds it.

    Args:
        extension: the part of its name after the key and a dot.
        offset: of its first byte.
        size: bytes.
        name: its whole name.
    """

    extension: str
    offset: int
    size: int
    name: str


def write_records(file: BinaryIO, position: int, key: str, members: dict[str, bytes]) -> list[Component]:
    """Write `<key>.<extension>` for each member, in order, as USTAR records (mtime, uid and gid 0).

    The standard library's `tarfile` makes the headers; writing the members here gives the payload's offset.

    Args:
        file: where to write.
        position: how many bytes it has.
        key: the sample's key.
        members: content of each member, by extension.
    """
    components = []
    for extension, content in members.items():
        info = tarfile.TarInfo(f"{key}.{extension}")
        info.size = len(content)
        record = info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
        components.append(Component(extension, position + len(record), len(content), info.name))
        padding = bytes(-len(content) % BLOCK)
        file.write(record)
        file.write(content)
        file.write(padding)
        position += len(record) + len(content) + len(padding)
    return components


class TarWriter:
    """Writes a tar under another name, and gives it its own when it is complete.

    Beside it comes the `.idx` that DALI's wds2idx would make. The SHA-256 is taken on the way, so the file isn't read a
    second time.

    Args:
        path: where the tar will be.
        folder: where it is until then, on the same file system; by default hidden beside `path`.
    """

    def __init__(self, path: Path, folder: Path | None = None) -> None:
        self.path = path
        self._index = path.with_suffix(".idx")
        parts = (part_of(path), part_of(self._index))
        self._part, self._index_part = parts if folder is None else (folder / part.name for part in parts)
        self._file: BinaryIO = self._part.open("xb")
        self._hash = hashlib.sha256()
        self._size = 0
        self._lines: list[str] = []

    def write(self, content: bytes) -> int:
        """Append bytes; the file interface that `write_records` needs."""
        with naming(self.path):
            self._file.write(content)
        self._hash.update(content)
        self._size += len(content)
        return len(content)

    def add_sample(self, key: str, members: dict[str, bytes]) -> dict[str, int]:
        """Append `<key>.<extension>` for each member, in order.

        Returns:
            The offset of each member's first byte in the tar, by extension.
        """
        components = write_records(self, self._size, key, members)  # type: ignore[arg-type]
        self._list(components, 0)
        return {component.extension: component.offset for component in components}

    def add_segment(self, records: bytes | Path, samples: list[list[Component]]) -> None:
        """Append records that `write_records` made, or a file of them, with the components of each of its samples."""
        start = self._size
        if isinstance(records, bytes):
            self.write(records)
        else:
            with records.open("rb") as segment:
                while content := segment.read(COPY_BYTES):
                    self.write(content)
        for components in samples:
            self._list(components, start)

    def _list(self, components: list[Component], start: int) -> None:
        words = (f"{part.extension} {start + part.offset} {part.size} {part.name}" for part in components)
        self._lines.append(" ".join(words))

    def close(self) -> TarEntry:
        """End the archive and make it and its index durable, still under their hidden names."""
        self.write(bytes(2 * BLOCK))
        self.write(bytes(-self._size % tarfile.RECORDSIZE))
        with naming(self.path):
            _sync_and_close(self._file)
        with naming(self._index), self._index_part.open("xb") as index:
            index.write(f"{DALI_INDEX_VERSION} {len(self._lines)}\n".encode())
            index.write("".join(f"{line}\n" for line in self._lines).encode())
            _sync_and_close(index)
        return TarEntry(self._hash.hexdigest(), self._size, len(self._lines))

    def publish(self) -> None:
        """Give the closed archive its name, after its index: where the tar is, the index is."""
        self._index_part.replace(self._index)
        self._part.replace(self.path)
        sync_path(self.path.parent)

    def abandon(self) -> None:
        """After an error: close and remove what was written."""
        with suppress(OSError):  # a full disk says so again
            self._file.close()
        self._part.unlink(missing_ok=True)
        self._index_part.unlink(missing_ok=True)


def read_components(path: Path, extension: str) -> list[Component]:
    """Read an `.idx` file: the component of this extension of every sample. What else a sample has is passed over.

    Raises:
        ValueError: it isn't one, or a sample has no such component.
    """
    with path.open(encoding="utf-8") as file:
        version, _, count = file.readline().strip().partition(" ")
        samples = [line.split() for line in file]
    cut = any(len(words) % 4 or extension not in words[::4] for words in samples)
    if version != DALI_INDEX_VERSION or not count.isdigit() or int(count) != len(samples) or cut:
        raise ValueError(f"{path}: no index of DALI's {DALI_INDEX_VERSION} with a .{extension} in each sample")
    fours = (words[at : at + 4] for words in samples for at in [4 * words[::4].index(extension)])
    return [Component(extension, int(offset), int(size), name) for _, offset, size, name in fours]


def _sync_and_close(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
