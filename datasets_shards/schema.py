"""What a shard set is: names, labels, the index and the manifest.

The one module that both sides share: `datasets_shards` writes by it and `fdtrain` reads by it. It therefore imports
nothing heavier than pyarrow.

A shard set is a folder `<root>/q77/` with `manifest.json`, `index.parquet`, `{train,val,test}-000000.tar` and, beside
each tar, an `.idx` in DALI's wds2idx format. All sets of one root hold the same keys in the same order, so a row number
means the same sample at every quality.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from io import FileIO
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets_shards.columns import Columns

FORMAT = "fdtrain-shards"
FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"
INDEX_NAME = "index.parquet"

MAX_KEY_BYTES = 90

SPLITS = ("train", "val", "test")
REAL, FAKE = 0, 1
REAL_METHODS = ("youtube", "actors", "real")
FAKE_METHODS = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures", "FaceShifter", "DeepFakeDetection", "fake")
METHODS = REAL_METHODS + FAKE_METHODS
"""FF++'s directory names; "real" and "fake" stand for what a plain folder holds, by whatever method it was made."""

FACE_FORENSICS, DEEPFAKE_DETECTION = "FaceForensics++", "DeepFakeDetection"
PLAIN_FOLDER = "folder"

RAW = "raw"
Quality = int | str
"""A MozJPEG quality, 1 to 100, or `RAW`: the set without a JPEG step (lossless PNG members)."""

INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("split", pa.dictionary(pa.int8(), pa.string())),
        ("shard", pa.dictionary(pa.int32(), pa.string())),  # file name of the tar, inside the set's folder
        ("offset", pa.int64()),  # of the image's first byte in the tar
        ("size", pa.int64()),  # of the image, bytes
        ("crc32", pa.uint32()),  # of the image, as zlib.crc32: every reader can tell a damaged one
        ("label", pa.int8()),
        ("method", pa.dictionary(pa.int8(), pa.string())),
        ("video", pa.string()),
        ("target", pa.string()),
        ("source", pa.string()),  # empty for a real video
        ("frame", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)


class ShardSetError(ValueError):
    """A shard set that can't be used; the message names the file, what is wrong and what to do."""


def pack_again(folder: str | Path) -> str:
    """What to do about a set on a disk that isn't what was packed, for messages: pack overwrites nothing."""
    return f"delete {folder} and pack it again"


def label_of(method: str) -> int:
    """0 for a real method, 1 for a manipulation. Raises ValueError for any other name."""
    if method in REAL_METHODS:
        return REAL
    if method in FAKE_METHODS:
        return FAKE
    raise ValueError(f"method {method!r} is unknown; the known ones are {', '.join(METHODS)}")


def datasets_of(methods: Iterable[str]) -> list[str]:
    """The dataset of each method of a set, in their order; a plain folder is one, whatever methods its parts name."""
    names = list(methods)
    if not {"real", "fake"}.isdisjoint(names):
        return [PLAIN_FOLDER] * len(names)
    return [DEEPFAKE_DETECTION if name in ("actors", "DeepFakeDetection") else FACE_FORENSICS for name in names]


def one_class_warning(split: str, labels: Iterable[int]) -> str | None:
    """A line for people where all samples of a split are real, or all are fake; an empty split needs none."""
    there = set(labels)
    if len(there) != 1:
        return None
    lacking = "real" if FAKE in there else "fake"
    return (
        f"the split {split!r} has no {lacking} samples: AUC and all else that compares real and fake is undefined there"
    )


def parse_quality(text: str | int) -> Quality:
    """`"77"` -> 77, `"q77"` -> 77, `"raw"` -> "raw". Raises ValueError outside 1..100."""
    word = str(text)
    if word == RAW:
        return RAW
    digits = word.removeprefix("q")
    if digits.isascii() and digits.isdigit() and 1 <= int(digits) <= 100:
        return int(digits)
    raise ValueError(f"quality {word!r} is neither a whole number from 1 to 100 nor 'raw'")


def quality_name(quality: Quality) -> str:
    """The name of a quality's folder under the root, and of its models: 77 -> "q77", "raw" -> "raw"."""
    return RAW if quality == RAW else f"q{quality}"


def sample_key(method: str, video: str, frame: int) -> str:
    """`<method>-<video>-<frame:05d>`.

    WebDataset splits a member's name at its first dot, DALI's index separates its entries by spaces, and a USTAR header
    has room for 100 bytes of name.

    Raises ValueError where the method or the video would break one of these rules.
    """
    key = f"{method}-{video}-{frame:05d}"
    if "." in key or "/" in key or any(letter.isspace() for letter in key):
        raise ValueError(f"sample key {key!r} holds a dot, a slash or a space; rename the video")
    if len(key.encode()) > MAX_KEY_BYTES:
        raise ValueError(f"sample key {key!r} is longer than {MAX_KEY_BYTES} bytes; rename the video")
    return key


def is_file_name(word: str) -> bool:
    """Whether a word out of a manifest or an index is the name of one file or folder, and leads nowhere else."""
    return word not in ("", ".", "..") and "/" not in word and "\0" not in word


def strange_names(index: Columns | pa.Table) -> list[str]:
    """Names in an index that no packer writes, for they would be paths: "video '../x'", the first of each column."""
    found = []
    for column in ("key", "split", "shard", "method", "video"):
        words = index[column].cast(pa.string())
        if column == "key":  # of which there are as many as samples
            bad = pc.is_in(words, pa.array(["", ".", ".."]))
            for letter in ("/", "\0"):
                bad = pc.or_(bad, pc.match_substring(words, letter))
            words = words.filter(bad)[:1]
        strange = [word for word in pc.unique(words).to_pylist() if word is not None and not is_file_name(word)]
        found += [f"{column} {word!r}" for word in strange[:1]]
    return found


def read_index(content: bytes, path: str, tars: Iterable[str]) -> Columns:
    """The index of a set, every name in it checked: what reads it may make paths of them.

    Args:
        content: of the file.
        path: where it is, for messages.
        tars: names of the tars that the manifest lists.

    Raises:
        ShardSetError: it isn't an index, a name would lead out of a folder, or the manifest lacks one of the tars.
    """
    try:
        index = Columns(content, INDEX_SCHEMA)
        strange = strange_names(index)
        shards = pc.unique(index["shard"].cast(pa.string())).to_pylist()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ShardSetError(f"{path}: not readable as an index ({str(error).splitlines()[0]})") from None
    if strange:
        raise ShardSetError(f"{path}: {', '.join(strange)}: not a name that pack writes; don't use this set")
    if unlisted := sorted(set(shards) - set(tars)):
        raise ShardSetError(f"{path}: names tars that its manifest doesn't list: {', '.join(unlisted[:5])}")
    return index


def rows_by_shard(table: pa.Table) -> dict[str, pa.Table]:
    """The rows of each tar, in their order; a tar's stand together in a sound index, so that they are slices of it.

    Args:
        table: with the column `shard` of an index.
    """
    if not table.num_rows:
        return {}
    column = table["shard"].cast(pa.string()).combine_chunks().dictionary_encode()
    codes = np.from_dlpack(column.indices)
    if (codes[1:] < codes[:-1]).any():  # codes are given in the order of appearance
        order = np.argsort(codes, kind="stable")
        table, codes = table.take(pa.array(order)), codes[order]
    ends = np.searchsorted(codes, np.arange(len(column.dictionary)), side="right").tolist()
    names = column.dictionary.to_pylist()
    return {name: table[start:end] for name, start, end in zip(names, [0, *ends], ends, strict=False)}


@dataclass(frozen=True)
class TarEntry:
    """One tar of a shard set, as the manifest lists it."""

    sha256: str
    bytes: int
    samples: int


@dataclass(frozen=True)
class Manifest:
    """The identity of a shard set: everything its bytes follow from, and nothing that changes between equal runs.

    Args:
        quality: MozJPEG quality or "raw".
        encoder: name and version of the encoder and every parameter it was given.
        crop: size in pixels, margin and alignment of the face crops.
        source: compression of the videos (raw, c23, c40), their number and the digest of their files.
        splits: where the splits came from and, where they were drawn, the seed.
        counts: samples as `counts[split][method]`.
        tars: each tar by file name, in the order of the index.
        index_sha256: SHA-256 of `index.parquet`.
        format: always "fdtrain-shards".
        format_version: version of this layout.
    """

    quality: Quality
    encoder: dict[str, Any]
    crop: dict[str, Any]
    source: dict[str, Any]
    splits: dict[str, Any]
    counts: dict[str, dict[str, int]]
    tars: dict[str, TarEntry]
    index_sha256: str
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest in canonical JSON: the data's identity, which every run logs."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def extension(self) -> str:
        """Of the image members: "png" in the raw set, else "jpg"."""
        return self.image_extension(self.quality)

    @staticmethod
    def image_extension(quality: Quality) -> str:
        """Of the image members in a set of `quality`."""
        return "png" if quality == RAW else "jpg"

    def save(self, folder: Path) -> None:
        """Write `manifest.json` so that it is either absent or whole."""
        write_atomic(folder / MANIFEST_NAME, json.dumps(asdict(self), indent=2, ensure_ascii=False).encode() + b"\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `folder/manifest.json`. Raises ShardSetError where it is missing, damaged or of another version."""
        path = folder / MANIFEST_NAME
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            if next(folder.glob("*.tar"), None) is not None:
                raise ShardSetError(
                    f"{path}: no such file: the set isn't finished; run the pack command again, or with --merge"
                ) from None
            raise ShardSetError(
                f"{path}: no such file, so {folder} is no shard set; make one with 'python -m datasets_shards pack'"
            ) from None
        return cls.parse(content, str(folder))

    @classmethod
    def parse(cls, text: bytes, folder: str) -> Self:
        """The manifest of the set at `folder`, a path or a URL. Raises ShardSetError as `load`."""
        path = f"{folder}/{MANIFEST_NAME}"
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ShardSetError(f"{path}: not readable as JSON ({error}); {pack_again(folder)}") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ShardSetError(f"{path}: not the manifest of a shard set (no 'format': '{FORMAT}')")
        if content.get("format_version") != FORMAT_VERSION:
            raise ShardSetError(
                f"{path}: format version {content.get('format_version')}, this release reads version "
                f"{FORMAT_VERSION}; {pack_again(folder)} with this release"
            )
        names = {field.name for field in fields(cls)}
        if wrong := sorted(names.symmetric_difference(content)):
            raise ShardSetError(f"{path}: missing or unexpected entries: {', '.join(wrong)}; {pack_again(folder)}")
        try:
            _check_types(content)
        except ValueError as error:
            raise ShardSetError(f"{path}: {error}; {pack_again(folder)}") from None
        content["tars"] = {name: TarEntry(**entry) for name, entry in content["tars"].items()}
        return cls(**content)


def _check_types(content: dict[str, Any]) -> None:
    """Raise ValueError for an entry of a manifest that isn't what `Manifest` says, so that nobody need look again."""
    quality = content["quality"]
    is_quality = quality == RAW or (_is_count(quality, 1) and quality <= 100)
    _require(is_quality, "quality", quality, f"a whole number from 1 to 100, or {RAW!r}")
    for name in ("encoder", "crop", "source", "splits", "counts", "tars"):
        _require(isinstance(content[name], dict), name, content[name], "an object")
    _require(_is_count(content["crop"].get("size"), 1), "crop.size", content["crop"].get("size"), "a number of pixels")
    _require(_is_sha256(content["index_sha256"]), "index_sha256", content["index_sha256"], "a SHA-256")
    for split, counts in content["counts"].items():
        is_right = isinstance(counts, dict) and all(map(_is_count, counts.values()))
        _require(is_right, f"counts.{split}", counts, "samples by method")
    names = {field.name for field in fields(TarEntry)}
    for name, entry in content["tars"].items():
        # It is joined to the set's folder, and must not lead out of it.
        _require(name.endswith(".tar") and is_file_name(name), "tars", name, "the name of a tar")
        _require(isinstance(entry, dict) and set(entry) == names, f"tars.{name}", entry, f"{', '.join(sorted(names))}")
        _require(_is_sha256(entry["sha256"]), f"tars.{name}.sha256", entry["sha256"], "a SHA-256")
        for key in ("bytes", "samples"):
            _require(_is_count(entry[key]), f"tars.{name}.{key}", entry[key], "a whole number from 0")


def _require(is_right: bool, name: str, value: Any, expected: str) -> None:
    if not is_right:
        raise ValueError(f"'{name}' is {textwrap.shorten(json.dumps(value), 60)} and must be {expected}")


def _is_count(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


@dataclass(frozen=True)
class ShardSet:
    """A shard set that was opened: its folder, manifest and index.

    Args:
        folder: `<root>/q77`.
        manifest: what it was made from.
        index: one row per sample, columns of `INDEX_SCHEMA`, each decoded when it is asked for.
        url: of a set in a store, whose `folder` is then that of its copies.
    """

    folder: Path
    manifest: Manifest
    index: Columns
    url: str = ""

    @property
    def place(self) -> str:
        """Where the user has it, folder or URL, for messages."""
        return self.url or str(self.folder)

    @property
    def crop_size(self) -> int:
        """Side of every crop in the set, pixels."""
        return int(self.manifest.crop["size"])


def open_shard_set(root: Path, quality: Quality) -> ShardSet:
    """Open `<root>/<quality>`; its tars are looked at, never scanned.

    Raises:
        ShardSetError: no such root or quality (the message lists what there is), another format version, an index or a
            tar that is missing or isn't what the manifest lists, a name that isn't one.
    """
    folder = root / quality_name(quality)
    if not folder.is_dir():
        if not root.is_dir():
            raise ShardSetError(f"{root}: no such folder; data.root is the folder that 'pack --out' wrote")
        there = sorted(path.parent.name for path in root.glob(f"*/{MANIFEST_NAME}"))
        raise ShardSetError(f"{root}: holds no set of quality {quality}; it has {', '.join(there) or 'none at all'}")
    manifest = Manifest.load(folder)
    path = folder / INDEX_NAME
    if not path.is_file():
        raise ShardSetError(f"{path}: missing; {pack_again(folder)}")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest.index_sha256:
        raise ShardSetError(f"{path}: is not the file that the manifest lists; {pack_again(folder)}")
    for name, tar in manifest.tars.items():
        size = (folder / name).stat().st_size if (folder / name).is_file() else None
        if size != tar.bytes:
            found = "missing" if size is None else f"{size} bytes"
            raise ShardSetError(f"{folder / name}: {found} where the manifest lists {tar.bytes}; {pack_again(folder)}")
    return ShardSet(folder, manifest, read_index(content, str(path), manifest.tars))


def check_same_samples(first: ShardSet, other: ShardSet) -> None:
    """Whether a row is the same sample, in the same split and of the same size, in two sets to be read side by side.

    Raises:
        ShardSetError: it isn't; the message names both.
    """
    if other is first:
        return
    here, there = other.place, first.place
    remedy = "pack one of them again, from the same videos with the same settings"
    if other.crop_size != first.crop_size:
        raise ShardSetError(
            f"{here}: its crops are {other.crop_size} pixels wide, those of {there} {first.crop_size}; {remedy}"
        )
    if other.index.num_rows != first.index.num_rows:
        raise ShardSetError(f"{here}: holds {other.index.num_rows} samples, {there} {first.index.num_rows}; {remedy}")
    if not all(first.index.same(other.index, name) for name in ("key", "split")):
        raise ShardSetError(f"{here}: holds other samples than {there}, or in another order or split; {remedy}")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_path(path: Path) -> None:
    """Make a file's content, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_whole(file: FileIO, line: bytes) -> None:
    """Add a line to a file that is open unbuffered; where the disk is full, OSError, and no part of it."""
    before = file.seek(0, os.SEEK_END)
    if file.write(line) < len(line):
        file.truncate(before)  # or the next line would be put behind a half
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file.name))


def write_atomic(path: Path, content: bytes) -> None:
    """Write beside, fsync, rename: a reader sees the old file or the whole new one, also after a crash."""
    with written_whole(path) as part:
        part.write_bytes(content)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A hidden name beside `path` to write at, which becomes `path`, synced, when the block has ended well."""
    part = part_of(path)
    try:
        with naming(path):
            yield part
            sync_path(part)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def part_of(path: Path) -> Path:
    """A hidden name beside `path` for a file that isn't whole; no other process, on whatever machine, has the same."""
    return path.with_name(f".{path.name}.part-{secrets.token_hex(6)}")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError say which file it is about: a full disk is met while writing, not opening."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
