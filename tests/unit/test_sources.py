"""What the offline stage finds on disk, in each of the three layouts."""

import contextlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from datasets_shards.errors import InputError
from datasets_shards.frames.masks import mask_files
from datasets_shards.sources import Selection, count_by_method, describe_skipped, find_videos, open_source
from datasets_shards.sources.folder import key_name


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


# --- FaceForensics++ videos


def test_order_and_identities(tmp_path: Path) -> None:
    root = touch(
        tmp_path,
        "manipulated_sequences/FaceSwap/raw/videos/001_000.mp4",
        "manipulated_sequences/Deepfakes/raw/videos/001_000.mp4",
        "manipulated_sequences/FaceShifter/raw/videos/001_000.mp4",
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
        ("FaceShifter", "001_000", ("001", "000"), 1),
        ("DeepFakeDetection", "01_02__walking__YVGY8LOK", ("actor 01", "actor 02"), 1),
    ]
    assert videos[0].relative == "original_sequences/youtube/raw/videos/000.mp4"
    assert count_by_method(videos).startswith("2 youtube, 1 actors, 1 Deepfakes")


def test_masks_are_found_at_any_depth(tmp_path: Path) -> None:
    root = touch(
        tmp_path,
        "manipulated_sequences/Deepfakes/c0/videos/001_000.mp4",
        "manipulated_sequences/Deepfakes/c0/videos/000_001.mp4",
        "manipulated_sequences/Deepfakes/masks/videos/001_000.mp4",
    )
    masks = {video.name: video.mask for video in find_videos(root)}
    assert masks == {
        "000_001": None,
        "001_000": root / "manipulated_sequences/Deepfakes/masks/videos/001_000.mp4",
    }


def test_several_compressions_need_a_choice(tmp_path: Path) -> None:
    root = touch(
        tmp_path, "original_sequences/youtube/c0/videos/000.mp4", "original_sequences/youtube/c40/videos/000.mp4"
    )
    with pytest.raises(InputError, match="holds the compressions c0, c40; choose with --compression"):
        find_videos(root)
    assert [video.compression for video in find_videos(root, "c40")] == ["c40"]
    with pytest.raises(InputError, match=r"--compression c23: .* has only c0, c40"):
        find_videos(root, "c23")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other/000.mp4", r"no FF\+\+ videos .* no DeepfakeBench frames .* and no folders real/ and fake/"),
        ("original_sequences/Deepfakes/raw/videos/000_001.mp4", "'Deepfakes' is no method of original_sequences"),
        ("manipulated_sequences/deepfakes/raw/videos/000_001.mp4", "'deepfakes' is no method"),
        ("manipulated_sequences/fake/raw/videos/000_001.mp4", "'fake' is no method"),
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


def test_duplicate_names_are_refused(tmp_path: Path) -> None:
    videos = "original_sequences/youtube/raw/videos"
    root = touch(tmp_path, f"{videos}/000.mp4", f"{videos}/000.avi")
    with pytest.raises(InputError, match=r"000.avi and .*000.mp4: two videos of youtube by the name '000'"):
        find_videos(root)


@pytest.fixture
def locked_folder() -> Iterator[Path]:
    """A tree in which nobody may read one folder, and this process as somebody who isn't root."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    touch(root, "original_sequences/youtube/raw/videos/000.mp4", "original_sequences/actors/raw/videos/01__x.mp4")
    locked = root / "original_sequences/actors/raw/videos"
    locked.chmod(0)
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield root
    os.seteuid(before)
    locked.chmod(0o755)
    shutil.rmtree(root)


def test_an_unreadable_folder_is_no_empty_one(locked_folder: Path) -> None:
    with pytest.raises(InputError, match=r"actors/raw/videos: can't be read \(Permission denied\)"):
        find_videos(locked_folder)


def test_masks_may_be_pictures(tmp_path: Path) -> None:
    method = tmp_path / "manipulated_sequences/Deepfakes"
    touch(method, "c23/videos/000_001.mp4", "masks/frames/000_001/0000.png", "masks/frames/000_001/0012.png")
    (video,) = find_videos(tmp_path)
    assert video.mask == method / "masks/frames/000_001"
    assert mask_files(video.mask) == {0: "0000.png", 12: "0012.png"}


# --- links and what is no file


def test_links_that_lead_nowhere_are_named_and_counted(tmp_path: Path, accept, reject) -> None:
    """As git-annex and DataLad leave them, in every layout."""
    root, folder = tmp_path / "ff", "original_sequences/youtube/c23/videos"
    touch(root, *(f"{folder}/00{i}.mp4" for i in range(2)))
    for i in (2, 3):
        (root / folder / f"00{i}.mp4").symlink_to(".git/annex/objects/away")
    source = open_source(root)
    assert [video.name for video in source.videos] == ["000", "001"]
    lost = f"{folder}/002.mp4: a link that leads nowhere: .git/annex/objects/away (No such file or directory)"
    assert source.skipped[0].startswith(lost)
    lines = list(describe_skipped(source))
    assert len(lines) == 3
    assert "skipped: 2 links lead nowhere, and 2 videos are left" in lines[2]
    for i in range(2):
        (root / folder / f"00{i}.mp4").unlink()
    line = reject(1, "faces", "--source", root, "--out", tmp_path / "faces.parquet")
    assert "no video can be read" in line
    assert "002.mp4: a link that leads nowhere" in line

    plain = touch(tmp_path / "plain", "real/a.png")
    (plain / "real/b.png").symlink_to("away")
    (plain / "fake").symlink_to("nowhere")
    source = open_source(plain)
    assert [line.partition(":")[0] for line in source.skipped] == ["real/b.png"]


def test_a_loop_of_links_is_entered_once(tmp_path: Path) -> None:
    root = touch(tmp_path, "real/ann/1.png", "real/clip.mp4", "fake/bob.mp4")
    (root / "real/loop").symlink_to(".")
    (root / "real/ann/up").symlink_to("..")
    (root / "real/self.mp4").symlink_to("self.mp4")
    (root / "fake/aunt").symlink_to("../real/ann")
    source = open_source(root)
    assert [video.relative for video in source.videos] == ["real/ann", "real/clip.mp4", "fake/bob.mp4"]
    assert sorted(line.partition(" (")[0] for line in source.skipped) == [
        "fake/aunt: a link to a folder that is read already",
        "real/ann/up: a link to a folder that is read already",
        "real/loop: a link to a folder that is read already",
        "real/self.mp4: a link that leads nowhere: self.mp4",
    ]


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    root = touch(tmp_path, "real/a.mp4")
    os.mkfifo(root / "real/x.mp4")
    with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(root / "real"):
        listener.bind("y.png")
    source = open_source(root)
    assert [video.relative for video in source.videos] == ["real/a.mp4"]
    assert source.skipped == ["real/x.mp4: a pipe, not a file", "real/y.png: a socket, not a file"]


# --- what is taken of a source


def test_what_is_not_asked_for_is_not_judged(tmp_path: Path, benchmark_tree: Path) -> None:
    root = touch(
        tmp_path / "ff",
        "original_sequences/youtube/c23/videos/000.mp4",
        "manipulated_sequences/Deepfakes/c23/videos/000_001.mp4",
        "manipulated_sequences/simswap/c23/videos/000_001.mp4",
        "manipulated_sequences/FaceSwap/c40/videos/no pair.mp4",
    )
    source = open_source(root, Selection(methods=("youtube", "Deepfakes")))
    assert [video.method for video in source.videos] == ["youtube", "Deepfakes"]
    with pytest.raises(InputError, match=r"'simswap' is no method .* or choose with --methods"):
        open_source(root)
    with pytest.raises(InputError, match="FaceSwap must be TARGET_SOURCE"):
        open_source(root, Selection(methods=("FaceSwap",)))
    with pytest.raises(InputError, match=r"--methods Face2Face: .* has only youtube, Deepfakes, FaceSwap"):
        open_source(root, Selection(methods=("youtube", "Face2Face")))

    path = benchmark_tree / "FaceForensics++.json"
    content = json.loads(path.read_text())
    content["FaceForensics++"]["simswap"] = {"train": {"c23": {}}}
    path.write_text(json.dumps(content))
    assert len(open_source(benchmark_tree, Selection(methods=("youtube",))).videos) == 2
    with pytest.raises(InputError, match="unknown labels simswap"):
        open_source(benchmark_tree)

    plain = touch(tmp_path / "plain", "real/a.png", f"fake/Deepfakes/{'x' * 100}/1.png")
    assert len(open_source(plain, Selection(methods=("real",))).videos) == 1


def test_selection(tmp_path: Path) -> None:
    root = touch(
        tmp_path,
        "original_sequences/youtube/c23/videos/000.mp4",
        "original_sequences/youtube/c23/videos/001.mp4",
        "manipulated_sequences/Deepfakes/c23/videos/000_001.mp4",
        "manipulated_sequences/FaceSwap/c23/videos/000_001.mp4",
    )

    def names(**chosen: object) -> list[str]:
        selected = open_source(root, Selection(**chosen)).videos  # type: ignore[arg-type]
        return [f"{video.method}/{video.name}" for video in selected]

    assert names(methods=("youtube",)) == ["youtube/000", "youtube/001"]
    assert names(names=frozenset({"000_001", "001"})) == ["youtube/001", "Deepfakes/000_001", "FaceSwap/000_001"]
    assert names(names=frozenset({"FaceSwap/000_001"})) == ["FaceSwap/000_001"]
    with pytest.raises(InputError, match=r"--methods Face2Face: .* has only youtube, Deepfakes, FaceSwap"):
        names(methods=("youtube", "Face2Face"))
    with pytest.raises(InputError, match=r"list.txt: .* has no such videos: 007"):
        names(names=frozenset({"001", "007"}), names_from="list.txt")
    with pytest.raises(InputError, match="no video is selected"):
        names(names=frozenset())


def test_flags_of_other_layouts_are_refused(tmp_path: Path) -> None:
    root = touch(tmp_path, "original_sequences/youtube/raw/videos/000.mp4")
    with pytest.raises(InputError, match=r"--crops: .* is no plain folder"):
        open_source(root, Selection(cropped=True))
    with pytest.raises(InputError, match=r"--json a.json: .* holds no DeepfakeBench frames"):
        open_source(root, Selection(json=Path("a.json")))


# --- DeepfakeBench's tree


@pytest.fixture
def benchmark_tree(tmp_path: Path) -> Path:
    """Two real videos and a fake one, with the JSON file; one listed frame isn't there, one folder isn't listed."""
    tree = tmp_path / "bench"
    youtube, fakes = "original_sequences/youtube/c23", "manipulated_sequences/Deepfakes/c23"
    names = [f"{youtube}/frames/{video}/{frame}.png" for video in ("000", "001", "002") for frame in ("000", "014")]
    names += [f"{fakes}/frames/000_001/{frame}.png" for frame in ("007", "100", "1000")]
    touch(tree / "FaceForensics++", *names, f"{fakes}/masks/000_001/007.png")
    (tree / "FaceForensics++" / f"{youtube}/frames/001/014.png").unlink()

    def entry(label: str, folder: str, *frames: str) -> dict:
        return {"label": label, "frames": [f"FaceForensics++\\{folder}\\{frame}.png" for frame in frames]}

    splits = {split: {"c23": {}, "c40": {}} for split in ("train", "val", "test")}
    content: dict = {label: json.loads(json.dumps(splits)) for label in ("FF-real", "FF-DF")}
    content["FF-real"]["train"]["c23"]["000"] = entry("FF-real", f"{youtube}/frames/000", "014", "000")
    content["FF-real"]["train"]["c23"]["001"] = entry("FF-real", f"{youtube}/frames/001", "000", "014")
    content["FF-DF"]["train"]["c23"]["000_001"] = entry("FF-DF", f"{fakes}/frames/000_001", "1000", "007", "100")
    (tree / "FaceForensics++.json").write_text(json.dumps({"FaceForensics++": content}))
    return tree


def test_benchmark_frames(benchmark_tree: Path) -> None:
    for root in (benchmark_tree, benchmark_tree / "FaceForensics++"):
        source = open_source(root)
        assert (source.layout, source.compression) == ("DeepfakeBench frames", "c23")
        real, _, fake = source.videos
        assert (real.method, real.name, real.files) == ("youtube", "000", ((0, "000.png"), (14, "014.png")))
        assert (fake.target, fake.source) == ("000", "001")
        assert [number for number, _ in fake.files] == [7, 100, 1000]
        assert all(video.cropped and (video.path / "000.png").exists() for video in (real,))
        assert fake.mask == benchmark_tree / "FaceForensics++/manipulated_sequences/Deepfakes/c23/masks/000_001"
        assert real.mask is None
        assert source.splits == dict.fromkeys(
            [("youtube", "000"), ("youtube", "001"), ("Deepfakes", "000_001")], "train"
        )
        assert [line.rpartition("FaceForensics++/")[2] for line in source.skipped] == [
            "original_sequences/youtube/c23/frames/002: not listed in the JSON file"
        ]


def test_benchmark_json_can_be_given(benchmark_tree: Path, tmp_path: Path) -> None:
    file = (benchmark_tree / "FaceForensics++.json").rename(tmp_path / "mine.json")
    with pytest.raises(InputError, match=r"frames without their FaceForensics\+\+.json; give it with --json"):
        open_source(benchmark_tree)
    assert len(open_source(benchmark_tree, Selection(json=file)).videos) == 3


def test_a_video_without_frames_is_skipped(benchmark_tree: Path) -> None:
    path = benchmark_tree / "FaceForensics++.json"
    content = json.loads(path.read_text())
    content["FaceForensics++"]["FF-real"]["train"]["c23"]["002"] = {"label": "FF-real", "frames": []}
    path.write_text(json.dumps(content))
    source = open_source(benchmark_tree)
    assert [video.name for video in source.videos] == ["000", "001", "000_001"]
    assert source.skipped[0].endswith("frames/002: the JSON file lists no frame of it")
    assert len(source.skipped) == 1


def test_videos_beside_the_frames_need_a_choice(benchmark_tree: Path) -> None:
    tree = touch(benchmark_tree / "FaceForensics++", "original_sequences/youtube/c23/videos/000.mp4")
    with pytest.raises(InputError, match="choose with --layout videos, or --layout frames"):
        open_source(tree)
    assert open_source(tree, Selection(layout="videos")).videos[0].files == ()
    assert open_source(tree, Selection(layout="frames")).videos[0].cropped
    with pytest.raises(InputError, match=r"--layout folder: .* isn't laid out so"):
        open_source(tree, Selection(layout="folder"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "not readable as JSON"),
        ("[]", "not of the form data set -> label"),
        ('{"FaceForensics++": {"FF-real": {"train": ["000"]}}}', "not of the form data set -> label"),
        ('{"FaceForensics++": {"FF-XX": {"train": {}}}}', "unknown labels FF-XX"),
        ('{"FaceForensics++": {"FF-real": {"train": {}}}}', "lists no video of any of raw, c23, c40"),
        ('{"F": {"FF-real": {"train": {"c23": {"000": {}}}}}}', "FF-real 000: no list 'frames' of paths"),
        ('{"F": {"FF-real": {"train": {"c23": {"000": {"frames": ["a/b.png"]}}}}}}', "isn't .../<frame number>.png"),
        (
            '{"F": {"FF-real": {"train": {"c23": {"000": {"frames": []}}}, "val": {"c23": {"000": {"frames": []}}}}}}',
            "FF-real 000 is in train and in val",
        ),
        ('{"F": {"FF-real": {"validation": {}, "test": {}}}}', "unknown splits validation; known: train, val, test"),
        (
            '{"F": {"FF-real": {"train": {"c23": {"000": {"frames": ["a/1.png", "a/001.png"]}}}}}}',
            "FF-real 000: two files of the same frame as 001.png",
        ),
    ],
)
def test_wrong_benchmark_json(benchmark_tree: Path, content: str, message: str) -> None:
    (benchmark_tree / "FaceForensics++.json").write_text(content)
    with pytest.raises(InputError, match=message):
        open_source(benchmark_tree)


# --- a plain folder


def test_plain_folder(tmp_path: Path) -> None:
    root = touch(
        tmp_path,
        "real/anna/frame10.png",
        "real/anna/frame9.jpg",
        "real/anna/notes.txt",
        "real/clip one.mp4",
        "real/portrait.PNG",
        "fake/anna/1.png",
        "fake/Deepfakes/été 2.x/1.png",
        "fake/1.png/1.png",
    )
    source = open_source(root)
    assert (source.layout, source.compression) == ("folder", "none")
    assert [(video.method, video.name, [name for _, name in video.files]) for video in source.videos] == [
        ("real", "anna", ["frame9.jpg", "frame10.png"]),
        ("real", "clip_one", []),
        ("real", "portrait", ["portrait.PNG"]),
        ("Deepfakes", "été_2_x", ["1.png"]),
        ("fake", "1_png", ["1.png"]),
        ("fake", "anna", ["1.png"]),
    ]
    assert source.videos[0].identities == source.videos[5].identities == ("anna",)
    assert all((video.path / name).is_file() for video in source.videos for _, name in video.files)
    assert [video.relative for video in source.videos[:3]] == ["real/anna", "real/clip one.mp4", "real/portrait.PNG"]
    assert source.skipped == ["real/anna/notes.txt: neither an image nor a video"]
    with pytest.raises(InputError, match=r"--compression c23: .* is a plain folder, which has none"):
        find_videos(root, "c23")
    with pytest.raises(InputError, match=r"clip one.mp4: --crops says"):
        open_source(root, Selection(cropped=True))


def test_plain_folder_names_that_fall_together(tmp_path: Path) -> None:
    root = touch(tmp_path, "real/a b/1.png", "real/a.b/1.png")
    with pytest.raises(InputError, match=r"real/a b and real/a.b: two videos of real by the name 'a_b'"):
        open_source(root)
    assert key_name("a b/c.d\te") == "a_b_c_d_e"


@pytest.mark.parametrize(
    ("name", "message"),
    [("real/notes.txt", "no image or video below its folders"), (f"real/{'x' * 100}/1.png", "longer than 90 bytes")],
)
def test_plain_folders_that_are_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_source(touch(tmp_path, name))
