"""The one walker of a set's tars: member by member, in a bounded memory, whatever the tar holds."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from datasets_shards.shards.hashedfile import HashedFile
from datasets_shards.shards.tarwriter import BLOCK

MAX_MEMBER_BYTES = 64 << 20
"""A lossless crop of the largest size that `pack` makes has 48 MiB; a larger member is not read into memory."""

IMAGES = ("jpg", "png")
MASK = "mask.png"


@dataclass(frozen=True)
class Member:
    """A file in a tar; `content` is None for one that is too large or that no set has."""

    name: str
    offset: int
    size: int
    content: bytes | None

    @property
    def key(self) -> str:
        """The sample's key: the name up to its first dot, as stock readers split it."""
        return self.name.partition(".")[0]

    @property
    def extension(self) -> str:
        """The rest of the name."""
        return self.name.partition(".")[2]


class DamagedTarError(ValueError):
    """A tar that can't be walked to its end; the message says where and why."""


def read_members(file: HashedFile) -> Iterator[Member]:
    """Every member of a USTAR archive, in order.

    Raises:
        DamagedTarError: a header that is none, anything but a plain file, or an end before the archive's end.
    """
    while True:
        start = file.position
        header = file.read(BLOCK)
        if header == bytes(BLOCK):
            return
        if len(header) < BLOCK:
            raise DamagedTarError(f"ends at byte {file.position} without an end of the archive; it was cut off")
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise DamagedTarError(f"no tar header at byte {start} ({error}); what follows can't be read") from None
        if info.type != tarfile.REGTYPE:
            raise DamagedTarError(f"{info.name} at byte {start} is no plain file of a USTAR archive")
        offset = file.position
        if not 0 <= info.size <= file.size - offset:
            raise DamagedTarError(f"{info.name}: {info.size} bytes from byte {offset}, but the tar ends at {file.size}")
        wanted = info.name.partition(".")[2] in (*IMAGES, "cls", "json", MASK) and info.size <= MAX_MEMBER_BYTES
        content = file.read(info.size) if wanted else None
        file.skip(offset + info.size - file.position)
        file.skip(-info.size % BLOCK)
        yield Member(info.name, offset, info.size, content)


def group_members(members: Iterator[Member]) -> Iterator[dict[str, Member]]:
    """The members of each sample by extension; a key that comes again is another sample."""
    sample: dict[str, Member] = {}
    for member in members:
        if sample and (member.key != next(iter(sample.values())).key or member.extension in sample):
            yield sample
            sample = {}
        sample[member.extension] = member
    if sample:
        yield sample
