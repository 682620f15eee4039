"""Every mistake on the command line of the offline stage is one line with the right exit code."""

from pathlib import Path

import numpy as np
import pytest

from tests.unit.conftest import datasets_shards, write_video


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "python -m datasets_shards: error: give a command: demo, faces, pack, verify, fidelity, unpack"),
        (("pakc",), "no command 'pakc'; did you mean pack? commands: demo, faces, pack, verify, fidelity, unpack"),
        (("pack",), "missing --source, --out; see python -m datasets_shards pack --help"),
        (("pack", "--source", "a"), "missing --out; see python -m datasets_shards pack --help"),
        (("pack", "--quality", "3"), "no flag --quality; did you mean --qualities?"),
        (("pack", "--qualities"), "--qualities: expected at least one argument"),
        (("pack", "--qualities", "101"), "'101' is neither a whole number from 1 to 100 nor 'raw'"),
        (("pack", "--jpeg.mode", "lossless"), "--jpeg.mode: invalid choice: 'lossless' (choose from"),
        (("pack", "--jpeg.quant_table", "9"), "--jpeg.quant_table: 9 is not a whole number from 0 to 8"),
        (("pack", "--jpeg.trellis", "maybe"), "--jpeg.trellis: maybe is neither true nor false"),
        (("pack", "--dct-scale", "17"), "--dct-scale: 17 is not a whole number from 1 to 16"),
        (("pack", "--frames-per-video", "8", "--every", "2"), "--every"),
        (("pack", "--methods", "Deepfake"), "--methods: invalid choice: 'Deepfake' (choose from"),
        (("pack", "--size", "3.5"), "--size: 3.5 is not a whole number from 16 to 4096"),
        (("pack", "--margin", "nan"), "--margin: nan is not a number from 1 to 4"),
        (("pack", "--compression", "c41"), "--compression: invalid choice: 'c41' (choose from"),
        (("faces", "--workers", "0"), "--workers: 0 is not a whole number from 1 to 1024"),
        (("demo", "--out", "a", "--seed", "-1"), "--seed: -1 is not a whole number from 0 to"),
        (("pack", "--config", "nowhere.yaml"), "--config: File does not exist"),
    ],
)
def test_usage_errors(reject, words: tuple[str, ...], line: str) -> None:
    given = reject(2, *words)
    assert given.startswith("python -m datasets_shards")
    assert line in given


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("sise: 3", "no key 'sise' for pack; did you mean size?"),
        ("size: 3.5", "--size: 3.5 is not a whole number"),
        ("frames_per_video: many", "--frames-per-video: many is not a whole number"),
        ("qualities: [300]", "quality '300' is neither"),
        ("size: 64.7", "--size: 64.7 is not a whole number"),
        ("dct_scale: true", "--dct-scale: True is not a whole number"),
        ("masks: maybe", "--masks: maybe is neither true nor false"),
        ("jpeg: progressive", "jpeg 'progressive' is no group of keys: mode, subsampling"),
        ("jpeg: {modus: progressive}", "no key 'jpeg.modus' for pack; did you mean jpeg.mode?"),
        ("methods: FaceSwap", "methods wants a list, such as [FaceSwap]"),
        ("dct_scale: null", "dct_scale has no value; give one, or leave the key away"),
        ("jpeg: {mode: null}", "jpeg.mode has no value; give one, or leave the key away"),
        ("- 1", "not a list of keys and values"),
        ("[", "Problems parsing config"),
    ],
)
def test_configuration_errors(reject, tmp_path: Path, content: str, line: str) -> None:
    (tmp_path / "pack.yaml").write_text(content)
    assert line in reject(2, "pack", "--source", "a", "--out", "b", "--config", tmp_path / "pack.yaml")


def test_run_time_errors(reject, ff_tree: Path, tmp_path: Path) -> None:
    here = ("pack", "--source", ff_tree, "--out", tmp_path / "root")
    assert "no such folder" in reject(1, "pack", "--source", tmp_path / "nowhere", "--out", tmp_path / "root")
    assert "no FF++ videos" in reject(1, "pack", "--source", tmp_path, "--out", tmp_path / "root")
    assert "--compression raw: " in reject(1, *here, "--compression", "raw")
    assert "--splits" in reject(1, *here, "--splits", tmp_path / "nowhere")
    assert "train.json: no such file" in reject(1, *here, "--splits", tmp_path)
    assert "no such table of faces" in reject(1, *here, "--faces", tmp_path / "nowhere.parquet")
    assert "is a folder" in reject(1, "faces", "--source", ff_tree, "--out", tmp_path)
    (tmp_path / "file").touch()
    assert "is a file" in reject(1, "pack", "--source", ff_tree, "--out", tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_no_face_at_all(reject, tmp_path: Path) -> None:
    video = tmp_path / "tree/original_sequences/youtube/raw/videos/000.mp4"
    write_video(video, [np.zeros((64, 64, 3), np.uint8)] * 3)
    for command, out in (("faces", "faces.parquet"), ("pack", "root")):
        words = (command, "--source", tmp_path / "tree", "--out", tmp_path / out, "--workers", 1)
        assert "no usable face in any of 1 videos (3 no face)" in reject(1, *words)
        assert not (tmp_path / out).exists()


def test_faces_then_pack(ff_tree: Path, tmp_path: Path, accept) -> None:
    table = tmp_path / "faces.parquet"
    printed = accept("faces", "--source", ff_tree, "--out", table, "--frames-per-video", 1)
    assert "faces: 18 of 18 frames; dropped: none" in printed
    printed = accept("pack", "--source", ff_tree, "--out", tmp_path / "root", "--faces", table)
    assert "18 images" in printed
    assert sorted(path.name for path in (tmp_path / "root").iterdir()) == ["q10", "q15", "q60", "q77"]


def test_help_is_quick_and_names_every_flag() -> None:
    done = datasets_shards("pack", "--help")
    assert done.returncode == 0
    for flag in ("--source", "--out", "--qualities", "--splits", "--faces", "--frames-per-video", "--size"):
        assert flag in done.stdout
    assert "<function" not in done.stdout
