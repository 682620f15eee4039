"""What an augmentation does, and how often: the presets, and the ranges behind them."""

from dataclasses import dataclass, fields, replace
from typing import Literal

from fdtrain.config import UserError

Tables = Literal["standard", "mozjpeg"]


@dataclass(frozen=True)
class AugmentSettings:
    """Probabilities and ranges. Each operation is drawn for itself; the order is that of the fields.

    Args:
        preset: Name, for messages.
        flip_p: Probability of a horizontal flip. Alone it moves pixels and computes none.
        rotation_p: Probability of a rotation about the image's centre.
        rotation_degrees: Its largest angle, either way.
        scale_p: Probability of a change of scale about the centre.
        scale: Smallest and largest scale; above 1 the content grows.
        blur_p: Probability of a Gaussian blur.
        blur_sizes: Kernel widths, pixels, of 3, 5 and 7, equally often; name one twice to have it twice as often.
        colour_p: Probability of one colour change: brightness and contrast, or hue, saturation and value, equally
            often.
        brightness: Largest shift, either way, as a share of the full scale.
        contrast: Largest relative change of the slope through black.
        hue_degrees: Largest rotation about the grey axis.
        saturation: Largest relative change of the distance from grey.
        value: Largest shift that comes with hue and saturation, as a share of the full scale.
        jpeg_p: Probability of compression to JPEG and back.
        jpeg_quality: Lowest and highest quality, drawn uniformly, both included.
        jpeg_tables: `standard`: tables of the JPEG standard, 4:2:0, as OpenCV writes. `mozjpeg`: the tables and the
            chroma subsampling of MozJPEG's cjpeg, without its trellis quantization and deringing.

    Raises:
        UserError: a value out of range.
    """

    preset: str
    flip_p: float = 0.0
    rotation_p: float = 0.0
    rotation_degrees: float = 0.0
    scale_p: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    blur_p: float = 0.0
    blur_sizes: tuple[int, ...] = (3, 5, 7)
    colour_p: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    hue_degrees: float = 0.0
    saturation: float = 0.0
    value: float = 0.0
    jpeg_p: float = 0.0
    jpeg_quality: tuple[int, int] = (40, 100)
    jpeg_tables: Tables = "standard"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_p"):
                _require(0 <= value <= 1, field.name, value, "a probability from 0 to 1")
        _require(0 <= self.rotation_degrees <= 180, "rotation_degrees", self.rotation_degrees, "from 0 to 180")
        _require(0 <= self.hue_degrees <= 180, "hue_degrees", self.hue_degrees, "from 0 to 180")
        for name in ("brightness", "contrast", "saturation", "value"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "from 0 to 1")
        low, high = self.scale
        _require(0.1 <= low <= high <= 10, "scale", self.scale, "two numbers in order, from 0.1 to 10")
        sizes = set(self.blur_sizes)
        _require(bool(sizes) and sizes <= {3, 5, 7}, "blur_sizes", self.blur_sizes, "some of 3, 5 and 7")
        worst, best = self.jpeg_quality
        _require(1 <= worst <= best <= 100, "jpeg_quality", self.jpeg_quality, "two whole numbers in order, 1 to 100")
        _require(self.jpeg_tables in ("standard", "mozjpeg"), "jpeg_tables", self.jpeg_tables, "standard or mozjpeg")

    @property
    def does_nothing(self) -> bool:
        """No operation is ever drawn."""
        return not any(getattr(self, field.name) for field in fields(self) if field.name.endswith("_p"))

    @property
    def resamples(self) -> bool:
        """Some images get pixels that are interpolated between old ones: rotation or scale."""
        return self.rotation_p > 0 or self.scale_p > 0

    def warning(self, width: int) -> str | None:
        """One line for the log if images lose the 8x8 grid of the JPEGs that they were decoded from, else None.

        Rotation and scale lose it for good. A blur leaves it where it is, but smooths the steps at its lines and the
        spectrum that quantization left. A flip mirrors it, so its lines stay in place if 8 divides the width (16, for
        the chroma of 4:2:0); colour changes leave it in place; JPEG on top puts a second quantization on the same
        grid.

        Args:
            width: Of the images, pixels.
        """
        lost = [name for name, p in (("rotation", self.rotation_p), ("scale", self.scale_p)) if p]
        faults = []
        if lost:
            share = 1 - (1 - self.rotation_p) * (1 - self.scale_p)
            faults.append(f"{' and '.join(lost)}: {share:.0%} of the images are resampled, which destroys it")
        if self.blur_p:
            faults.append(f"blur weakens its traces in {self.blur_p:.0%}")
        if self.flip_p and width % 16:
            faults.append(f"a flip moves it, since 16 does not divide the width {width}")
        if not faults:
            return None
        return (
            f"augment.preset: {self.preset!r} damages the 8x8 grid of the stored JPEGs ({'; '.join(faults)}); "
            "none, flip and compression keep it at widths that 16 divides"
        )


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise UserError(f"augment.{name}: {value!r} is not allowed; give {allowed}")


PRESETS: dict[str, AugmentSettings] = {
    settings.preset: settings
    for settings in (
        AugmentSettings("none"),
        AugmentSettings("flip", flip_p=0.5),
        # data_aug of DeepfakeBench's detector configurations, and what albumentations 1.1 makes of them: its
        # GaussianBlur rounds even widths up, so that 3 comes half as often as 5 and 7; its HueSaturationValue turns by
        # 20 of OpenCV's half degrees, and shifts saturation by 30 of 255, which is some 0.3 of a face's; its
        # ImageCompression is OpenCV's JPEG.
        AugmentSettings(
            "deepfakebench",
            flip_p=0.5,
            rotation_p=0.5,
            rotation_degrees=10,
            blur_p=0.5,
            blur_sizes=(3, 5, 5, 7, 7),
            colour_p=0.5,
            brightness=0.1,
            contrast=0.1,
            hue_degrees=40,
            saturation=0.3,
            value=20 / 255,
            jpeg_p=0.5,
            jpeg_quality=(40, 100),
        ),
        AugmentSettings("compression", jpeg_p=1.0, jpeg_quality=(10, 95), jpeg_tables="mozjpeg"),
    )
}


def augment_settings(preset: str, jpeg_quality: tuple[int, int] | None = None) -> AugmentSettings:
    """A preset, with another range of JPEG qualities if one is given.

    Raises:
        UserError: no such preset; a range for a preset without JPEG; a bad range.
    """
    if preset not in PRESETS:
        raise UserError(f"augment.preset: there is no {preset!r}; choose one of {', '.join(PRESETS)}")
    settings = PRESETS[preset]
    if jpeg_quality is None:
        return settings
    if not settings.jpeg_p:
        raise UserError(
            f"augment.jpeg_quality: preset {preset!r} compresses nothing; leave it out or choose another preset"
        )
    return replace(settings, jpeg_quality=jpeg_quality)
