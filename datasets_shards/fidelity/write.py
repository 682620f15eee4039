"""Put a report together, and where it may go."""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

from datasets_shards.errors import InputError, first_few
from datasets_shards.fidelity.contact import draw_contact_sheet
from datasets_shards.fidelity.curves import BASELINE_CURVE, PROGRESSIVE_8_BIT_CURVE, Curve, turbo_version
from datasets_shards.fidelity.drawing import CropSample
from datasets_shards.fidelity.figures import AXIS, TITLE, draw_limit, draw_measure, draw_rate_distortion
from datasets_shards.fidelity.measures import MEASURES
from datasets_shards.fidelity.page import render_page
from datasets_shards.fidelity.report import Point, write_csv
from datasets_shards.jpeg import mozjpeg403
from datasets_shards.jpeg.mozjpeg import describe_encoder
from datasets_shards.page import Picture

FORMAT = "fdtrain-fidelity"
RECORD = "report.json"
PAGE, TABLE, CONTACT, FIGURES = "index.html", "fidelity.csv", "contact-sheet.png", "figures"


def check_out(out: Path) -> None:
    """Raise InputError where `out` can't become a report: a file, a folder of something else, nothing around it."""
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: the folder {out.parent} doesn't exist")
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"--out {out}: is a file; give the name of a folder")
    there = sorted(path.name for path in out.iterdir())
    if others := [name for name in there if name not in (PAGE, TABLE, CONTACT, FIGURES, RECORD)]:
        raise InputError(f"--out {out}: holds something else than a report ({first_few(others)}); give another folder")
    if there and not _is_report(out):
        raise InputError(f"--out {out}: isn't empty, and no report of ours; give another folder")


def write_report(
    folder: Path, sample: CropSample, points: list[Point], qualities: list[int], settings: dict[str, Any]
) -> None:
    """Draw everything and write it.

    Args:
        folder: an empty one, such as `staged` gives.
        sample: the crops.
        points: what was measured of them.
        qualities: ascending.
        settings: what the report was asked for, for the record.
    """
    facts = _facts(sample, settings)
    figures = [
        *(
            Picture(
                f"{name}.png", draw_measure(points, name), f"{TITLE[name]} by quality.", _alt(points, name, "quality")
            )
            for name in MEASURES
        ),
        *(
            Picture(
                f"rate-distortion-{name}.png",
                draw_rate_distortion(points, name),
                f"Rate and distortion: {TITLE[name]} by bits per pixel.",
                _alt(points, name, "bits per pixel"),
            )
            for name in ("psnr", "ssim")
        ),
    ]
    limit = None
    if any(point.curve == PROGRESSIVE_8_BIT_CURVE for point in points):
        text = "What 8-bit quantization tables change: size and PSNR of baseline and of progressive with 8-bit tables"
        limit = Picture("table-limit.png", draw_limit(points), f"{text}, against progressive.", text)
    face = sample.crops[0]
    contact = Picture(
        CONTACT,
        draw_contact_sheet(face.pixels, BASELINE_CURVE, qualities),
        f"{face.key}, {BASELINE_CURVE.label}, every quality of this report.",
        f"One face crop uncompressed and at {len(qualities)} qualities, its size, PSNR and SSIM under each",
    )
    csv = write_csv(points)
    keys = [crop.key for crop in sample.crops]
    record = {"format": FORMAT, "facts": facts, "crops": keys}

    (folder / FIGURES).mkdir()
    for picture in [*figures, *([limit] if limit else [])]:
        (folder / FIGURES / picture.file).write_bytes(picture.content)
    (folder / CONTACT).write_bytes(contact.content)
    page = render_page(points, figures, limit, contact, facts, keys, csv)
    for name, text in (
        (TABLE, csv),
        (RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n"),
        (PAGE, page),
    ):
        (folder / name).write_text(text, encoding="utf-8")


def _is_report(folder: Path) -> bool:
    try:
        record = json.loads((folder / RECORD).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("format") == FORMAT


def _facts(sample: CropSample, settings: dict[str, Any]) -> dict[str, dict[str, str]]:
    methods = [crop.method for crop in sample.crops]
    counts = ", ".join(f"{methods.count(method)} {method}" for method in dict.fromkeys(methods))
    sizes = sorted({f"{crop.pixels.shape[1]}×{crop.pixels.shape[0]}" for crop in sample.crops})
    return {
        "Source": sample.origin | {"crops": f"{len(methods)} of {', '.join(sizes)} pixels: {counts}"},
        "Settings": {name: str(value) for name, value in settings.items()},
        "Versions": {
            "MozJPEG, baseline 4:2:0 and 4:4:4": str(describe_encoder(77)["library"]),
            "MozJPEG, progressive and 4:2:2": mozjpeg403.describe(),
            "encoder of the libjpeg-turbo curve, and decoder of all files": turbo_version(),
            "measures": f"scikit-image {metadata.version('scikit-image')}",
            "fdtrain": metadata.version("fdtrain"),
        },
    }


def _alt(points: list[Point], measure: str, across: str) -> str:
    """What a figure shows, with its two ends in numbers."""
    mine = [point for point in points if point.curve == BASELINE_CURVE]
    low, high = (f"{_plain(point.measures[measure].mean)} at quality {point.quality}" for point in (mine[0], mine[-1]))
    return (
        f"Line chart of mean {AXIS[measure]}, by {across}, for {_count(points)} curves. MozJPEG baseline goes from "
        f"{low} to {high}. The numbers are in the table at the end."
    )


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _count(points: list[Point]) -> int:
    curves: set[Curve] = {point.curve for point in points}
    return len(curves)
