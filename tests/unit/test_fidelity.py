"""The fidelity report: its estimates against real files, its measures against their definitions, and the command."""

import csv
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.data import cat

from datasets_shards.__main__ import main
from datasets_shards.commands import fidelity
from datasets_shards.errors import InputError
from datasets_shards.fidelity.curves import (
    BASELINE_CURVE,
    PLAIN,
    PLAIN_CURVE,
    PROGRESSIVE_8_BIT_CURVE,
    PROGRESSIVE_CURVE,
    TURBO_CURVE,
    base_tables,
    build_curves,
    decode_jpeg,
    largest_step,
    qualities_of,
)
from datasets_shards.fidelity.drawing import Crop, spread
from datasets_shards.fidelity.figures import draw_measure, draw_rate_distortion, rate_distortion_title
from datasets_shards.fidelity.measures import measure, summarize
from datasets_shards.fidelity.rate import Component, code_lengths, estimate_bits, zigzag
from datasets_shards.fidelity.report import measure_crops
from datasets_shards.fidelity.sample import sample_crops
from datasets_shards.fidelity.smartscale import smartscale_roundtrip, table_for
from datasets_shards.jpeg.mozjpeg import encode_jpeg
from datasets_shards.jpeg.segments import describe_jpeg
from datasets_shards.sources import Selection, open_source
from tests.conftest import REPOSITORY
from tests.unit.conftest import FACE
from tests.unit.disk import largest_file

CROP = np.ascontiguousarray(FACE)
CAT = np.ascontiguousarray(cat()[20:276, 100:356])


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * math.log10(255**2 / ((a.astype(float) - b) ** 2).mean())


@pytest.mark.parametrize("quality", [5, 15, 60, 77, 85, 95])
@pytest.mark.parametrize("image", [CROP, CAT], ids=["face", "cat"])
def test_emulated_8x8_is_what_mozjpeg_writes(image: np.ndarray, quality: int) -> None:
    """At SmartScale's block size 8 the estimate must be MozJPEG's own file, and the pixels the real decoder's."""
    data = encode_jpeg(image, quality, PLAIN)
    emulated = smartscale_roundtrip(image, 8, *base_tables(quality), PLAIN.subsampling_at(quality))
    assert emulated.bits / 8 == pytest.approx(len(data), rel=0.02)
    assert psnr(image, emulated.pixels) == pytest.approx(psnr(image, decode_jpeg(data)), abs=0.01)


def test_sizes_that_are_no_whole_number_of_blocks() -> None:
    image = CROP[50:231, 20:237]
    data = encode_jpeg(np.ascontiguousarray(image), 30, PLAIN)
    emulated = smartscale_roundtrip(image, 8, *base_tables(30), "4:2:0")
    assert emulated.pixels.shape == image.shape
    assert emulated.bits / 8 == pytest.approx(len(data), rel=0.05)
    assert psnr(image, emulated.pixels) == pytest.approx(psnr(image, decode_jpeg(data)), abs=0.05)


@pytest.mark.parametrize("rule", ["resampled", "corner"])
def test_larger_blocks_cost_less_and_lose_more(rule: str) -> None:
    results = [smartscale_roundtrip(CROP, block, *base_tables(60), "4:2:0", rule) for block in (4, 8, 16)]
    bits = [result.bits for result in results]
    likeness = [psnr(CROP, result.pixels) for result in results]
    assert bits == sorted(bits, reverse=True)
    assert likeness == sorted(likeness, reverse=True)
    assert likeness[2] > 25


def test_libjpegs_16x16_is_dct_scaling_by_half() -> None:
    """With at most 8x8 coefficients of a block, SmartScale codes what DCT scaling codes, and a decoder enlarges it."""
    for quality in (30, 77):
        emulated = smartscale_roundtrip(CROP, 16, *base_tables(quality), "4:2:0", "corner")
        scaled = replace(PLAIN_CURVE, block=16).measure(CROP, quality)
        assert emulated.bits / 8 == pytest.approx(scaled.bytes, rel=0.04)
        assert psnr(CROP, emulated.pixels) == pytest.approx(scaled.psnr, abs=0.3)


@pytest.mark.parametrize("block", [1, 2, 7, 16])
def test_a_grey_image_survives_any_block_size(block: int) -> None:
    flat = np.full((40, 50, 3), 128, np.uint8)
    emulated = smartscale_roundtrip(flat, block, *base_tables(10), "4:2:0")
    assert np.array_equal(emulated.pixels, flat)


def test_the_table_is_read_at_the_same_frequency() -> None:
    table = np.arange(64).reshape(8, 8) + 10
    for rule in ("resampled", "corner"):
        assert np.array_equal(table_for(table, 8, rule), table)
    assert np.array_equal(table_for(table, 4, "resampled"), table[::2, ::2])
    double = table_for(table, 16, "resampled")
    assert np.array_equal(double[::2, ::2], table)
    assert double[0, 1] == np.rint((table[0, 0] + table[0, 1]) / 2)
    assert np.array_equal(double[15], double[14])  # beyond the last entry
    assert np.array_equal(table_for(table, 4, "corner"), table[:4, :4])
    assert np.array_equal(table_for(table, 16, "corner"), table)


def test_zigzag() -> None:
    assert zigzag(8)[:12].tolist() == [0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25]  # T.81 figure A.6
    assert zigzag(3).tolist() == [0, 1, 3, 6, 4, 2, 5, 7, 8]
    assert sorted(zigzag(16)) == list(range(256))


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=256))
@settings(max_examples=50, deadline=None)
def test_code_lengths_make_a_huffman_code(numbers: list[int]) -> None:
    counts = np.array(numbers + [0] * (256 - len(numbers)))
    lengths = code_lengths(counts)
    used = counts > 0
    assert ((lengths > 0) == used).all()
    assert lengths.max() <= 16
    assert sum(2.0 ** -int(n) for n in lengths[used]) < 1  # a prefix code, and the code of all ones is free
    probabilities = counts[used] / max(1, counts.sum())
    entropy = -(probabilities * np.log2(probabilities)).sum()
    assert (lengths * counts).sum() >= entropy * counts.sum() - 1e-6
    if (lengths < 16).all() and used.any():
        # The reserved code splits the rarest symbol's at worst.
        assert (lengths * counts).sum() <= (entropy + 1) * counts.sum() + counts[used].min() + 1


def test_long_codes_are_cut_to_16_bits() -> None:
    counts = np.zeros(256, dtype=np.int64)
    counts[:30] = [round(1.618**i) for i in range(30)]  # Fibonacci's numbers make the longest codes
    lengths = code_lengths(counts)
    assert lengths.max() == 16
    assert sum(2.0 ** -int(n) for n in lengths[:30]) < 1
    assert list(lengths[:30]) == sorted(lengths[:30], reverse=True)


@pytest.mark.parametrize("size", [1, 3, 8, 16])
def test_the_bits_are_those_of_coding_symbol_by_symbol(size: int) -> None:
    random = np.random.default_rng(size)
    blocks = (random.laplace(0, 0.7, (60, size, size)) * (random.random((60, size, size)) < 0.15)).round().astype(int)
    blocks[:, 0, 0] = random.integers(-300, 300, 60)
    blocks[3], blocks[4, -1, -1] = 0, 5
    symbols: dict[str, list[int]] = {"dc": [], "ac": []}
    extra = before = 0
    for block in blocks.tolist():
        line = [block[position // size][position % size] for position in zigzag(size)]
        symbols["dc"].append(abs(line[0] - before).bit_length())
        extra += abs(line[0] - before).bit_length()
        before = line[0]
        run = 0
        for value in line[1:]:
            if value == 0:
                run += 1
                continue
            while run > 15:
                symbols["ac"].append(0xF0)
                run -= 16
            symbols["ac"].append(run << 4 | abs(value).bit_length())
            extra += abs(value).bit_length()
            run = 0
        if run:
            symbols["ac"].append(0)
    data, tables = extra, 0
    for coded in symbols.values():
        counts = np.bincount(coded, minlength=256) if coded else np.zeros(256, dtype=int)
        data += (code_lengths(counts) * counts).sum()
        tables += 17 + (counts > 0).sum()
    whole = math.ceil(data / 8)
    headers = 2 + 18 + (4 + 65) + 4 + 13 + 10 + 2  # SOI, JFIF, DQT, DHT, SOF and SOS of one component, EOI
    assert estimate_bits([Component(blocks, 0)]) == 8 * (whole + whole // 256 + tables + headers)


def test_measures_are_those_of_their_definitions() -> None:
    data = encode_jpeg(CROP, 10)
    decoded = decode_jpeg(data)
    measured = measure(CROP, decoded, 8 * len(data))
    assert measured.psnr == pytest.approx(psnr(CROP, decoded))
    assert measured.bytes == len(data)
    assert measured.bpp == 8 * len(data) / 256**2

    def blur(values: np.ndarray) -> np.ndarray:  # 11x11: truncated at 5 of sigma 1.5
        return gaussian_filter(values, 1.5, truncate=3.5)

    channels = []
    for c in range(3):
        x, y = CROP[..., c].astype(float), decoded[..., c].astype(float)
        mx, my = blur(x), blur(y)
        vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        index = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
        channels.append(index[5:-5, 5:-5].mean())  # where the window lies inside
    assert measured.ssim == pytest.approx(np.mean(channels), abs=1e-6)


def test_an_exact_crop_makes_the_mean_infinite_and_nothing_undefined() -> None:
    same = measure(CROP, CROP, 8000)
    assert same.psnr == math.inf
    assert same.ssim == 1
    summary = summarize(np.array([30.0, 31.0, math.inf, math.inf]))
    assert (summary.mean, summary.low, summary.high) == (math.inf, 30, math.inf)

    flat = [Crop("flat", "youtube", np.full((32, 32, 3), 128, np.uint8))]
    points = measure_crops(flat, build_curves([16], []), [70, 95], 1)
    assert all(point.identical == 1 for point in points)
    for name in ("psnr", "ssim"):  # nothing to draw, and no error
        assert draw_measure(points, name).startswith(b"\x89PNG")
        assert draw_rate_distortion(points, name).startswith(b"\x89PNG")


def test_the_curves_differ_in_what_they_say_they_do() -> None:
    base, progressive, cut, turbo = (
        describe_jpeg(curve.encode(CROP, 15))
        for curve in (BASELINE_CURVE, PROGRESSIVE_CURVE, PROGRESSIVE_8_BIT_CURVE, TURBO_CURVE)
    )
    assert [facts.form for facts in (base, progressive, cut, turbo)] == ["baseline", *["progressive"] * 2, "baseline"]
    assert [facts.table_bits for facts in (base, progressive, cut, turbo)] == [8, 16, 8, 8]
    assert max(progressive.quant_tables[0]) == largest_step(15) > 255
    assert (
        cut.quant_tables
        == base.quant_tables
        == {i: tuple(np.minimum(t, 255)) for i, t in progressive.quant_tables.items()}
    )
    assert turbo.quant_tables[0][:2] == (53, 37)  # 16 and 11 of Annex K at 333 %
    assert {facts.subsampling for facts in (base, progressive, cut, turbo)} == {"4:2:0"}
    assert qualities_of(PROGRESSIVE_8_BIT_CURVE, [10, 60, 69, 70, 77]) == [10, 60, 69]


def test_a_scaled_curve_is_measured_against_the_whole_crop() -> None:
    half = next(curve for curve in build_curves([16], []) if curve.scales)
    data = half.encode(np.ascontiguousarray(CROP[::2, ::2]), 77)
    assert describe_jpeg(data).width == 128
    measured, base = half.measure(CROP, 77), BASELINE_CURVE.measure(CROP, 77)
    assert measured.bpp == measured.bytes * 8 / 256**2
    assert measured.bytes < 0.6 * base.bytes
    assert 20 < measured.psnr < base.psnr


@given(st.lists(st.tuples(st.sampled_from(["youtube", "Deepfakes", "FaceSwap"]), st.integers(0, 5)), max_size=60))
@settings(max_examples=60, deadline=None)
def test_a_sample_takes_turns(entries: list[tuple[str, int]]) -> None:
    methods, videos = [method for method, _ in entries], [str(video) for _, video in entries]
    drawn = spread(methods, videos, 12, seed=3)
    assert drawn == sorted(set(drawn))
    assert len(drawn) == min(12, len(entries))
    assert drawn == spread(methods, videos, 12, seed=3)
    taken = {name: sum(methods[i] == name for i in drawn) for name in set(methods)}
    for name, count in taken.items():
        if count < methods.count(name):  # a method that isn't used up has as many as any other, but for the last turn
            assert count >= max(taken.values()) - 1
        mine = [videos[i] for i in drawn if methods[i] == name]
        there = len({video for method, video in zip(methods, videos, strict=True) if method == name})
        assert len(set(mine)) == min(len(mine), there)


def test_crops_of_a_raw_set(shard_root: Path) -> None:
    sample = sample_crops(shard_root, 9, seed=1)
    assert [crop.method for crop in sample.crops].count("FaceSwap") == 3
    assert sample.origin == sample_crops(shard_root / "raw", 9, seed=1).origin | {"path": str(shard_root / "raw")}
    assert [crop.key for crop in sample.crops] != [crop.key for crop in sample_crops(shard_root, 9, seed=2).crops]
    crop = sample.crops[0]
    for path in (shard_root / "raw").glob("*.tar"):
        with tarfile.open(path) as archive:
            if f"{crop.key}.png" in archive.getnames():
                stored = np.asarray(Image.open(io.BytesIO(archive.extractfile(f"{crop.key}.png").read())))
    assert np.array_equal(stored, crop.pixels)


def test_compressed_crops_are_refused(shard_root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="q77: its crops went through JPEG already; pack it with --qualities raw"):
        sample_crops(shard_root / "q77", 4, 0)
    (tmp_path / "q77").symlink_to(shard_root / "q77")
    with pytest.raises(InputError, match="has the sets q77, but no raw one"):
        sample_crops(tmp_path, 4, 0)
    with pytest.raises(InputError, match=r"--size: .* holds crops that are cut already"):
        sample_crops(shard_root, 4, 0, size=128)
    with pytest.raises(InputError, match=r"flags that select videos: .* holds crops that are cut already"):
        sample_crops(shard_root, 4, 0, selection=Selection("c23"))
    with pytest.raises(InputError, match="nothing: no such folder"):
        sample_crops(tmp_path / "nothing", 4, 0)


class Page(HTMLParser):
    """Checks that every element that was opened is closed, and keeps pictures and addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[dict] = []
        self.addresses: list[str] = []
        self.rows: list[int] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        values = dict(attrs)
        self.addresses += [values[name] for name in ("src", "href") if name in values]
        if tag == "img":
            self.pictures.append(values)
        if tag == "tr":
            self.rows.append(0)
        if tag in ("td", "th") and self.rows:
            self.rows[-1] += int(values.get("colspan", 1))
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def report(*words: object) -> None:
    parser = ArgumentParser(exit_on_error=False)
    fidelity.add_arguments(parser)
    fidelity.run(parser.parse_args([str(word) for word in (*words, "--workers", 1)]))


def test_the_report(shard_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report"
    words = ("--source", shard_root, "--out", out, "--sample", 3, "--qualities", 77, 10)
    report(*words, "--dct-scales", 16, "--smartscale", 4)
    assert capsys.readouterr().out == f"written: {out}/index.html (3 crops, 7 curves, 2 qualities)\n"
    figures = ["bpp", "bytes", "psnr", "rate-distortion-psnr", "rate-distortion-ssim", "ssim", "table-limit"]
    assert sorted(path.name for path in out.rglob("*.png")) == sorted(
        ["contact-sheet.png", *(f"{name}.png" for name in figures)]
    )
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]

    rows = list(csv.DictReader(io.StringIO((out / "fidelity.csv").read_text())))
    assert len(rows) == 7 * 2 - 1  # 8-bit tables limit nothing at 77
    crops = [crop.pixels for crop in sample_crops(shard_root, 3, seed=0).crops]
    sizes = [len(encode_jpeg(crop, 10)) for crop in crops]
    row = next(row for row in rows if row["curve"] == "mozjpeg-baseline" and row["quality"] == "10")
    assert row["n"] == "3"
    assert float(row["bytes_mean"]) == pytest.approx(np.mean(sizes), rel=1e-5)
    assert (float(row["bytes_p5"]), float(row["bytes_p95"])) == (min(sizes), max(sizes))
    assert float(row["bpp_mean"]) == pytest.approx(8 * np.mean(sizes) / 64**2, rel=1e-5)
    expected = np.mean([psnr(crop, decode_jpeg(encode_jpeg(crop, 10))) for crop in crops])
    assert float(row["psnr_mean"]) == pytest.approx(expected, rel=1e-5)

    text = (out / "index.html").read_text()
    page = Page(text)
    assert len(page.pictures) == len(figures) + 1
    assert all(picture["alt"] for picture in page.pictures)
    assert all(address.startswith("data:") for address in page.addresses)  # nothing from elsewhere
    assert not re.search(r"https?://|@import|url\(", text)
    for said in ("SmartScale is an extension of IJG", "sigma 1.5", "Annex K", "libjpeg-turbo 3", "manifest digest"):
        assert said in text

    report(*words, "--dct-scales", "--smartscale")  # takes the place of the first, with no curve that scales
    assert "5 curves" in capsys.readouterr().out
    assert "SmartScale is an extension" not in (out / "index.html").read_text()


def test_no_report_replaces_anything_else(shard_root: Path, tmp_path: Path) -> None:
    words = ("--source", shard_root, "--sample", 1, "--qualities", 90, "--dct-scales", "--smartscale")
    (tmp_path / "index.html").write_text("mine")
    for out, problem in (
        (tmp_path, "isn't empty, and no report of ours"),
        (tmp_path / "index.html", "is a file"),
        (tmp_path / "no" / "report", "no doesn't exist"),
        (shard_root, "holds something else than a report"),
    ):
        with pytest.raises(InputError, match=problem):
            report(*words, "--out", out)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    report(*words, "--out", tmp_path / "new")
    text = (tmp_path / "new" / "index.html").read_text()
    assert "the limit changes nothing here" in text
    (tmp_path / "new" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds something else than a report \(notes.txt\)"):
        report(*words, "--out", tmp_path / "new")


ONE = ("--sample", 1, "--qualities", 90, "--dct-scales", "--smartscale", "--workers", 1)


def test_exit_codes(shard_root: Path, tmp_path: Path, reject, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("fidelity", "--source", shard_root, *ONE)
    out = tmp_path / "report"
    assert main([str(word) for word in (*words, "--out", out)]) == 0
    assert capsys.readouterr().out == f"written: {out}/index.html (1 crops, 5 curves, 1 qualities)\n"
    before = {path: path.stat().st_ino for path in out.rglob("*")}
    prefix = "python -m datasets_shards fidelity: error: "
    said = reject(1, "fidelity", "--source", shard_root / "q77", *ONE, "--out", out)
    assert said.startswith(f"{prefix}--source {shard_root / 'q77'}: its crops went through JPEG already")
    assert reject(1, *words, "--out", "/").startswith(f"{prefix}--out /: is a mount point")
    with largest_file(10_000):  # most figures are larger
        said = reject(1, *words, "--out", out)
    assert said.startswith(f"{prefix}--out {out}: file too large; nothing was left there, raise the limit")
    assert {path: path.stat().st_ino for path in out.rglob("*")} == before  # the report of before
    assert "8 scales nothing" in reject(2, *words, "--out", out, "--dct-scales", 8)
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    (tmp_path / ".report.part" / "figures").mkdir(parents=True)  # as a killed call leaves it, between its two renames
    out.rename(tmp_path / ".report.old")
    reject(1, "fidelity", "--source", shard_root / "q77", *ONE, "--out", out)
    assert {path: path.stat().st_ino for path in out.rglob("*")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_locale_without_unicode(shard_root: Path, tmp_path: Path) -> None:
    """The page has signs that ASCII lacks, and is UTF-8 whatever the locale."""
    code = "import sys; from datasets_shards.__main__ import main; sys.exit(main(sys.argv[1:]))"
    words = ("fidelity", "--source", shard_root, "--out", tmp_path / "report", *ONE)
    command = [sys.executable, "-X", "utf8=0", "-c", code, *map(str, words)]
    environment = os.environ | {"LC_ALL": "C", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "64×64" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "64×64" in json.loads((tmp_path / "report" / "report.json").read_bytes())["facts"]["Source"]["crops"]


def test_crops_too_small_to_measure() -> None:
    for shape in ((10, 64, 3), (64, 10, 3)):
        tiny = [Crop("tiny", "youtube", np.zeros(shape, np.uint8))]
        with pytest.raises(InputError, match=rf"tiny: {shape[1]}x{shape[0]} pixels; SSIM's window needs 11 at least"):
            measure_crops(tiny, [BASELINE_CURVE], [77], 1)
    least = [Crop("least", "youtube", np.zeros((11, 11, 3), np.uint8))]
    assert measure_crops(least, [BASELINE_CURVE], [77], 1)[0].count == 1


def test_a_title_names_the_dots_that_are_there() -> None:
    crops = [Crop("cat", "youtube", CAT[:64, :64]), Crop("face", "youtube", CROP[:64, :64])]
    points = measure_crops(crops, [BASELINE_CURVE, PROGRESSIVE_CURVE], [10, 50, 77], 1)
    title = "Rate and distortion: mean PSNR by mean bits per pixel"
    assert rate_distortion_title(points, "psnr") == f"{title}; dots are MozJPEG baseline at q77, 10"
    assert rate_distortion_title([point for point in points if point.quality == 50], "psnr") == title


def test_a_damaged_crop_is_named(shard_root: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shard_root / "raw", tmp_path / "raw")
    for tar in folder.glob("*.tar"):
        content = bytearray(tar.read_bytes())
        for place in re.finditer(rb"IHDR", bytes(content)):
            content[place.start()] ^= 1
        tar.write_bytes(content)
    with pytest.raises(InputError, match=r"-000000\.tar: .*\.png can't be decoded .*; delete .*/raw and pack it again"):
        sample_crops(tmp_path, 1, 0)


def test_crops_of_videos_are_those_of_pack(ff_tree: Path, packed: Path) -> None:
    sample = sample_crops(ff_tree, 6, seed=0, faces=packed / "faces.parquet", size=128)
    stored = {crop.key: crop.pixels for crop in sample_crops(packed, 1000, seed=0).crops}
    for crop in sample.crops:
        assert np.array_equal(crop.pixels, stored[crop.key])
    assert [crop.method for crop in sample.crops] == [m for m in ("youtube", "Deepfakes", "FaceSwap") for _ in range(2)]


def test_faces_are_looked_for_where_there_is_no_table(ff_tree: Path) -> None:
    sample = sample_crops(ff_tree, 3, seed=0, size=64)
    assert sorted(crop.method for crop in sample.crops) == ["Deepfakes", "FaceSwap", "youtube"]
    assert all(crop.pixels.shape == (64, 64, 3) for crop in sample.crops)
    assert sample.origin["compression of the videos"] == "c23"


def test_bad_videos_are_told_of(ff_tree: Path, tmp_path: Path) -> None:
    folder = tmp_path / "original_sequences/youtube/c23/videos"
    folder.mkdir(parents=True)
    good = open_source(ff_tree).videos[0]
    (folder / "000.mp4").write_bytes(good.path.read_bytes())
    (folder / "001.mp4").write_bytes(good.path.read_bytes()[:500])
    lines: list[str] = []
    sample = sample_crops(tmp_path, 2, seed=0, size=64, tell=lines.append)
    assert [crop.key for crop in sample.crops] == ["youtube-000-00002"]
    assert len(lines) == 1
    assert "001.mp4" in lines[0]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--dct-scales", 8), "8 scales nothing"),
        (("--dct-scales", 17), "17 is not a whole number from 1 to 16"),
        (("--smartscale", 0), "0 is not a whole number from 1 to 16"),
        (("--qualities", 101), "101 is not a whole number from 1 to 100"),
    ],
)
def test_wrong_flags_are_named(shard_root: Path, tmp_path: Path, flags: tuple, problem: str) -> None:
    with pytest.raises(Exception, match=problem):
        report("--source", shard_root, "--out", tmp_path / "report", *flags)
