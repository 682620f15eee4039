"""The shard sets of a root: whether they open, their images decode, and a GPU's JPEG decoder can take them."""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from datasets_shards.columns import Columns
from datasets_shards.jpeg.segments import SOS, describe_jpeg, jpeg_segments
from datasets_shards.schema import (
    MANIFEST_NAME,
    RAW,
    Quality,
    ShardSet,
    ShardSetError,
    check_same_samples,
    parse_quality,
    quality_name,
)
from fdtrain.data.cache import ShardCache
from fdtrain.data.loader import LoaderKind, load_batches
from fdtrain.data.plan import MicroBatch
from fdtrain.data.reader import ShardReader
from fdtrain.data.remote import is_remote, open_cache, open_set
from fdtrain.doctor.disk import read_speed
from fdtrain.doctor.report import Finding, guarded
from fdtrain.doctor.request import Request

SAMPLES = 64
BATCH = 16
READ_SECONDS = 0.4
LEAST_BYTES = 16 << 20
LOADERS: tuple[LoaderKind, ...] = ("torch", "dali")


def check_data(request: Request) -> Iterator[Finding]:
    """Every set of the root, or the one of the quality that was asked for."""
    if request.root is None:
        yield Finding("ok", "data", "not looked at: no --data.root")
        return
    found, odd = find_qualities(request)
    for name in odd:
        yield Finding(
            "warning", "data", f"{request.root}/{name} has no quality's name, so nothing reads it", "rename it"
        )
    whole: list[ShardSet] = []
    for quality in found:
        yield from guarded(f"data {quality_name(quality)}", _check_set, request, quality, whole)


def find_qualities(request: Request) -> tuple[list[Quality], list[str]]:
    """The qualities to look at, and the names of sets that stand for none.

    Raises:
        ShardSetError: there is no such root, or nothing in it.
        UserError: a root by URL without a cache, or a cache that can't be used.
    """
    root = request.root
    assert root is not None
    if request.quality is not None:
        return [request.quality], []
    if is_remote(root):
        import fsspec

        from fdtrain.data.store import explaining

        with explaining(root):
            files, path = fsspec.core.url_to_fs(root.rstrip("/"))
            paths = files.glob(f"{path}/*/{MANIFEST_NAME}")
        names = sorted(Path(found).parent.name for found in paths)
    else:
        names = sorted(found.parent.name for found in Path(root).glob(f"*/{MANIFEST_NAME}"))
    qualities: list[Quality] = []
    odd = []
    for name in names:
        try:
            qualities.append(parse_quality(name))
        except ValueError:
            odd.append(name)
    if not qualities:
        if not is_remote(root) and not Path(root).is_dir():
            raise ShardSetError(f"{root}: no such folder; data.root is the folder that 'pack --out' wrote")
        raise ShardSetError(f"{root}: holds no shard set; make one with 'python -m datasets_shards pack --out {root}'")
    return sorted(qualities, key=lambda quality: 1 if quality == RAW else -int(quality)), odd


def _cache(request: Request) -> ShardCache | None:
    # Without patience: that the store can't be reached is the news.
    return open_cache(request.root or "", request.cache_dir, request.cache_bytes, lambda: 0.0)


def _check_set(request: Request, quality: Quality, whole: list[ShardSet]) -> Iterator[Finding]:
    """One set; it joins `whole`, the sets that are in order, of which it must hold the samples."""
    what, name = f"data {quality_name(quality)}", quality_name(quality)
    shard_set, tars = open_set(request.root or "", quality, _cache(request))
    with ShardReader(shard_set, tars=[tars]) as reader:
        if whole:
            check_same_samples(whole[0], shard_set)
        rows = _sample(shard_set)
        encoded = [reader.read(int(row)) for row in rows]
        apart = _decode(reader, rows)
    size = f"{shard_set.index.num_rows} samples of {shard_set.crop_size} px in {len(shard_set.manifest.tars)} tars"
    detail = f"{size}; {len(rows)} of them{' from one tar' if shard_set.url else ''} read and decoded by both loaders"
    if apart > 1:
        remedy = "train with one --loader.kind throughout, and report it"
        yield Finding("warning", what, f"{detail}, which are {apart:.1f} levels apart", remedy)
    else:
        yield Finding("ok", what, detail)
    whole.append(shard_set)
    yield from _splits(what, shard_set)
    yield _coding(f"JPEG {name}", quality, encoded)
    if not shard_set.url:
        yield _reading(f"read {name}", shard_set)


def _sample(shard_set: ShardSet) -> np.ndarray:
    """Rows spread over the set; of one in a store over its smallest tar, since tars are fetched whole."""
    rows = np.arange(shard_set.index.num_rows)
    if shard_set.url:
        tars = shard_set.manifest.tars
        codes, names = shard_set.index.codes("shard")
        rows = np.flatnonzero(codes == names.index(min(names, key=lambda name: tars[name].bytes)))
    return rows[np.unique(np.linspace(0, len(rows) - 1, SAMPLES).astype(np.int64))]


def _splits(what: str, shard_set: ShardSet) -> Iterator[Finding]:
    counts = shard_set.manifest.counts
    for split in ("train", "val"):
        if not sum(counts.get(split, {}).values()):
            detail = f"no sample in the split {split!r}: it can be evaluated on, and not trained on"
            yield Finding("warning", what, detail, "pack more videos, or check the split files, if it is to be")
            return
    if len(labels := _labels(shard_set.index)) < 2:
        detail = f"all samples have the label {labels[0]}: there is nothing to tell apart"
        yield Finding("warning", what, detail, "pack real videos and fakes together")


def _labels(index: Columns) -> list[int]:
    return np.unique(index.numbers("label")).tolist()


def _decode(reader: ShardReader, rows: np.ndarray) -> float:
    """Mean difference of the two loaders' pixels, in levels of 255. Raises ShardSetError, which names the sample."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    images = []
    for kind in LOADERS:
        parts = [MicroBatch.of(rows[at : at + BATCH]) for at in range(0, len(rows), BATCH)]
        batches = load_batches(kind, reader, parts, batch_size=BATCH, device=device, threads=2, prefetch=2)
        with closing(batches):
            images.append(torch.cat([batch.images.cpu() for batch in batches]).float())
    return max(float((one - other).abs().mean()) for one, other in pairwise(images))


def _coding(what: str, quality: Quality, encoded: list[bytes]) -> Finding:
    """Whether nvJPEG's hardware decoder can take the images: one scan, baseline, 8-bit tables, 1 or 3 components."""
    if quality == RAW:
        return Finding("ok", what, "none: lossless PNG, which is decoded on the CPU")
    forms: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for content in encoded:
        facts = describe_jpeg(content)
        scanned = next(data[0] for marker, data in jpeg_segments(content) if marker == SOS)
        colours = f"{facts.components} component{'s' * (facts.components > 1)}"
        forms[f"{facts.form}, {facts.table_bits}-bit tables, {facts.subsampling}, {colours}"] += 1
        reasons = [
            (facts.form != "baseline", facts.form),
            (facts.form == "baseline" and scanned != facts.components, "several scans"),
            (facts.table_bits != 8, f"{facts.table_bits}-bit tables"),
            (facts.components not in (1, 3), colours),
        ]
        refused.update([reason for applies, reason in reasons if applies])
    written = "; ".join(f"{form} ({count} of {len(encoded)})" for form, count in forms.most_common())
    if not refused:
        return Finding("ok", what, f"{written}: nvJPEG's hardware decoder can take it")
    return Finding(
        "warning",
        what,
        f"{written}: nvJPEG's hardware decoder can't take it ({', '.join(refused)}); slower decoders do",
        "pack again with --jpeg.mode baseline, which is the default, for a GPU",
    )


def _reading(what: str, shard_set: ShardSet) -> Finding:
    largest = max(shard_set.manifest.tars, key=lambda name: shard_set.manifest.tars[name].bytes)
    path, size = shard_set.folder / largest, shard_set.manifest.tars[largest].bytes
    if size < LEAST_BYTES:
        return Finding("ok", what, f"{path.name}, the largest tar, has {size / 1e6:.1f} MB: too few to time reading")
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        rate = read_speed(descriptor, size, READ_SECONDS)
    finally:
        os.close(descriptor)
    images = rate * 1e6 / float(shard_set.index.numbers("size").mean())
    return Finding("ok", what, f"{path.name}: {rate:.0f} MB/s in sequence, which is {images:.0f} images/s")
