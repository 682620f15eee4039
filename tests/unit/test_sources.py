"""What the offline stage finds on disk."""

from pathlib import Path

import pytest

from datasets_shards.errors import InputError
from datasets_shards.sources import find_videos


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_order_and_identities(tmp_path: Path) -> None:
    root = touch(
        tmp_path,
        "manipulated_sequences/FaceSwap/raw/videos/001_000.mp4",
        "manipulated_sequences/Deepfakes/raw/videos/001_000.mp4",
        "manipulated_sequences/DeepFakeDetection/raw/videos/01_02__walking__YVGY8LOK.mp4",
        "original_sequences/youtube/raw/videos/001.mp4",
        "original_sequences/youtube/raw/videos/000.mp4",
        "original_sequences/youtube/raw/videos/._000.mp4",
        "original_sequences/youtube/raw/videos/notes.txt",
        "original_sequences/actors/raw/videos/01__walking.mp4",
        "original_sequences/youtube/masks/videos/000.mp4",
    )
    videos = find_videos(root)
    assert [(video.method, video.name, video.identities, video.label) for video in videos] == [
        ("youtube", "000", ("000",), 0),
        ("youtube", "001", ("001",), 0),
        ("actors", "01__walking", ("actor 01",), 0),
        ("Deepfakes", "001_000", ("001", "000"), 1),
        ("FaceSwap", "001_000", ("001", "000"), 1),
        ("DeepFakeDetection", "01_02__walking__YVGY8LOK", ("actor 01", "actor 02"), 1),
    ]
    assert videos[0].relative == "original_sequences/youtube/raw/videos/000.mp4"


def test_several_compressions_need_a_choice(tmp_path: Path) -> None:
    root = touch(
        tmp_path, "original_sequences/youtube/raw/videos/000.mp4", "original_sequences/youtube/c40/videos/000.mp4"
    )
    with pytest.raises(InputError, match="holds the compressions raw, c40; choose with --compression"):
        find_videos(root)
    assert [video.compression for video in find_videos(root, "c40")] == ["c40"]
    with pytest.raises(InputError, match=r"--compression c23: .* has only raw, c40"):
        find_videos(root, "c23")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other/000.mp4", "no FF"),
        ("original_sequences/Deepfakes/raw/videos/000_001.mp4", "'Deepfakes' is no method of original_sequences"),
        ("manipulated_sequences/deepfakes/raw/videos/000_001.mp4", "'deepfakes' is no method"),
        ("manipulated_sequences/Deepfakes/raw/videos/000.mp4", "must be TARGET_SOURCE.mp4"),
        ("original_sequences/youtube/raw/videos/0 1.mp4", "a space"),
        ("original_sequences/youtube/raw/videos/0.1.mp4", "a dot"),
    ],
)
def test_what_is_not_ff_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_videos(touch(tmp_path, name))


def test_missing_tree(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        find_videos(tmp_path / "nowhere")


def test_a_path_may_have_spaces_and_accents(tmp_path: Path) -> None:
    root = touch(tmp_path / "mes vidéos", "original_sequences/youtube/raw/videos/000.mp4")
    assert find_videos(root)[0].path.is_file()
