"""What a version says of itself in the registry: Markdown, for whoever finds it there and knows nothing of the run."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets_shards.schema import Manifest, quality_name

FFPP_METHODS = {"youtube", "Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures", "FaceShifter"}
FFPP_LICENCE = (
    "Shard sets don't record a licence. Where these are the videos of FaceForensics++, whose methods they are named "
    "after, its terms of use hold: non-commercial research and education only, and neither videos nor frames may be "
    "passed on. Ask its holders before this model is used for anything else."
)
MADE_UP = (
    "None: the videos were made up by `python -m datasets_shards demo`, out of one photograph. Numbers got from them "
    "mean nothing for real detection, and this model is for trying the tools out alone."
)
NO_LICENCE = "Not recorded; set `tracking.data_licence`. Ask whoever the videos came from before you use this model."

BEST_OF = (
    "The best of {} trials by validation, which flatters its numbers there; neither the people who judged it against "
    "the champion nor the test split had a part in that choice."
)
CROP_KEYS = ("size", "margin", "alignment", "resampling", "library")
"""The keys of a crop record that a description tells."""

_COLUMNS = {"auc": "AUC", "acc": "ACC", "f1": "F1", "eer": "EER"}


def model_card(
    name: str,
    content: Mapping[str, Any],
    *,
    training: Sequence[Manifest],
    scored: Manifest,
    metrics: Mapping[str, float],
    facts: Mapping[str, str],
    run_id: str,
    verdict: str,
    licence: str | None,
    best_of: int = 1,
) -> str:
    """The description of a version.

    Args:
        name: Of the registered model.
        content: Of its `model.json`.
        training: Manifests of the sets that it was trained on.
        scored: That of the set that validation and test read.
        metrics: Of validation and test.
        facts: Data digest and git revision.
        run_id: MLflow run that it came from.
        verdict: Why it is champion, or isn't.
        licence: Of the data; None where nobody said.
        best_of: Among how many trials it was chosen by validation.
    """
    size = content["input"]["size"]
    qualities = " and ".join(quality_name(manifest.quality) for manifest in training)
    options = ", ".join(f"{key} {value}" for key, value in content["options"].items() if value is not None)
    lines = [
        f"# {name}",
        f"P(fake) of aligned face crops: `{content['name']}` ({options}), input {size} x {size} pixels, trained at "
        f"{qualities}. {verdict[:1].upper()}{verdict[1:]}.",
        *([BEST_OF.format(best_of)] if best_of > 1 else []),
        "## Trained on",
        *(_describe_set(manifest) for manifest in training),
        f"- data digest `{facts['data.digest']}`, code `{facts['git.revision']}`, MLflow run `{run_id}`",
        "## Numbers",
        *_tables(metrics, quality_name(scored.quality)),
        "## Limits",
        *_limits(training),
        "## Licence of the data",
        licence or _licence(training),
        "## Use",
        use(name),
    ]
    return _join(lines)


def use(name: str) -> str:
    """How to call a registered model, for its description."""
    return (
        "```python\n"
        f'model = mlflow.pyfunc.load_model("models:/{name}@champion")\n'
        'model.predict([open("crop.jpg", "rb").read()])  # image files, or uint8 [N, H, W, 3]: P(fake) of each\n'
        "```\n\n"
        "Served (`mlflow models serve`), it takes the same in base64: "
        '`{"dataframe_split": {"columns": ["image"], "data": [["..."]]}}`.'
    )


def _describe_set(manifest: Manifest) -> str:
    counts = ", ".join(f"{count} {method}" for method, count in sorted(manifest.counts.get("train", {}).items()))
    encoder = manifest.encoder
    how = f"{encoder.get('name')} ({encoder.get('library')})"
    if manifest.quality != "raw":
        how += f", {encoder.get('mode')}, {encoder.get('subsampling')}"
    crop = ", ".join(f"{key} {manifest.crop[key]}" for key in CROP_KEYS if key in manifest.crop)
    return (
        f"- **{quality_name(manifest.quality)}**: {how}; crops: {crop}; {manifest.source.get('videos')} videos of "
        f"compression {manifest.source.get('compression') or 'unknown'}; splits: {manifest.splits.get('origin')}. "
        f"Training images: {counts}"
    )


def _tables(metrics: Mapping[str, float], quality: str) -> Iterable[str]:
    shown = [column for column in _COLUMNS if any(f"{split}/video/{column}" in metrics for split in ("val", "test"))]
    yield f"At {quality}, fakes of all methods against real videos; 95 % intervals in brackets, where there are any."
    table = ["| | " + " | ".join(_COLUMNS[column] for column in shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for split in ("val", "test"):
        for level in ("frame", "video"):
            cells = [_cell(metrics, f"{split}/{level}/{column}") for column in shown]
            if any(cells):
                table.append(f"| {split}, per {level} | " + " | ".join(cells) + " |")
    yield "\n".join(table)
    methods = [key.rsplit("/", 1)[1] for key in metrics if key.startswith("test/video/auc/")]
    if methods:
        rows = [f"| {method} | {_cell(metrics, f'test/video/auc/{method}', method)} |" for method in sorted(methods)]
        yield "\n".join(["| test, per video, against the real ones of its dataset | AUC |", "|---|---|", *rows])


def _cell(metrics: Mapping[str, float], name: str, method: str = "") -> str:
    value = metrics.get(name)
    if value is None:
        return ""
    if not math.isfinite(value):
        return "undefined"
    stem, tail = (name.removesuffix(f"/{method}"), f"/{method}") if method else (name, "")
    low, high = (metrics.get(f"{stem}{end}{tail}", math.nan) for end in ("_low", "_high"))
    interval = f" [{low:.3f}, {high:.3f}]" if math.isfinite(low) and math.isfinite(high) else ""
    return f"{value:.3f}{interval}"


def _limits(training: Sequence[Manifest]) -> Iterable[str]:
    methods = sorted(_methods(training))
    qualities = ", ".join(quality_name(manifest.quality) for manifest in training)
    yield (
        f"- It has seen {', '.join(methods)} and nothing else: other manipulations, other cameras and other people are "
        "unknown ground, where detectors of this kind are known to fail.\n"
        "- It expects one face, cropped as above; other crops give scores that mean nothing.\n"
        f"- It has seen {qualities}; images compressed otherwise, or twice, or resized, are another distribution "
        "(`python -m fdtrain evaluate` measures it, `python -m fdtrain router` goes round it).\n"
        "- Its scores are the network's own, not calibrated: 0.9 doesn't mean nine times in ten.\n"
        "- A score is a hint, no proof; it shouldn't decide about a person on its own."
    )


def _licence(training: Sequence[Manifest]) -> str:
    if all(manifest.source.get("made_up") for manifest in training):
        return MADE_UP
    return FFPP_LICENCE if _methods(training) & FFPP_METHODS else NO_LICENCE


def _methods(training: Sequence[Manifest]) -> set[str]:
    return {method for manifest in training for method in manifest.counts.get("train", {})}


def _join(lines: Iterable[str]) -> str:
    """Blocks with an empty line between them; items of a list stay together."""
    text = ""
    for line in lines:
        text += ("\n" if line.startswith("- ") and text.rsplit("\n", 1)[-1].startswith("- ") else "\n\n") + line
    return text.strip() + "\n"
