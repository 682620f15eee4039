"""`python -m fdtrain predict`: crops as the packer's, scores as evaluate's, and a row for whatever is wrong."""

import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import simplejpeg
import torch
from PIL import Image
from torch import nn

from datasets_shards.crops.align import ALIGNMENTS, CropSettings
from datasets_shards.crops.samples import VideoJob, make_samples
from datasets_shards.errors import InputError
from datasets_shards.faces.detector import FaceSettings
from datasets_shards.faces.stage import detect_faces
from datasets_shards.faces.table import read_faces
from datasets_shards.jpeg.mozjpeg import describe_encoder, encode_jpeg
from datasets_shards.jpeg.settings import JpegSettings
from datasets_shards.schema import open_shard_set
from datasets_shards.sources import Video
from fdtrain.cli import main
from fdtrain.config import UserError
from fdtrain.data.reader import ShardReader
from fdtrain.figures.annotated import annotated_figure
from fdtrain.models import InputSpec, cam_layer, create_model, save_model
from fdtrain.predict.crops import FileCrops, Frame, Recipe, make_crops
from fdtrain.predict.inputs import Input, find_inputs
from fdtrain.predict.recipe import Wishes, plan_crops
from fdtrain.predict.scores import score_files, video_score
from fdtrain.predict.tables import FILES_SCHEMA, FRAMES_SCHEMA, check_out, frames_path, opened_tables
from fdtrain.tasks import Task
from tests.heads import with_large_heads
from tests.unit.conftest import FACE, face_video, write_video

SPEC = InputSpec(64, interpolation="bilinear")
CROP = CropSettings(96, 1.5)


def write_model(folder: Path, **facts: object) -> Path:
    """Random weights; batch normalization by the statistics of noise, so that scores differ from crop to crop."""
    torch.manual_seed(0)
    options = {"image_size": 64}
    model = with_large_heads(create_model("meso4", **options))
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None  # an average over all that is seen
    coarse = torch.randn(16, 3, 8, 8)
    with torch.no_grad():
        model.train()(nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear"))
    folder.mkdir(parents=True)
    save_model(folder, model.state_dict(), name="meso4", options=options, spec=SPEC, facts=facts)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose card says how its training data was cropped: otherwise than by default."""
    crop = CROP.describe() | FaceSettings(upsample=0).describe() | {"masks": None}
    return write_model(tmp_path_factory.mktemp("models") / "meso4", quality=77, crop=crop)


@pytest.fixture
def run(model: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command in this process, one worker; gives what it printed, or its one line of error."""

    def predict(code: int, *words: object, model: Path = model) -> str:
        returned = main([str(word) for word in ("predict", "--model", model, "--workers", 1, *words)])
        captured = capsys.readouterr()
        assert returned == code, captured
        if code:
            (line,) = [line for line in captured.err.splitlines() if "error:" in line]
            return line
        return captured.out

    return predict


def save(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(image)).save(path)
    return path


def tables(out: Path) -> tuple[list[dict], list[dict]]:
    read = {".csv": pa.csv.read_csv, ".parquet": pq.read_table}[out.suffix]
    return read(out).to_pylist(), read(frames_path(out)).to_pylist()


@pytest.mark.parametrize(
    ("crop", "align"),
    [
        (CROP, "similarity"),
        (CropSettings(align="deepfakebench"), "deepfakebench"),
        (CropSettings(64, 1.3, "none", 16), "none"),
    ],
)
def test_crops_are_those_of_the_packer(tmp_path: Path, crop: CropSettings, align: str) -> None:
    """Pixel for pixel, without a JPEG step and after it."""
    path = face_video(tmp_path / "000.mp4", 1)
    settings = FaceSettings(frames_per_video=3, upsample=0)
    video = Video("youtube", "000", "000", "", "c23", path, "000.mp4")
    faces = detect_faces([video], settings, tmp_path / "faces.parquet", 1)
    first, count = faces.spans["000.mp4"]
    frames = read_faces(faces.path, first, count).frames.tolist()
    sha256 = faces.video_values("sha256")["000.mp4"]
    job = VideoJob(video, "test", frames, faces.path, first, count, sha256, crop, JpegSettings(), False, ("raw", 15))
    packed = [sample.members for sample in make_samples(job)]
    plain = make_crops(Input(str(path), "video"), Recipe(settings, crop), tmp_path)
    compressed = make_crops(Input(str(path), "video"), Recipe(settings, crop, jpeg_quality=15), tmp_path)
    assert plain.shape == (crop.image_size, crop.image_size, 3)
    assert [frame.number for frame in plain.scored] == frames
    assert plain.frames[0].box == tuple(json.loads(packed[0]["raw"]["json"])["box"])
    for members, crop_of_frame, small in zip(packed, plain.read_crops(), compressed.read_crops(), strict=True):
        with Image.open(io.BytesIO(members["raw"]["png"])) as image:
            np.testing.assert_array_equal(crop_of_frame, np.asarray(image))
        jpeg = simplejpeg.decode_jpeg(members[15]["jpg"], fastdct=False, fastupsample=False)
        np.testing.assert_array_equal(small, jpeg)
        assert np.abs(small.astype(int) - crop_of_frame).max() > 10
    plain.discard()
    compressed.discard()
    assert not list(tmp_path.glob("*.crops"))


@pytest.mark.parametrize("quality", [77, "raw"])
def test_packed_crops_get_the_scores_of_evaluate(
    model: Path, shard_root: Path, run: Callable[..., str], tmp_path: Path, quality: int | str
) -> None:
    shard_set = open_shard_set(shard_root, quality)
    words = ("--data.root", shard_root, "--data.quality", quality, "--out", tmp_path / "metrics.json")
    assert main(["evaluate", "--model", str(model), *map(str, words)]) == 0
    expected = pq.read_table(tmp_path / "metrics.parquet").to_pylist()
    rows = np.flatnonzero(shard_set.index.codes("split")[0] == shard_set.index.codes("split")[1].index("test"))
    keys = shard_set.index.take(rows, "key")["key"].to_pylist()
    with ShardReader(shard_set) as reader:
        for row, key in zip(rows, keys, strict=True):
            path = tmp_path / "crops" / f"{key}.{shard_set.manifest.extension}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(reader.try_read(int(row), 0))
    out = tmp_path / "scores.parquet"
    run(0, "--crops", "--batch_size", 7, "--out", out, tmp_path / "crops")
    scored = {Path(row["path"]).stem: row["score"] for row in tables(out)[0]}
    assert len(scored) == len(expected) == 36
    assert np.ptp(list(scored.values())) > 0.02
    for row in expected:
        assert scored[row["key"]] == pytest.approx(row["score"], abs=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of good and bad files; not to be written to."""
    root = tmp_path_factory.mktemp("inputs")
    face = np.ascontiguousarray(FACE)
    save(root / "10.png", face)
    save(root / "9.png", face[:, ::-1])
    both = np.zeros((256, 512, 3), np.uint8)
    both[:, 256:] = face
    both[64:192, 64:192] = face[::2, ::2]
    save(root / "two.png", both)
    save(root / "nobody.png", np.full((200, 300, 3), 90, np.uint8))
    (root / "broken.jpg").write_bytes(b"not a JPEG")
    (root / "empty.mp4").touch()
    (root / "notes.txt").write_text("no picture")
    face_video(root / "sub" / "000.mp4", 1)
    blank = np.zeros_like(face)
    write_video(root / "sub" / "gone.mp4", [face, blank, face, face])
    write_video(root / "sub" / "nobody.mp4", [blank, blank])
    return root


def test_a_row_for_every_file(folder: Path, run: Callable[..., str], tmp_path: Path) -> None:
    """In the order of the input, whatever is wrong with some of them."""
    out = tmp_path / "made" / "scores.parquet"
    (tmp_path / "bare").mkdir()
    words = ["missing.png", f"{folder}/*.webm", folder / "two.png", folder, tmp_path / "bare"]
    printed = run(0, "--out", out, "--upsample", 1, *words)
    files, frames = tables(out)
    expected = {
        "missing.png": "no such file",
        f"{folder}/*.webm": "matches no file",
        f"{folder}/two.png": "",
        f"{folder}/broken.jpg": "is no image",
        f"{folder}/empty.mp4": "can't be decoded",
        f"{folder}/nobody.png": "no face",
        f"{folder}/9.png": "",
        f"{folder}/10.png": "",
        f"{folder}/sub/gone.mp4": "",
        f"{folder}/sub/nobody.mp4": "no face in any of 2 frames",
        f"{folder}/sub/000.mp4": "",
        str(tmp_path / "bare"): "holds neither images nor videos",
    }
    assert [row["path"] for row in files] == list(expected)
    for row in files:
        assert row["error"].startswith(expected[row["path"]])
        assert (row["error"] == "") == (expected[row["path"]] == "") == (row["score"] is not None)
        own = [frame for frame in frames if frame["path"] == row["path"]]
        scores = [frame["score"] for frame in own if frame["score"] is not None]
        assert (len(own), len(scores)) == (row["sampled"], row["scored"])
        if scores:
            assert row["score"] == pytest.approx(np.mean(scores), abs=1e-6)
    by_name = {Path(row["path"]).name: row for row in files}
    assert by_name["two.png"]["faces"] == 2
    (two,) = [frame for frame in frames if frame["path"].endswith("two.png")]
    assert two["left"] > 256, "the larger of the two faces"
    assert (by_name["gone.mp4"]["scored"], by_name["gone.mp4"]["sampled"]) == (3, 4)
    (gone,) = [frame for frame in frames if frame["path"].endswith("gone.mp4") and frame["score"] is None]
    assert (gone["frame"], gone["error"]) == (1, "no face")
    assert "96 px, margin 1.5, align similarity, upsample 1 (as its training data, but for --upsample)" in printed
    assert "trained on q77 crops, and these get no JPEG step; --jpeg_quality 77" in printed
    assert "passed over 1 files" in printed
    assert "scored 5 of 12 files, 11 frames (5 not scored)" in printed
    assert "7 without a score; the first: missing.png: no such file" in printed
    assert "1 with several faces in a frame" in printed


def test_nothing_scored_is_a_failure_that_leaves_the_reasons(run: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"nothing")
    line = run(1, "--out", tmp_path / "scores.csv", tmp_path / "bad.png", "nowhere/*.mp4")
    assert "none of 2 files gave a score; the first:" in line
    assert "bad.png: is no image" in line
    files, frames = tables(tmp_path / "scores.csv")
    assert [row["score"] for row in files] == [None, None]
    assert files[1]["error"] == "matches no file"
    assert frames[0]["error"].startswith("is no image")


def test_crops_must_be_square_and_a_video_may_hold_them(run: Callable[..., str], tmp_path: Path) -> None:
    crop = np.ascontiguousarray(FACE[::2, ::2])
    video = write_video(tmp_path / "crops.mp4", [crop] * 5)
    wide = save(tmp_path / "wide.png", np.zeros((64, 96, 3), np.uint8))
    small = save(tmp_path / "small.png", crop[::2, ::2])
    run(0, "--crops", "--frames-per-video", 2, "--out", tmp_path / "s.parquet", wide, video, small)
    files, frames = tables(tmp_path / "s.parquet")
    assert files[0]["error"].startswith("96x64 pixels, and face crops are square")
    assert [row["scored"] for row in files] == [0, 2, 1]
    assert [frame["frame"] for frame in frames] == [1, 3, 0]
    assert files[1]["faces"] is None


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--out", "scores.xls"), "out: scores.xls must end in .csv, .json, .parquet"),
        (("--out", "{tmp}"), "must end in"),
        (
            ("--out", "s.csv", "--video_score", "top0"),
            "video_score: 'top0' is unknown; choose mean, median, max, or topK",
        ),
        (("--out", "s.csv", "--annotate", "{tmp}"), "isn't empty; name another folder"),
        (("--out", "s.csv", "--crops", "--margin", 2), "margin: has no effect on --crops"),
        (("--out", "s.csv", "--jpeg_quality", 0), "jpeg_quality: 0 is out of range"),
        (
            ("--out", "s.csv", "--frames-per-video", "some"),
            "frames_per_video: got 'some', allowed is a whole number or all",
        ),
    ],
)
def test_wrong_arguments_are_one_line(
    run: Callable[..., str], tmp_path: Path, words: tuple, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.txt").touch()
    assert line in run(2, *(str(word).format(tmp=tmp_path) for word in words), "x.png")
    assert [path.name for path in tmp_path.iterdir()] == ["there.txt"]


def test_inputs_are_in_order_and_each_once(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.JPG", "b/c/1.webm", "b/.hidden.png", "b/x.txt", "a[1].png", "odd.flv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b/c/up").symlink_to(tmp_path / "b")
    words = [
        f"{tmp_path}/a[1].png",
        f"{tmp_path}/b",
        f"{tmp_path}/*/*.JPG",
        f"{tmp_path}/odd.flv",
        b"\xff".decode(errors="surrogateescape"),
    ]
    inputs, others = find_inputs(words)
    base = f"{tmp_path}/"
    assert [(item.path.removeprefix(base), item.kind, item.error) for item in inputs] == [
        ("a[1].png", "", ""),
        ("b/2.png", "", ""),
        ("b/10.JPG", "", ""),
        ("b/c/1.webm", "", ""),
        ("odd.flv", "", ""),
        ("\\xff", "", "no such file"),
    ]
    assert others == 1


def test_the_content_says_what_a_file_is(run: Callable[..., str], tmp_path: Path) -> None:
    """Whatever its name; and what is no file is a row with the reason, in a folder as on the command line."""
    crops = tmp_path / "crops"
    crop = np.ascontiguousarray(FACE[::2, ::2])
    save(crops / "a.jpg", crop)
    for name in ("b.jfif", "c", "d.mp4"):
        (crops / name).write_bytes((crops / "a.jpg").read_bytes())
    write_video(crops / "e.mp4", [crop] * 2).rename(crops / "e.png")
    os.mkfifo(crops / "f.mp4")
    os.mkfifo(crops / "g")
    (crops / "h.png").symlink_to("nowhere")
    (crops / "i.png").symlink_to("i.png")
    (crops / "notes.txt").write_text("no picture")
    printed = run(0, "--crops", "--out", tmp_path / "s.parquet", crops, crops / "d.mp4", "/dev/zero")
    files = {Path(row["path"]).name: row for row in tables(tmp_path / "s.parquet")[0]}
    assert {name: row["kind"] for name, row in files.items() if not row["error"]} == {
        **dict.fromkeys(["a.jpg", "b.jfif", "c", "d.mp4"], "image"),
        "e.png": "video",
    }
    assert len({files[name]["score"] for name in ("a.jpg", "b.jfif", "c", "d.mp4")}) == 1
    assert {name: row["error"] for name, row in files.items() if row["error"]} == {
        "f.mp4": "is a FIFO, no file",
        "g": "is a FIFO, no file",
        "h.png": "a link to no file",
        "i.png": "Too many levels of symbolic links",
        "zero": "is a device, no file",
    }
    assert "passed over 1 files" in printed


def test_whatever_a_library_raises_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def surprise(*_: object) -> None:
        raise LookupError("odd table")

    path = save(tmp_path / "a.png", FACE)
    monkeypatch.setattr("fdtrain.predict.crops.detect_video", surprise)
    assert make_crops(Input(str(path)), Recipe(FaceSettings(), CROP), tmp_path).error == "LookupError: odd table"


def test_batches_go_across_files_and_little_is_held(tmp_path: Path) -> None:
    """Each crop's score goes to its file; no more files are read ahead than a batch has crops."""
    counts = [1, 3, 0, 2, 7, 1, 1, 1, 0, 4]
    read = 0

    def files() -> Iterator[FileCrops]:
        nonlocal read
        for number, count in enumerate(counts):
            side = 4 if number < 5 else 8
            crops = np.stack([np.full((side, side, 3), 10 * number + i, np.uint8) for i in range(count)] or [[]])
            path = tmp_path / f"{number}.crops"
            path.write_bytes(crops.tobytes())
            read += 1
            frames = tuple(Frame(i) for i in range(count))
            yield FileCrops(Input(str(number), "video"), frames, crops=path, shape=(side, side, 3))

    batches = []

    def score(crops: np.ndarray) -> np.ndarray:
        batches.append(len(crops))
        return crops[:, 0, 0, 0].astype(np.float32)

    for number, (file, scores) in enumerate(score_files(score, files(), 3)):
        assert file.input.path == str(number)
        assert scores.tolist() == [10 * number + i for i in range(counts[number])]
        assert read - number <= 4
    assert number == len(counts) - 1
    assert batches == [3, 3, 3, 3, 1, 3, 3, 1]  # a whole batch but where the size changes, and at the end


def test_video_scores() -> None:
    scores = np.array([0.9, 0.1, 0.2, 0.6], np.float32)
    for how, expected in (("mean", 0.45), ("median", 0.4), ("max", 0.9), ("top2", 0.75), ("top9", 0.45)):
        assert video_score(scores, how) == pytest.approx(expected)
    for how in ("top", "topk", "min", "top-1"):
        with pytest.raises(UserError, match="video_score"):
            video_score(scores, how)


@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet"])
def test_tables_in_every_form(tmp_path: Path, suffix: str) -> None:
    """The same values, and nothing at all where the block didn't end well."""
    out = tmp_path / f"s{suffix}"
    row = {"path": 'a "b", c\n.png', "kind": "image", "score": None, "scored": 0, "sampled": 1, "faces": None}
    rows = [row | {"error": "naïve, “so”"}, row | {"path": "d", "score": 0.1, "faces": 3, "error": ""}]
    with opened_tables(out) as (files, _):
        for each in rows:
            files.add(each)
    read = {
        ".csv": lambda path: pa.csv.read_csv(
            path,
            parse_options=pa.csv.ParseOptions(newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(strings_can_be_null=False),
        ).to_pylist(),
        ".json": lambda path: json.loads(path.read_text()),
        ".parquet": lambda path: pq.read_table(path).to_pylist(),
    }[suffix]
    got = read(out)
    assert list(got[0]) == FILES_SCHEMA.names
    assert got[1]["score"] == pytest.approx(0.1, abs=1e-8)
    assert [r | {"score": 0} for r in got] == [r | {"score": 0} for r in rows]
    assert read(frames_path(out)) == []
    if suffix == ".parquet":
        assert pq.read_schema(frames_path(out)) == FRAMES_SCHEMA
    check_out(out)  # a second run replaces what the first one wrote
    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyError), opened_tables(tmp_path / f"t{suffix}") as (files, _):
        files.add(dict[str, object]()["what ends the block"])
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("s.csv", b"path,label\na.png,1\n"),
        ("s.frames.csv", b"path,kind,score,scored,sampled,faces,error\n"),  # a table of files, not of frames
        ("s.csv", b"\xff\xfe"),
        ("s.csv", b"\n1,2\n"),
        ("s.csv", b"x" * 200_000),
        ("s.json", b"[\n1,\n2\n]\n"),
        ("s.json", b"[]\n[1]\n"),
        ("s.json", b'{"path": "a.png"}\n'),
        ("s.json", b'[\n{"path": "a.png"}\n]\n'),
        ("s.parquet", b"PAR1"),
    ],
)
def test_a_file_that_holds_something_else_is_not_replaced(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"out: {path} is there already and holds no scores; move it, or name another"):
        check_out(tmp_path / f"s{path.suffix}")


@pytest.mark.parametrize(("name", "content"), [("s.csv", b""), ("s.json", b"[]\n")])
def test_a_file_that_holds_nothing_is(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    check_out(tmp_path / name)


@pytest.mark.parametrize("align", ALIGNMENTS)
def test_a_description_of_crops_is_read_back(align: str) -> None:
    settings = CropSettings(128, 1.3, align, 16)
    assert CropSettings.described(settings.describe() | {"upsample": 1}) == settings


def test_crops_follow_the_model_card() -> None:
    wishes = Wishes(frames_per_video=8)
    known = CROP.describe() | FaceSettings(upsample=2, min_face=60, reduce=2).describe()
    recipe, notes = plan_crops({"trained_on": {"crop": known, "quality": "raw"}}, wishes, "m")
    assert recipe == Recipe(FaceSettings(8, upsample=2, min_face=60, reduce=2), CROP)
    assert len(notes) == 1
    recipe, notes = plan_crops({"trained_on": {"imported": {}}}, Wishes(None, margin=2, align="none"), "m")
    assert recipe == Recipe(FaceSettings(None), CropSettings(margin=2, align="none"))
    assert "by the packer's defaults, as its model.json doesn't say" in notes[0]
    recipe, notes = plan_crops({"trained_on": {"imported": {"format": "deepfakebench"}}}, wishes, "m")
    assert recipe.crop == CropSettings(256, 1.3, "deepfakebench")
    assert "align deepfakebench, upsample 1 (as DeepfakeBench's" in notes[0]
    own = CropSettings(300, align="as they are").describe() | {"frames_per_video": 4}
    recipe, notes = plan_crops({"trained_on": {"crop": own}}, wishes, "m")
    assert recipe.crop == CropSettings(300)
    assert "somebody else cut" in notes[0]
    for wrong in (CROP.describe() | {"alignment": "by hand"}, {"size": 64}, CROP.describe() | {"margin": None}, 3):
        with pytest.raises(UserError, match=r"'crop' in its model\.json: not the description"):
            plan_crops({"trained_on": {"crop": wrong}}, wishes, "m")
    with pytest.raises(InputError):
        CropSettings.described({})


def test_the_jpeg_step_is_that_of_the_training_data(tmp_path: Path) -> None:
    """Settings of the encoder come back from what a manifest says of it, at whatever quality is asked for."""
    for settings in (JpegSettings(mode="progressive", trellis=False, quant_table=0), JpegSettings(subsampling="4:4:4")):
        card = {"trained_on": {"quality": 15, "encoder": describe_encoder(15, settings)}}
        recipe, notes = plan_crops(card, Wishes(1, are_crops=True, jpeg_quality=15), "m")
        assert recipe.jpeg == settings
        assert "as its training data before they are scored" in notes[-1]
        path = save(tmp_path / "a.png", FACE)
        (crop,) = make_crops(Input(str(path)), recipe, tmp_path).read_crops()
        expected = simplejpeg.decode_jpeg(encode_jpeg(FACE, 15, settings), fastdct=False, fastupsample=False)
        np.testing.assert_array_equal(crop, expected)
    for card in ({}, {"trained_on": {"quality": "raw", "encoder": describe_encoder("raw")}}):
        assert plan_crops(card, Wishes(1, jpeg_quality=15), "m")[0].jpeg == JpegSettings()
    default = {"trained_on": {"quality": 15, "encoder": describe_encoder(15)}}
    recipe, notes = plan_crops(default, Wishes(1, jpeg_quality=95), "m")
    assert recipe.jpeg == JpegSettings()  # 4:2:0 was cjpeg's rule at 15, and isn't at 95
    assert "at quality 95 before they are scored" in notes[-1]
    with pytest.raises(UserError, match=r"'encoder' in its model\.json: not the description"):
        plan_crops({"trained_on": {"quality": 15, "encoder": {"name": "x"}}}, Wishes(1), "m")


def test_pictures(run: Callable[..., str], folder: Path, tmp_path: Path) -> None:
    """One PNG for each scored frame, the face in an orange box."""
    pictures = tmp_path / "pictures"
    words = ("--annotate", pictures, "--upsample", 0, "--frames-per-video", 2)
    run(0, "--out", tmp_path / "s.csv", *words, folder / "broken.jpg", folder / "10.png", folder / "sub/000.mp4")
    assert sorted(path.name for path in pictures.iterdir()) == [
        "00001-10-00000.png",
        "00002-000-00001.png",
        "00002-000-00003.png",
    ]
    with Image.open(pictures / "00001-10-00000.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    orange = (np.abs(pixels - [0xE6, 0x9F, 0x00]) < 3).all(2)
    assert orange.sum() > 300
    line = run(2, "--out", tmp_path / "t.csv", *words, folder / "10.png")
    assert "isn't empty" in line


def test_a_picture_has_every_attention_map() -> None:
    network = create_model("multi_attention", backbone="efficientnet_b0")
    task = Task(network, SPEC).eval()
    crop = torch.from_numpy(np.ascontiguousarray(FACE)).permute(2, 0, 1)[None]
    frame = np.ascontiguousarray(np.hstack([FACE, FACE]))
    layer = cam_layer("multi_attention", network)
    figure = annotated_figure(task, layer, crop, 0.25, "a title", frame=frame, box=(10, 20, 110, 140))
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in panels[:3]] == ["frame", "crop, P(fake) 0.250", "attention map 1"]
    assert len(panels) == 2 + 4
    (box,) = panels[0].patches
    assert box.get_bbox().bounds == (9.5, 19.5, 100, 120)
    alone = annotated_figure(task, layer, crop, 0.25, "a title")
    assert next(axes.get_title() for axes in alone.axes if axes.images) == "crop, P(fake) 0.250"
