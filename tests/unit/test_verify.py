"""Every kind of damage to a packed set is found, named and told from the others."""

import io
import json
import shutil
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datasets_shards.jpeg.mozjpeg import encode
from datasets_shards.schema import INDEX_NAME, INDEX_SCHEMA, MANIFEST_NAME, Manifest, file_sha256, rows_by_shard
from datasets_shards.shards.hashedfile import HashedFile
from datasets_shards.shards.tarreader import MAX_MEMBER_BYTES, read_members
from datasets_shards.verify import compare_sets, find_sets, rows_of_groups, verify_set
from datasets_shards.verify.findings import LINES_PER_KIND, Findings
from datasets_shards.verify.imagecheck import ImageRules, check_image
from datasets_shards.verify.readers import DALI, READERS, ReaderJob, read_with_stock_reader
from datasets_shards.verify.setcheck import check_counts, check_people, load_index
from datasets_shards.verify.tarcheck import TarJob, check_tar

TAR = "train-000000.tar"
Members = dict[str, bytes]


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / MANIFEST_NAME).read_bytes())
    change(content)
    (folder / MANIFEST_NAME).write_text(json.dumps(content))


def edit_index(folder: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change the rows of the index; the manifest then lists the new file."""
    rows = pq.read_table(folder / INDEX_NAME).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), folder / INDEX_NAME)
    edit_manifest(folder, lambda content: content.update(index_sha256=file_sha256(folder / INDEX_NAME)))


def repack(folder: Path, change: Callable[[Members], Members | None]) -> None:
    """Write the members of TAR again, changed; `.idx`, index and manifest then describe what was written."""
    with tarfile.open(folder / TAR) as archive:
        members = {info.name: archive.extractfile(info).read() for info in archive}
    members = change(members) or members
    with tarfile.open(folder / TAR, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    with tarfile.open(folder / TAR) as archive:
        places = {info.name: (info.offset_data, info.size) for info in archive}
    samples: dict[str, list[str]] = {}
    for name, (offset, size) in places.items():
        key, _, extension = name.partition(".")
        samples.setdefault(key, []).append(f"{extension} {offset} {size} {name}")
    lines = [f"v1.2 {len(samples)}", *(" ".join(words) for words in samples.values())]
    (folder / TAR).with_suffix(".idx").write_text("".join(f"{line}\n" for line in lines))

    def move(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["shard"] == TAR and f"{row['key']}.jpg" in places:
                row["offset"], row["size"] = places[f"{row['key']}.jpg"]
                row["crc32"] = zlib.crc32(members[f"{row['key']}.jpg"])

    edit_index(folder, move)
    entry = {"sha256": file_sha256(folder / TAR), "bytes": (folder / TAR).stat().st_size, "samples": len(samples)}
    edit_manifest(folder, lambda content: content["tars"].update({TAR: entry}))


def patch(path: Path, position: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(content)


def first_row(folder: Path) -> dict[str, Any]:
    return next(row for row in pq.read_table(folder / INDEX_NAME).to_pylist() if row["shard"] == TAR)


def with_image(members: Members, image: bytes) -> None:
    """Put `image` into the first sample."""
    members[next(iter(members))] = image


def as_jpeg(quality: int = 77, side: int = 128, **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((side, side)).save(file, "JPEG", **{"quality": quality, "subsampling": 2} | options)
    return file.getvalue()


def drop_first(members: Members, extension: str) -> Members:
    gone = next(name for name in members if name.endswith(extension))
    return {name: content for name, content in members.items() if name != gone}


def add_sample(members: Members) -> Members:
    copies = {f"youtube-009-00000.{name.partition('.')[2]}": members[name] for name in list(members)[:3]}
    return members | copies


def swap_samples(members: Members) -> Members:
    names = list(members)
    return {name: members[name] for name in names[3:6] + names[:3] + names[6:]}


def edit_description(members: Members, **values: Any) -> None:
    name = next(name for name in members if name.endswith(".json"))
    members[name] = json.dumps(json.loads(members[name]) | values).encode()


def shift_offset(rows: list[dict[str, Any]]) -> None:
    rows[0]["offset"] += 1


def two_splits(folder: Path) -> None:
    """A video of the training split is said to show somebody of the test split, by index and description alike."""
    rows = pq.read_table(folder / INDEX_NAME).to_pylist()
    person = next(row["target"] for row in rows if row["split"] == "test")
    name = next(row["video"] for row in rows if row["shard"] == TAR and row["method"] == "Deepfakes")

    def in_index(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if (row["method"], row["video"]) == ("Deepfakes", name):
                row["source"] = person

    def in_descriptions(members: Members) -> None:
        for member, content in members.items():
            if member.startswith(f"Deepfakes-{name}-") and member.endswith(".json"):
                members[member] = json.dumps(json.loads(content) | {"source": person}).encode()

    edit_index(folder, in_index)
    repack(folder, in_descriptions)


def flip_byte(folder: Path) -> None:
    row = first_row(folder)
    patch(folder / TAR, row["offset"] + 2, b"\x00")


def flip_padding(folder: Path) -> None:
    """A byte between two members, which no reader looks at."""
    row = first_row(folder)
    patch(folder / TAR, row["offset"] + row["size"], b"x")


def truncate(folder: Path) -> None:
    with (folder / TAR).open("r+b") as file:
        file.truncate(first_row(folder)["offset"] + 100)


def bad_header(folder: Path) -> None:
    patch(folder / TAR, 0, b"\xff")


def damaged_scan(members: Members) -> None:
    name = next(iter(members))
    content = members[name]
    members[name] = content[: len(content) // 2] + b"\xff\xd9"


def swap_tars(content: dict[str, Any]) -> None:
    first, second, *others = content["tars"].items()
    content["tars"] = dict([second, first, *others])


def duplicate_key(rows: list[dict[str, Any]]) -> None:
    there = next(row for row in rows if row["split"] == "test")
    there |= {name: rows[0][name] for name in ("key", "method", "video", "frame", "label", "target", "source")}


AGREES = "keys, labels and bytes as in the index"


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def on(edit: Callable, change: Callable) -> Callable[[Path], None]:
    return lambda folder: edit(folder, change)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        pytest.param(flip_byte, {"tar": "its SHA-256 is", "images": "no readable JPEG"}, id="flipped byte"),
        pytest.param(flip_padding, {"tar": "its SHA-256 is"}, id="flipped byte in the padding"),
        pytest.param(
            truncate,
            {"tar": "but the tar ends at", "samples": "9 of the 9 samples that the index has are not in it"},
            id="cut off",
        ),
        pytest.param(
            bad_header,
            {"tar": "no tar header at byte 0 (bad checksum)", "samples": "9 of the 9 samples"},
            id="bad header",
        ),
        pytest.param(
            lambda folder: (folder / TAR).unlink(),
            {"tar": "missing, with the 9 samples that the index has in it"},
            id="missing tar",
        ),
        pytest.param(
            lambda folder: shutil.copy(folder / TAR, folder / "train-000009.tar"),
            {"files": "train-000009.tar: manifest.json doesn't list it"},
            id="extra tar",
        ),
        pytest.param(
            lambda folder: (folder / "stray.idx").touch(), {"files": "stray.idx: beside no tar"}, id="extra idx"
        ),
        pytest.param(
            lambda folder: shutil.copy(folder / "val-000000.idx", folder / "train-000000.idx"),
            {"idx": "train-000000.idx: line 2 is 'jpg 512"},
            id="wrong idx",
        ),
        pytest.param(
            lambda folder: (folder / "train-000000.idx").unlink(), {"idx": "train-000000.idx: missing"}, id="no idx"
        ),
        pytest.param(
            lambda folder: replace_by_folder(folder / "train-000000.idx"),
            {"idx": "train-000000.idx: can't be read (Is a directory)"},
            id="folder for an idx",
        ),
        pytest.param(
            lambda folder: replace_by_folder(folder / TAR),
            {"tar": f"{TAR}: can't be read (Is a directory)"},
            id="folder",
        ),
        pytest.param(
            on(edit_index, lambda rows: rows[0].update(split="val")),
            {
                "index": "split 'val' in the index where it must be 'train'",
                "counts": "counts 6 samples of val/youtube, the index has 7",
                "identities": " is in train (",
                "descriptions": "split 'train' where the set says 'val'",
            },
            id="split in the index",
        ),
        pytest.param(
            on(edit_index, lambda rows: rows[0].update(video=None)),
            {"index": "rows without a value in video"},
            id="empty cell",
        ),
        pytest.param(
            on(edit_manifest, swap_tars),
            {
                "index": f"as tar 1 it has {TAR} where the manifest lists train-000001.tar",
                **dict.fromkeys(READERS, "in its place"),
            },
            id="order of the tars",
        ),
        pytest.param(
            on(edit_manifest, lambda content: content["crop"].update(size="128")),
            {"manifest": "'crop.size' is \"128\" and must be a number of pixels"},
            id="manifest's crop size",
        ),
        pytest.param(
            on(edit_index, shift_offset),
            {"index": "bytes from byte 513, the image is", **dict.fromkeys(READERS, "another image than the index")},
            id="shifted offset",
        ),
        pytest.param(
            lambda folder: patch(folder / INDEX_NAME, 8, b"\xff"), {"index": "its SHA-256 is not"}, id="index bytes"
        ),
        pytest.param(lambda folder: (folder / INDEX_NAME).unlink(), {"index": "index.parquet: missing"}, id="no index"),
        pytest.param(
            on(repack, lambda members: members.update({next(n for n in members if n.endswith(".cls")): b"1"})),
            {"labels": ".cls: 1 where the index says 0", **dict.fromkeys(READERS, "reads the label b'1'")},
            id="swapped label",
        ),
        pytest.param(
            on(repack, lambda members: edit_description(members, split="test", quality=10)),
            {"descriptions": "split 'test' where the set says 'train'"},
            id="description",
        ),
        pytest.param(
            on(repack, lambda members: with_image(members, as_jpeg(side=64))),
            {"images": ".jpg: it is 64x64 where the index says 128x128"},
            id="another size",
        ),
        pytest.param(
            on(repack, lambda members: with_image(members, as_jpeg(progressive=True))),
            {"images": "it is progressive where the manifest declares baseline"},
            id="progressive",
        ),
        pytest.param(
            on(repack, lambda members: with_image(members, as_jpeg(subsampling=0))),
            {"images": "its chroma is sampled 4:4:4 where the manifest declares 4:2:0"},
            id="chroma",
        ),
        pytest.param(
            on(edit_manifest, lambda content: content["encoder"].update(table_bits=16)),
            {"images": "many bits: 8 where the manifest declares 16"},
            id="table bits",
        ),
        pytest.param(on(repack, damaged_scan), {"images": ".jpg: does not decode ("}, id="damaged scan"),
        pytest.param(
            on(repack, lambda members: drop_first(members, ".cls")),
            {"members": "has .jpg, .json where a sample has .jpg, .cls, .json"},
            id="missing member",
        ),
        pytest.param(
            on(repack, add_sample),
            {
                "samples": "samples that the index doesn't have (1): youtube-009-00000",
                "counts": "counts 10 samples in train-000000.tar, the index has 9",
            },
            id="extra sample",
        ),
        pytest.param(on(repack, swap_samples), {"samples": "stands where the index has youtube-"}, id="another order"),
        pytest.param(two_splits, {"identities": "and train (Deepfakes/"}, id="identity in two splits"),
        pytest.param(
            on(edit_manifest, lambda content: content["counts"]["val"].update(youtube=7)),
            {"counts": "counts 7 samples of val/youtube, the index has 6"},
            id="count",
        ),
        pytest.param(
            on(edit_manifest, lambda content: content["tars"][TAR].update(samples=8)),
            {"tar": "holds 9 samples where the manifest lists 8", "counts": "counts 8 samples in train-000000.tar"},
            id="count of a tar",
        ),
        pytest.param(
            on(edit_index, duplicate_key),
            {
                "index": "2 rows have this key, in the splits test and train",
                "identities": "is in test (youtube/",
                "samples": "test-000000.tar: 1 of the 9 samples that the index has",
            },
            id="key in two splits",
        ),
        pytest.param(
            on(edit_index, lambda rows: rows[0].update(label=1)),
            {
                "index": "label 1 in the index where it must be 0",
                "labels": ".cls: 0 where the index says 1",
                "descriptions": ".json: label 0 where the set says 1",
                **dict.fromkeys(READERS, "reads the label b'0', the index says 1"),
            },
            id="label in the index",
        ),
        pytest.param(
            on(edit_index, lambda rows: rows[0].update(crc32=7)),
            {"images": "isn't the image that was packed (its CRC-32 is "},
            id="checksum in the index",
        ),
        pytest.param(
            on(edit_manifest, lambda content: content["crop"].update(size=256)),
            {"index": "width 128 in the index where it must be 256"},
            id="crop size",
        ),
        pytest.param(
            on(edit_manifest, lambda content: content.update(counts=3)),
            {"manifest": "'counts' is 3 and must be an object"},
            id="manifest entry",
        ),
        pytest.param(
            lambda folder: (folder / MANIFEST_NAME).write_text("{"),
            {"manifest": "manifest.json: not readable as JSON"},
            id="manifest",
        ),
        pytest.param(
            on(edit_manifest, lambda content: content.update(quality=10)),
            {"manifest": "declares quality 10, but the folder is q77", "descriptions": "quality 77"},
            id="another quality",
        ),
    ],
)
def test_damage_is_found(packed: Path, tmp_path: Path, damage: Callable[[Path], Any], expected: dict[str, str]) -> None:
    folder = Path(shutil.copytree(packed / "q77", tmp_path / "q77"))
    damage(folder)
    found = verify_set(folder, quick=False, workers=1).findings
    assert set(found.lines) == set(expected), found.lines  # nothing else is wrong with it
    for kind, words in expected.items():
        assert words in "\n".join(found.lines[kind])
    for line in found.report():
        assert line.startswith((str(tmp_path), "... and "))
        assert "\n" not in line


def test_a_whole_root(packed: Path, accept) -> None:
    printed = accept("verify", packed)
    for name in ("q77", "q10", "raw"):
        assert f"{packed / name}: 54 samples (train 18, val 18, test 18); 6 tars, " in printed
    assert printed.count(f": 54 samples of 6 tars, {AGREES}") == 3 * len(READERS)
    assert printed.endswith(
        f"verified: {packed}, every image decoded, and 3 sets hold the same samples, nothing wrong\n"
    )
    quick = accept("verify", packed / "q77", "--quick")
    assert quick.count(f"27 samples of 3 tars, {AGREES}") == len(READERS)
    assert quick.endswith(f"verified: {packed / 'q77'}, without decoding, nothing wrong\n")


def with_masks(members: Members, mask: np.ndarray) -> Members:
    """Every sample gets a mask as its last member."""
    content = encode(mask, "raw")
    extended: Members = {}
    for name, old in members.items():
        if not name.endswith(".mask.png"):
            extended[name] = old
        if name.endswith(".json"):
            extended[name.replace(".json", ".mask.png")] = content
    return extended


def test_masks(packed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(packed / "q77", tmp_path / "q77"))
    repack(folder, lambda members: with_masks(members, np.zeros((128, 128), np.uint8)))
    assert not verify_set(folder, quick=False, workers=1).findings.total
    repack(folder, lambda members: with_masks(members, np.zeros((64, 128), np.uint8)))
    found = verify_set(folder, quick=False, workers=1).findings
    assert list(found.lines) == ["images"]
    assert found.lines["images"][0].endswith(".mask.png: it is 128x64 where the index says 128x128")
    repack(folder, lambda members: with_masks(members, np.zeros((128, 128, 3), np.uint8)))
    found = verify_set(folder, quick=False, workers=1).findings
    assert found.lines["images"][0].endswith(".mask.png: its pixels are RGB, not L or 1")


def test_what_ready_crops_lack(packed: Path, tmp_path: Path) -> None:
    """Crops that were cut elsewhere have no box and perhaps no landmarks; the manifest says what masks there were."""
    folder = Path(shutil.copytree(packed / "q77", tmp_path / "q77"))
    repack(folder, lambda members: edit_description(members, box=None, landmarks=None))
    masks = {"videos": 3, "digest": "0" * 64}
    edit_manifest(folder, lambda content: content["crop"].update(margin=None, align="none", masks=masks))
    report = verify_set(folder, quick=False, workers=1)
    assert not report.findings.total, list(report.findings.report())


def test_what_stock_readers_do_not_get(packed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(packed / "q77", tmp_path / "q77"))

    def line() -> str:
        return next(line for line in verify_set(folder, True, 1).lines if "kept from them" in line)

    (folder / "val-000000.idx").unlink()
    assert line() == "stock readers: kept from them were of 6 tars 1 without a right .idx"
    bad_header(folder)
    (folder / "train-000001.tar").unlink()
    assert line() == "stock readers: kept from them were of 6 tars 2 damaged and 1 without a right .idx"


def check_headers(tmp_path: Path, *headers: tarfile.TarInfo) -> Findings:
    """Check a tar of these headers, each with as many zero bytes as it claims."""
    with (tmp_path / TAR).open("wb") as file:
        for header in headers:
            file.write(header.tobuf(tarfile.USTAR_FORMAT))
            file.seek(-(-header.size // 512) * 512, io.SEEK_CUR)
        file.truncate()
        file.write(bytes(1024))
    return check_tar(TarJob(tmp_path / TAR, None, None, 77, 128, ImageRules("jpg"))).findings


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_members_that_are_no_plain_files(tmp_path: Path, kind: bytes) -> None:
    header = tarfile.TarInfo("youtube-000-00000.jpg")
    header.type, header.linkname = kind, "/etc/passwd"
    found = check_headers(tmp_path, header)
    assert found.lines["tar"][0].endswith("youtube-000-00000.jpg at byte 0 is no plain file of a USTAR archive")


def test_a_member_too_large_to_read(tmp_path: Path) -> None:
    header = tarfile.TarInfo("youtube-000-00000.jpg")
    header.size = MAX_MEMBER_BYTES + 1
    found = check_headers(tmp_path, header)
    assert f".jpg has {MAX_MEMBER_BYTES + 1} bytes, more than any crop needs" in "\n".join(found.lines["members"])
    assert "images" not in found.lines  # it wasn't read: zeros are no JPEG
    with (tmp_path / TAR).open("rb") as file:
        assert [member.content for member in read_members(HashedFile(file))] == [None]
    header.size -= 1
    assert "no readable JPEG" in "\n".join(check_headers(tmp_path, header).lines["images"])


def test_an_index_whose_parts_have_words_of_their_own(packed: Path, tmp_path: Path) -> None:
    """Row groups may each know the words of their own rows alone, as the splits that follow one another."""
    folder = Path(shutil.copytree(packed / "q77", tmp_path / "q77"))
    index = pq.read_table(folder / INDEX_NAME)
    with pq.ParquetWriter(folder / INDEX_NAME, INDEX_SCHEMA) as writer:
        for rows in rows_by_shard(index).values():
            writer.write_table(pa.Table.from_pylist(rows.to_pylist(), schema=INDEX_SCHEMA))
    edit_manifest(folder, lambda content: content.update(index_sha256=file_sha256(folder / INDEX_NAME)))
    manifest, findings = Manifest.load(folder), Findings()
    read = load_index(folder, manifest, findings)
    assert read is not None
    check_counts(folder, manifest, read, findings)
    assert check_people(folder, manifest, read, findings) is None
    assert not findings.total


def test_nobody_is_not_a_person(packed: Path) -> None:
    """Of a plain folder's fakes nobody may know who they show; that is no leak."""
    findings = Findings()
    rows = pq.read_table(packed / "q77" / INDEX_NAME).to_pylist()
    unknown = [row | {"method": "fake", "target": "", "source": ""} for row in rows]
    check_people(packed / "q77", None, pa.Table.from_pylist(unknown, schema=INDEX_SCHEMA), findings)
    assert not findings.total
    known = [row | {"target": "anna"} for row in unknown]
    check_people(packed / "q77", None, pa.Table.from_pylist(known, schema=INDEX_SCHEMA), findings)
    assert "identity anna is in test (" in findings.lines["identities"][0]


def test_quick_does_not_decode(packed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(packed / "q77", tmp_path / "q77"))
    repack(folder, damaged_scan)
    assert not verify_set(folder, quick=True, workers=1).findings.total
    flip_byte(folder)
    assert set(verify_set(folder, quick=True, workers=1).findings.lines) == {"tar", "images"}


def test_workers_find_the_same(packed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(packed / "q77", tmp_path / "q77"))
    for damage in (two_splits, flip_byte):
        damage(folder)
    one, two = (verify_set(folder, quick=True, workers=workers) for workers in (1, 2))
    assert one.findings.total
    assert (one.lines, one.findings) == (two.lines, two.findings)


def test_command_line(packed: Path, tmp_path: Path, reject, capsys: pytest.CaptureFixture[str]) -> None:
    from datasets_shards.__main__ import main

    root = Path(shutil.copytree(packed, tmp_path / "root"))
    (root / "q77" / "train-000001.tar").unlink()
    flip_byte(root / "q77")
    edit_index(root / "q10", lambda rows: rows.reverse())
    assert main(["verify", str(root), "--quick", "--workers", "1"]) == 1
    printed = capsys.readouterr()
    assert "q77/train-000000.tar: its SHA-256 is" in printed.out
    assert "q77/train-000001.tar: missing" in printed.out
    assert f"{root / 'q77'}: " in printed.out.splitlines()[-2]
    assert "a row must be the same sample in every set of a root" in printed.out
    assert printed.err.startswith("python -m datasets_shards verify: error: ")
    assert f"problems in {root}, listed above" in printed.err
    assert printed.err.count("\n") == 1
    assert printed.err.endswith(f"or delete {root / 'q10'}, {root / 'q77'} and pack again\n")
    assert "is no shard set" in reject(1, "verify", tmp_path)
    assert "is no shard set" in reject(1, "verify", tmp_path / "nowhere")
    assert "is a file" in reject(1, "verify", root / "q77" / INDEX_NAME)
    assert "missing folder; see python -m datasets_shards verify --help" in reject(2, "verify")


def test_what_can_still_be_said(packed: Path, tmp_path: Path) -> None:
    """Without manifest and index the tars are still checked in themselves."""
    folder = Path(shutil.copytree(packed / "q77", tmp_path / "q77"))
    repack(folder, damaged_scan)
    (folder / MANIFEST_NAME).unlink()
    assert set(verify_set(folder, quick=False, workers=1).findings.lines) == {"manifest", "images"}
    (folder / INDEX_NAME).unlink()
    report = verify_set(folder, quick=False, workers=1)
    assert set(report.findings.lines) == {"manifest", "index", "images"}
    assert any("stock readers: not tried" in line for line in report.lines)
    assert find_sets(tmp_path) == [folder]


def test_sets_of_a_root_must_agree(packed: Path, tmp_path: Path) -> None:
    def changed(change: Callable[[list[dict[str, Any]]], object]) -> str:
        folder = Path(shutil.copytree(packed / "q10", tmp_path / "q10"))
        edit_index(folder, change)
        findings = Findings()
        compare_sets([whole, verify_set(folder, quick=True, workers=1)], findings)
        shutil.rmtree(folder)
        return "\n".join(findings.report())

    whole = verify_set(packed / "q77", quick=True, workers=1)
    assert "53 samples where" in changed(lambda rows: rows.pop())
    assert "in row 3 where" in changed(lambda rows: rows.insert(4, rows.pop(3)))
    assert "(val) in row 0 where" in changed(lambda rows: rows[0].update(split="val"))
    assert changed(lambda rows: None) == ""

    folder = Path(shutil.copytree(packed / "q10", tmp_path / "q10"))
    for entry, key in (("crop", "margin"), ("source", "digest"), ("splits", "origin")):
        edit_manifest(folder, lambda content, entry=entry, key=key: content[entry].update({key: "other"}))
    findings = Findings()
    compare_sets([whole, verify_set(folder, quick=True, workers=1)], findings)
    there = f"in its manifest is another than in that of {packed / 'q77'}"
    assert list(findings.report()) == [
        f"{folder}: 'crop' {there} (margin)",
        f"{folder}: 'source' {there} (digest)",
        f"{folder}: 'splits' {there} (origin)",
    ]


@pytest.mark.parametrize("reader", READERS)
def test_stock_readers_disagree(packed: Path, reader: str) -> None:
    """Handed rows that are not those of the tar, each difference is a line of its own."""
    folder = packed / "q77"
    rows = [row for row in pq.read_table(folder / INDEX_NAME).to_pylist() if row["shard"] == TAR]
    wrong = [dict(row) for row in rows]
    wrong[1]["label"] = 1 - wrong[1]["label"]
    wrong[2]["offset"] -= 1
    wrong[3]["key"] = "youtube-other-00000"
    extra = {**wrong[4], "key": "youtube-last-00000"}
    report = read_with_stock_reader(ReaderJob(reader, folder, (TAR,), [*wrong, extra], "jpg"))
    assert report.samples == len(rows)
    assert [line.partition(f": {reader} ")[2] for line in report.findings.lines[reader]] == [
        f"reads the label b'{rows[1]['label']}', the index says {wrong[1]['label']}",
        "reads another image than the index leads to",
        f"reads {rows[3]['key']} in its place",
        "doesn't read it",
    ]
    stopped = read_with_stock_reader(ReaderJob(reader, folder, (TAR,), rows, "png")).findings
    assert "stopped after 0 samples: " in stopped.lines[reader][0]


def test_the_rows_of_every_group_of_tars_are_found_in_one_pass() -> None:
    """Each group of tars once looked through the names of all: its time grew with the square of their number."""
    looked_at = 0

    class Rows(dict[str, pa.Table]):
        def items(self) -> Any:
            nonlocal looked_at
            for item in super().items():
                looked_at += 1
                yield item

    tables = {name: pa.table({"key": [name]}) for name in "dcbaz"}
    parts = rows_of_groups([("a", "b"), ("c",), ("d", "missing")], Rows(tables))
    assert [[part["key"][0].as_py() for part in group] for group in parts] == [["b", "a"], ["c"], ["d"]]
    assert looked_at == len(tables)


def test_a_reader_that_is_not_installed(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    report = verify_set(packed / "q77", quick=True, workers=1)
    assert f"{DALI}: not installed, so not tried" in report.lines
    assert not report.findings.total


def test_many_problems_are_counted() -> None:
    findings, others = Findings(), Findings()
    for number in range(LINES_PER_KIND + 5):
        findings.add("tar", f"a.tar: {number}")
        others.add("tar", f"b.tar: {number}")
    others.add("idx", "two\nlines \udcff")
    findings.extend(others)
    assert findings.total == 2 * (LINES_PER_KIND + 5) + 1
    lines = list(findings.report())
    assert lines[LINES_PER_KIND:] == [f"... and {LINES_PER_KIND + 10} more of this kind (tar)", "two\\nlines \\udcff"]


def test_images_that_promise_too_much() -> None:
    """Sizes out of a header are believed by no decoder before they are checked."""
    rules = ImageRules(decode=True)
    jpeg = bytearray(as_jpeg())
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = b"\xfd\xe8\xfd\xe8"
    assert check_image(bytes(jpeg), "jpg", None, rules) == ["it claims 65000x65000 pixels, more than any crop has"]
    png = bytearray(encode(np.zeros((16, 16, 3), np.uint8), "raw"))
    assert check_image(bytes(png), "png", (16, 16), rules) == []
    png[16:24] = b"\x7f\xff\xff\xff" * 2
    assert check_image(bytes(png), "png", (16, 16), rules) == ["it is 2147483647x2147483647 where the index says 16x16"]


def test_images_whose_damage_is_hard_to_see() -> None:
    jpeg = as_jpeg()
    scan = jpeg[jpeg.index(b"\xff\xda") :]
    assert check_image(jpeg[:-2] + scan, "jpg", (128, 128), ImageRules(decode=False)) == [
        "it is baseline and yet has 2 scans"
    ]
    assert check_image(jpeg + b"\0", "jpg", (128, 128), ImageRules()) == ["something follows its end"]
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    png = bytearray(encode(noise, "raw"))
    assert check_image(bytes(png), "png", (64, 64), ImageRules()) == []
    png[png.index(b"IDAT") + 5000] ^= 1  # stored as it is: without the checksum just another colour
    assert "does not decode (" in check_image(bytes(png), "png", (64, 64), ImageRules(decode=False))[0]


@pytest.mark.parametrize("seed", range(40))
def test_no_damage_is_too_odd(packed: Path, tmp_path: Path, seed: int) -> None:
    """Whatever becomes of a tar's bytes, the check ends with findings, not with an exception."""
    rng = np.random.default_rng(seed)
    content = bytearray((packed / "q77" / TAR).read_bytes())
    for _ in range(20):
        start = int(rng.integers(len(content) // 512)) * 512  # a header or the start of a member, often
        content[start + int(rng.integers(150))] = int(rng.integers(256))
    (tmp_path / TAR).write_bytes(content)
    shutil.copy(packed / "q77" / "train-000000.idx", tmp_path)
    rows = [row for row in pq.read_table(packed / "q77" / INDEX_NAME).to_pylist() if row["shard"] == TAR]
    assert check_tar(TarJob(tmp_path / TAR, None, rows, 77, 128, ImageRules("jpg"))).findings.total
