"""The loaders against the decoder's own limit and against what others would use, in one run: `make benchmarks`.

Prints ratios; asserts no time, since machines differ. Each comparison runs its contenders in turn, several rounds, and
states the median of the rounds' ratios: what else the machine does then meets all of them. The first batches of a
round, with the start of threads and workers, are not counted. OpenCV and albumentations are no dependencies of the
project; the comparison with them is skipped where they can't be imported.
"""

import json
import time
from collections.abc import Callable, Iterator, Sized
from contextlib import closing
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch

from datasets_shards.schema import ShardSet, open_shard_set
from fdtrain.data.augment import Augmenter, augment_settings
from fdtrain.data.batch import Batch
from fdtrain.data.loader import LoaderKind, load_batches
from fdtrain.data.plan import MicroBatch
from fdtrain.data.reader import ShardReader
from tests.benchmarks import baselines
from tests.benchmarks.baselines import BATCH, PREFETCH, THREADS
from tests.benchmarks.crops import QUALITY, photographs, write_long_root, write_pngs, write_root
from tests.benchmarks.table import Line
from tests.conftest import REPOSITORY, run_python

BATCHES, SKIPPED, ROUNDS = 36, 4, 5
SLOW_BATCHES, SLOW_ROUNDS = 20, 3
CROPS = 512
LONG_INDEX, STARTS = 1_800_000, 3

Contender = Callable[[], Iterator[Sized]]
Rates = dict[str, list[float]]


@pytest.fixture(scope="module")
def crops() -> list[np.ndarray]:
    return photographs(CROPS)


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory, crops: list[np.ndarray]) -> ShardSet:
    """2304 images of 256 px at quality 77, in four tars."""
    root = write_root(tmp_path_factory.mktemp("shards") / "root", crops, BATCH * BATCHES)
    return open_shard_set(root, QUALITY)


@pytest.fixture(scope="module")
def tars(shard_set: ShardSet) -> list[Path]:
    return [shard_set.folder / name for name in shard_set.manifest.tars]


@pytest.fixture(scope="module")
def reader(shard_set: ShardSet) -> Iterator[ShardReader]:
    with ShardReader(shard_set) as opened:
        yield opened


def plan(batches: int = BATCHES) -> list[MicroBatch]:
    return [MicroBatch.of(np.arange(start, start + BATCH)) for start in range(0, BATCH * batches, BATCH)]


def load(kind: LoaderKind, reader: ShardReader, batches: int = BATCHES) -> Iterator[Batch]:
    device = torch.device("cpu")
    loading = load_batches(
        kind, reader, plan(batches), batch_size=BATCH, device=device, threads=THREADS, prefetch=PREFETCH
    )
    with closing(loading):
        yield from loading


def images(kind: LoaderKind, reader: ShardReader) -> Iterator[torch.Tensor]:
    for batch in load(kind, reader):
        yield batch.images


def augmented(reader: ShardReader, batches: int) -> Iterator[torch.Tensor]:
    return augment(load("torch", reader, batches))


def augment(loading: Iterator[Batch]) -> Iterator[torch.Tensor]:
    with Augmenter(augment_settings("deepfakebench"), 0, THREADS) as augmenter:
        for batch in loading:
            yield augmenter.augment(batch).images


def rate(batches: Iterator[Sized]) -> float:
    """Images/s after the first `SKIPPED` batches: by then what was made ahead of the consumer is used up."""
    assert sum(map(len, islice(batches, SKIPPED))) == SKIPPED * BATCH
    began = time.perf_counter()
    count = sum(map(len, batches))
    return count / (time.perf_counter() - began)


def cpu_ms(contender: Contender) -> float:
    """CPU time of this process, all threads together, for one image; what else the machine does adds little to it."""
    began = time.process_time()
    count = sum(map(len, contender()))
    return 1e3 * (time.process_time() - began) / count


def take_turns(contenders: dict[str, Contender], rounds: int = ROUNDS) -> Rates:
    """Images/s of each contender in each round, after a round that isn't counted."""
    rates: Rates = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, contender in contenders.items():
            rates[name].append(rate(contender()))
    for name, all_rounds in rates.items():
        del all_rounds[0]
        print(f"\n{name}: {median(all_rounds):.0f} images/s ({min(all_rounds):.0f} to {max(all_rounds):.0f})", end="")
    return rates


def compare(table: list[Line], rates: Rates, ours: str, theirs: str, asked: str = "") -> None:
    figure = median(a / b for a, b in zip(rates[ours], rates[theirs], strict=True))
    detail = f"{median(rates[ours]):.0f} : {median(rates[theirs]):.0f} images/s"
    table.append(Line(f"{ours} / {theirs}", f"{figure:.2f}", asked, detail))


def assert_same(theirs: Iterator[torch.Tensor], ours: Iterator[torch.Tensor]) -> None:
    """The first batches show the same images, within one level. Both `[B, H, W, 3]` or `[B, 3, H, W]`."""
    a, b = next(theirs), next(ours)
    assert a.dtype == b.dtype == torch.uint8
    if a.shape != b.shape:
        b = b.permute(0, 2, 3, 1)
    assert (a.int() - b.int()).abs().max() <= 1


def test_decoding_limit(table: list[Line], reader: ShardReader) -> None:
    encoded = [reader.read_batch(batch) for batch in plan()]
    contenders: dict[str, Contender] = {
        "libjpeg-turbo alone": lambda: baselines.turbo_limit(encoded),
        "torch loader": lambda: images("torch", reader),
        "DALI loader": lambda: images("dali", reader),
    }
    rates = take_turns(contenders)
    compare(table, rates, "torch loader", "libjpeg-turbo alone", "at least 0.80")
    compare(table, rates, "DALI loader", "libjpeg-turbo alone")


def test_webdataset(table: list[Line], reader: ShardReader, tars: list[Path]) -> None:
    for theirs in (baselines.webdataset_pil, baselines.webdataset_turbo):
        assert_same(theirs(tars), images("torch", reader))
    contenders: dict[str, Contender] = {
        "webdataset": lambda: baselines.webdataset_pil(tars),
        "webdataset, libjpeg-turbo": lambda: baselines.webdataset_turbo(tars),
        "torch loader": lambda: images("torch", reader),
    }
    rates = take_turns(contenders, SLOW_ROUNDS)
    compare(table, rates, "torch loader", "webdataset", "at least 2")
    compare(table, rates, "torch loader", "webdataset, libjpeg-turbo")


def test_dali_own_reader(table: list[Line], reader: ShardReader, tars: list[Path]) -> None:
    assert_same(baselines.dali_webdataset(tars), images("dali", reader))
    contenders: dict[str, Contender] = {
        "DALI's reader": lambda: baselines.dali_webdataset(tars),
        "DALI loader": lambda: images("dali", reader),
    }
    rates = take_turns(contenders)
    compare(table, rates, "DALI loader", "DALI's reader", "at least 1.0")


def test_png_files(table: list[Line], reader: ShardReader, crops: list[np.ndarray], tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    pytest.importorskip("albumentations", reason="albumentations is not installed")
    paths = write_pngs(tmp_path / "png", crops)
    assert np.array_equal(next(baselines.png_files(paths, BATCH))[0].numpy(), crops[0])
    samples, transform = BATCH * SLOW_BATCHES, baselines.albumentations_preset()
    contenders: dict[str, Contender] = {
        "PNG": lambda: baselines.png_files(paths, samples),
        "torch loader": lambda: images("torch", reader),
        "PNG + albumentations": lambda: baselines.png_files(paths, samples, transform),
        "torch loader + Augmenter": lambda: augmented(reader, SLOW_BATCHES),
    }
    rates = take_turns(contenders, SLOW_ROUNDS)
    compare(table, rates, "torch loader", "PNG", "at least 10")
    compare(table, rates, "torch loader + Augmenter", "PNG + albumentations", "at least 2")


def test_first_batch_of_a_long_index(table: list[Line], shard_set: ShardSet, tmp_path: Path) -> None:
    root = write_long_root(tmp_path / "root", shard_set, LONG_INDEX)
    for kind in ("torch", "dali"):
        runs = []
        for _ in range(STARTS):
            done = run_python("-m", "tests.benchmarks.first_batch", root, kind, cwd=REPOSITORY)
            assert done.returncode == 0, done.stderr
            runs.append(json.loads(done.stdout))
            assert (runs[-1]["samples"], runs[-1]["batch"]) == (LONG_INDEX, BATCH)
        middle = {key: median(run[key] for run in runs) for key in runs[0]}
        detail = f"{middle['open_s']:.2f} s of it to open {LONG_INDEX} samples"
        table.append(
            Line(f"{kind} loader: start to first batch", f"{middle['first_batch_s']:.2f} s", "below 2", detail)
        )
        detail = f"{middle['peak_mb']:.0f} MB at the peak"
        table.append(Line(f"{kind} loader: memory added", f"{middle['added_mb']:.0f} MB", "below 300", detail))


def test_what_limits(table: list[Line], reader: ShardReader) -> None:
    """Each part alone with all threads that it gets, and the whole, in which they share the cores."""
    batches = plan(SLOW_BATCHES)
    encoded = [reader.read_batch(batch) for batch in batches]
    decoded = list(load("torch", reader, SLOW_BATCHES))
    parts: dict[str, Contender] = {
        "reading": lambda: map(reader.read_batch, batches),
        "decoding": lambda: baselines.turbo_limit(encoded),
        "augmenting": lambda: augment(iter(decoded)),
    }
    whole: dict[str, Contender] = {
        "reading + decoding": lambda: images("torch", reader),
        "the whole": lambda: augmented(reader, SLOW_BATCHES),
    }
    rates = {name: median(values) for name, values in take_turns(parts | whole, SLOW_ROUNDS).items()}
    total = sum(1 / rates[name] for name in parts)
    details = {name: f"{1 / rates[name] / total:.0%} of the time of the parts" for name in parts}
    details |= {"the whole": f"{1 / total:.0f} if the parts ran one after the other"}
    for name, speed in rates.items():
        detail = f"{cpu_ms((parts | whole)[name]):.2f} ms of CPU for an image; {details.get(name, '')}".rstrip("; ")
        table.append(Line(name, f"{speed:.0f} images/s", "", detail))
    for what, among in (("without augmentation", ("reading", "decoding")), ("with deepfakebench", tuple(parts))):
        table.append(Line(f"{what} the limit is", min(among, key=rates.__getitem__), ""))
