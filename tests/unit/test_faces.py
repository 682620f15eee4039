"""dlib finds the face, and the table keeps what it found and what it dropped."""

from pathlib import Path

import numpy as np
import pytest
from skimage.transform import rescale

from datasets_shards.errors import InputError
from datasets_shards.faces.detector import NO_FACE, OK, TOO_SMALL, UNREADABLE, FaceSettings, detect_video, find_face
from datasets_shards.faces.table import FACES_SCHEMA, FaceTable, detect_faces, report_problems
from datasets_shards.sources import Video, find_videos
from tests.unit.conftest import FACE, FRAMES, face_video, write_video

SETTINGS = FaceSettings(frames_per_video=2)


def video_at(path: Path) -> Video:
    return Video("youtube", path.stem, path.stem, "", "raw", path, path.name)


def test_the_astronaut() -> None:
    face = find_face(np.ascontiguousarray(FACE))
    assert face is not None
    left, top, right, bottom = face.box
    assert 80 < face.side < 110
    eyes, mouth = face.landmarks[36:48].mean(0), face.landmarks[48:].mean(0)
    assert left < eyes[0] < right
    assert top < eyes[1] < mouth[1] < bottom
    assert face.landmarks.shape == (68, 2)


def test_the_larger_of_two_faces_wins() -> None:
    small = (rescale(FACE, 0.6, channel_axis=2, anti_aliasing=True) * 255).astype(np.uint8)
    frame = np.zeros((256, 512, 3), np.uint8)
    frame[:, 256:] = FACE
    frame[: small.shape[0], : small.shape[1]] = small
    face = find_face(frame)
    assert face is not None
    assert face.box[0] > 256


def test_every_frame_has_its_row(tmp_path: Path) -> None:
    blank = np.full((128, 128, 3), 90, np.uint8)
    small = (rescale(FACE, 0.5, channel_axis=2, anti_aliasing=True) * 255).astype(np.uint8)
    face_video(tmp_path / "000.mp4", 0)
    write_video(tmp_path / "001.mp4", [blank] * 4)
    write_video(tmp_path / "002.mp4", [small] * 4)
    (tmp_path / "003.mp4").write_bytes(b"broken")

    videos = [video_at(path) for path in sorted(tmp_path.glob("*.mp4"))]
    faces = detect_faces(videos, FaceSettings(frames_per_video=2, min_face=60), workers=1)
    rows = faces.table.to_pylist()
    assert [(row["video"], row["frame"], row["status"]) for row in rows] == [
        ("000", 1, OK),
        ("000", 3, OK),
        ("001", 1, NO_FACE),
        ("001", 3, NO_FACE),
        ("002", 1, TOO_SMALL),
        ("002", 3, TOO_SMALL),
        ("003", None, UNREADABLE),
    ]
    assert (rows[0]["frame_width"], rows[0]["frame_height"]) == (256, 256)
    assert "of at least 60 pixels" in rows[4]["reason"]
    assert rows[2]["box"] is None
    assert rows[6]["bytes"] == 6
    assert faces.status_counts() == {OK: 2, NO_FACE: 2, TOO_SMALL: 2, UNREADABLE: 1}
    problems = list(report_problems(faces))
    assert problems[0].startswith("skipped 003.mp4: can't be decoded")
    assert problems[1:] == ["no usable face in 001.mp4 (2 frames)", "no usable face in 002.mp4 (2 frames)"]


def test_no_face_anywhere_is_an_error(tmp_path: Path) -> None:
    write_video(tmp_path / "000.mp4", [np.zeros((64, 64, 3), np.uint8)] * 3)
    with pytest.raises(InputError, match=r"no usable face in any of 1 videos \(2 no face\)"):
        detect_faces([video_at(tmp_path / "000.mp4")], SETTINGS, workers=1)


def test_a_table_comes_back(ff_tree: Path, tmp_path: Path) -> None:
    videos = find_videos(ff_tree)[:2]
    faces = detect_faces(videos, SETTINGS, workers=1)
    faces.save(tmp_path / "faces.parquet")
    loaded = FaceTable.load(tmp_path / "faces.parquet")
    assert loaded.table.schema.equals(FACES_SCHEMA)
    assert loaded.table.to_pylist() == faces.table.to_pylist()
    assert (loaded.settings, loaded.detector) == (faces.settings, faces.detector)
    loaded.check(videos, "faces.parquet")
    with pytest.raises(InputError, match=r"lacks 16 videos of the source: .*003.mp4.* and 11 more"):
        loaded.check(find_videos(ff_tree), "faces.parquet")
    with pytest.raises(InputError, match=r"videos that the source doesn't have: .*001.mp4"):
        loaded.check(videos[:1], "faces.parquet")


def test_a_changed_video_is_noticed(tmp_path: Path) -> None:
    path = face_video(tmp_path / "000.mp4", 0)
    faces = detect_faces([video_at(path)], SETTINGS, workers=1)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(InputError, match=r"changed since: 000.mp4"):
        faces.check([video_at(path)], "faces.parquet")


@pytest.mark.parametrize("content", [b"", b"PAR1 but no table"])
def test_other_files_are_no_table(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "faces.parquet"
    with pytest.raises(InputError, match="no such table of faces"):
        FaceTable.load(path)
    path.write_bytes(content)
    with pytest.raises(InputError, match="not readable as a table of faces"):
        FaceTable.load(path)


def test_a_shard_index_is_no_table(packed: Path) -> None:
    with pytest.raises(InputError, match="not a table of faces of version 1"):
        FaceTable.load(packed / "q77/index.parquet")


def test_the_number_of_workers_changes_nothing(ff_tree: Path) -> None:
    videos = find_videos(ff_tree)[:5]
    one, two = (detect_faces(videos, SETTINGS, workers) for workers in (1, 2))
    assert one.table.equals(two.table)


def test_real_videos(ffpp_mini: Path) -> None:
    for video in find_videos(ffpp_mini)[::3]:
        rows = detect_video(video, FaceSettings(frames_per_video=2))
        assert [row["status"] for row in rows] == [OK, OK]
        assert all(row["frame_width"] == 1280 and row["confidence"] > 1 for row in rows)


def test_the_tree_has_a_face_in_every_frame(packed: Path) -> None:
    faces = FaceTable.load(packed / "faces.parquet")
    assert faces.status_counts() == {OK: 18 * min(3, FRAMES)}
