"""A set as DeepfakeBench's files: the tree, its JSON files, what the benchmark's loader finds, and what is refused."""

import io
import json
import shutil
import struct
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
from PIL import Image

from datasets_shards.benchmark import unpack_benchmark
from datasets_shards.errors import InputError
from datasets_shards.jpeg.mozjpeg import describe_encoder, encode_png
from datasets_shards.schema import (
    INDEX_NAME,
    INDEX_SCHEMA,
    SPLITS,
    Manifest,
    Quality,
    ShardSetError,
    file_sha256,
    label_of,
    open_shard_set,
    sample_key,
)
from datasets_shards.shards.tarwriter import TarWriter
from datasets_shards.verify.findings import Findings
from datasets_shards.verify.setcheck import load_index
from tests.unit.conftest import datasets_shards
from tests.unit.disk import largest_file

LABELS = {"youtube": "FF-real", "Deepfakes": "FF-DF", "FaceSwap": "FF-FS"}
PARTS = {"youtube": "original_sequences", "Deepfakes": "manipulated_sequences", "FaceSwap": "manipulated_sequences"}
ALWAYS = {
    "FaceForensics++": ["FF-real", "FF-DF", "FF-F2F", "FF-FS", "FF-NT"],
    "FF-DF": ["FF-real", "FF-DF"],
    "FF-F2F": ["FF-real", "FF-F2F"],
    "FF-FS": ["FF-real", "FF-FS"],
    "FF-NT": ["FF-real", "FF-NT"],
}
SIZE = 16


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def samples_of(root: Path, quality: Quality) -> list[tuple[dict, bytes, dict]]:
    """Row, image member and description of every sample, read by the index."""
    opened = open_shard_set(root, quality)
    tars = {name: (opened.folder / name).read_bytes() for name in opened.manifest.tars}
    samples = []
    for row in opened.index.read().to_pylist():
        lines = (opened.folder / row["shard"]).with_suffix(".idx").read_text().splitlines()[1:]
        words = next(line for line in lines if f" {row['key']}.json" in line).split()
        at = words.index("json")
        offset, size = int(words[at + 1]), int(words[at + 2])
        content = tars[row["shard"]]
        image = content[row["offset"] : row["offset"] + row["size"]]
        samples.append((row, image, json.loads(content[offset : offset + size])))
    return samples


def expected_path(row: dict, kind: str, suffix: str, compression: str = "c23") -> str:
    folder = f"FaceForensics++/{PARTS[row['method']]}/{row['method']}/{compression}/{kind}/{row['video']}"
    return f"{folder}/{row['frame']:03d}.{suffix}"


def loader_walk(json_folder: Path, dataset: str, split: str, compression: str) -> list[tuple[str, str, str, str]]:
    """How the benchmark's abstract_dataset.py goes from a JSON file to (label, image, mask, landmarks)."""
    found = []
    with (json_folder / f"{dataset}.json").open() as file:
        info = json.load(file)
    for label in info[dataset]:
        for video in info[dataset][label][split][compression].values():
            paths = sorted(video["frames"], key=lambda path: int(path.split("/")[-1].split(".")[0]))
            assert video["frames"] == paths  # the loader keeps the order of the file
            assert paths[0][0] == "."  # else it would put rgb_dir and a backslash before
            for path in paths:
                landmarks = path.replace("frames", "landmarks").replace(".png", ".npy")
                found.append((video["label"], path, path.replace("frames", "masks"), landmarks))
    return found


@pytest.fixture(scope="module")
def unpacked(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Quality, Path]:
    """q77 by the command line with two workers, raw with one."""
    folder = tmp_path_factory.mktemp("unpacked")
    words = ("unpack", packed / "q77", "--as", "deepfakebench", "--out", folder / "new" / "q77", "--workers", 2)
    done = datasets_shards(*words)
    assert done.returncode == 0, done.stderr
    assert f"  ln -s {folder / 'new' / 'q77' / 'FaceForensics++'} FaceForensics++\n" in done.stdout
    assert f"  dataset_json_folder: {folder / 'new' / 'q77' / 'dataset_json'}\n" in done.stdout
    assert "  compression: c23\n" in done.stdout
    assert "landmarks: 54 of 54 frames have them; masks: 0 of 36 fake frames\n" in done.stdout
    assert "with_landmark" not in done.stdout
    assert "note: the set has no FF-F2F, FF-NT; the JSON files have that part, empty\n" in done.stdout
    assert "2 videos, 6 frames" in done.stdout
    unpack_benchmark(open_shard_set(packed, "raw"), folder / "raw", 1)
    return {77: folder / "new" / "q77", "raw": folder / "raw"}


@pytest.mark.parametrize("quality", [77, "raw"])
def test_the_tree_holds_every_crop_and_its_landmarks(packed: Path, unpacked: dict, quality: Quality) -> None:
    written = files_of(unpacked[quality])
    assert sum(path.endswith(".json") for path in written) == 5
    for row, image, description in samples_of(packed, quality):
        frame = written.pop(expected_path(row, "frames", "png"))
        if quality == "raw":
            assert frame == image
        else:
            shown = np.asarray(Image.open(io.BytesIO(frame)))
            assert shown.shape == (128, 128, 3)
            assert np.array_equal(shown, simplejpeg.decode_jpeg(image))
            assert np.array_equal(shown, np.asarray(Image.open(io.BytesIO(image))))
        landmarks = np.load(io.BytesIO(written.pop(expected_path(row, "landmarks", "npy"))))
        assert landmarks.dtype == np.float32
        assert np.array_equal(landmarks, np.float32(description["landmarks"]))
    assert sorted(written) == sorted(f"dataset_json/{name}.json" for name in ALWAYS)


def test_the_json_files(packed: Path, unpacked: dict) -> None:
    expected: dict = {label: {split: {"c23": {}} for split in SPLITS} for label in ALWAYS["FaceForensics++"]}
    for row, _, _ in samples_of(packed, 77):
        videos = expected[LABELS[row["method"]]][row["split"]]["c23"]
        empty = {"label": LABELS[row["method"]], "frames": []} | ({"masks": []} if row["label"] else {})
        videos.setdefault(row["video"], empty)["frames"].append(f"./{expected_path(row, 'frames', 'png')}")
    for name, labels in ALWAYS.items():
        content = json.loads((unpacked[77] / "dataset_json" / f"{name}.json").read_text())
        assert content == {name: {label: expected[label] for label in labels}}


def test_the_loader_finds_every_file(packed: Path, unpacked: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(unpacked[77])  # the benchmark's folder, with the tree linked into it
    rows = open_shard_set(packed, 77).index.read().to_pylist()
    for split in SPLITS:
        found = loader_walk(Path("dataset_json"), "FaceForensics++", split, "c23")
        assert Counter(label for label, *_ in found) == Counter(
            LABELS[row["method"]] for row in rows if row["split"] == split
        )
        for _, image, _, landmarks in found:
            assert Path(image).is_file()
            assert np.load(landmarks).shape == (68, 2)
        assert {label for label, *_ in loader_walk(Path("dataset_json"), "FF-NT", split, "c23")} == {"FF-real"}


# A set made by hand: what no video of the other tests has


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def picture_as(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(0)).save(buffer, form)
    return buffer.getvalue()


def grey(*levels: int) -> np.ndarray:
    return np.repeat(np.resize(levels, SIZE).astype(np.uint8)[:, None], SIZE, 1)


def member(method: str, video: str, frame: int, split: str = "train", **others: bytes) -> tuple:
    description = json.dumps({"landmarks": [[1.25, frame]] * 68}).encode()
    image = encode_png(picture(frame))
    return split, method, video, frame, {"png": image, "cls": b"0", "json": description} | others


def write_set(folder: Path, samples: list[tuple], compression: str = "c40", more: bytes = b"") -> Path:
    """Write a raw set of one tar, which ends with `more`."""
    folder.mkdir(parents=True)
    tar, rows = TarWriter(folder / "train-000000.tar"), []
    for split, method, video, frame, members in samples:
        key = sample_key(method, video, frame)
        offset = tar.add_sample(key, members)["png"]
        target, _, source = video.partition("_")
        place = {"key": key, "split": split, "shard": tar.path.name, "offset": offset, "size": len(members["png"])}
        of = {"label": label_of(method), "method": method, "video": video, "target": target, "source": source}
        rows.append(place | of | {"frame": frame, "width": SIZE, "height": SIZE})
    tar.write(more)
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), folder / INDEX_NAME)
    source = {"compression": compression}
    digest = file_sha256(folder / INDEX_NAME)
    tars = {tar.path.name: tar.close()}
    tar.publish()
    Manifest("raw", describe_encoder("raw"), {"size": SIZE}, source, {}, {}, tars, digest).save(folder)
    return folder


def test_masks_other_data_sets_and_missing_landmarks(tmp_path: Path, accept, monkeypatch: pytest.MonkeyPatch) -> None:
    """FaceShifter and actors; a mask is written as 0 and 255, and stays out of the others' way; c0 is raw."""
    mask = {"mask.png": encode_png(grey(0, 1, 2, 128, 255))}
    samples = [
        member("youtube", "000", 7),
        member("Deepfakes", "000_001", 12, **mask),
        member("Deepfakes", "000_001", 3, **mask),
        member("Deepfakes", "000_001", 1000, json=b'{"landmarks": null}'),
        member("FaceShifter", "000_001", 0, "val", json=b"{}"),
        member("actors", "01__walking", 5, "test"),
        member("DeepFakeDetection", "01_02__walking", 5, "test", **mask),
    ]
    root = write_set(tmp_path / "root" / "raw", samples, "c0").parent
    monkeypatch.chdir(root)
    (tmp_path / "out").mkdir()
    printed = accept("unpack", "raw", "--as", "deepfakebench", "--out", "../out")
    assert "train: FF-real 1 videos, 1 frames; FF-DF 1 videos, 3 frames\n" in printed
    assert "landmarks: 5 of 7 frames have them; masks: 3 of 5 fake frames\n" in printed
    assert "  with_landmark: False" in printed
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "mlflow.db") == ["out", "root"]
    monkeypatch.chdir(tmp_path / "out")
    assert sorted(path.stem for path in Path("dataset_json").iterdir()) == sorted(
        [*ALWAYS, "DeepFakeDetection", "FaceShifter"]
    )
    content = json.loads(Path("dataset_json/FF-DF.json").read_text())["FF-DF"]["FF-DF"]["train"]["raw"]["000_001"]
    folder = "./FaceForensics++/manipulated_sequences/Deepfakes/raw"
    assert content["frames"] == [f"{folder}/frames/000_001/{name}.png" for name in ("003", "012", "1000")]
    assert content["masks"] == [f"{folder}/masks/000_001/{name}.png" for name in ("003", "012")]
    for path in content["masks"]:
        shown = Image.open(path)
        assert shown.mode == "L"
        assert np.array_equal(np.asarray(shown), grey(0, 0, 255, 255, 255))
    assert not Path(f"{folder}/landmarks/000_001/1000.npy").exists()
    assert not Path("FaceForensics++/original_sequences/youtube/raw/masks").exists()
    walks = {split: loader_walk(Path("dataset_json"), "DeepFakeDetection", split, "raw") for split in SPLITS}
    assert [label for label, *_ in walks["test"]] == ["DFD_real", "DFD_fake"]
    assert walks["train"] == walks["val"] == []
    assert [Path(path).is_file() for path in walks["test"][1][1:]] == [True, True, True]
    ((label, *_),) = loader_walk(Path("dataset_json"), "FaceShifter", "val", "raw")
    assert label == "FF-FH"


def test_what_the_benchmark_has_no_place_for(tmp_path: Path, reject) -> None:
    plain = write_set(tmp_path / "plain" / "raw", [member("real", "a", 0), member("fake", "a_b", 0)], "none")
    other = write_set(tmp_path / "other" / "raw", [member("youtube", "000", 0)], "c30")
    named = write_set(tmp_path / "named" / "raw", [member("youtube", "keyframes", 0)])
    before = sorted(tmp_path.rglob("*"))

    def refused(folder: Path) -> str:
        return reject(1, "unpack", folder, "--as", "deepfakebench", "--out", tmp_path / "out", "--workers", 1)

    assert "has no place for its methods fake, real; it has youtube," in refused(plain)
    assert "its source has compression 'c30', for which DeepfakeBench's tree has no folder" in refused(other)
    assert "videos with 'frames' in their name: keyframes" in refused(named)
    assert "is no set, whose folder is named such as q77 or raw; it holds the sets raw: add" in refused(
        tmp_path / "other"
    )
    assert "holds no set of quality 60; it has raw" in refused(tmp_path / "other" / "q60")
    assert sorted(tmp_path.rglob("*")) == before


def test_flags(packed: Path, tmp_path: Path, reject) -> None:
    words = ("unpack", packed / "q77", "--out", tmp_path / "out")
    assert "missing --as" in reject(2, *words)
    assert "deepfakebench" in reject(2, *words, "--as", "deepfake")


def test_an_existing_out_is_refused(packed: Path, tmp_path: Path, reject) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for name, message in (("full", "isn't empty; remove it"), ("full/mine.txt", "is a file, not a folder")):
        words = ("--as", "deepfakebench", "--out", tmp_path / name, "--workers", 1)
        assert message in reject(1, "unpack", packed / "q77", *words)
    assert files_of(tmp_path / "full") == {"mine.txt": b"mine"}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_damaged_tar_is_named(shard_root: Path, tmp_path: Path, workers: int) -> None:
    """One byte in the last of three tars: what was written before goes away again."""

    folder = shutil.copytree(shard_root / "q77", tmp_path / "root" / "q77")
    tar = folder / "test-000000.tar"
    content = bytearray(tar.read_bytes())
    content[-1] ^= 1  # behind the archive's end, where only the digest sees it
    tar.write_bytes(content)
    with pytest.raises(
        InputError, match=r"test-000000\.tar: damaged \(its SHA-256 isn't the one in the manifest\); delete .*q77 and"
    ):
        unpack_benchmark(open_shard_set(tmp_path / "root", 77), tmp_path / "out", workers)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_damage_inside_is_told_from_a_wrong_set(shard_root: Path, tmp_path: Path) -> None:
    """A header, and an image that no longer decodes: it is the tar that is named, not what the bytes happen to give."""

    folder = shutil.copytree(shard_root / "q77", tmp_path / "root" / "q77")
    tar, opened = folder / "train-000000.tar", open_shard_set(tmp_path / "root", 77)
    intact = tar.read_bytes()
    offset = opened.index["offset"][3].as_py()
    for position in (offset - 512, offset, offset - 512 + 124):  # the name, the JPEG, the size
        tar.write_bytes(intact[:position] + b"9" + intact[position + 1 :])
        with pytest.raises(InputError, match=r"train-000000\.tar: damaged"):
            unpack_benchmark(opened, tmp_path / "out", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"json": b"{"}, "Expecting property name"),
        ({"json": b'{"landmarks": [[1, 2, 3]]}'}, r"youtube-000-00000.json: landmarks have the shape \[1, 3\]"),
        ({"json": b'{"landmarks": {"x": 1}}'}, "youtube-000-00000.json: landmarks aren't numbers"),
        ({"json": b"[" * 100_000}, "youtube-000-00000.json: not readable as JSON"),
        ({"mask.png": b"no image"}, r"youtube-000-00000.mask.png: no readable PNG \(it doesn't begin as one\)"),
        ({"mask.png": encode_png(grey(0)[:8])}, "youtube-000-00000.mask.png: it is 16x8 where the index says 16x16"),
        ({"mask.png": picture_as("EPS")}, "youtube-000-00000.mask.png: no readable PNG"),
        ({"png": picture_as("BMP")}, "youtube-000-00000.png: no readable PNG"),
        ({"png": encode_png(picture(0))[:60]}, "youtube-000-00000.png: does not decode"),
        (
            {"png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 30_000, 30_000) + bytes(100)},
            "youtube-000-00000.png: it is 30000x30000 where the index says 16x16",
        ),
    ],
)
def test_members_that_cannot_be_used(tmp_path: Path, others: dict, message: str) -> None:
    write_set(tmp_path / "root" / "raw", [member("youtube", "000", 0, **others)])
    with pytest.raises(InputError, match=rf"train-000000\.tar: {message}.*; delete .*root/raw and pack it again"):
        unpack_benchmark(open_shard_set(tmp_path / "root", "raw"), tmp_path / "out", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_members_of_other_kinds_are_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sparse member of GNU's tar, of 3 GB in a few bytes; and one that is larger than any crop."""
    info = tarfile.TarInfo("youtube-000-00000.more")
    info.size, info.type = 0, tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:398], header[398:410] = b"00000000000\0", b"00000000000\0"  # one piece, of nothing
    header[483:495] = b"%011o\0" % (3 << 30)
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    samples = [member("youtube", "000", 0)]
    write_set(tmp_path / "sparse/raw", samples, more=bytes(header))
    with pytest.raises(InputError, match=r"youtube-000-00000.more at byte .* is no plain file of a USTAR archive"):
        unpack_benchmark(open_shard_set(tmp_path / "sparse", "raw"), tmp_path / "out", 1)
    write_set(tmp_path / "large/raw", samples)
    monkeypatch.setattr("datasets_shards.benchmark.tars.MAX_MEMBER_BYTES", 100)
    with pytest.raises(InputError, match=r"youtube-000-00000.png has \d+ bytes, more than any crop needs"):
        unpack_benchmark(open_shard_set(tmp_path / "large", "raw"), tmp_path / "out", 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_leaves_nothing(packed: Path, tmp_path: Path, reject, workers: int) -> None:
    """All frames but the largest can be written; the workers that write others end before these go away again."""
    largest = max(open_shard_set(packed, "raw").index["size"].to_pylist())
    words = ("--as", "deepfakebench", "--out", tmp_path / "new" / "out", "--workers", workers)
    with largest_file(largest - 1):
        said = reject(1, "unpack", packed / "raw", *words)
    assert f"--out {tmp_path / 'new' / 'out'}: file too large; nothing was left there, raise the limit" in said
    assert list(tmp_path.iterdir()) == []


def test_leftovers_go_and_mount_points_are_refused(tmp_path: Path, accept, reject) -> None:
    folder = write_set(tmp_path / "root" / "raw", [member("youtube", "000", 0)])
    (tmp_path / ".out.part" / "FaceForensics++").mkdir(parents=True)  # as a killed call leaves it
    accept("unpack", folder, "--as", "deepfakebench", "--out", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "root"]
    said = reject(1, "unpack", folder, "--as", "deepfakebench", "--out", "/")
    assert "--out /: is a mount point, which can't be replaced; give a folder inside it" in said


def test_index_and_tar_must_agree(tmp_path: Path) -> None:
    """A set whose files have the right digests and that was still put together wrongly."""
    samples = [member("youtube", "000", frame) for frame in range(2)]
    folder = write_set(tmp_path / "root" / "raw", samples)
    rows = pq.read_table(folder / INDEX_NAME, schema=INDEX_SCHEMA).to_pylist()
    changes = {
        "holds youtube-000-00001.png where the index lists youtube-000-00002": [
            rows[0],
            rows[1] | {"key": "youtube-000-00002"},
        ],
        "youtube-000-00001.png isn't where the index says": [rows[0], rows[1] | {"size": 5}],
        "1 samples in the index where the manifest lists 2; delete .*raw and pack it again": rows[:1],
        "names tars that its manifest doesn't list: other.tar": [rows[0], rows[1] | {"shard": "other.tar"}],
        r"index.parquet: video '../../x': not a name that pack writes": [rows[0], rows[1] | {"video": "../../x"}],
        r"index.parquet: shard '../../e/x.tar': not a name": [rows[0], rows[1] | {"shard": "../../e/x.tar"}],
        r"index.parquet: key '../k', video '..': not a name": [rows[0], rows[1] | {"key": "../k", "video": ".."}],
    }
    for message, changed in changes.items():
        pq.write_table(pa.Table.from_pylist(changed, schema=INDEX_SCHEMA), folder / INDEX_NAME)
        content = json.loads((folder / "manifest.json").read_text())
        content["index_sha256"] = file_sha256(folder / INDEX_NAME)
        (folder / "manifest.json").write_text(json.dumps(content))
        with pytest.raises((InputError, ShardSetError), match=message):
            unpack_benchmark(open_shard_set(tmp_path / "root", "raw"), tmp_path / "out", 1)
        findings = Findings()
        load_index(folder, None, findings)
        assert ("not a name" in "".join(findings.report())) == ("not a name" in message)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
