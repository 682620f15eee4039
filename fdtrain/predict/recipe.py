"""How crops are made for a model: as those that it was trained on, as far as its card says how."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from datasets_shards.crops.align import AS_THEY_ARE, BENCHMARK, CropSettings
from datasets_shards.errors import InputError
from datasets_shards.faces.detector import FaceSettings
from datasets_shards.jpeg.settings import JpegSettings
from datasets_shards.schema import quality_name
from fdtrain.config import UserError
from fdtrain.predict.crops import Recipe

JPEG_DEFAULTS = JpegSettings().describe()
DETECTION = ("upsample", "reduce", "min_face")


@dataclass(frozen=True)
class Wishes:
    """What was asked for about the crops; None stands for what the model was trained with.

    Args:
        frames_per_video: Frames taken of each video, evenly spaced; None for all.
        are_crops: The files are crops already.
        jpeg_quality: MozJPEG quality at which crops are compressed; None for not at all.
        upsample: As of `FaceSettings`.
        margin: As of `CropSettings`.
        align: Likewise.
    """

    frames_per_video: int | None
    are_crops: bool = False
    jpeg_quality: int | None = None
    upsample: int | None = None
    margin: float | None = None
    align: str | None = None


def plan_crops(card: Mapping[str, Any], wishes: Wishes, place: str) -> tuple[Recipe, list[str]]:
    """The recipe for a model's crops, and lines for people about it.

    Args:
        card: The model's `model.json`; its "trained_on" has the "crop" and "encoder" of the shard set's manifest.
            Weights imported from DeepfakeBench were trained on its crops. Other imported weights and models of older
            runs don't have them, and those trained on a source's own crops don't know how they were cut: for these it
            is as `datasets_shards pack` does by default.
        wishes: What goes before that.
        place: The model, for messages.

    Raises:
        UserError: the card says something of the crops that this release doesn't know.
    """
    trained_on = card.get("trained_on") or {}
    known = trained_on.get("crop")
    crop, faces, origin = CropSettings(), FaceSettings(), "as its training data"
    if known is None and (trained_on.get("imported") or {}).get("format") == BENCHMARK:
        crop, origin = CropSettings(align=BENCHMARK), "as DeepfakeBench's, where the weights are from"
    elif known is None:
        origin = "by the packer's defaults, as its model.json doesn't say how its training data was cropped"
    else:
        try:
            crop = CropSettings.described(known)
        except InputError as error:
            raise UserError(f"{place}: 'crop' in its model.json: {error}; train it again, or score --crops") from None
        faces = replace(faces, **{name: known[name] for name in DETECTION if known.get(name) is not None})
        if crop.align == AS_THEY_ARE:
            crop = replace(CropSettings(), size=crop.size, dct_scale=crop.dct_scale)
            origin = "by the packer's defaults, as its training data came in crops that somebody else cut"
    crop = replace(
        crop,
        margin=crop.margin if wishes.margin is None else wishes.margin,
        align=crop.align if wishes.align is None else wishes.align,
    )
    faces = replace(faces, frames_per_video=wishes.frames_per_video)
    if wishes.upsample is not None:
        faces = replace(faces, upsample=wishes.upsample)
    recipe = Recipe(faces, crop, wishes.are_crops, wishes.jpeg_quality, _jpeg_settings(trained_on, place))
    lines = _describe(recipe, origin, trained_on.get("quality"), wishes)
    return recipe, lines + _warn_of_resampling(recipe, known or {})


def _warn_of_resampling(recipe: Recipe, known: Mapping[str, Any]) -> list[str]:
    """Return a line where crops are now resampled otherwise than those that the model was trained on."""
    trained, now = known.get("resampling", "none"), recipe.crop.describe()["resampling"]
    if recipe.are_crops or trained in ("none", now):
        return []
    return [
        f"warning: its training crops were resampled otherwise ({trained}) than this release does ({now}); its scores "
        "may be off a little: pack the data again and train it again, or score crops of the older release with --crops"
    ]


def _jpeg_settings(trained_on: Mapping[str, Any], place: str) -> JpegSettings:
    """The encoder's settings of the model's training data; the defaults where it is unknown, or had no JPEG step."""
    encoder, quality = trained_on.get("encoder"), trained_on.get("quality")
    if encoder is None or not isinstance(quality, int):
        return JpegSettings()
    try:
        return JpegSettings.described(encoder, quality)
    except InputError as error:
        raise UserError(f"{place}: 'encoder' in its model.json: {error}; train it again") from None


def _describe(recipe: Recipe, origin: str, quality: Any, wishes: Wishes) -> list[str]:
    crop = recipe.crop
    lines = []
    if recipe.are_crops:
        lines.append("crops: the files, as they are")
    else:
        changed = [f"--{name}" for name in ("upsample", "margin", "align") if getattr(wishes, name) is not None]
        but = f", but for {', '.join(changed)}" if changed else ""
        how = f"{crop.image_size} px, margin {crop.margin:g}, align {crop.align}, upsample {recipe.faces.upsample}"
        lines.append(f"crops: {how} ({origin}{but})")
    if recipe.jpeg_quality is not None:
        changed = [f"{key} {value}" for key, value in recipe.jpeg.describe().items() if value != JPEG_DEFAULTS[key]]
        how = f" with {', '.join(changed)}, as its training data" if changed else ""
        lines.append(f"crops are compressed by MozJPEG at quality {recipe.jpeg_quality}{how} before they are scored")
    elif isinstance(quality, int) and not recipe.are_crops:
        lines.append(
            f"the model was trained on {quality_name(quality)} crops, and these get no JPEG step; "
            f"--jpeg_quality {quality} gives it to them"
        )
    return lines
