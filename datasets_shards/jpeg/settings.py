"""What a person can choose about the JPEG step, with the defaults of MozJPEG's cjpeg.

Imports nothing heavy: the command line shows these settings in its help.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_args

from datasets_shards.errors import InputError, nearest

Encoder = Literal["mozjpeg", "cjpeg"]
Mode = Literal["baseline", "progressive"]
Subsampling = Literal["auto", "4:4:4", "4:2:2", "4:2:0"]

SAMPLING_FACTORS = {"4:4:4": (1, 1), "4:2:2": (2, 1), "4:2:0": (2, 2)}
"""Horizontal and vertical sampling factor of the luma component, against 1 and 1 of both chroma components."""

QUANT_TABLES = range(9)
"""MozJPEG's own numbers of its base tables; cjpeg's help lists 0 to 5, and cjpeg takes them all."""


@dataclass(frozen=True)
class JpegSettings:
    """How crops are compressed; beside the quality, everything that the bytes of a JPEG follow from.

    Args:
        encoder: "mozjpeg", in this process, or "cjpeg", MozJPEG's own program on PATH, one process per crop. Both write
            the same coefficients and quantization tables.
        mode: "baseline" (cjpeg `-baseline`): one scan and 8-bit quantization tables, all that nvJPEG's hardware decoder
            takes. "progressive" (cjpeg `-progressive`, which is cjpeg's default): several scans, and 16-bit tables
            where an entry is above 255, as with the default quant_table up to quality 69.
        subsampling: resolution of the chroma. "auto" is cjpeg's rule: 4:4:4 from quality 90, 4:2:2 from 80, else 4:2:0.
            The others are fixed (cjpeg `-sample 1x1`, `2x1`, `2x2`).
        trellis: trellis quantization, which chooses coefficients by rate and distortion (off: cjpeg `-notrellis`).
        deringing: lets values overshoot beside white, against rings around edges (off: cjpeg `-noovershoot`). Where
            black meets pure white, MozJPEG's vector instructions can overflow with it below about quality 57 and turn a
            block's contrast around (https://github.com/mozilla/mozjpeg/issues/444); libvips has them.
        quant_table: base of the quantization tables (cjpeg `-quant-table`): 0 Annex K of the JPEG standard, 1 flat,
            2 tuned for MS-SSIM, 3 N. Robidoux's from ImageMagick (cjpeg's default), 4 tuned for PSNR-HVS, 5 Klein,
            Silverstein and Carney, 6 Watson, Taylor and Borthwick, 7 Ahumada, Watson and Peterson, 8 Peterson, Ahumada
            and Watson.

    Raises:
        InputError: a value that isn't among these.
    """

    encoder: str = "mozjpeg"
    mode: str = "baseline"
    subsampling: str = "auto"
    trellis: bool = True
    deringing: bool = True
    quant_table: int = 3

    def __post_init__(self) -> None:
        _check_choice("encoder", self.encoder, Encoder)
        _check_choice("jpeg.mode", self.mode, Mode)
        _check_choice("jpeg.subsampling", self.subsampling, Subsampling)
        for name in ("trellis", "deringing"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"jpeg.{name} {getattr(self, name)!r}: choose true or false")
        if isinstance(self.quant_table, bool) or self.quant_table not in QUANT_TABLES:
            raise InputError(
                f"jpeg.quant_table {self.quant_table!r}: choose a whole number from {QUANT_TABLES[0]} to "
                f"{QUANT_TABLES[-1]}; 3 is cjpeg's default"
            )

    def describe(self) -> dict[str, Any]:
        """Every setting but the encoder, for the manifest."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "encoder"}

    @classmethod
    def described(cls, encoder: Mapping[str, Any], quality: int) -> Self:
        """The settings of a set of JPEGs, from its manifest's "encoder" and its quality.

        A manifest has the subsampling that was written; where "auto" gives the same, it is taken for that.

        Raises:
            InputError: it isn't such a description.
        """
        try:
            values = {field.name: encoder[field.name] for field in fields(cls) if field.name != "encoder"}
        except (KeyError, TypeError) as error:
            raise InputError(f"not the description of an encoder of this release ({error!r})") from None
        if values["subsampling"] == chroma_subsampling(quality):
            values["subsampling"] = cls.subsampling
        return cls(**values)

    def subsampling_at(self, quality: int) -> str:
        """The chroma subsampling at a quality, "auto" resolved."""
        return chroma_subsampling(quality) if self.subsampling == "auto" else self.subsampling


def chroma_subsampling(quality: int) -> str:
    """cjpeg's own rule: 4:4:4 from quality 90, 4:2:2 from 80, else 4:2:0."""
    return "4:4:4" if quality >= 90 else "4:2:2" if quality >= 80 else "4:2:0"


def check_quality(quality: int | str) -> None:
    """Raise InputError for anything but "raw" and a whole number from 1 to 100."""
    if quality != "raw" and (isinstance(quality, bool) or quality not in range(1, 101)):
        raise InputError(f"quality {quality!r}: choose a whole number from 1 to 100, or 'raw'")


def _check_choice(key: str, value: Any, kind: Any) -> None:
    choices = get_args(kind)
    if value not in choices:
        guess = nearest(str(value), choices)
        meant = f" (did you mean {guess}?)" if guess else ""
        raise InputError(f"{key} {value!r} is unknown{meant}; choose {', '.join(choices[:-1])} or {choices[-1]}")
