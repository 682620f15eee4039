"""A tiny FF++ tree of real H.264 videos, and the sets packed from it."""

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from skimage.data import astronaut

from tests.conftest import REPOSITORY, run_python

FACE = astronaut()[0:256, 92:348]  # one face, about 90 pixels wide
FRAMES = 5
PAIRS = (("000", "001"), ("002", "003"), ("004", "005"))


def write_video(path: Path, frames: list[np.ndarray]) -> Path:
    """Write RGB frames [H, W, 3] as an H.264 file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25), options={"crf": "16", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return path


def face_video(path: Path, identity: int, brightness: float = 1.0) -> Path:
    """A video of the face that drifts a little; each identity has its own colour."""
    tint = np.array([1, 1 - 0.05 * identity, 1 - 0.03 * identity]) * brightness
    picture = np.clip(FACE * tint, 0, 255).astype(np.uint8)
    return write_video(path, [np.roll(picture, (i, 2 * i), (0, 1)) for i in range(FRAMES)])


def write_tree(root: Path, methods: tuple[str, ...] = ("Deepfakes", "FaceSwap"), compression: str = "c23") -> Path:
    """Six people in three pairs: 6 real videos, and 6 fakes of each method."""
    for pair in PAIRS:
        for target, source in (pair, pair[::-1]):
            face_video(root / f"original_sequences/youtube/{compression}/videos/{target}.mp4", int(target))
            for i, method in enumerate(methods):
                folder = root / "manipulated_sequences" / method / compression / "videos"
                face_video(folder / f"{target}_{source}.mp4", int(target), 0.9 - 0.1 * i)
    return root


@pytest.fixture(scope="session")
def ff_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of 18 videos of 5 frames, c23; not to be written to."""
    return write_tree(tmp_path_factory.mktemp("ff") / "tree")


@pytest.fixture(scope="session")
def packed(ff_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root packed from `ff_tree` by the command line: q77, q10 and raw, with two workers; not to be written to."""
    root = tmp_path_factory.mktemp("packed") / "root"
    done = datasets_shards("pack", "--source", ff_tree, "--out", root, *PACK_FLAGS, "--qualities", 77, 10, "raw")
    assert done.returncode == 0, done.stderr
    return root


PACK_FLAGS = ("--frames-per-video", 3, "--size", 128, "--shard-samples", 12, "--workers", 2)


def datasets_shards(*words: object):
    """Run `python -m datasets_shards WORDS...`."""
    return run_python("-m", "datasets_shards", *words)


@pytest.fixture
def accept(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command in this process, with one worker; gives what it printed."""
    from datasets_shards.__main__ import main

    def run(*words: object) -> str:
        returned = main([str(word) for word in (*words, "--workers", 1)])
        captured = capsys.readouterr()
        assert returned == 0, captured
        return captured.out

    return run


@pytest.fixture
def reject(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail; gives its one line on stderr."""
    from datasets_shards.__main__ import main

    def run(code: int, *words: object) -> str:
        try:
            returned = main([str(word) for word in words])
        except SystemExit as stop:
            returned = stop.code
        captured = capsys.readouterr()
        assert returned == code, captured
        assert captured.err.count("\n") == 1, captured.err
        return captured.err.removesuffix("\n")

    return run


@pytest.fixture(scope="session")
def ffpp_mini() -> Path:
    """Four real FF++ videos (c23), which can't be redistributed: FDTRAIN_FFPP_MINI or ../shared/data/ffpp_mini."""
    path = Path(os.environ.get("FDTRAIN_FFPP_MINI", REPOSITORY.parent / "shared/data/ffpp_mini"))
    if not path.is_dir():
        pytest.skip(f"no FF++ videos at {path}; set FDTRAIN_FFPP_MINI")
    return path
