"""All figures of one model on one split, into one folder."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from datasets_shards.schema import FAKE, Quality, ShardSet, quality_name, write_atomic
from fdtrain.config import UserError
from fdtrain.data.batch import Batch
from fdtrain.data.loader import choose_loader, load_batches
from fdtrain.data.plan import evaluation_batches
from fdtrain.data.reader import ShardReader
from fdtrain.data.remote import open_cache, open_set
from fdtrain.data.rows import require_rows
from fdtrain.figures import MIN_POINTS
from fdtrain.figures.attention import attention_figure, has_attention
from fdtrain.figures.embedding import embed, penultimate_features, perplexity_of, tsne_csv, tsne_figure
from fdtrain.figures.gradcam import gradcam_figure
from fdtrain.figures.panels import png
from fdtrain.figures.samples import Samples, choose_rows, score_faces
from fdtrain.models import cam_layer
from fdtrain.models.weights import open_model
from fdtrain.runtime import Runtime, start
from fdtrain.tasks import Task

ATTENTION, GRADCAM, TSNE = "attention.png", "gradcam.png", "tsne.png"
POINTS, RECORD = "tsne.csv", "figures.json"


@dataclass(frozen=True)
class Request:
    """What is to be drawn; each field is the flag of its name, those of the data without `data.`."""

    model: str
    root: str
    cache_dir: str | None
    cache_bytes: int
    quality: Quality
    split: str
    samples: int
    points: int
    batch_size: int
    seed: int


def write_figures(request: Request, out: Path) -> None:
    """Draw everything, then write it to the folder `out`, each file whole; older files of these names are replaced.

    Under torchrun rank 0 does it alone. Raises: UserError, ShardSetError or FloatingPointError, as the parts do.
    """
    cache = open_cache(request.root, request.cache_dir, request.cache_bytes)
    shard_set, tars = open_set(request.root, request.quality, cache)
    rows = _drawable(shard_set, request.split)
    model, card = open_model(request.model)
    with start("fp32") as runtime, ShardReader(shard_set, tars=[tars]) as reader:
        if not runtime.is_main:
            return
        task = Task(model, card["input"]).to(runtime.device).eval()
        note = f"{card['name']}, {quality_name(request.quality)}, {request.split}"
        files, record = _draw(request, task, card["name"], reader, shard_set, rows, runtime, note)
        record = {"model": _identity(request.model, card), "data": _data(request, shard_set), **record}
    out.mkdir(parents=True, exist_ok=True)
    files[RECORD] = json.dumps(record, indent=2).encode() + b"\n"
    for name, content in files.items():
        write_atomic(out / name, content)
    if ATTENTION not in files:
        (out / ATTENTION).unlink(missing_ok=True)  # another model's, which would seem to belong to this one
        print(f"no {ATTENTION}: {card['name']} has no attention maps, multi_attention alone has")
    print(f"{', '.join(files)} in {out}")


def _drawable(shard_set: ShardSet, split: str) -> np.ndarray:
    """The rows of a split. Raises UserError where it has no fakes, or too few samples."""
    rows = require_rows(shard_set, split)
    if len(rows) < MIN_POINTS:
        raise UserError(
            f"{shard_set.folder}: the split {split!r} has {len(rows)} samples and t-SNE needs {MIN_POINTS}; "
            "pack more videos, or take another split"
        )
    if not (shard_set.index.numbers("label")[rows] == FAKE).any():
        raise UserError(
            f"{shard_set.folder}: the split {split!r} has no fake samples, so there is nothing to look for; "
            "pack fakes too, or take another split"
        )
    return rows


def _draw(
    request: Request,
    task: Task,
    name: str,
    reader: ShardReader,
    shard_set: ShardSet,
    rows: np.ndarray,
    runtime: Runtime,
    note: str,
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The files but for the record, and what the record says of them."""
    index = shard_set.index

    def batches(chosen: np.ndarray) -> Iterator[Batch]:
        kind, _ = choose_loader("auto", runtime.device)
        plan = evaluation_batches(chosen, request.batch_size, 0, 1)
        loading = load_batches(
            kind,
            reader,
            plan,
            batch_size=request.batch_size,
            device=runtime.device,
            threads=runtime.decode_threads,
            prefetch=3,
        )
        with closing(loading):
            yield from loading

    chosen = choose_rows(index, rows, request.samples, request.seed)
    images, scores = score_faces(task, batches(chosen))
    samples = Samples.of(index.take(chosen, "key", "method", "label"), scores)
    files: dict[str, bytes] = {}
    drawn: dict[str, Any] = {}

    def add(file: str, figure: Figure, **facts: Any) -> None:
        files[file], drawn[file] = png(figure), facts

    faces = [
        {"key": key, "method": method, "label": label, "score": score}
        for key, method, label, score in zip(samples.keys, samples.methods, samples.labels, samples.scores, strict=True)
    ]
    if has_attention(task):
        add(ATTENTION, attention_figure(task, images, samples, note), samples=faces)
    add(GRADCAM, gradcam_figure(task, cam_layer(name, task.model), images, samples, note), samples=faces)

    # In the order of the index the tars are read from front to back.
    chosen = np.sort(choose_rows(index, rows, request.points, request.seed))
    features, scores = penultimate_features(task, batches(chosen))
    points = Samples.of(index.take(chosen, "key", "method", "label"), scores)
    places = embed(features, request.seed)
    facts = {"points": len(points), "features": features.shape[1], "perplexity": perplexity_of(len(points))}
    add(TSNE, tsne_figure(points, places, note), **facts, table=POINTS)
    files[POINTS] = tsne_csv(points, places)
    asked = {"seed": request.seed, "samples": request.samples, "points": request.points}
    return files, {**asked, "figures": drawn}


def _identity(place: str, card: dict[str, Any]) -> dict[str, Any]:
    """Which model it is: what was asked for, and what its `model.json` says."""
    known: dict[str, Any] = {key: card[key] for key in ("name", "options", "trained_on", "results") if key in card}
    return {"place": place, **known, "input": vars(card["input"])}


def _data(request: Request, shard_set: ShardSet) -> dict[str, Any]:
    """Which samples there were to choose from."""
    return {
        "root": request.root,
        "quality": quality_name(request.quality),
        "split": request.split,
        "digest": shard_set.manifest.digest,
    }
