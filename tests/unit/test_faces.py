"""dlib finds the faces, one identity is kept, and the table says what was found and what was dropped."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from skimage.transform import rescale

from datasets_shards.crops.align import CropSettings
from datasets_shards.crops.samples import VideoJob, make_samples
from datasets_shards.errors import InputError
from datasets_shards.faces.detector import FaceSettings, describe_detector, find_faces
from datasets_shards.faces.rows import (
    NO_FACE,
    NOT_FORGED,
    OK,
    OTHER_FACE,
    OTHER_SIZE,
    TOO_SMALL,
    UNREADABLE,
    UNREADABLE_FRAME,
    detect_video,
)
from datasets_shards.faces.stage import detect_faces
from datasets_shards.faces.table import LIGHT, ROWS_PER_GROUP, FaceTable, read_faces, report_problems, write_table
from datasets_shards.frames import video as video_file
from datasets_shards.frames.content import VideoContent
from datasets_shards.frames.video import read_packets
from datasets_shards.jpeg.settings import JpegSettings
from datasets_shards.schema import file_sha256
from datasets_shards.sources import Selection, Video, find_videos, open_source
from tests.unit.conftest import FACE, FRAMES, face_video, write_video

SETTINGS = FaceSettings(frames_per_video=2)
SMALL = (rescale(FACE, 0.6, channel_axis=2, anti_aliasing=True) * 255).astype(np.uint8)


def video_at(path: Path, **more: object) -> Video:
    return Video("youtube", path.stem, path.stem, "", "raw", path, path.name, **more)


def images_at(folder: Path, **images: np.ndarray) -> Video:
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in images.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return video_at(folder, files=tuple(enumerate(f"{name}.png" for name in images)))


def stage(videos: list[Video], settings: FaceSettings, path: Path, workers: int = 1) -> FaceTable:
    return detect_faces(videos, settings, path, workers)


def test_the_astronaut() -> None:
    (face,) = find_faces(np.ascontiguousarray(FACE))
    left, top, right, bottom = face.box
    assert 80 < face.side < 110
    eyes, mouth = face.landmarks[36:48].mean(0), face.landmarks[48:].mean(0)
    assert left < eyes[0] < right
    assert top < eyes[1] < mouth[1] < bottom
    assert face.landmarks.shape == (68, 2)


def test_detection_on_a_reduced_frame() -> None:
    """The same face; its landmarks are found on the whole frame, so they hardly move."""
    frame = np.ascontiguousarray(np.kron(FACE, np.ones((2, 2, 1), np.uint8))[:511])  # no whole number of blocks
    (whole,), (reduced,) = find_faces(frame), find_faces(frame, reduce=2)
    assert np.abs(np.subtract(whole.box, reduced.box)).max() < 0.25 * whole.side
    assert np.linalg.norm(whole.landmarks - reduced.landmarks, axis=1).mean() < 0.02 * whole.side
    for side in (1, 2, 9, 79):
        assert find_faces(np.zeros((side, side, 3), np.uint8)) == []
        assert find_faces(np.zeros((side, side, 3), np.uint8), reduce=2) == []


def test_one_of_two_people_is_kept(tmp_path: Path) -> None:
    """The nearer one, also when she turns away for a frame and only the other is seen; and the table says so."""
    both = np.zeros((256, 512, 3), np.uint8)
    both[:, 256:] = FACE
    both[: SMALL.shape[0], : SMALL.shape[1]] = SMALL
    other_only = both.copy()
    other_only[:, 256:] = 0
    video = video_at(write_video(tmp_path / "000.mp4", [both, both, other_only, both]))
    rows = detect_video(video, FaceSettings())
    assert [(row["status"], row["faces"]) for row in rows] == [(OK, 2), (OK, 2), (OTHER_FACE, 1), (OK, 2)]
    assert rows[2]["reason"] == "1 seen, not the one that the video is about"
    assert all(row["box"][0] > 256 for row in rows if row["status"] == OK)
    assert "box" not in rows[2]


def test_of_two_people_the_one_under_the_mask_is_kept(tmp_path: Path) -> None:
    """Though the other is nearer; and where the mask is empty there is no fake."""
    both = np.zeros((256, 512, 3), np.uint8)
    both[:, 256:] = FACE
    both[: SMALL.shape[0], : SMALL.shape[1]] = SMALL
    mask, black = np.zeros_like(both), np.zeros_like(both)
    mask[: SMALL.shape[0], : SMALL.shape[1]] = 255
    path = write_video(tmp_path / "000.mp4", [both] * 3)
    some = write_video(tmp_path / "some.mp4", [mask, mask, black])
    rows = detect_video(replace(video_at(path), mask=some), FaceSettings())
    assert [(row["status"], row["faces"]) for row in rows] == [(OK, 2), (OK, 2), (NOT_FORGED, 2)]
    assert all(row["box"][2] <= SMALL.shape[1] for row in rows)
    none = write_video(tmp_path / "none.mp4", [black] * 3)
    rows = detect_video(replace(video_at(path), mask=none), FaceSettings())
    assert [row["status"] for row in rows] == [NOT_FORGED] * 3
    assert rows[0]["reason"] == "its mask is empty, or covers somebody else"


def test_twenty_faces(tmp_path: Path) -> None:
    """All are seen; the one that is a little nearer is kept, though nobody else is far behind."""
    crowd = np.tile(SMALL, (4, 5, 1))
    larger = (rescale(FACE, 0.7, channel_axis=2, anti_aliasing=True) * 255).astype(np.uint8)
    top, left = SMALL.shape[0], 2 * SMALL.shape[1]
    crowd[top : top + larger.shape[0], left : left + larger.shape[1]] = larger
    video = video_at(write_video(tmp_path / "000.mp4", [crowd, np.roll(crowd, 4, 1)]))
    rows = detect_video(video, FaceSettings())
    assert all(row["status"] == OK and 15 <= row["faces"] <= 20 for row in rows)
    for row in rows:
        assert left < row["box"][0] < row["box"][2] < left + larger.shape[1] + 8
        assert top < row["box"][1] < row["box"][3] < top + larger.shape[0]


def test_images_of_one_size_are_a_video_and_others_are_not(tmp_path: Path) -> None:
    left, right = np.zeros((256, 512, 3), np.uint8), np.zeros((256, 512, 3), np.uint8)
    left[: SMALL.shape[0], : SMALL.shape[1]] = SMALL
    right[:, 256:] = FACE
    same = images_at(tmp_path / "same", a=right, b=left, c=right)
    assert [row["status"] for row in detect_video(same, FaceSettings())] == [OK, OTHER_FACE, OK]
    different = images_at(tmp_path / "different", a=right, b=left[:200], c=right)
    assert [row["status"] for row in detect_video(different, FaceSettings())] == [OK] * 3


def test_every_frame_has_its_row(tmp_path: Path) -> None:
    blank = np.full((128, 128, 3), 90, np.uint8)
    small = (rescale(FACE, 0.5, channel_axis=2, anti_aliasing=True) * 255).astype(np.uint8)
    face_video(tmp_path / "000.mp4", 0)
    write_video(tmp_path / "001.mp4", [blank] * 4)
    write_video(tmp_path / "002.mp4", [small] * 4)
    (tmp_path / "003.mp4").write_bytes(b"broken")
    (tmp_path / "004.mp4").touch()

    videos = [video_at(path) for path in sorted(tmp_path.glob("*.mp4"))]
    faces = stage(videos, FaceSettings(frames_per_video=2, min_face=60), tmp_path / "faces.parquet")
    rows = faces.table.to_pylist()
    assert [(row["video"], row["frame"], row["status"], row["faces"]) for row in rows] == [
        ("000", 1, OK, 1),
        ("000", 3, OK, 1),
        ("001", 1, NO_FACE, 0),
        ("001", 3, NO_FACE, 0),
        ("002", 1, TOO_SMALL, 1),
        ("002", 3, TOO_SMALL, 1),
        ("003", None, UNREADABLE, None),
        ("004", None, UNREADABLE, None),
    ]
    assert (rows[0]["frame_width"], rows[0]["frame_height"]) == (256, 256)
    assert "of at least 60 pixels" in rows[4]["reason"]
    assert [row["bytes"] for row in rows[6:]] == [6, 0]
    assert rows[0]["sha256"] == file_sha256(tmp_path / "000.mp4")
    assert faces.status_counts() == {OK: 2, NO_FACE: 2, TOO_SMALL: 2, UNREADABLE: 2}
    assert (faces.num_frames, faces.num_videos) == (6, 5)
    assert faces.usable_mask().tolist() == [True] * 2 + [False] * 6
    problems = list(report_problems(faces))
    assert problems[:2] == ["no usable face in 001.mp4 (2 frames)", "no usable face in 002.mp4 (2 frames)"]
    assert [line.partition(" (")[0] for line in problems[2:]] == [
        f"skipped 00{n}.mp4: can't be decoded" for n in (3, 4)
    ]

    missing = read_faces(faces.path, *faces.spans["001.mp4"])
    assert not missing.usable.any()
    assert missing.landmarks_of(0) is None
    assert read_faces(faces.path, *faces.spans["003.mp4"]).frames.tolist() == [-1]


def test_unreadable_images_do_not_stop_the_rest(tmp_path: Path) -> None:
    folder = tmp_path / "mes vidéos"
    images = images_at(folder, a=FACE, b=FACE, c=FACE, d=FACE)
    data = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(data[: len(data) // 2])
    (folder / "c.png").unlink()
    faces = stage([images], FaceSettings(), tmp_path / "faces.parquet")
    rows = faces.table.to_pylist()
    assert [row["status"] for row in rows] == [OK, UNREADABLE_FRAME, UNREADABLE_FRAME, OK]
    assert rows[1]["reason"].startswith("b.png: can't be decoded")
    assert rows[2]["reason"] == "c.png: no such file"
    (line,) = report_problems(faces)
    assert line.startswith("skipped 2 of 4 images of mes vidéos: b.png: can't be decoded")
    assert rows[0]["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    faces.check([images], "faces.parquet")
    with (folder / "a.png").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="changed since: mes vid"):
        faces.check([images], "faces.parquet")


def test_what_the_system_will_not_open_is_tried_again(tmp_path: Path) -> None:
    """Its size isn't recorded, so the next call looks at the video once more."""
    folder = tmp_path / "ann"
    images = images_at(folder, a=FACE, b=FACE)
    (folder / "b.png").unlink()
    (folder / "b.png").mkdir()  # opening it fails, for root as well
    table = tmp_path / "faces.parquet"
    faces = stage([images], FaceSettings(), table)
    assert faces.table["status"].to_pylist() == [OK, UNREADABLE_FRAME]
    assert faces.video_values("bytes") == {"ann": None}
    faces.check([images], "faces.parquet")
    (folder / "b.png").rmdir()
    Image.fromarray(FACE).save(folder / "b.png")
    assert stage([images], FaceSettings(), table).status_counts() == {OK: 2}


def crops_tree(root: Path) -> Path:
    """Four crops of a video as DeepfakeBench lays them out, with landmarks good and bad."""
    import json

    tree = root / "FaceForensics++/original_sequences/youtube/c23"
    images_at(tree / "frames/000", **{f"{n:03d}": FACE[:96, :96] for n in (0, 10, 20, 30)})
    Image.fromarray(FACE[:64, :96]).save(tree / "frames/000/020.png")
    (tree / "landmarks/000").mkdir(parents=True)
    points = np.arange(162, dtype=np.float64).reshape(81, 2) + 0.25
    np.save(tree / "landmarks/000/000.npy", points)
    np.save(tree / "landmarks/000/010.npy", points[:5])
    (tree / "landmarks/000/020.npy").write_bytes(b"no array")
    names = [
        f"FaceForensics++\\original_sequences\\youtube\\c23\\frames\\000\\{n:03d}.png" for n in (0, 10, 20, 30, 40)
    ]
    entry = {"train": {"c23": {"000": {"label": "FF-real", "frames": names}}}}
    (root / "FaceForensics++.json").write_text(json.dumps({"FaceForensics++": {"FF-real": entry}}))
    return root


def test_ready_crops_are_taken_as_they_are(tmp_path: Path) -> None:
    videos = open_source(crops_tree(tmp_path / "tree")).videos
    faces = stage(videos, FaceSettings(), tmp_path / "faces.parquet")
    rows = faces.table.to_pylist()
    assert [(row["frame"], row["status"]) for row in rows] == [
        (0, OK),
        (10, OK),
        (20, OK),
        (30, OK),
        (40, UNREADABLE_FRAME),
    ]
    assert [row["reason"] for row in rows] == [
        "",
        "010.npy: (5, 2) float64 isn't 68 or 81 landmarks",
        "020.npy: not readable as landmarks",
        "",
        "040.png: no such file",
    ]
    read = read_faces(faces.path, *faces.spans[videos[0].relative])
    assert np.array_equal(read.landmarks_of(0), np.arange(136, dtype=np.float32).reshape(68, 2) + 0.25)
    assert [read.landmarks_of(row) for row in range(1, 5)] == [None] * 4
    assert read.sizes.tolist() == [[96, 96], [96, 96], [64, 96], [96, 96], [0, 0]]

    packed, size = faces.of_one_size()
    assert size == 96
    assert packed.status_counts() == {OK: 3, OTHER_SIZE: 1, UNREADABLE_FRAME: 1}
    assert packed.table["reason"][2].as_py() == "96x64 of 96x96 pixels"
    with pytest.raises(InputError, match="--size 128: the source's own crops are 96 pixels"):
        faces.of_one_size(128)


def test_a_plain_folder_of_crops(tmp_path: Path) -> None:
    images_at(tmp_path / "tree/real/ann", a=FACE, b=FACE)
    (video,) = open_source(tmp_path / "tree", Selection(cropped=True)).videos
    assert [(row["status"], "box" in row, "landmarks" in row) for row in detect_video(video, SETTINGS)] == [
        (OK, False, False)
    ] * 2


def test_which_frames_are_looked_at(tmp_path: Path) -> None:
    video = video_at(write_video(tmp_path / "000.mp4", [np.zeros((32, 32, 3), np.uint8)] * 7))
    for settings, frames in (
        (FaceSettings(frames_per_video=2), [1, 5]),
        (FaceSettings(frames_per_video=None), list(range(7))),
        (FaceSettings(every=3), [0, 3, 6]),
    ):
        assert [row["frame"] for row in detect_video(video, settings)] == frames


def test_a_video_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hash, demux and decode are of one read; packing takes the times from the table, and an old one lacks them."""
    opened: list[object] = []
    container = video_file._container

    def note(path: Path, content: VideoContent | None):
        opened.append(content)
        return container(path, content)

    monkeypatch.setattr(video_file, "_container", note)
    video = video_at(write_video(tmp_path / "000.mp4", [FACE] * 2))
    table = tmp_path / "faces.parquet"
    faces = stage([video], SETTINGS, table)
    assert [type(content) for content in opened] == [VideoContent] * 2
    assert opened[0] is opened[1]
    read = read_faces(table, *faces.spans[video.relative])
    assert read.times == read_packets(video.path).times
    assert len(read.times) == 2
    old = pq.read_table(table).drop_columns("times")
    pq.write_table(old, tmp_path / "old.parquet")
    spans = FaceTable.load(tmp_path / "old.parquet").spans
    assert read_faces(tmp_path / "old.parquet", *spans[video.relative]).times is None
    for path, reads in ((table, 1), (tmp_path / "old.parquet", 2)):
        opened.clear()
        job = VideoJob(
            video, "train", [0, 1], path, 0, 2, file_sha256(video.path), CropSettings(64), JpegSettings(), False, (77,)
        )
        assert len(list(make_samples(job))) == 2
        assert [type(content) for content in opened] == [VideoContent] * reads


def test_a_file_too_large_for_memory_is_read_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = video_at(write_video(tmp_path / "000.mp4", [FACE] * 2))
    rows = detect_video(video, SETTINGS)
    monkeypatch.setattr("datasets_shards.frames.content.KEPT_BYTES", 100)
    assert detect_video(video, SETTINGS) == rows


def test_a_table_comes_back(ff_tree: Path, tmp_path: Path) -> None:
    videos = find_videos(ff_tree)[:2]
    faces = stage(videos, SETTINGS, tmp_path / "faces.parquet")
    assert faces.table.column_names == LIGHT
    assert (faces.settings, faces.detector) == (SETTINGS, describe_detector())
    for video in videos:
        rows, read = detect_video(video, SETTINGS), read_faces(faces.path, *faces.spans[video.relative])
        assert read.frames.tolist() == [row["frame"] for row in rows]
        assert read.boxes.tolist() == [row["box"] for row in rows]
        assert read.landmarks.reshape(2, -1).tolist() == [row["landmarks"] for row in rows]
        assert (read.boxes.dtype, read.landmarks.dtype) == (np.int32, np.float32)
    faces.check(videos, "faces.parquet")
    with pytest.raises(InputError, match=r"lacks 16 videos of the source: .*003.mp4.* and 11 more"):
        faces.check(find_videos(ff_tree), "faces.parquet")
    part = faces.of_videos(videos[:1])
    assert (part.num_videos, part.num_frames, part.status_counts()) == (1, 2, {OK: 2})
    assert part.usable_mask().tolist() == [True, True, False, False]
    assert part.source_digest() != faces.source_digest()


def test_a_large_table_is_read_in_part(tmp_path: Path) -> None:
    """Row groups end with a video, and a video's rows come back whichever of them they are in."""
    import pyarrow.parquet as pq

    def rows_of(video: int) -> list[dict]:
        common = {"method": "youtube", "video": str(video), "target": "", "source": "", "path": f"{video}.mp4"}
        common |= {"compression": "raw", "bytes": video, "sha256": str(video), "status": OK, "reason": ""}
        return [
            common | {"frame": frame, "box": [video, frame, 9, 9], "landmarks": [float(video)] * 136}
            for frame in range(video % 50 + 1)
        ]

    path = tmp_path / "faces.parquet"
    write_table(path, SETTINGS, {}, (rows_of(video) for video in range(200)))
    groups = [pq.ParquetFile(path).metadata.row_group(i).num_rows for i in range(pq.ParquetFile(path).num_row_groups)]
    assert ROWS_PER_GROUP - 50 < min(groups[:-1]) <= max(groups) <= ROWS_PER_GROUP
    faces = FaceTable.load(path)
    assert list(faces.spans) == [f"{video}.mp4" for video in range(200)]
    for video in range(200):
        read = read_faces(path, *faces.spans[f"{video}.mp4"])
        assert read.boxes[:, 0].tolist() == [video] * (video % 50 + 1)
        assert read.frames.tolist() == list(range(video % 50 + 1))
        assert (read.landmarks == video).all()
    assert faces.video_values("bytes") == {f"{video}.mp4": video for video in range(200)}


@pytest.mark.parametrize("content", [b"", b"PAR1 but no table"])
def test_other_files_are_no_table(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "faces.parquet"
    with pytest.raises(InputError, match="no such table of faces"):
        FaceTable.load(path)
    path.write_bytes(content)
    with pytest.raises(InputError, match="not readable as a table of faces"):
        FaceTable.load(path)


def test_tables_of_other_kinds_and_versions(tmp_path: Path) -> None:
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    from datasets_shards.faces.table import FORMAT, METADATA_KEY

    path = tmp_path / "faces.parquet"
    for metadata in ({}, {METADATA_KEY: json.dumps({"format": FORMAT, "format_version": 1})}):
        pq.write_table(pa.table({"a": [1]}).replace_schema_metadata(metadata), path)
        with pytest.raises(InputError, match=r"not a table of faces of version 2; make it again"):
            FaceTable.load(path)
    write_table(path, SETTINGS, {}, [])
    whole = pq.read_table(path)
    pq.write_table(whole.drop(["faces"]), path)
    with pytest.raises(InputError, match="its columns aren't those of a table of faces"):
        FaceTable.load(path)


def test_the_number_of_workers_changes_nothing(ff_tree: Path, tmp_path: Path) -> None:
    videos = find_videos(ff_tree)[:5]
    one, two = (stage(videos, SETTINGS, tmp_path / f"{workers}.parquet", workers) for workers in (1, 2))
    assert one.path.read_bytes() == two.path.read_bytes()


def test_real_videos(ffpp_mini: Path) -> None:
    for video in find_videos(ffpp_mini)[::3]:
        rows = detect_video(video, FaceSettings(frames_per_video=2, upsample=0, reduce=2))
        assert [row["status"] for row in rows] == [OK, OK]
        assert all(row["frame_width"] == 1280 and row["confidence"] > 1 for row in rows)


def test_the_tree_has_a_face_in_every_frame(packed: Path) -> None:
    faces = FaceTable.load(packed / "faces.parquet")
    assert faces.status_counts() == {OK: 18 * min(3, FRAMES)}


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("--every", 2, "--frames-per-video", 3), 2, "--frames-per-video: not allowed with argument --every"),
        (("--frames-per-video", "most"), 2, "--frames-per-video: most is not a whole number from 1 to 100000"),
        (("--every", 0), 2, "--every: 0 is not a whole number from 1"),
        (("--methods", "Faces"), 2, "--methods: invalid choice: 'Faces'"),
        (("--layout", "tree"), 2, "--layout: invalid choice: 'tree'"),
        (("--layout", "frames"), 1, "--layout frames: "),
        (("--methods", "actors"), 1, "--methods actors: "),
        (("--videos", "nowhere.txt"), 1, "--videos nowhere.txt: no such file"),
        (("--videos", "."), 1, "--videos .: can't be read (Is a directory)"),
        (("--crops", "--json", "nowhere.json", "--layout", "folder"), 1, "--layout folder: "),
    ],
)
def test_wrong_flags(reject: Callable, ff_tree: Path, tmp_path: Path, words: tuple, code: int, line: str) -> None:
    given = reject(code, "faces", "--source", ff_tree, "--out", tmp_path / "faces.parquet", *words)
    assert line in given
    assert not list(tmp_path.iterdir())


def test_both_choices_of_frames_in_a_file(reject: Callable, ff_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "faces.yaml").write_text("every: 2\nframes_per_video: all\n")
    words = ("faces", "--source", ff_tree, "--out", tmp_path / "f.parquet", "--config", tmp_path / "faces.yaml")
    assert "--every 2: not together with --frames-per-video" in reject(1, *words)


def test_a_list_of_videos(accept: Callable, reject: Callable, ff_tree: Path, tmp_path: Path) -> None:
    names, table = tmp_path / "videos.txt", tmp_path / "faces.parquet"
    words = ("faces", "--source", ff_tree, "--videos", names, "--out", table, "--frames-per-video", "all")
    names.write_bytes("\ufeff# two of them\n000\r\nFaceSwap/001_000  # a fake\n\n".encode())
    assert "videos: 2 c23 (1 youtube, 1 FaceSwap)" in accept(*words)
    assert FaceTable.load(table).num_frames == 2 * FRAMES
    names.write_text("000\n999\n")
    assert f"--videos {names}: {ff_tree} has no such videos: 999" in reject(1, *words)
    names.write_text("# nothing\n")
    assert "names no video" in reject(1, *words)
    names.write_bytes(b"\xff\xfe0")
    assert "not a text file in UTF-8" in reject(1, *words)
    shutil.copy(table, tmp_path / "kept")
    names.write_text("000\n")
    assert "has faces of 1 videos that aren't selected now" in reject(1, *words)
    assert table.read_bytes() == (tmp_path / "kept").read_bytes()
