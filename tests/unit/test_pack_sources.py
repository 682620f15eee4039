"""Packing from every layout, with masks, scaled, and the way back through DeepfakeBench's tree."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image

from datasets_shards.__main__ import main
from datasets_shards.errors import InputError
from datasets_shards.jpeg import cjpeg
from datasets_shards.jpeg.dctscale import scale_by_dct
from datasets_shards.schema import INDEX_SCHEMA, ShardSet, open_shard_set
from datasets_shards.verify.findings import Findings
from datasets_shards.verify.setcheck import check_people
from tests.unit.conftest import FACE, PACK_FLAGS, write_video


def members(opened: ShardSet) -> dict[str, bytes]:
    """Content of every member of every tar of a set, by name."""
    found = {}
    for name in opened.manifest.tars:
        with tarfile.open(opened.folder / name) as archive:
            for info in archive.getmembers():
                found[info.name] = archive.extractfile(info).read()  # type: ignore[union-attr]
    return found


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def without_cjpeg() -> str | None:
    """Why MozJPEG's cjpeg can't be run here, or None."""
    try:
        cjpeg.find_cjpeg()
    except InputError as error:
        return str(error)
    return None


def test_pack_unpack_pack(packed: Path, tmp_path: Path, accept) -> None:
    """From the raw set: the same keys, splits, pixels and landmarks, and so the same q77 as from the videos."""
    accept("unpack", packed / "raw", "--as", "deepfakebench", "--out", tmp_path / "tree")
    printed = accept("pack", "--source", tmp_path / "tree", "--out", tmp_path / "root", "--qualities", "raw", 77)
    assert "splits: from the source's JSON file" in printed
    for quality in ("raw", 77):
        before, after = open_shard_set(packed, quality), open_shard_set(tmp_path / "root", quality)
        columns = ["key", "split", "label", "method", "video", "target", "source", "frame", "width", "height"]
        assert sorted(after.index.read(*columns).to_pylist(), key=str) == sorted(
            before.index.read(*columns).to_pylist(), key=str
        )
        was, now = members(before), members(after)
        assert was.keys() == now.keys()
        for name, content in was.items():
            if name.endswith(".json"):
                old, new = json.loads(content), json.loads(now[name])
                assert np.allclose(old.pop("landmarks"), new.pop("landmarks"), atol=0.01)
                assert new.pop("box") is None
                assert old | {"box": None} == new | {"box": None}
            else:
                assert content == now[name], name
    assert open_shard_set(tmp_path / "root", 77).manifest.crop["alignment"] == "the source's own crops"


def test_fewer_frames_than_the_json_lists(packed: Path, tmp_path: Path, accept) -> None:
    accept("unpack", packed / "raw", "--as", "deepfakebench", "--out", tmp_path / "tree")
    frames = tmp_path / "tree/FaceForensics++/original_sequences/youtube/c23/frames"
    lacking, broken, other = sorted(frames.glob("*/*.png"))[:9:4]
    lacking.unlink()
    broken.write_bytes(broken.read_bytes()[:3000])
    Image.new("RGB", (64, 64)).save(other)
    printed = accept("pack", "--source", tmp_path / "tree", "--out", tmp_path / "root", "--qualities", 10)
    assert (
        f"skipped 1 of 3 images of {lacking.parent.relative_to(tmp_path / 'tree')}: {lacking.name}: no such" in printed
    )
    assert f"skipped 1 of 3 images of {broken.parent.relative_to(tmp_path / 'tree')}: {broken.name}: " in printed
    assert "skipped 1 crops that aren't 128x128 pixels as the others" in printed
    opened = open_shard_set(tmp_path / "root", 10)
    assert opened.index.num_rows == 51
    assert opened.manifest.source["sampled_frames"] == {"ok": 51, "unreadable frame": 2, "other size": 1}
    assert "nothing wrong" in accept("verify", tmp_path / "root/q10")


def test_masks_are_cut_as_the_crops_are(ff_tree: Path, packed: Path, tmp_path: Path, accept) -> None:
    """A mask that is white where the crop's red is above a threshold must be so in the crop as well."""
    tree = tmp_path / "tree"
    shutil.copytree(ff_tree, tree)
    method = tree / "manipulated_sequences/Deepfakes"
    for i in range(5):  # of five frames each, as the videos; one video has none, one has too few frames
        name = sorted((method / "c23/videos").iterdir())[i].name
        disc = np.hypot(*(np.indices((256, 256)) - np.array([100, 130]).reshape(2, 1, 1))) < 50
        mask = np.where(disc, 255, 0)[..., None].repeat(3, 2).astype(np.uint8)
        write_video(method / "masks/videos" / name, [mask] * (5 if i else 2))
    words = ("pack", "--source", tree, "--out", tmp_path / "root", *PACK_FLAGS, "--faces", packed / "faces.parquet")
    assert "masks: of 5 videos" in accept(*words, "--qualities", "raw", 15, "--masks")
    opened = open_shard_set(tmp_path / "root", "raw")
    found = {name: pixels(content) for name, content in members(opened).items() if name.endswith(".mask.png")}
    assert len(found) == 4 * 3 + 1
    boxes = json.loads(members(opened)[next(iter(found)).replace(".mask.png", ".json")])
    mask = next(iter(found.values()))
    assert mask.shape == (128, 128)
    assert mask[64, 64] == 255  # the face is in the middle, and the disc on the face
    assert mask[0].max() < 30
    rows, columns = np.nonzero(mask > 127)
    left, _, right, _ = boxes["box"]
    scale = 128 / ((right - left) * 1.3)  # about; the crop is cut by landmarks
    assert np.ptp(columns) == pytest.approx(100 * scale, rel=0.35)
    assert np.ptp(columns) == pytest.approx(np.ptp(rows), rel=0.05)
    assert "nothing wrong" in accept("verify", tmp_path / "root")

    accept("unpack", tmp_path / "root/raw", "--as", "deepfakebench", "--out", tmp_path / "bench")
    again = ("pack", "--source", tmp_path / "bench", "--out", tmp_path / "again", "--qualities", "raw", "--masks")
    assert "masks: of 5 videos" in accept(*again)
    binary = {
        name: pixels(content)
        for name, content in members(open_shard_set(tmp_path / "again", "raw")).items()
        if name.endswith(".mask.png")
    }
    assert binary.keys() == found.keys()
    for name, values in binary.items():
        assert np.array_equal(values, np.where(found[name] > 1, 255, 0))


def test_no_masks_there(ff_tree: Path, packed: Path, tmp_path: Path, reject) -> None:
    words = ("pack", "--source", ff_tree, "--out", tmp_path / "root", *PACK_FLAGS, "--faces", packed / "faces.parquet")
    assert "--masks: the source has none" in reject(1, *words, "--masks")


def test_a_broken_mask_is_left_out(ff_tree: Path, packed: Path, tmp_path: Path, accept) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(ff_tree, tree)
    folder = tree / "manipulated_sequences/Deepfakes/masks/videos"
    write_video(folder / "000_001.mp4", [np.zeros((64, 64, 3), np.uint8)] * 5)
    (folder / "001_000.mp4").write_bytes(b"")
    words = ("pack", "--source", tree, "--out", tmp_path / "root", *PACK_FLAGS, "--faces", packed / "faces.parquet")
    printed = accept(*words, "--qualities", 10, "--masks")
    assert f"skipped mask {folder / '001_000.mp4'}: can't be decoded" in printed
    assert "masks: of 1 videos" in printed
    assert open_shard_set(tmp_path / "root", 10).manifest.crop["masks"]["videos"] == 1


def test_masks_that_are_lacking_or_broken_are_counted(packed: Path, tmp_path: Path, accept, reject) -> None:
    accept("unpack", packed / "raw", "--as", "deepfakebench", "--out", tmp_path / "tree")
    frames = tmp_path / "tree/FaceForensics++/manipulated_sequences/FaceSwap/c23/frames"
    masks = frames.parent / "masks/000_001"
    masks.mkdir(parents=True)
    numbers = sorted(int(path.stem) for path in (frames / "000_001").iterdir())
    Image.new("L", (128, 128), 255).save(masks / f"{numbers[0]}.png")  # without leading zeros
    (masks / f"{numbers[1]:03d}.png").write_bytes(b"no image")
    words = ("pack", "--source", tmp_path / "tree", "--out", tmp_path / "root", "--masks")
    printed = accept(*words, "--qualities", 10)
    assert f"{(frames / '000_001').relative_to(tmp_path / 'tree')}: 2 frames have no mask ({masks}/" in printed
    found = [name for name in members(open_shard_set(tmp_path / "root", 10)) if name.endswith(".mask.png")]
    assert found == [f"FaceSwap-000_001-{numbers[0]:05d}.mask.png"]
    (masks / f"{numbers[2]:03d}.png").touch()
    assert "was made otherwise: crop masks" in reject(1, *words, "--qualities", 15)


def test_settings_of_cutting_are_refused_for_crops(plain_folder: Path, tmp_path: Path, accept, reject) -> None:
    for path in plain_folder.glob("fake/*.mp4"):
        path.unlink()
    words = ("pack", "--source", plain_folder, "--qualities", "raw", "--out", tmp_path / "root")
    line = reject(1, *words, "--crops", "--margin", 2, "--align", "none", "--upsample", 2)
    assert "--margin, --align, --upsample: the crops of" in line
    table = tmp_path / "faces.parquet"
    accept("faces", "--source", plain_folder, "--crops", "--out", table)
    assert "was made of crops, and the source is now read as pictures" in reject(1, *words, "--faces", table)
    accept("faces", "--source", plain_folder, "--out", tmp_path / "new/found.parquet")
    assert "was made of pictures" in reject(1, *words, "--crops", "--faces", tmp_path / "new/found.parquet")
    accept(*words, "--crops", "--faces", table)
    crop = open_shard_set(tmp_path / "root", "raw").manifest.crop
    assert not {"detector", "upsample", "min_face"} & crop.keys()  # none was at work


def test_dct_scaled_set(ff_tree: Path, packed: Path, tmp_path: Path, accept) -> None:
    """N = 16 halves the crops of the raw set; manifest, index and landmarks say so."""
    words = ("pack", "--source", ff_tree, "--out", tmp_path / "root", *PACK_FLAGS, "--faces", packed / "faces.parquet")
    accept(*words, "--qualities", "raw", 77, "--dct-scale", 16)
    assert "nothing wrong" in accept("verify", tmp_path / "root")
    full, half = open_shard_set(packed, "raw"), open_shard_set(tmp_path / "root", "raw")
    assert (half.crop_size, half.manifest.crop["dct_scale"]) == (64, "8/16")
    assert set(half.index["width"].to_pylist()) == {64}
    assert half.index["key"].equals(full.index["key"])
    was, now = members(full), members(half)
    for name in list(was)[:9]:
        if name.endswith(".png"):
            assert np.array_equal(pixels(now[name]), scale_by_dct(pixels(was[name]), 16))
        elif name.endswith(".json"):
            before, after = (np.array(json.loads(content)["landmarks"]) for content in (was[name], now[name]))
            assert np.allclose(after, before / 2 - 0.25, atol=0.01)


@pytest.fixture
def plain_folder(tmp_path: Path) -> Path:
    """Pictures and a video of the face, good ones and bad ones, under names with spaces and accents."""
    root = tmp_path / "mes images"
    picture = Image.fromarray(np.ascontiguousarray(FACE))
    for place in ("real/une été", "real/b", "fake/Deepfakes/une été", "fake/gan 2.0"):
        for i in range(3):
            path = root / place / f"image {i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
    picture.convert("L").save(root / "real/b/grey.png")
    picture.convert("CMYK").save(root / "real/b/cmyk.jpg", quality=95)
    (root / "real/b/empty.png").touch()
    write_video(root / "fake/clip.mp4", [FACE] * 4)
    (root / "fake/broken.mp4").write_bytes(b"no video")
    return root


def test_plain_folder(plain_folder: Path, tmp_path: Path, accept) -> None:
    words = ("pack", "--source", plain_folder, "--out", tmp_path / "root", "--size", 128, "--qualities", 77)
    printed = accept(*words, "--frames-per-video", "all")
    assert "skipped 1 of 6 images of real/b: empty.png: " in printed
    assert "skipped fake/broken.mp4: can't be decoded" in printed
    opened = open_shard_set(tmp_path / "root", 77)
    counts = {
        row["method"] + "/" + row["video"]: row["key_count"]
        for row in opened.index.read().group_by(["method", "video"]).aggregate([("key", "count")]).to_pylist()
    }
    assert counts == {"real/une_été": 3, "real/b": 5, "Deepfakes/une_été": 3, "fake/gan_2_0": 3, "fake/clip": 4}
    assert opened.manifest.source["compression"] == "none"
    people = opened.index.read().filter(pc.equal(opened.index["target"], "une_été"))
    assert len(set(people["split"].to_pylist())) == 1
    assert "splits: drawn by video, seed 0: nothing says who is in 6 of 6 videos; each is taken as a person" in printed
    assert "warning: the split 'val' has no fake samples: AUC and all else that compares" in printed
    verified = accept("verify", tmp_path / "root")
    assert "not checked: who is in 5 of 5 videos, for nothing says it" in verified
    assert "nothing wrong" in verified


def test_plain_folder_of_crops(plain_folder: Path, tmp_path: Path, accept, reject) -> None:
    for path in plain_folder.glob("fake/*.mp4"):
        path.unlink()
    words = ("pack", "--source", plain_folder, "--crops", "--out", tmp_path / "root", "--qualities", "raw")
    accept(*words)
    opened = open_shard_set(tmp_path / "root", "raw")
    assert opened.index.num_rows == 14
    assert opened.crop_size == 256
    content = members(opened)
    assert np.array_equal(pixels(content["real-b-00003.png"]), FACE)  # after cmyk.jpg, empty.png and grey.png
    assert json.loads(content["real-b-00003.json"])["landmarks"] is None
    message = reject(1, *words[:4], "--out", tmp_path / "other", "--size", 200)
    assert "--size 200: the source's own crops are 256 pixels" in message


def test_a_part_of_a_source(ff_tree: Path, packed: Path, tmp_path: Path, accept, reject) -> None:
    names = tmp_path / "names.txt"
    names.write_text("000_001  # of any method\nyoutube/000\n\nyoutube/001\n")
    words = ("pack", "--source", ff_tree, "--qualities", 10, "--size", 128, "--videos", names)
    accept(*words, "--methods", "youtube", "FaceSwap", "--out", tmp_path / "root", "--frames-per-video", 2)
    opened = open_shard_set(tmp_path / "root", 10)
    assert set(zip(opened.index["method"].to_pylist(), opened.index["video"].to_pylist(), strict=True)) == {
        ("youtube", "000"),
        ("youtube", "001"),
        ("FaceSwap", "000_001"),
    }
    accept(*words, "--out", tmp_path / "full", "--faces", packed / "faces.parquet", "--frames-per-video", 3)
    part = open_shard_set(tmp_path / "full", 10).manifest.source
    assert (part["videos"], part["sampled_frames"]) == (4, {"ok": 12})  # of the table, what is selected
    names.write_text("000_009")
    assert f"--videos {names}: {ff_tree} has no such videos: 000_009" in reject(1, *words, "--out", tmp_path / "other")


@pytest.mark.parametrize(
    ("flags", "frames"), [(("--every", 2), [0, 2, 4]), (("--frames-per-video", "all"), [0, 1, 2, 3, 4])]
)
def test_which_frames(ff_tree: Path, tmp_path: Path, accept, flags: tuple, frames: list[int]) -> None:
    names = tmp_path / "names.txt"
    names.write_text("youtube/000\nyoutube/001")
    words = (
        "pack",
        "--source",
        ff_tree,
        "--videos",
        names,
        "--size",
        64,
        "--qualities",
        10,
        "--out",
        tmp_path / "root",
    )
    accept(*words, *flags)
    opened = open_shard_set(tmp_path / "root", 10)
    assert opened.index["frame"].to_pylist() == frames * 2


def test_square_boxes(ff_tree: Path, packed: Path, tmp_path: Path, accept) -> None:
    """`--align none` cuts axis-aligned squares about the box: the frame's own pixels, only scaled."""
    words = ("pack", "--source", ff_tree, "--out", tmp_path / "root", *PACK_FLAGS, "--faces", packed / "faces.parquet")
    accept(*words, "--qualities", "raw", "--align", "none")
    opened = open_shard_set(tmp_path / "root", "raw")
    assert opened.manifest.crop["alignment"].startswith("square around the detected box")
    facts = json.loads(next(content for name, content in members(opened).items() if name.endswith(".json")))
    left, top, right, bottom = facts["box"]
    side = max(right - left, bottom - top) * 1.3
    spread = np.ptp(np.array(facts["landmarks"]), axis=0)
    assert 0.3 * 128 < spread[0] < 128
    assert 128 / side * (right - left) == pytest.approx(128 / 1.3, rel=0.02)


def test_cjpeg_as_the_encoder(ff_tree: Path, packed: Path, tmp_path: Path, accept, reject) -> None:
    """A process per crop writes the same coefficients as the library: every image decodes to the same pixels."""
    words = ("pack", "--source", ff_tree, "--out", tmp_path / "root", *PACK_FLAGS, "--faces", packed / "faces.parquet")
    if (refused := without_cjpeg()) is not None:
        assert refused in reject(1, *words, "--encoder", "cjpeg")
        pytest.skip(refused)
    accept(*words, "--qualities", 10, "--encoder", "cjpeg")
    ours, theirs = open_shard_set(packed, 10), open_shard_set(tmp_path / "root", 10)
    assert theirs.manifest.encoder["name"] == "cjpeg"
    was, now = members(ours), members(theirs)
    assert was.keys() == now.keys()
    assert all(np.array_equal(pixels(was[name]), pixels(now[name])) for name in was if name.endswith(".jpg"))
    assert "nothing wrong" in accept("verify", tmp_path / "root")


def test_people_of_a_plain_folder(packed: Path, tmp_path: Path, accept) -> None:
    """FF++'s crops in plain folders: nobody is in two splits, and verify finds somebody who is, also in old sets."""
    crops = members(open_shard_set(packed, "raw"))
    for row in open_shard_set(packed, "raw").index.read().to_pylist():
        part = f"fake/{row['method']}" if row["label"] else "real"
        path = tmp_path / "tree" / part / row["video"] / f"{row['frame']}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(crops[f"{row['key']}.png"])
    words = ("pack", "--source", tmp_path / "tree", "--crops", "--out", tmp_path / "root", "--qualities", "raw")
    assert "splits: drawn by identity, seed 0 (people as the names of the videos tell them)" in accept(*words)
    opened = open_shard_set(tmp_path / "root", "raw")
    table = opened.index.read().to_pylist()
    assert len({(name, row["split"]) for row in table for name in (row["target"], row["source"]) if name}) == 6
    verified = accept("verify", tmp_path / "root/raw")
    assert "nothing wrong" in verified
    assert "not checked" not in verified

    for row in table:  # as sets were packed while each video was a person of its own
        row |= {"target": row["video"], "source": ""}
        if row["video"] == "000":
            row["split"] = "val" if row["split"] == "train" else "train"
    findings = Findings()
    check_people(opened.folder, opened.manifest, pa.Table.from_pylist(table, schema=INDEX_SCHEMA), findings)
    (line,) = findings.report()
    assert "identity 000 is in" in line


def test_an_unfinished_set_knows_masks_that_were_made_anew(ff_tree: Path, packed: Path, tmp_path: Path, reject) -> None:
    """Of the size of before, which is all that the manifest knows of them."""
    tree = shutil.copytree(ff_tree, tmp_path / "tree")
    mask = tree / "manipulated_sequences/Deepfakes/masks/videos/000_001.mp4"
    write_video(mask, [np.zeros((64, 64, 3), np.uint8)] * 5)
    words = ("pack", "--source", tree, "--out", tmp_path / "root", *PACK_FLAGS, "--faces", packed / "faces.parquet")
    words += ("--qualities", 10, "--masks")
    assert main([str(word) for word in (*words, "--num-tasks", 3, "--task-id", 0)]) == 0
    mask.write_bytes(mask.read_bytes())
    assert "was begun otherwise and isn't finished: mask_times" in reject(1, *words)
