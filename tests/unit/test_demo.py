"""The made-up dataset: FF++'s layout, the same bytes from the same seed, faces that dlib finds, traces in the face."""

import hashlib
import json
from itertools import combinations
from pathlib import Path

import av
import dlib
import numpy as np
import pytest
from scipy import ndimage

from datasets_shards import demo
from datasets_shards.demo import DemoSummary, write_demo
from datasets_shards.demo.identities import FRAME_SIZE, Array, generator, make_portrait
from datasets_shards.demo.manipulations import MANIPULATIONS
from datasets_shards.demo.videos import camera, film, forge
from datasets_shards.errors import InputError
from datasets_shards.frames.video import read_frames
from datasets_shards.schema import FAKE_METHODS, SPLITS

SEED, IDENTITIES, FRAMES = 3, 6, 3
METHODS = ("youtube", *FAKE_METHODS[:4])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> DemoSummary:
    return write_demo(tmp_path_factory.mktemp("demo") / "ffpp", SEED, IDENTITIES, FRAMES, workers=2)


@pytest.fixture(scope="module")
def forged() -> tuple[list[Array], list[Array], dict[str, list[Array]]]:
    """The face's mask [H, W], the real video and the four fakes of one target, frame by frame, before encoding."""
    target, source = make_portrait(SEED, 0), make_portrait(SEED, 1)
    rng = generator(SEED, 0, 1)
    views = camera(rng, FRAMES)
    real = film(target, views, rng)
    fakes = {name: list(forge(real, views, make(target, source, rng), rng)) for name, make in MANIPULATIONS.items()}
    return [view.of(target.face) for view in views], real, fakes


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def videos(folder: Path, method: str) -> list[Path]:
    return sorted(folder.glob(f"*_sequences/{method}/raw/videos/*.mp4"))


def test_the_layout_is_ffpps(made: DemoSummary) -> None:
    people = [f"{i:03d}" for i in range(IDENTITIES)]
    pairs = [(people[i], people[i ^ 1]) for i in range(IDENTITIES)]
    expected = {f"original_sequences/youtube/raw/videos/{name}.mp4" for name in people}
    expected |= {
        f"manipulated_sequences/{method}/raw/videos/{target}_{source}.mp4"
        for method in METHODS[1:]
        for target, source in pairs
    }
    expected |= {f"splits/{split}.json" for split in SPLITS} | {"README.txt", "demo.json"}
    assert set(digests(made.folder)) == expected
    assert made.videos == dict.fromkeys(METHODS, IDENTITIES)
    assert made.bytes == sum(path.stat().st_size for path in made.folder.rglob("*.mp4"))


def test_splits_share_nobody_and_forget_nobody(made: DemoSummary) -> None:
    splits = {split: json.loads((made.folder / "splits" / f"{split}.json").read_text()) for split in SPLITS}
    people = [name for pairs in splits.values() for pair in pairs for name in pair]
    assert sorted(people) == [f"{i:03d}" for i in range(IDENTITIES)]
    assert {split: len(pairs) for split, pairs in splits.items()} == made.pairs == {"train": 1, "val": 1, "test": 1}


def test_the_default_number_of_identities_fills_every_split() -> None:
    pairs = [(i, i + 1) for i in range(0, 32, 2)]
    assert {split: len(members) for split, members in demo._split(pairs).items()} == {"train": 10, "val": 3, "test": 3}


def test_every_video_is_h264_with_the_frames_asked_for(made: DemoSummary) -> None:
    for path in made.folder.rglob("*.mp4"):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 25)
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert [frame.shape for frame in frames] == [(FRAME_SIZE, FRAME_SIZE, 3)] * FRAMES
        assert all(not np.array_equal(first, second) for first, second in combinations(frames, 2))


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(made: DemoSummary, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()  # an empty folder is as good as none
    again = write_demo(tmp_path / "again", SEED, IDENTITIES, FRAMES, workers=1)
    assert digests(again.folder) == digests(made.folder)
    assert again.folder.stat().st_mode == made.folder.stat().st_mode
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_seed_and_number_make_the_identity() -> None:
    one, other, elsewhere = make_portrait(0, 0), make_portrait(0, 1), make_portrait(1, 0)
    assert np.array_equal(one.image, make_portrait(0, 0).image)
    for stranger in (other, elsewhere):
        assert np.abs(one.image - stranger.image)[one.face > 0.5].mean() > 0.02
        assert np.abs(one.face - stranger.face).max() > 0.5  # of another shape, not only of another colour


def test_streams_that_begin_alike_are_independent() -> None:
    first, *others = (generator(0, *stream).random() for stream in ((1,), (1, 0), (0, 1), (1, 0, 0), ()))
    assert first not in others


@pytest.mark.parametrize("method", MANIPULATIONS)
def test_a_manipulation_changes_the_face_and_nothing_else(
    method: str, forged: tuple[list[Array], list[Array], dict[str, list[Array]]]
) -> None:
    masks, real, fakes = forged
    for mask, before, after in zip(masks, real, fakes[method], strict=True):
        change = np.abs(after - before).max(axis=-1)
        reach = ndimage.binary_dilation(mask > 0.01, iterations=15)  # soft edges and jitter
        assert change[~reach].max() < 0.5 / 255  # lost in rounding to 8 bits
        assert change[mask > 0.5].mean() > 0.005
        assert after.dtype == np.float32
        assert after.min() >= 0
        assert after.max() <= 1


def test_the_four_manipulations_differ(forged: tuple[list[Array], list[Array], dict[str, list[Array]]]) -> None:
    masks, _, fakes = forged
    for one, other in combinations(MANIPULATIONS, 2):
        assert np.abs(fakes[one][0] - fakes[other][0])[masks[0] > 0.5].mean() > 0.01, (one, other)


def test_a_fake_video_keeps_its_targets_surroundings(made: DemoSummary) -> None:
    """Also after encoding, where only the quantization noise of two encodings is left outside the face."""
    border = np.ones((FRAME_SIZE, FRAME_SIZE), bool)
    border[60:270, 60:260] = False
    (real,) = (frame.astype(float) for _, frame in read_frames(videos(made.folder, "youtube")[0], [1]))
    for method in MANIPULATIONS:
        (fake,) = (frame.astype(float) for _, frame in read_frames(videos(made.folder, method)[0], [1]))
        change = np.abs(fake - real).mean(axis=-1)
        assert change[border].mean() < 2 < 3 < change[~border].max(), method


def test_dlib_finds_the_faces(made: DemoSummary) -> None:
    detector = dlib.get_frontal_face_detector()
    for method in METHODS:
        found = [
            len(detector(frame, 1)) == 1
            for path in videos(made.folder, method)
            for _, frame in read_frames(path, [0, FRAMES - 1])
        ]
        assert len(found) == 2 * IDENTITIES
        assert np.mean(found) >= 0.95, method


def test_a_finished_demo_is_left_as_it_is(made: DemoSummary) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")}
    again = write_demo(made.folder, SEED, IDENTITIES, FRAMES)
    assert not again.written
    assert made.written
    assert again.bytes == made.bytes
    assert {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")} == before


def test_a_folder_that_holds_something_else_is_refused(made: DemoSummary, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"another seed 3 \(asked for: 4\), frames 3 \(asked for: 5\); remove it"):
        write_demo(made.folder, 4, IDENTITIES, 5)
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(InputError, match="is no demo dataset"):
            write_demo(out)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_demo_that_lost_a_video_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_write_pair", one_byte_pair)
    summary = write_demo(tmp_path / "ffpp", identities=6, workers=1)
    (summary.folder / "original_sequences/youtube/raw/videos/000.mp4").unlink()
    with pytest.raises(InputError, match=r"was changed: 29 videos, 29 bytes; remove it"):
        write_demo(tmp_path / "ffpp", identities=6)


def one_byte_pair(job: demo._PairJob) -> int:
    """Stands in for the worker where a test is about the folder alone."""
    first, second = (f"{person:03d}" for person in job.pair)
    names = [("youtube", first), ("youtube", second)]
    names += [(method, video) for method in MANIPULATIONS for video in (f"{first}_{second}", f"{second}_{first}")]
    for method, video in names:
        path = demo._video_path(job.folder, method, video)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return len(names)


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_at_the_second(job: demo._PairJob) -> int:
        if job.pair[0]:
            raise OSError("no space left on device")
        return one_byte_pair(job)

    monkeypatch.setattr(demo, "_write_pair", fail_at_the_second)
    with pytest.raises(OSError, match="no space left"):
        write_demo(tmp_path / "ffpp", workers=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"seed": -1}, "seed -1 is negative"),
        ({"identities": 7}, "identities 7: must be an even number from 6 to 1000"),
        ({"identities": 4}, "identities 4: must be"),
        ({"identities": 1002}, "identities 1002: must be"),
        ({"frames": 0}, "frames 0: a video needs 1 or more"),
        ({"workers": 0}, "workers 0: must be 1 or more"),
    ],
)
def test_parameters_out_of_range(parameters: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        write_demo(tmp_path / "ffpp", **parameters)
    assert list(tmp_path.iterdir()) == []


def test_it_says_that_its_numbers_mean_nothing(made: DemoSummary) -> None:
    record = json.loads((made.folder / "demo.json").read_text())
    for text in (str(made), (made.folder / "README.txt").read_text(), record["note"]):
        assert "numbers got from it mean nothing for the detection of real deepfakes" in text
    assert (record["seed"], record["identities"], record["frames"]) == (SEED, IDENTITIES, FRAMES)
