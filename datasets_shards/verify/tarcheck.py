"""One pass over a tar of a set: hash, headers, members against the index, and the images."""

import json
import zlib
from collections import defaultdict, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets_shards.errors import first_few
from datasets_shards.schema import Quality, TarEntry, label_of, sample_key
from datasets_shards.shards.hashedfile import HashedFile
from datasets_shards.shards.tarreader import (
    IMAGES,
    MASK,
    MAX_MEMBER_BYTES,
    DamagedTarError,
    Member,
    group_members,
    read_members,
)
from datasets_shards.shards.tarwriter import DALI_INDEX_VERSION
from datasets_shards.verify.findings import Findings
from datasets_shards.verify.imagecheck import MASK_MODES, ImageRules, check_image, check_png

DESCRIBED = ("label", "method", "video", "target", "source", "frame", "split")


@dataclass(frozen=True)
class TarJob:
    """What a worker needs to check a tar.

    Args:
        path: the tar.
        entry: what the manifest lists for it, where there is a manifest.
        rows: its rows of the index in their order, where there is an index.
        quality: of the set, where it is known.
        crop_size: side of every crop, pixels, where it is known.
        rules: what the images must be.
    """

    path: Path
    entry: TarEntry | None
    rows: list[dict[str, Any]] | None
    quality: Quality | None
    crop_size: int | None
    rules: ImageRules


@dataclass
class TarReport:
    """What was found in a tar.

    Args:
        name: its file name.
        findings: what is wrong.
        bytes: its size.
        sound: whether its structure is whole: headers, members and the keys of the index.
        idx: whether the `.idx` beside it is the one that it gives.
    """

    name: str
    findings: Findings = field(default_factory=Findings)
    bytes: int = 0
    sound: bool = True
    idx: bool = True


def check_tar(job: TarJob) -> TarReport:
    """Check a tar and the `.idx` beside it; damage of any kind is a finding, never an exception."""
    report = TarReport(job.path.name)
    try:
        with job.path.open("rb") as file:
            _check_open_tar(job, HashedFile(file), report)
    except FileNotFoundError:
        rows = f", with the {len(job.rows)} samples that the index has in it" if job.rows else ""
        report.findings.add("tar", f"{job.path}: missing{rows}")
        report.sound = False
    except OSError as error:
        report.findings.add("tar", f"{job.path}: can't be read ({error.strerror or error})")
        report.sound = False
    return report


def _check_open_tar(job: TarJob, file: HashedFile, report: TarReport) -> None:
    path, findings, entry = job.path, report.findings, job.entry
    report.bytes = file.size
    waiting: dict[str, deque[dict[str, Any]]] = defaultdict(deque)
    for entered in job.rows or ():
        waiting[entered["key"]].append(entered)
    keys: list[str] = []
    lines: list[str] = []
    try:
        for members in group_members(read_members(file)):
            key = next(iter(members.values())).key
            row = waiting[key].popleft() if waiting.get(key) else None
            report.sound &= _check_sample(job, key, members, row, findings)
            keys.append(key)
            lines.append(" ".join(f"{ext} {m.offset} {m.size} {m.name}" for ext, m in members.items()))
    except DamagedTarError as error:
        findings.add("tar", f"{path}: {error}")
        report.sound = False
    else:
        report.idx = _check_idx(path.with_suffix(".idx"), lines, findings)
        if entry is not None and entry.samples != len(keys):
            findings.add("tar", f"{path}: holds {len(keys)} samples where the manifest lists {entry.samples}")
    sha256 = file.finish()
    if entry is not None and entry.bytes != file.size:
        findings.add("tar", f"{path}: {file.size} bytes where the manifest lists {entry.bytes}")
    elif entry is not None and entry.sha256 != sha256:
        findings.add("tar", f"{path}: its SHA-256 is {sha256[:12]}... where the manifest lists {entry.sha256[:12]}...")
    if job.rows is not None:
        report.sound &= _check_keys(path, keys, [row["key"] for row in job.rows], findings)


def _check_keys(path: Path, found: list[str], expected: list[str], findings: Findings) -> bool:
    """Whether a tar holds the keys of the index, in its order."""
    if found == expected:
        return True
    there, wanted = set(found), set(expected)
    if missing := [key for key in expected if key not in there]:
        count = f"{len(missing)} of the {len(expected)} samples"
        findings.add("samples", f"{path}: {count} that the index has are not in it: {first_few(missing)}")
    if extra := [key for key in found if key not in wanted]:
        findings.add("samples", f"{path}: samples that the index doesn't have ({len(extra)}): {first_few(extra)}")
    if repeated := [key for i, key in enumerate(found) if key in wanted and i and key == found[i - 1]]:
        findings.add("samples", f"{path}: holds a sample twice: {first_few(repeated)}")
    if there == wanted and sorted(found) == sorted(expected):
        row = next(i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
        findings.add("samples", f"{path}: {found[row]} stands where the index has {expected[row]}")
    elif not missing and not extra and not repeated:
        findings.add("samples", f"{path}: {len(found)} samples where the index has {len(expected)}")
    return False


def _check_idx(path: Path, lines: list[str], findings: Findings) -> bool:
    """Whether the `.idx` beside a tar is the one that the tar gives."""
    expected = "".join(f"{line}\n" for line in (f"{DALI_INDEX_VERSION} {len(lines)}", *lines))
    content = expected.encode("utf-8", "surrogateescape")
    try:
        with path.open("rb") as file:
            found = file.read(len(content) + 1)
    except FileNotFoundError:
        findings.add("idx", f"{path}: missing; DALI's reader needs it")
        return False
    except OSError as error:
        findings.add("idx", f"{path}: can't be read ({error.strerror or error}); DALI's reader needs it")
        return False
    if found == content:
        return True
    there, wanted = found.decode("utf-8", "surrogateescape").split("\n"), expected.split("\n")
    number = next((i for i, (a, b) in enumerate(zip(there, wanted, strict=False)) if a != b), len(wanted))
    line = repr(there[number][:60]) if number < len(there) else "nothing"
    right = repr(wanted[number][:60]) if number < len(wanted) else "its end"
    findings.add("idx", f"{path}: line {number + 1} is {line} where the tar gives {right}")
    return False


def _check_sample(
    job: TarJob, key: str, members: dict[str, Member], row: dict[str, Any] | None, findings: Findings
) -> bool:
    """Check one sample against its row. Returns whether its members are the ones a sample has."""
    where = f"{job.path}: {key}"
    expected = job.rules.extension or next((ext for ext in members if ext in IMAGES), "jpg")
    names = list(members)
    whole = names in ([expected, "cls", "json"], [expected, "cls", "json", MASK])
    if not whole:
        named = ", ".join(f".{name}" for name in names)
        findings.add(
            "members", f"{where}: has {named} where a sample has .{expected}, .cls, .json and may have .{MASK}"
        )
    for member in members.values():
        if member.size > MAX_MEMBER_BYTES:
            findings.add("members", f"{where}: .{member.extension} has {member.size} bytes, more than any crop needs")
    if row is not None:
        _check_row(job, where, row, findings)
    label = _check_label(where, members.get("cls"), row, findings)
    _check_description(job, where, members.get("json"), row or ({} if label is None else {"label": label}), findings)
    image = members.get(expected)
    if image is None:
        return False
    if row is not None and (row["offset"], row["size"]) != (image.offset, image.size):
        findings.add(
            "index",
            f"{where}: the index has {row['size']} bytes from byte {row['offset']}, "
            f"the image is {image.size} bytes from byte {image.offset}",
        )
    if row is not None and image.content is not None and (crc := zlib.crc32(image.content)) != row["crc32"]:
        findings.add(
            "images",
            f"{where}.{expected}: isn't the image that was packed (its CRC-32 is {crc:08x}, the index has "
            f"{row['crc32']:08x})",
        )
    side = job.crop_size
    size = (row["width"], row["height"]) if row is not None else (side, side) if side is not None else None
    if image.content is not None:
        for problem in check_image(image.content, expected, size, job.rules):
            findings.add("images", f"{where}.{expected}: {problem}")
    mask = members.get(MASK)
    if mask is not None and mask.content is not None:
        try:
            problems = check_png(mask.content, size, job.rules.decode, MASK_MODES)
        except ValueError as error:
            problems = [f"no readable PNG ({error})"]
        for problem in problems:
            findings.add("images", f"{where}.{MASK}: {problem}")
    return whole


def _check_row(job: TarJob, where: str, row: dict[str, Any], findings: Findings) -> None:
    """Check a row of the index in itself."""
    try:
        facts = {
            "key": sample_key(row["method"], row["video"], row["frame"]),
            "label": label_of(row["method"]),
            "split": job.path.name.rpartition("-")[0],
        }
    except ValueError as error:
        findings.add("index", f"{where}: {error}")
        return
    if job.crop_size is not None:
        facts |= {"width": job.crop_size, "height": job.crop_size}
    for name, value in facts.items():
        if row[name] != value:
            findings.add("index", f"{where}: {name} {row[name]!r} in the index where it must be {value!r}")


def _check_label(where: str, member: Member | None, row: dict[str, Any] | None, findings: Findings) -> int | None:
    """Check the `.cls` member. Returns the label that it holds."""
    if member is None or member.content is None:
        return None
    if member.content not in (b"0", b"1"):
        findings.add("labels", f"{where}.cls: holds {member.content[:20]!r}, neither 0 nor 1")
        return None
    label = int(member.content)
    if row is not None and row["label"] != label:
        findings.add("labels", f"{where}.cls: {label} where the index says {row['label']}")
    return label


def _check_description(
    job: TarJob, where: str, member: Member | None, facts: dict[str, Any], findings: Findings
) -> None:
    """Check the `.json` member against the row of the index, or what else is known."""
    if member is None or member.content is None:
        return
    try:
        description = json.loads(member.content)
    except (ValueError, RecursionError) as error:
        findings.add("descriptions", f"{where}.json: not readable as JSON ({error})")
        return
    if not isinstance(description, dict):
        findings.add("descriptions", f"{where}.json: not an object")
        return
    names = [name for name in DESCRIBED if name in facts]
    expected = {name: facts[name] for name in names} | ({} if job.quality is None else {"quality": job.quality})
    for name, value in expected.items():
        if name not in description:
            findings.add("descriptions", f"{where}.json: has no {name}")
        elif description[name] != value:
            findings.add("descriptions", f"{where}.json: {name} {description[name]!r} where the set says {value!r}")
