"""The figures of the report, as PNG files in memory. They are drawn as objects: no window system, no global state."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from datasets_shards.fidelity.curves import BASELINE_CURVE, PROGRESSIVE_8_BIT_CURVE, PROGRESSIVE_CURVE, Curve
from datasets_shards.fidelity.measures import PERCENTILES
from datasets_shards.fidelity.report import Point, points_of

AXIS = {"psnr": "PSNR, dB", "ssim": "SSIM", "bytes": "bytes per crop", "bpp": "bits per pixel of the original crop"}
TITLE = {"psnr": "PSNR", "ssim": "SSIM", "bytes": "Size of a crop", "bpp": "Bits per pixel"}
KEY_QUALITIES = (77, 60, 15, 10)
"""FF++'s levels in this project; labelled in the rate-distortion figures."""

# Okabe and Ito's colours, which people with any kind of colour vision tell apart.
ENCODER_STYLES: dict[str, dict[str, Any]] = {
    "mozjpeg-baseline": {"color": "#000000", "linewidth": 2.2},
    "mozjpeg-progressive": {"color": "#0072B2"},
    "mozjpeg-progressive-8bit": {"color": "#56B4E9", "linestyle": "--"},
    "mozjpeg-no-trellis": {"color": "#D55E00"},
    "libjpeg-turbo": {"color": "#009E73"},
}
SCALED_COLOURS = ("#D55E00", "#E69F00", "#009E73", "#0072B2", "#CC79A7", "#56B4E9")
MARKERS = "osD^vP"
DPI = 130
SEEN = 0.1
"""dB; a figure of differences reaches at least so far, or it would magnify what nobody can see."""


def draw_measure(points: list[Point], measure: str) -> bytes:
    """One measure against quality: the encoders left, DCT scaling and SmartScale right."""

    def draw(axes: Axes, curve: Curve, style: dict) -> None:
        mine = points_of(points, curve)
        x = [point.quality for point in mine]
        summaries = [point.measures[measure] for point in mine]
        axes.plot(x, _finite([s.mean for s in summaries]), **style)
        if curve == BASELINE_CURVE:
            low, high = _finite([s.low for s in summaries]), _finite([s.high for s in summaries])
            axes.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0)

    figure, panels = _two_panels(points, draw)
    for axes in panels:
        axes.set_xlabel("quality")
        axes.set_xticks(range(0, 101, 10))
        if measure in ("bytes", "bpp"):
            _log_axis(axes, "y")
    panels[0].set_ylabel(AXIS[measure])
    figure.suptitle(
        f"{TITLE[measure]} by quality: means; the band is the {PERCENTILES[0]}th to {PERCENTILES[1]}th percentile of "
        "MozJPEG baseline",
        fontsize=11,
    )
    return _png(figure)


def draw_rate_distortion(points: list[Point], measure: str) -> bytes:
    """A measure against bits per pixel, both as means; a point of a curve is a quality."""

    labelled: list[Axes] = []

    def draw(axes: Axes, curve: Curve, style: dict) -> None:
        mine = points_of(points, curve)
        x, y = [point.measures["bpp"].mean for point in mine], _finite([point.measures[measure].mean for point in mine])
        axes.plot(x, y, **style)
        if curve == BASELINE_CURVE:
            labelled.append(axes)
            for point, across, up in zip(mine, x, y, strict=True):
                if point.quality in KEY_QUALITIES and np.isfinite(up):
                    axes.plot(across, up, "o", color=style["color"], markersize=7, zorder=5)
                    if len(labelled) == 1:  # there is no room for words in the other panel
                        place: dict[str, Any] = {"xytext": (-7, 7), "textcoords": "offset points", "ha": "right"}
                        axes.annotate(f"q{point.quality}", (across, up), fontsize=9, **place)

    figure, panels = _two_panels(points, draw)
    for axes in panels:
        axes.set_xlabel(AXIS["bpp"])
        _log_axis(axes, "x")
    panels[0].set_ylabel(AXIS[measure])
    figure.suptitle(rate_distortion_title(points, measure), fontsize=11)
    return _png(figure)


def rate_distortion_title(points: list[Point], measure: str) -> str:
    """What such a figure shows, with the qualities that its dots stand for, if it has any."""
    finite = {p.quality for p in points_of(points, BASELINE_CURVE) if np.isfinite(p.measures[measure].mean)}
    dots = ", ".join(str(quality) for quality in KEY_QUALITIES if quality in finite)
    title = f"Rate and distortion: mean {TITLE[measure]} by mean bits per pixel"
    return f"{title}; dots are MozJPEG baseline at q{dots}" if dots else title


def draw_limit(points: list[Point]) -> bytes:
    """What cutting steps to 255 changes, against progressive with 16-bit tables: size and PSNR."""
    touched = {point.quality for point in points_of(points, PROGRESSIVE_8_BIT_CURVE)}
    full = {point.quality: point for point in points_of(points, PROGRESSIVE_CURVE) if point.quality in touched}
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for curve in (BASELINE_CURVE, PROGRESSIVE_8_BIT_CURVE):
        mine = [point for point in points_of(points, curve) if point.quality in full]
        x = [point.quality for point in mine]
        size = [_change(point, full[point.quality], "bytes", lambda a, b: 100 * (a / b - 1)) for point in mine]
        psnr = [_change(point, full[point.quality], "psnr", lambda a, b: a - b) for point in mine]
        style = ENCODER_STYLES[curve.name] | {"marker": "o", "markersize": 4, "linewidth": 1.5}
        left.plot(x, size, **style, label=curve.label)
        right.plot(x, _finite(psnr), **style, label=curve.label)
    left.set_ylabel("size against progressive, %")
    right.set_ylabel("PSNR against progressive, dB")
    for axes in (left, right):
        axes.axhline(0, color=ENCODER_STYLES[PROGRESSIVE_CURVE.name]["color"], linewidth=1)
        axes.set_xlabel("quality")
        axes.set_xticks(range(0, 81, 10))
        _clean(axes)
    low, high = right.get_ylim()
    right.set_ylim(min(low, -SEEN), max(high, SEEN))
    zero = Line2D([], [], color=ENCODER_STYLES[PROGRESSIVE_CURVE.name]["color"], linewidth=1)
    labels = [BASELINE_CURVE.label, PROGRESSIVE_8_BIT_CURVE.label, "MozJPEG progressive, 16-bit tables where needed"]
    figure.legend([*left.lines[:2], zero], labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle("What the 8-bit limit of the quantization tables changes: differences of means", fontsize=11)
    return _png(figure)


def _two_panels(points: list[Point], draw: Callable[[Axes, Curve, dict], None]) -> tuple[Figure, list[Axes]]:
    """Encoders in one panel; in the other, with MozJPEG baseline again, what scales. Legends stand below."""
    curves = list(dict.fromkeys(point.curve for point in points))
    groups = [
        ("Encoders", [curve for curve in curves if not curve.scales]),
        ("DCT scaling and SmartScale", [curve for curve in curves if curve.scales or curve == BASELINE_CURVE]),
    ]
    groups = [group for group in groups if len(group[1]) > 1]
    figure = Figure(figsize=(11, 5.8), layout="constrained")
    panels = list(np.atleast_1d(figure.subplots(1, len(groups), sharey=True)))
    for axes, (title, group) in zip(panels, groups, strict=True):
        scaled = 0
        for curve in group:
            style: dict = {"linewidth": 1.5, "label": curve.label}
            if curve.name in ENCODER_STYLES:
                style |= ENCODER_STYLES[curve.name]
            else:
                style |= {
                    "color": SCALED_COLOURS[scaled % len(SCALED_COLOURS)],
                    "linestyle": "--" if curve.coder == "smartscale" else "-",
                    "marker": MARKERS[scaled % len(MARKERS)],
                    "markersize": 4,
                }
                scaled += 1
            draw(axes, curve, style)
        axes.set_title(title, fontsize=10)
        _clean(axes)
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(
            handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False, fontsize=8.5
        )
    return figure, panels


def _clean(axes: Axes) -> None:
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


def _log_axis(axes: Axes, name: str) -> None:
    """Logarithmic, with plain numbers at 1, 2 and 5 of each decade; linear where there is nothing to show."""
    if not any(np.isfinite(line.get_xydata()).all(axis=1).any() for line in axes.lines):
        return
    getattr(axes, f"set_{name}scale")("log")
    axis = getattr(axes, f"{name}axis")
    axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(NullFormatter())


def _change(point: Point, base: Point, measure: str, difference: Callable[[float, float], float]) -> float:
    return difference(point.measures[measure].mean, base.measures[measure].mean)


def _finite(values: list[float]) -> np.ndarray:
    """Infinite values, of crops that came back exactly, as gaps."""
    array = np.array(values, dtype=np.float64)
    return np.where(np.isfinite(array), array, np.nan)


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})  # the same numbers, the same bytes
    return buffer.getvalue()
