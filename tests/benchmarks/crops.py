"""Data for the benchmarks: photographs as shards and as PNG files, and an index as long as FaceForensics++ makes it."""

import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from skimage.data import astronaut

from datasets_shards.jpeg.mozjpeg import describe_encoder, encode
from datasets_shards.schema import (
    INDEX_NAME,
    INDEX_SCHEMA,
    Manifest,
    ShardSet,
    TarEntry,
    file_sha256,
    label_of,
    quality_name,
    sample_key,
)
from datasets_shards.shards.tarwriter import TarWriter

SIZE, QUALITY, TARS = 256, 77, 4
METHODS = ("youtube", "Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures")
FRAMES_PER_VIDEO = 360


def photographs(count: int) -> list[np.ndarray]:
    """Crops about the face of one photograph, each another and in another light: uint8 `[256, 256, 3]`, RGB.

    Without added noise, which would make PNG slower than it is on a video's frames.
    """
    rng = np.random.default_rng(0)
    crops = []
    for _ in range(count):
        top, left = rng.integers(0, 40), rng.integers(70, 130)
        pixels = astronaut()[top : top + SIZE, left : left + SIZE] * rng.uniform(0.6, 1.0, 3)
        crops.append(pixels.astype(np.uint8))
    return crops


def write_pngs(folder: Path, crops: list[np.ndarray]) -> list[Path]:
    """One lossless file for each crop."""
    folder.mkdir()
    paths = [folder / f"{number:05d}.png" for number in range(len(crops))]
    with ThreadPoolExecutor(2) as pool:
        contents = pool.map(lambda crop: encode(crop, "raw"), crops)
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
    return paths


def write_root(root: Path, crops: list[np.ndarray], samples: int) -> Path:
    """The set q77 of a training split with that many samples, cut into `TARS` equal tars; crops come again in turn."""
    folder = root / quality_name(QUALITY)
    folder.mkdir(parents=True)
    with ThreadPoolExecutor(2) as pool:
        contents = list(pool.map(lambda crop: encode(crop, QUALITY), crops))
    rows: list[dict] = []
    tars: dict[str, TarEntry] = {}
    for part in np.array_split(np.arange(samples), TARS):
        name = f"train-{len(tars):06d}.tar"
        tar = TarWriter(folder / name)
        for number in part.tolist():
            content, method, frame = contents[number % len(contents)], METHODS[number % len(METHODS)], number
            key, label = sample_key(method, "000", frame), label_of(method)
            offset = tar.add_sample(key, {"jpg": content, "cls": str(label).encode()})["jpg"]
            place = {"key": key, "split": "train", "shard": name, "offset": offset, "size": len(content)}
            place["crc32"] = zlib.crc32(content)
            of = {"label": label, "method": method, "video": "000", "target": "000", "source": ""}
            rows.append(place | of | {"frame": frame, "width": SIZE, "height": SIZE})
        tars[name] = tar.close()
        tar.publish()
    manifest = Manifest(
        quality=QUALITY,
        encoder=describe_encoder(QUALITY),
        crop={"size": SIZE, "margin": 1.3, "align": "none"},
        source={"compression": "raw", "videos": 1, "digest": "made up"},
        splits={"origin": "made up"},
        counts={"train": {method: sum(row["method"] == method for row in rows) for method in METHODS}},
        tars=tars,
        index_sha256="",
    )
    _publish(folder, manifest, pa.Table.from_pylist(rows, schema=INDEX_SCHEMA))
    return root


def write_long_root(root: Path, shard_set: ShardSet, samples: int) -> Path:
    """A set of that many samples whose images are those of `shard_set`, again and again.

    Keys, videos, methods and splits are as many and as long as those of FaceForensics++ at 360 frames of each video.
    """
    folder = root / shard_set.folder.name
    folder.mkdir(parents=True)
    for name in shard_set.manifest.tars:
        os.link(shard_set.folder / name, folder / name)
    number = np.arange(samples)
    video_number, frame = number // FRAMES_PER_VIDEO, number % FRAMES_PER_VIDEO
    method_number, target_number = video_number % len(METHODS), video_number // len(METHODS)
    targets = pa.array([f"{target:03d}" for target in range(int(target_number.max()) + 1)])
    target = targets.take(pa.array(target_number))
    real = pa.array(method_number == METHODS.index("youtube"))
    source = pc.if_else(real, "", targets.take(pa.array((target_number + 1) % len(targets))))
    video = pc.if_else(real, target, pc.binary_join_element_wise(target, source, "_"))
    method = pa.array(METHODS).take(pa.array(method_number))
    key = pc.binary_join_element_wise(method, video, pc.utf8_lpad(pa.array(frame).cast(pa.string()), 5, "0"), "-")
    # The splits of FaceForensics++: 720, 140 and 140 of 1000 target videos.
    share = target_number / len(targets)
    split = np.where(share < 0.72, "train", np.where(share < 0.86, "val", "test"))
    images = shard_set.index.take(number % shard_set.index.num_rows)
    columns = {name: images[name] for name in INDEX_SCHEMA.names} | {
        "key": key,
        "split": pa.array(split),
        "label": pa.array(1 - real.to_numpy(zero_copy_only=False).astype(np.int8)),
        "method": method,
        "video": video,
        "target": target,
        "source": source,
        "frame": pa.array(frame),
    }
    _publish(folder, shard_set.manifest, pa.table(columns).cast(INDEX_SCHEMA))
    return root


def _publish(folder: Path, manifest: Manifest, index: pa.Table) -> None:
    pq.write_table(index, folder / INDEX_NAME)
    replace(manifest, index_sha256=file_sha256(folder / INDEX_NAME)).save(folder)
