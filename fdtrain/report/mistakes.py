"""The worst mistakes on the validation split, with the very faces that the model saw."""

import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets_shards.page import Picture
from datasets_shards.schema import FAKE, REAL, Manifest, ShardSetError
from fdtrain.config import HostError
from fdtrain.data.reader import ShardReader
from fdtrain.metrics import THRESHOLD
from fdtrain.report.content import Block, Gallery, Missing, Part, Row, Section, Table
from fdtrain.report.runs import Result, Run

SPLIT = "val"
"""Who looks at mistakes learns from them, for which the test split is not."""

RESAVED = 92
"""JPEG quality of the faces of a raw set, whose PNG would make a page of many megabytes."""

TITLES = {REAL: "Real ones that it calls fake", FAKE: "Fakes that it calls real"}


def mistakes_section(runs: Sequence[Run], count: int) -> Section:
    """The faces of each run, `count` of either kind; without the faces where it is 0."""
    section = Section("mistakes", "Worst mistakes")
    section.parts.append(
        "Frames of the validation split that the model is surest and wrong of, at a threshold of 0.5, one of each "
        "video. The faces are the data set's: its licence holds for this page as well."
    )
    for run in runs:
        section.parts.extend(_parts(run, count))
    return section


def _parts(run: Run, count: int) -> list[Part]:
    result = run.result(SPLIT)
    if isinstance(result, Missing):
        return [result]
    chosen = {label: worst(result, label, count or 1) for label in TITLES}
    parts: list[Part] = []
    for label, rows in chosen.items():
        title = f"{run.label}: {TITLES[label].lower()}"
        if not rows:
            parts.append(f"{title}: none in the validation split.")
        elif count == 0:
            left_out = Missing(f"{run.letter}: the faces of mistakes are left out by --faces 0")
            parts += [left_out] if left_out not in parts else []
        else:
            faces = _faces(run, rows)
            parts.append(faces if isinstance(faces, Missing) else Gallery(title, faces))
    if any(chosen.values()):
        parts.append(_table(run, [row for rows in chosen.values() for row in rows]))
    return parts


def worst(result: Result, label: int, count: int) -> list[dict]:
    """The frames of a class that are called the other, the surest first and one of each video.

    Args:
        result: Of a model.
        label: The class.
        count: How many at most.

    Returns:
        Rows of the predictions.
    """
    table = result.predictions
    scores, labels = table["score"].to_numpy(), table["label"].to_numpy()
    wrong = np.flatnonzero((labels == label) & ((scores >= THRESHOLD) != bool(label)))
    surest = wrong[np.argsort(np.abs(scores[wrong] - label), kind="stable")[::-1]]
    seen: set[tuple[str, str]] = set()
    found = []
    for row in surest.tolist():
        sample = table.slice(row, 1).to_pylist()[0]
        video = sample["method"], sample["video"]
        if video not in seen:
            seen.add(video)
            found.append(sample)
        if len(found) == count:
            break
    return found


def _faces(run: Run, samples: Sequence[dict]) -> list[Picture] | Missing:
    if isinstance(run.data, Missing):
        return run.data
    shard_set, tars = run.data
    keys = shard_set.index["key"].combine_chunks()
    rows = pc.index_in(pa.array([sample["key"] for sample in samples]), value_set=keys).to_pylist()
    if None in rows:
        key = samples[rows.index(None)]["key"]
        return Missing(f"{run.letter}: {shard_set.place} has no sample {key}, so it isn't the data of the run any more")
    try:
        with ShardReader(shard_set, tars=[tars]) as reader:
            contents = [reader.read(row) for row in rows]
    except (ShardSetError, HostError) as error:
        return Missing(f"{run.letter}: its faces can't be read: {error}")
    return [_picture(content, sample, shard_set.manifest) for content, sample in zip(contents, samples, strict=True)]


def _picture(content: bytes, sample: dict, manifest: Manifest) -> Picture:
    truth = "fake" if sample["label"] == FAKE else "real"
    about = f"{sample['method']} {sample['video']}, frame {sample['frame']}"
    jpeg = content if manifest.extension == "jpg" else _as_jpeg(content)
    alt = f"Face crop of {about}: {truth}, P(fake) {sample['score']:.3f}"
    return Picture(f"{sample['key']}.jpg", jpeg, f"{about}: P(fake) {sample['score']:.3f}", alt)


def _as_jpeg(content: bytes) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        image.convert("RGB").save(buffer, "JPEG", quality=RESAVED)
    return buffer.getvalue()


def _table(run: Run, samples: Sequence[dict]) -> Table:
    rows = [
        Row(
            sample["key"],
            [sample["method"], sample["video"], str(sample["frame"]), str(sample["label"]), f"{sample['score']:.4f}"],
        )
        for sample in samples
    ]
    columns = ["sample", "method", "video", "frame", "label", "P(fake)"]
    caption = f"{run.label}: the worst mistakes on the validation split; label 1 is fake."
    return Table(f"mistakes-{run.letter}.csv", caption, columns, [Block("", rows)])
