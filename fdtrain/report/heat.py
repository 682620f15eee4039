"""The quality matrix as heat maps."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from datasets_shards.page import Picture
from fdtrain.report.content import Missing, Section
from fdtrain.report.drawing import WIDTH, listing, picture
from fdtrain.report.matrix import HOW, Matrix, matrix_table, read_matrices

DARK = 0.55
"""Share of the scale above which viridis is light enough for black figures."""


def matrix_section(files: Sequence[Path]) -> Section:
    """Every matrix of the files, as heat maps and as a table. Raises UserError where one isn't a matrix."""
    section = Section("matrix", "Quality matrix")
    if not files:
        section.parts.append(Missing(f"no matrix was given; {HOW}"))
        return section
    matrices = [matrix for file in files for matrix in read_matrices(file)]
    section.parts.append("Rows are what a model was trained on, columns what it was tested on.")
    section.parts.extend([_heat_map(number, matrix) for number, matrix in enumerate(matrices, 1)])
    section.parts.append(matrix_table(matrices))
    return section


def _heat_map(number: int, matrix: Matrix) -> Picture:
    values = np.full((len(matrix.trained), len(matrix.tested)), np.nan)
    for (trained, tested), value in matrix.values.items():
        if value is not None:
            values[matrix.trained.index(trained), matrix.tested.index(tested)] = value.value
    defined = values[np.isfinite(values)]
    scale = Normalize(defined.min(), defined.max()) if len(defined) else Normalize(0, 1)
    figure = Figure(figsize=(WIDTH, 1.3 + 0.62 * len(matrix.trained)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(values, cmap="viridis", norm=scale, aspect="auto")
    for row, trained in enumerate(matrix.trained):
        for column, tested in enumerate(matrix.tested):
            value = matrix.values.get((trained, tested))
            if value is None:
                axes.text(column, row, "–", ha="center", va="center", fontsize=10)
                continue
            colour = "black" if float(scale(value.value)) > DARK else "white"
            ends = "" if value.low is None else f"\n{value.low:.3f} to {value.high:.3f}"
            axes.text(column, row, f"{value.value:.3f}{ends}", ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(len(matrix.tested)), [_plain(name) for name in matrix.tested])
    axes.set_yticks(range(len(matrix.trained)), [_plain(name) for name in matrix.trained])
    axes.set(xlabel="tested on", ylabel="trained on")
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(ScalarMappable(scale, "viridis"), ax=axes, shrink=0.9, aspect=30)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    what = f"{matrix.metric} of {matrix.model} on the {matrix.split} split"
    return picture(f"matrix-{number}.png", figure, f"{what}, with 95 % intervals.", _alt(what, matrix))


def _plain(name: str) -> str:
    return name.replace("$", r"\$")


def _alt(what: str, matrix: Matrix) -> str:
    there = {place: value for place, value in matrix.values.items() if value is not None}
    if not there:
        return f"Heat map of {what}: no value is defined."
    told = []
    for word, same in (("at the quality of training", True), ("at another quality", False)):
        chosen = [value.value for (trained, tested), value in there.items() if (trained == tested) is same]
        if chosen:
            told.append(f"mean {np.mean(chosen):.3f} {word}")
    for word, end in (("lowest", min), ("highest", max)):
        (trained, tested), value = end(there.items(), key=lambda item: item[1].value)
        told.append(f"{word} {value.value:.3f}, trained on {trained} and tested on {tested}")
    return f"Heat map of {what}: {listing(told)}."
