"""How near packing comes to the encoder's own limit, in one run: `make benchmarks`.

Prints ratios; asserts no time, since machines differ.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

from datasets_shards.__main__ import main
from datasets_shards.errors import InputError
from datasets_shards.jpeg import cjpeg
from datasets_shards.jpeg.mozjpeg import encode_jpeg
from datasets_shards.jpeg.settings import JpegSettings
from datasets_shards.schema import open_shard_set
from tests.unit.conftest import write_video

CROPS, VIDEOS, FRAMES, THREADS = 2400, 8, 300, 2
QUALITIES = (77, 60, 15, 10)


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """A photograph of a face, shifted, in another light, with a sensor's noise."""
    rng = np.random.default_rng(seed)
    top, left = rng.integers(0, 512 - height + 1), rng.integers(0, 512 - width + 1)
    values = astronaut()[top : top + height, left : left + width] * rng.uniform(0.6, 1.1, 3)
    return np.clip(values + rng.normal(0, 2, values.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def crops() -> list[np.ndarray]:
    return [picture(seed, 256, 256) for seed in range(CROPS)]


@pytest.fixture(scope="module", autouse=True)
def one_thread_each() -> None:
    """The limit is THREADS threads of ours, so libvips must not start its own."""
    os.environ["VIPS_CONCURRENCY"] = "1"


def rate(count: int, action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return count / (time.perf_counter() - began)


def encoder_limit(images: list[np.ndarray]) -> float:
    """Crops/s of the encoder alone, at all qualities, nothing read or written."""

    def encode(image: np.ndarray) -> None:
        for quality in QUALITIES:
            encode_jpeg(image, quality)

    with ThreadPoolExecutor(THREADS) as pool:
        return rate(len(images), lambda: list(pool.map(encode, images)))


def pack(source: Path, root: Path, *flags: object) -> float:
    """Crops/s of packing with a table of faces that is there."""
    words = ["--source", source, "--workers", THREADS, "--frames-per-video", "all", *flags]
    assert main(["faces", *map(str, words), "--out", f"{root}.parquet"]) == 0
    command = ["pack", *map(str, words), "--out", str(root), "--faces", f"{root}.parquet"]
    began = time.perf_counter()
    assert main([*command, "--qualities", *map(str, QUALITIES)]) == 0
    return open_shard_set(root, QUALITIES[0]).index.num_rows / (time.perf_counter() - began)


def test_crops_against_the_encoder_alone(crops: list[np.ndarray], tmp_path: Path) -> None:
    for i, crop in enumerate(crops):
        path = tmp_path / "source" / ("real", "fake")[i % 2] / f"{i // 60:03d}" / f"{i:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(crop).save(path, compress_level=1)  # as OpenCV writes DeepfakeBench's
    before = encoder_limit(crops[:600])
    packed = pack(tmp_path / "source", tmp_path / "root", "--crops")
    limit = (before + encoder_limit(crops[:600])) / 2
    print(f"\nMozJPEG alone, {THREADS} threads: {limit:.1f} crops/s at {len(QUALITIES)} qualities")
    print(f"packing {CROPS} PNG crops: {packed:.1f} crops/s, {packed / limit:.2f} of it")


def test_videos_against_the_encoder_alone(tmp_path: Path) -> None:
    """All frames of 480x480 videos: decoding and cutting come on top of encoding."""
    videos = tmp_path / "source/original_sequences/youtube/c23/videos"
    for i in range(VIDEOS):
        base = picture(i, 480, 480)
        write_video(videos / f"{i:03d}.mp4", [np.roll(base, (n // 20, n // 15), (0, 1)) for n in range(FRAMES)])
    packed = pack(tmp_path / "source", tmp_path / "root", "--upsample", 0)
    opened = open_shard_set(tmp_path / "root", 77)
    limit = encoder_limit([picture(seed, 256, 256) for seed in range(600)])
    print(
        f"\npacking {opened.index.num_rows} crops from videos: {packed:.1f} crops/s, {packed / limit:.2f} of the limit"
    )


def test_against_a_process_per_crop(crops: list[np.ndarray]) -> None:
    try:
        cjpeg.find_cjpeg()
    except InputError as error:
        pytest.skip(str(error))
    settings = JpegSettings(encoder="cjpeg")

    def encode(image: np.ndarray) -> None:
        for quality in QUALITIES:
            cjpeg.encode(image, quality, settings)

    with ThreadPoolExecutor(THREADS) as pool:
        simple = rate(200, lambda: list(pool.map(encode, crops[:200])))
    limit = encoder_limit(crops[:200])
    print(
        f"\na cjpeg process per crop and quality, two at a time: {simple:.1f} crops/s; ours {limit / simple:.2f} times"
    )
