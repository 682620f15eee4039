"""The sets of a root: their contract, stock readers, equal bytes, and what stops a packer."""

import io
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import psutil
import pyarrow.compute as pc
import pytest
from PIL import Image

from datasets_shards.jpeg.mozjpeg import encode_jpeg
from datasets_shards.schema import ShardSet, ShardSetError, file_sha256, open_shard_set
from datasets_shards.shards import tarwriter
from datasets_shards.shards.layout import cut_evenly, interleave
from datasets_shards.shards.root import Task, locked_root
from datasets_shards.sources import find_videos
from tests.conftest import REPOSITORY
from tests.unit.conftest import PACK_FLAGS, face_video, write_video

SETS = (77, 10, "raw")


def files_of(root: Path) -> dict[str, str]:
    """SHA-256 of every file of every set, the hidden ones included."""
    return {str(path.relative_to(root)): file_sha256(path) for path in root.rglob("*") if path.is_file()}


def image_at(opened: ShardSet, row: int) -> bytes:
    sample = opened.index.read().slice(row, 1).to_pylist()[0]
    with (opened.folder / sample["shard"]).open("rb") as file:
        file.seek(sample["offset"])
        return file.read(sample["size"])


def test_all_sets_hold_the_same_samples(packed: Path) -> None:
    tables = [open_shard_set(packed, quality).index.read().drop(["offset", "size", "crc32"]) for quality in SETS]
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])
    assert tables[0].num_rows == 18 * 3
    assert sorted(path.name for path in packed.iterdir()) == ["faces.parquet", "q10", "q77", "raw"]


def test_the_index_leads_to_the_images(packed: Path) -> None:
    jpeg, raw = open_shard_set(packed, 77), open_shard_set(packed, "raw")
    for row in range(0, jpeg.index.num_rows, 7):
        pixels = np.asarray(Image.open(io.BytesIO(image_at(raw, row))))
        assert pixels.shape == (128, 128, 3)
        assert image_at(jpeg, row) == encode_jpeg(np.ascontiguousarray(pixels), 77)


def test_the_index_knows_the_checksum_of_each_image(packed: Path) -> None:
    for quality in SETS:
        opened = open_shard_set(packed, quality)
        crcs = opened.index["crc32"].to_pylist()
        assert crcs == [zlib.crc32(image_at(opened, row)) for row in range(opened.index.num_rows)]


def test_the_manifest_tells_the_truth(packed: Path) -> None:
    for quality in SETS:
        opened = open_shard_set(packed, quality)
        manifest = opened.manifest
        assert manifest.quality == quality
        assert opened.crop_size == manifest.crop["size"] == 128
        assert manifest.crop["frames_per_video"] == 3
        assert manifest.source["compression"] == "c23"
        assert manifest.source["videos"] == 18
        assert manifest.source["sampled_frames"] == {"ok": 54}
        assert {name: tar.sha256 for name, tar in manifest.tars.items()} == {
            name: file_sha256(opened.folder / name) for name in manifest.tars
        }
        for split, counts in manifest.counts.items():
            rows = opened.index.read().filter(pc.equal(opened.index["split"].cast("string"), split))
            assert counts == {m: rows["method"].to_pylist().count(m) for m in ("youtube", "Deepfakes", "FaceSwap")}
        assert sum(tar.samples for tar in manifest.tars.values()) == opened.index.num_rows


def test_members_and_description(packed: Path) -> None:
    row = open_shard_set(packed, 10).index.read().slice(0, 1).to_pylist()[0]
    with tarfile.open(packed / "q10" / row["shard"]) as archive:
        names = archive.getnames()
        assert names[:3] == [f"{row['key']}.{extension}" for extension in ("jpg", "cls", "json")]
        label = archive.extractfile(names[1]).read()
        facts = json.loads(archive.extractfile(names[2]).read())
    assert label == str(row["label"]).encode()
    shared = ("label", "method", "video", "target", "source", "frame", "split")
    assert {name: facts[name] for name in shared} == {name: row[name] for name in shared}
    assert facts["quality"] == 10
    assert len(facts["box"]) == 4
    landmarks = np.array(facts["landmarks"])
    assert landmarks.shape == (68, 2)
    assert landmarks.min() > 0
    assert landmarks.max() < 128
    eyes = landmarks[36:42].mean(0), landmarks[42:48].mean(0)
    assert abs(eyes[0][1] - eyes[1][1]) < 8  # upright


def test_no_identity_is_in_two_splits(packed: Path) -> None:
    people: dict[str, set[str]] = {}
    for row in open_shard_set(packed, 77).index.read().to_pylist():
        people.setdefault(row["split"], set()).update({row["target"], row["source"]} - {""})
    assert len(people) == 3
    assert sum(map(len, people.values())) == len(set().union(*people.values())) == 6


def test_stock_webdataset_reads_it(packed: Path) -> None:
    import webdataset

    opened = open_shard_set(packed, 77)
    urls = [str(opened.folder / name) for name in opened.manifest.tars]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == opened.index["key"].to_pylist()
    assert [sample["cls"] for sample in samples] == opened.index["label"].to_pylist()
    assert samples[0]["jpg"].shape == (128, 128, 3)
    assert samples[0]["json"]["method"] == opened.index["method"][0].as_py()


def test_stock_dali_reads_it(packed: Path) -> None:
    from nvidia.dali import fn, pipeline_def

    opened = open_shard_set(packed, 77)
    tars = [opened.folder / name for name in opened.manifest.tars]

    @pipeline_def(batch_size=opened.index.num_rows, num_threads=1, device_id=None)
    def pipeline():
        images, labels = fn.readers.webdataset(
            paths=list(map(str, tars)),
            index_paths=[str(path.with_suffix(".idx")) for path in tars],
            ext=["jpg", "cls"],
            missing_component_behavior="error",
        )
        return images, labels

    built = pipeline()
    built.build()
    images, labels = built.run()
    assert [bytes(images.at(i)) for i in range(len(images))] == [image_at(opened, i) for i in range(len(images))]
    assert [int(bytes(labels.at(i))) for i in range(len(labels))] == opened.index["label"].to_pylist()


def test_tar_lists_it(packed: Path) -> None:
    opened = open_shard_set(packed, 77)
    listed = subprocess.run(
        ["tar", "-tf", *[opened.folder / name for name in list(opened.manifest.tars)[:1]]],
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(listed.stdout.split()) == 3 * next(iter(opened.manifest.tars.values())).samples


def test_bytes_do_not_depend_on_workers_or_on_the_way(packed: Path, ff_tree: Path, tmp_path: Path, accept) -> None:
    """One worker, with the table given, one quality after the other: the same files."""
    words = ("--source", ff_tree, "--out", tmp_path / "root", "--faces", packed / "faces.parquet", *PACK_FLAGS)
    for qualities in ((10,), (10, 77), ("raw",)):
        accept("pack", *words, "--qualities", *qualities)
    expected = files_of(packed)
    del expected["faces.parquet"]
    assert files_of(tmp_path / "root") == expected


def test_a_second_run_has_nothing_to_do(packed: Path, ff_tree: Path, accept) -> None:
    before = files_of(packed)
    printed = accept("pack", "--source", ff_tree, "--out", packed, *PACK_FLAGS, "--qualities", 77, "raw")
    assert printed.count("already packed: ") == 2
    assert files_of(packed) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--margin", 1.5), "its set q10 was made otherwise: crop margin 1.3 there, 1.5 here"),
        (("--seed", 7), "its set q10"),
        (("--shard-samples", 24), "was cut into other shards"),
        (("--frames-per-video", 2), "--frames-per-video 2: the faces of .* were found with --frames-per-video 3"),
        (("--min-face", 20), "--min-face 20: the faces of .* were found with 48"),
        (("--size", 100, "--qualities", 60), "its set q10 was made otherwise: crop size 128 there, 100 here"),
    ],
)
def test_sets_of_a_root_agree(packed: Path, ff_tree: Path, reject, flags: tuple, message: str) -> None:
    before = files_of(packed)
    line = reject(1, "pack", "--source", ff_tree, "--out", packed, *PACK_FLAGS, "--qualities", 77, *flags)
    assert re.search(message, line), line
    assert files_of(packed) == before


def test_a_broken_video_does_not_stop_the_rest(ff_tree: Path, tmp_path: Path, accept) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(ff_tree, tree)
    videos = tree / "original_sequences/youtube/c23/videos"
    (videos / "000.mp4").write_bytes(b"")
    write_video(videos / "001.mp4", [np.zeros((64, 64, 3), np.uint8)] * 3)
    printed = accept("pack", "--source", tree, "--out", tmp_path / "root", *PACK_FLAGS, "--qualities", 77)
    assert "skipped original_sequences/youtube/c23/videos/000.mp4: can't be decoded" in printed
    assert "no usable face in original_sequences/youtube/c23/videos/001.mp4 (3 frames)" in printed
    assert "faces: 48 of 51 frames; dropped: 3 no face, 1 unreadable video" in printed
    opened = open_shard_set(tmp_path / "root", 77)
    assert opened.index.num_rows == 48
    assert opened.manifest.source["sampled_frames"] == {"ok": 48, "no face": 3, "unreadable video": 1}


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_packer_goes_on(ff_tree: Path, tmp_path: Path, packed: Path, accept, how: int) -> None:
    """What is complete stays, what isn't never shows, and the same command ends with the same files."""
    root = tmp_path / "root"
    words = ["pack", "--source", ff_tree, "--out", root, *PACK_FLAGS, "--faces", packed / "faces.parquet"]
    command = [sys.executable, "-m", "datasets_shards", *map(str, words), "--qualities", "77"]
    packer = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    workers: list[psutil.Process] = []
    while not list(root.glob("q77/*.tar")):  # at work
        assert packer.poll() is None
        workers = psutil.Process(packer.pid).children()  # not afterwards: the rest may be done meanwhile
    packer.send_signal(how)
    _, errors = packer.communicate(timeout=300)
    assert packer.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(how, -how)
    assert not psutil.wait_procs(workers, timeout=120)[1]
    expected = {name: digest for name, digest in files_of(packed).items() if name.startswith("q77/")}
    left = {path.relative_to(root).as_posix(): file_sha256(path) for path in root.glob("q77/[!.]*")}
    assert left.items() <= expected.items()
    assert len(left) < len(expected)
    with pytest.raises(ShardSetError, match="isn't finished; run the pack command again"):
        open_shard_set(root, 77)
    if how != signal.SIGKILL:
        assert "Traceback" not in errors
        assert not list(root.rglob("*.part"))
    assert f"continuing: {len([name for name in left if name.endswith('.tar')])} of " in accept(
        *words, "--qualities", 77
    )
    assert files_of(root) == expected


def test_tasks_of_an_array(ff_tree: Path, tmp_path: Path, packed: Path, accept, reject) -> None:
    """Tasks own whole shards, in any order and at once; merged they have the bytes of a single run."""
    root = tmp_path / "root"
    flags = ("pack", "--source", ff_tree, "--out", root, *PACK_FLAGS, "--qualities", 77, "raw")
    assert f"{root}/faces.parquet: no such table of faces, which all tasks share" in reject(
        1, *flags, "--num-tasks", 3, "--task-id", 1
    )
    assert not list(root.glob("[!.]*"))
    flags = (*flags, "--faces", packed / "faces.parquet", "--num-tasks", 3)
    command = [sys.executable, "-m", "datasets_shards", *map(str, flags), "--workers", "1", "--task-id"]
    both = [subprocess.Popen([*command, str(task)], cwd=REPOSITORY, stdout=subprocess.DEVNULL) for task in (2, 0)]
    assert [task.wait(timeout=120) for task in both] == [0, 0]
    assert re.search(
        r"q77: \d+ of \d+ tars are missing \(of tasks 1 of 3\): .*; pack them", reject(1, *flags, "--merge")
    )
    other = ("--dct-scale", 4, "--task-id", 1)
    assert re.search(r"was begun otherwise and isn't finished: manifest crop", reject(1, *flags, *other))
    accept(*flags, "--task-id", 1)
    assert not list(root.rglob("manifest.json"))
    accept(*flags, "--merge")
    expected = files_of(packed)
    assert files_of(root) == {name: expected[name] for name in expected if name.startswith(("q77/", "raw/"))}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--num-tasks", 2), "--num-tasks 2: which of them is this? Give --task-id, from 0"),
        (("--num-tasks", 2, "--task-id", 2), "--task-id 2: of --num-tasks 2 the last is 1"),
        (("--task-id", 0, "--merge"), "--task-id 0: packs, and --merge only puts together"),
    ],
)
def test_tasks_that_make_no_sense(ff_tree: Path, tmp_path: Path, reject, flags: tuple, message: str) -> None:
    assert message in reject(1, "pack", "--source", ff_tree, "--out", tmp_path / "root", *flags)


def test_two_packers_do_not_meet(ff_tree: Path, tmp_path: Path, reject) -> None:
    words = ("pack", "--source", ff_tree, "--out", tmp_path / "root", *PACK_FLAGS)
    with locked_root(tmp_path / "root"):
        for flags in ((), ("--num-tasks", 2, "--task-id", 0)):
            assert reject(1, *words, *flags).endswith("root: another process is packing into this folder; wait for it")
    assert not (tmp_path / "root").exists()
    with locked_root(tmp_path / "root", Task(0, 2)), locked_root(tmp_path / "root", Task(1, 2)):
        for flags in ((), ("--num-tasks", 2, "--task-id", 1)):
            assert "another process is packing into this folder" in reject(1, *words, *flags)


@pytest.mark.parametrize("complete", [0, 1])
def test_a_full_disk_leaves_what_is_complete(
    ff_tree: Path, packed: Path, tmp_path: Path, reject, accept, monkeypatch, complete: int
) -> None:
    """The disk is full while the second tar, or already the first, is ended; with room again it goes on."""
    ended = 0
    sync = tarwriter._sync_and_close

    def full(file: BinaryIO) -> None:
        nonlocal ended
        ended += 1
        if ended > 2 * complete:  # of each the tar and its index
            raise OSError(28, "No space left on device")
        sync(file)

    words = ("pack", "--source", ff_tree, "--out", tmp_path / "root", "--faces", packed / "faces.parquet", *PACK_FLAGS)
    words = (*words, "--qualities", 77, "--workers", 1)
    with monkeypatch.context() as patched:
        patched.setattr(tarwriter, "_sync_and_close", full)
        line = reject(1, *words)
    assert re.search(r"No space left on device: .*\.tar'; make room and run the same command again$", line)
    if not complete:
        assert not (tmp_path / "root").exists()
        return
    assert len(list((tmp_path / "root/q77").iterdir())) == 2  # a tar and its index
    accept(*words[:-2])
    expected = files_of(packed)
    assert files_of(tmp_path / "root") == {name: expected[name] for name in expected if name.startswith("q77/")}


def test_a_file_that_can_grow_no_more(ff_tree: Path, packed: Path, tmp_path: Path) -> None:
    """A real limit, met amid a tar: one line that names it, and nothing is left."""
    words = ["--source", ff_tree, "--out", tmp_path / "root", "--faces", packed / "faces.parquet", *PACK_FLAGS]
    command = [sys.executable, "-m", "datasets_shards", "pack", *map(str, words), "--qualities", "77", "raw"]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, preexec_fn=limit, timeout=300)
    assert done.returncode == 1
    assert re.search(
        r"^python -m datasets_shards pack: error: .*File too large: '.*root/raw/train-000000\.tar'$", done.stderr
    )
    assert not (tmp_path / "root").exists()


def test_records_of_a_long_video_go_through_a_file(
    ff_tree: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accept
) -> None:
    """The same bytes as by the pipe."""
    from datasets_shards.shards import segments

    monkeypatch.setattr(segments, "KEPT_BYTES", 4096)
    words = ("--faces", packed / "faces.parquet", *PACK_FLAGS, "--workers", 1, "--qualities", 77)
    accept("pack", "--source", ff_tree, "--out", tmp_path / "root", *words)
    here, there = files_of(tmp_path / "root"), files_of(packed)
    assert any(name.endswith(".tar") for name in here)
    assert here == {name: digest for name, digest in there.items() if name in here}


def test_a_damaged_set_says_what_to_do(packed: Path, ff_tree: Path, tmp_path: Path, accept, reject) -> None:
    root = tmp_path / "root"
    shutil.copytree(packed, root)
    words = ("pack", "--source", ff_tree, "--out", root, *PACK_FLAGS, "--qualities", 77)
    index = next((root / "q77").glob("*.idx"))
    index.unlink()
    assert f"{index}: missing; delete {root / 'q77'} and pack it again" in reject(1, *words)
    index.with_suffix(".tar").write_bytes(b"")
    assert "0 bytes where the manifest lists" in (line := reject(1, *words))
    assert line.endswith(f"; delete {root / 'q77'} and pack it again")
    shutil.rmtree(root / "q77")
    shutil.copytree(packed / "q10", root / "q10 of yesterday")  # of no account
    accept(*words)
    assert {name: digest for name, digest in files_of(root).items() if "yesterday" not in name} == files_of(packed)


def test_a_video_that_changed_after_its_faces_were_found(ff_tree: Path, packed: Path, tmp_path: Path, reject) -> None:
    """Also one of the same size, which only its content tells apart."""
    tree = tmp_path / "tree"
    shutil.copytree(ff_tree, tree)
    path = tree / "original_sequences/youtube/c23/videos/000.mp4"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    words = ("pack", "--source", tree, "--out", tmp_path / "root", *PACK_FLAGS, "--faces", packed / "faces.parquet")
    assert f"{path}: has changed since its faces were found" in reject(1, *words)


def test_what_no_packer_wrote_is_not_touched(ff_tree: Path, packed: Path, tmp_path: Path, reject) -> None:
    (tmp_path / "root/q77").mkdir(parents=True)
    (tmp_path / "root/q77/notes.txt").touch()
    words = ("pack", "--source", ff_tree, "--out", tmp_path / "root", "--faces", packed / "faces.parquet", *PACK_FLAGS)
    assert "q77: holds files that no unfinished pack knows of" in reject(1, *words, "--qualities", 77)
    assert files_of(tmp_path / "root").keys() == {"q77/notes.txt"}


def test_official_splits(ff_tree: Path, packed: Path, tmp_path: Path, accept) -> None:
    folder = tmp_path / "splits"
    folder.mkdir()
    for split, pairs in (("train", [["000", "001"]]), ("val", []), ("test", [["004", "005"]])):
        (folder / f"{split}.json").write_text(json.dumps(pairs))
    words = ("--source", ff_tree, "--out", tmp_path / "root", "--faces", packed / "faces.parquet", "--splits", folder)
    printed = accept("pack", *words, *PACK_FLAGS, "--qualities", 10)
    assert "skipped: 6 videos that are in no file" in printed
    opened = open_shard_set(tmp_path / "root", 10)
    assert opened.index.num_rows == 36
    assert opened.manifest.splits["origin"] == "files"
    assert opened.manifest.splits["skipped_videos"] == 6


def test_methods_are_interleaved(ff_tree: Path) -> None:
    videos = find_videos(ff_tree)
    order = interleave(videos)
    assert sorted(map(str, order)) == sorted(map(str, videos))
    assert [video.method for video in order[:6]] == ["youtube", "Deepfakes", "FaceSwap"] * 2
    parts = cut_evenly(order, 4)
    assert [video for part in parts for video in part] == order
    assert {len(part) for part in parts} == {3, 4}


def test_real_videos(ffpp_mini: Path, tmp_path: Path, accept) -> None:
    words = ("--source", ffpp_mini, "--out", tmp_path / "root", "--frames-per-video", 1, "--qualities", 77, 10)
    assert "faces: 4 of 4 frames" in accept("pack", *words)
    small, large = (open_shard_set(tmp_path / "root", quality).index["size"].to_pylist() for quality in (10, 77))
    assert all(3 * few < many for few, many in zip(small, large, strict=True))
    assert open_shard_set(tmp_path / "root", 77).crop_size == 256


def test_one_person_alone(tmp_path: Path, accept) -> None:
    """Training only, and the output says why; the split files that lie in the source are found."""
    tree = tmp_path / "tree"
    face_video(tree / "original_sequences/youtube/raw/videos/000.mp4", 0)
    words = ("pack", "--source", tree, "--qualities", 10, "--frames-per-video", 1)
    assert "val: empty, for there are too few people" in accept(*words, "--out", tmp_path / "drawn")
    (tree / "splits").mkdir()
    for split, pairs in (("train", []), ("val", [["000", "001"]]), ("test", [])):
        (tree / "splits" / f"{split}.json").write_text(json.dumps(pairs))
    printed = accept(*words, "--out", tmp_path / "official")
    assert f"splits: from {tree / 'splits'}" in printed
    assert "val: 1 samples (1 youtube)" in printed
