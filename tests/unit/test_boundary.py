"""Damaged files through every door: each is read or refused with a reason, and all doors see the same pixels."""

import time
from pathlib import Path

import numpy as np
import pytest
from mlflow.exceptions import MlflowException

from datasets_shards.crops.align import CropSettings
from datasets_shards.faces.detector import FaceSettings
from datasets_shards.faces.rows import OK, UNREADABLE, UNREADABLE_FRAME, detect_video
from datasets_shards.frames import read_frames
from datasets_shards.sources import Video
from fdtrain.predict.crops import Recipe, make_crops
from fdtrain.predict.inputs import Input
from fdtrain.registry.serving import decode
from tests.fuzzing import SUFFIXES, mutate, whole_files
from tests.unit.conftest import FACE

MUTATIONS = 25  # of each format; 500 were tried when this was written
SETTINGS = FaceSettings(frames_per_video=2, upsample=0)
BOUND = 20  # seconds


@pytest.fixture(scope="module")
def whole() -> dict[str, bytes]:
    return whole_files(FACE[::2, ::2])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damage_costs_its_own_file_alone(whole: dict[str, bytes], tmp_path: Path, suffix: str) -> None:
    outcomes = set()
    for seed in range(MUTATIONS):
        started = time.monotonic()
        path = tmp_path / f"{seed}.{suffix}"
        content = whole[suffix] if seed == 0 else mutate(whole[suffix], seed)
        path.write_bytes(content)
        seen = predicted(path, tmp_path)
        outcomes.add(seen is not None)
        assert seed or seen is not None
        packed_frames = packed(path)
        if seen is not None and packed_frames is not None:
            assert np.array_equal(seen, packed_frames)
        pixels = served(content)
        if seen is not None and suffix != "mp4":
            assert pixels is not None
            assert np.array_equal(seen[0], pixels)
        assert time.monotonic() - started < BOUND
    assert outcomes == {True, False}, "files that are read, and files that aren't"


def predicted(path: Path, folder: Path) -> np.ndarray | None:
    """The crops of `predict --crops`, or None for a row with a reason."""
    file = make_crops(Input(str(path)), Recipe(SETTINGS, CropSettings(), are_crops=True), folder)
    if file.error:
        assert "\n" not in file.error
        return None
    return np.stack(list(file.read_crops()))


def packed(path: Path) -> np.ndarray | None:
    """The frames that `pack` would read, or None for rows with reasons."""
    is_image = path.suffix != ".mp4"
    files = ((0, path.name),) if is_image else ()
    video = Video("real", path.stem, path.stem, "", "", path.parent if is_image else path, path.name, files, is_image)
    rows = detect_video(video, SETTINGS)
    if rows[0]["status"] in (UNREADABLE, UNREADABLE_FRAME):
        assert rows[0]["reason"]
        return None
    assert not is_image or rows[0]["status"] == OK
    frames = [image for _, image in read_frames(video, [row["frame"] for row in rows])]
    return None if any(isinstance(image, Exception) for image in frames) else np.stack(frames)


def served(content: bytes) -> np.ndarray | None:
    """The pixels that a served model scores, or None for an answer 400."""
    try:
        return decode(content, 0)[0]
    except MlflowException:
        return None
