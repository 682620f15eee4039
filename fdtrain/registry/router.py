"""One registered model over the champions of all qualities, each asked about the images that it was trained for."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from datasets_shards.schema import RAW, Quality, ShardSet, ShardSetError, parse_quality, quality_name
from fdtrain.config import UserError
from fdtrain.data.reader import ShardReader
from fdtrain.data.remote import open_cache, open_set
from fdtrain.data.rows import require_rows
from fdtrain.evaluation import score_split, scored_table
from fdtrain.metrics import compute_metrics
from fdtrain.models.registered import ROUTER_KEY, registered_folder
from fdtrain.models.weights import open_model
from fdtrain.registry.calibration import Calibration, fit_calibration
from fdtrain.registry.card import use
from fdtrain.registry.challenge import CHAMPION, Verdict
from fdtrain.registry.logged import save_served, write_program
from fdtrain.registry.versions import Registered, conclude_version, log_version, name_prefix, registered_name
from fdtrain.runtime import Runtime
from fdtrain.tasks import Task
from fdtrain.tracking import connect, git_revision
from fdtrain.tracking.client import must_be_there

ROUTER_NAME = "router.json"


@dataclass(frozen=True)
class Member:
    """One of a router's models.

    Args:
        quality: What it was trained for.
        uri: `models:/name/version`.
        run_id: MLflow run that it came from.
        calibration: Of its scores.
        predictions: Of its validation samples, uncalibrated.
        digest: Of the shard set that they are of.
    """

    quality: Quality
    uri: str
    run_id: str
    calibration: Calibration
    predictions: pa.Table
    digest: str


@dataclass(frozen=True)
class ShardRoot:
    """Where the validation images are.

    Args:
        root: Of the shard sets, a path or a URL.
        cache_dir: For a root by URL.
        cache_bytes: Likewise.
        batch_size: Samples of one forward pass.
    """

    root: str
    cache_dir: str | None
    cache_bytes: int
    batch_size: int


class RouterFlavor:
    """A router, as MLflow's `python_function`.

    Args:
        folder: As `serving.Router` opens it.
    """

    name = "python_function"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save_model(self, path: str, mlflow_model: Any) -> None:
        """See `Flavor`."""
        save_served(path, self.folder, mlflow_model)


def router_name(model: str) -> str:
    """`fdtrain-<model>-router`."""
    return f"{name_prefix(model)}router"


def find_champions(model: str, qualities: Sequence[Quality] | None, uri: str) -> dict[Quality, Any]:
    """The champions of a model by quality, lowest first and raw last: MLflow's `ModelVersion` of each.

    Args:
        model: Its name, such as meso4.
        qualities: Those wanted; None for all that there are.
        uri: Tracking URI.

    Raises:
        UserError: there is none, or not one of those wanted.
    """
    must_be_there(uri)
    client, prefix = connect(uri), name_prefix(model)
    found: dict[Quality, Any] = {}
    for registered in client.search_registered_models(filter_string=f"name LIKE '{prefix}%'", max_results=1000):
        try:
            quality = parse_quality(registered.name.removeprefix(prefix))
        except ValueError:
            continue  # of a model whose name begins alike, or a router
        if CHAMPION in registered.aliases:
            found[quality] = client.get_model_version(registered.name, registered.aliases[CHAMPION])
    there = ", ".join(map(quality_name, sorted(found, key=_order))) or "none at all"
    for quality in qualities or ():
        if quality not in found:
            raise UserError(
                f"qualities: {registered_name(model, quality)} has no champion at {uri}; there are champions of {there}"
            )
    if not found:
        raise UserError(
            f"model: no {prefix}q... or {prefix}raw has a champion at {uri}; train one with tracking.register, or set "
            "MLFLOW_TRACKING_URI"
        )
    chosen = found if qualities is None else qualities
    return {quality: found[quality] for quality in sorted(chosen, key=_order)}


def register_router(
    model: str, champions: Mapping[Quality, Any], data: ShardRoot, runtime: Runtime, uri: str
) -> Registered:
    """Calibrate the champions on validation images of their qualities, and register the router over them.

    It becomes champion of its name: each of its models has won that at its own quality already.

    Args:
        model: Name of the model, such as meso4.
        champions: As of `find_champions`.
        data: Root with a set of each quality.
        runtime: A single process.
        uri: Tracking URI.

    Raises:
        UserError: a champion can't be loaded, or a validation split has one class only.
        ShardSetError: a set can't be used.
    """
    name, client = router_name(model), connect(uri)
    with tempfile.TemporaryDirectory(prefix="fdtrain-") as staged:
        folder = Path(staged, "model")
        members = [_prepare(version, quality, folder, data, runtime, uri) for quality, version in champions.items()]
        content = describe(members)
        (folder / ROUTER_NAME).write_text(json.dumps(content, indent=2))
        pooled = pooled_metrics(content, members)
        experiment = client.get_run(members[0].run_id).info.experiment_id
        run_id = client.create_run(experiment, run_name=name).info.run_id
        for key, value in pooled.items():
            client.log_metric(run_id, key, value)
        revision = git_revision()
        tags = {quality_name(member.quality): member.uri for member in members} | {"git.revision": revision}
        version = log_version(
            RouterFlavor(folder),
            name,
            uri=uri,
            run_id=run_id,
            step=0,
            tags=tags | {key: repr(value) for key, value in pooled.items()},
            metadata={ROUTER_KEY: content},
        )
        client.set_registered_model_alias(name, CHAMPION, version)
        verdict = Verdict(True, "made of the champions of each quality")
        return conclude_version(name, version, verdict, router_card(name, content, members, pooled, revision), uri=uri)


def describe(members: Sequence[Member]) -> dict[str, Any]:
    """The content of `router.json`: the models by name, and who judges what is no JPEG."""
    names = [quality_name(member.quality) for member in members]
    other = names[-1]  # raw, or the highest quality
    note = (
        "" if other == RAW else f"no champion of raw: {other} judges PNG files and pixels, which it wasn't trained on"
    )
    models = {
        name: {
            "quality": None if member.quality == RAW else member.quality,
            "uri": member.uri,
            "calibration": asdict(member.calibration),
        }
        for name, member in zip(names, members, strict=True)
    }
    return {"models": models, "other": other, "note": note}


def pooled_metrics(content: dict[str, Any], members: Sequence[Member]) -> dict[str, float]:
    """Metrics over the validation samples of all qualities together, before and after calibration.

    Names as in `fdtrain.metrics`, with `pooled/uncalibrated/` or `pooled/calibrated/` before them.
    """
    from fdtrain.registry.serving import calibrated

    tables: dict[str, list[pa.Table]] = {"uncalibrated": [], "calibrated": []}
    for member in members:
        table, name = member.predictions, quality_name(member.quality)
        # The same videos at another quality are other samples here.
        videos = pa.array([f"{video}@{name}" for video in table["video"].to_pylist()])
        table = table.set_column(table.schema.get_field_index("video"), "video", videos)
        tables["uncalibrated"].append(table)
        scores = pa.array(calibrated(content, name, table["score"].to_numpy()))
        tables["calibrated"].append(table.set_column(table.schema.get_field_index("score"), "score", scores))
    wanted = [f"val/{level}/{metric}" for level in ("frame", "video") for metric in ("auc", "acc", "log_loss")]
    found: dict[str, float] = {}
    for how, parts in tables.items():
        metrics = compute_metrics(pa.concat_tables(parts), "val")
        found |= {f"pooled/{how}/{name}": metrics[name] for name in wanted if name in metrics}
    return found


def router_card(
    name: str, content: dict[str, Any], members: Sequence[Member], pooled: Mapping[str, float], revision: str
) -> str:
    """The description of a router's version, Markdown."""
    rows = [
        f"| {quality_name(member.quality)} | `{member.uri}` | {member.calibration.slope:.3f} | "
        f"{member.calibration.offset:+.3f} | `{member.digest[:12]}` |"
        for member in members
    ]
    numbers = [
        f"| {metric} | {pooled[f'pooled/uncalibrated/{metric}']:.4f} | {pooled[f'pooled/calibrated/{metric}']:.4f} |"
        for metric in (key.removeprefix("pooled/calibrated/") for key in pooled if "/calibrated/" in key)
    ]
    others = content["note"] or f"PNG files and pixels go to {content['other']}"
    return "\n".join(
        [
            f"# {name}",
            "",
            "P(fake) by the champion of the nearest quality: a JPEG's quality is read from its quantization tables "
            "(exact for the tables of libjpeg and MozJPEG, else those that are nearest), and of two as near the lower "
            f"is asked; {others}. What an image went through before its last compression isn't seen.",
            "",
            "| quality | model | slope | offset | calibrated on |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "Scores are calibrated by Platt scaling on the validation split of each model's quality, real and fake "
            "counting equally: P(fake) at even prior odds. Over those samples of all qualities together, which the "
            "calibration was fitted to:",
            "",
            "| | uncalibrated | calibrated |",
            "|---|---|---|",
            *numbers,
            "",
            f"Limits and the licence of the data are those of its models. Code `{revision}`.",
            "",
            use(name),
            "",
        ]
    )


def _prepare(version: Any, quality: Quality, folder: Path, data: ShardRoot, runtime: Runtime, uri: str) -> Member:
    """Calibrate a champion, and write its program where the router has it."""
    place = f"models:/{version.name}/{version.version}"
    shard_set, tars = open_set(data.root, quality, open_cache(data.root, data.cache_dir, data.cache_bytes))
    rows = require_rows(shard_set, "val")
    with registered_folder(place, uri) as fetched, ShardReader(shard_set, tars=[tars]) as reader:
        model, card = open_model(fetched)
        task = Task(model, card["input"]).to(runtime.device)
        loading: dict[str, Any] = {"loader": "torch", "threads": runtime.decode_threads, "prefetch": 3}
        scores = score_split(task, reader, rows, runtime, batch_size=data.batch_size, **loading)
        write_program(folder / quality_name(quality), model.cpu(), card["input"], fetched)
    table = scored_table(shard_set, rows, scores)
    try:
        calibration = fit_calibration(table)
    except ValueError as error:
        raise ShardSetError(f"{shard_set.place}: nothing to calibrate on in the split 'val': {error}") from None
    print(f"{quality_name(quality)}: {place}, slope {calibration.slope:.3f}, offset {calibration.offset:+.3f}")
    _warn(place, calibration, card, shard_set)
    return Member(quality, place, version.run_id, calibration, table, shard_set.manifest.digest)


def _warn(place: str, calibration: Calibration, card: dict[str, Any], shard_set: ShardSet) -> None:
    if not calibration.is_informative:
        print(f"warning: {place} tells nothing apart in the split 'val' of {shard_set.place}; its scores count little")
    if card["trained_on"].get("data.digest") != shard_set.manifest.digest:
        print(
            f"warning: {place} was trained on other data than {shard_set.place}; nobody of its training should be in "
            "that split 'val'"
        )


def _order(quality: Quality) -> int:
    return 101 if quality == RAW else int(quality)
