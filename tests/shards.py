"""A small shard set of made-up images, for tests of the training side: no video, no face, seconds to make.

A fake carries a faint checkerboard that the real images lack, so that a detector has something to learn.
"""

import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets_shards.jpeg.mozjpeg import describe_encoder, encode
from datasets_shards.jpeg.settings import JpegSettings
from datasets_shards.schema import (
    INDEX_NAME,
    INDEX_SCHEMA,
    SPLITS,
    Manifest,
    Quality,
    TarEntry,
    file_sha256,
    label_of,
    quality_name,
    sample_key,
)
from datasets_shards.shards.tarwriter import TarWriter

METHODS = ("youtube", "Deepfakes", "FaceSwap")


def write_root(
    root: Path,
    qualities: tuple[Quality, ...] = (77,),
    pairs: tuple[int, int, int] = (8, 3, 3),
    frames: int = 2,
    size: int = 64,
    seed: int = 0,
    jpeg: JpegSettings | None = None,
    compression: str = "raw",
) -> Path:
    """Write shard sets; `pairs` are identity pairs in train, val and test, `frames` the frames of each video.

    `compression` is what the manifests say of the source videos.
    """
    rng = np.random.default_rng(seed)
    samples = []
    first = 0
    for split, count in zip(SPLITS, pairs, strict=True):
        for pair in range(count):
            a, b = f"{first + 2 * pair:03d}", f"{first + 2 * pair + 1:03d}"
            for method in METHODS:
                names = (a, b) if method == "youtube" else (f"{a}_{b}", f"{b}_{a}")
                for video in names:
                    for frame in range(frames):
                        samples.append((split, method, video, frame, _image(rng, size, label_of(method))))
        first += 2 * count
    for quality in qualities:
        _write_set(root / quality_name(quality), quality, samples, size, jpeg or JpegSettings(), compression)
    return root


def _image(rng: np.random.Generator, size: int, label: int) -> np.ndarray:
    coarse = rng.integers(60, 190, (4, 4, 3)).astype(float)
    image = np.kron(coarse, np.ones((size // 4, size // 4, 1)))
    rows, columns = np.indices((size, size))
    if label:
        image += 25 * ((rows // 4 + columns // 4) % 2)[..., None]
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


def _write_set(folder: Path, quality: Quality, samples: list, size: int, jpeg: JpegSettings, compression: str) -> None:
    folder.mkdir(parents=True)
    extension = "png" if quality == "raw" else "jpg"
    rows: list[dict] = []
    tars: dict[str, TarEntry] = {}
    counts: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        name = f"{split}-000000.tar"
        tar = TarWriter(folder / name)
        chosen = [sample for sample in samples if sample[0] == split]
        with ThreadPoolExecutor() as pool:
            contents = pool.map(lambda sample: encode(sample[-1], quality, jpeg), chosen)
        for (_, method, video, frame, _), content in zip(chosen, contents, strict=True):
            key, label = sample_key(method, video, frame), label_of(method)
            members = {extension: content, "cls": str(label).encode(), "json": json.dumps({"label": label}).encode()}
            offset = tar.add_sample(key, members)[extension]
            target, _, source = video.partition("_")
            place = {"key": key, "split": split, "shard": name, "offset": offset, "size": len(content)}
            place["crc32"] = zlib.crc32(content)
            of = {"label": label, "method": method, "video": video, "target": target, "source": source}
            rows.append(place | of | {"frame": frame, "width": size, "height": size})
            counts.setdefault(split, {}).setdefault(method, 0)
            counts[split][method] += 1
        tars[name] = tar.close()
        tar.publish()
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), folder / INDEX_NAME)
    Manifest(
        quality=quality,
        encoder=describe_encoder(quality, jpeg),
        crop={"size": size, "margin": 1.3, "align": "none"},
        source={"compression": compression, "videos": len({row["video"] for row in rows}), "digest": "made up"},
        splits={"origin": "made up"},
        counts=counts,
        tars=tars,
        index_sha256=file_sha256(folder / INDEX_NAME),
    ).save(folder)
