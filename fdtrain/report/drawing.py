"""What the charts share: colours that everybody tells apart, labels that nothing in a name can break."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from datasets_shards.page import Picture
from fdtrain.figures.panels import DPI, png
from fdtrain.report.runs import Run

# Okabe and Ito's colours; yellow is left out, which is hard to see on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")
MARKERS = "osD^vP"
WIDTH = 7.2
"""Of a figure, inches: what a column of text is wide."""

LABEL_LETTERS = 40


def style_of(number: int) -> dict[str, Any]:
    """Colour and line of the run with that number: 28 can be told apart."""
    line = LINES[number // len(COLOURS) % len(LINES)]
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": line}


def label_of(run: Run) -> str:
    """Letter and name, cut where it is long; a dollar sign would begin a formula."""
    text = run.label if len(run.label) <= LABEL_LETTERS else f"{run.label[: LABEL_LETTERS - 1]}…"
    return text.replace("$", r"\$")


def panels(rows: int, columns: int, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure of some panels, without the lines at the top and on the right."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    found = list(figure.subplots(rows, columns, squeeze=False, **options).ravel())
    for axes in found:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e6e6e6", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=9)
    return figure, found


def add_legend(figure: Figure, axes: Axes, **options: Any) -> None:
    """What the lines of `axes` are, below the panels."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=1, frameon=False, fontsize=9, **options)


def picture(file: str, figure: Figure, title: str, alt: str) -> Picture:
    """The figure as a part of the page."""
    return Picture(file, png(figure), title, alt, DPI)


def listing(items: Sequence[str]) -> str:
    """For an alternative text: `a; b; c`."""
    return "; ".join(items)
