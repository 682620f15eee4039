"""What a model's size and work buy: parameters and FLOPs against AUC, as Table 2 of the report has for B0 to B8."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from matplotlib.ticker import EngFormatter, NullFormatter, StrMethodFormatter
from torch.utils.flop_counter import FlopCounterMode

from datasets_shards.page import Picture
from fdtrain.models import create_model
from fdtrain.report.content import Block, Cell, Estimate, Missing, Row, Section, Table, estimate
from fdtrain.report.drawing import MARKERS, add_legend, label_of, listing, panels, picture, style_of
from fdtrain.report.runs import Result, Run
from fdtrain.report.training import series


class Cost(NamedTuple):
    """Of a model.

    Args:
        parameters: Their number.
        flops: Of the forward pass of one image; matrix multiplications and convolutions, a multiplication and an
            addition being two.
        side: Of that image, pixels.
    """

    parameters: int
    flops: int
    side: int


def cost_section(runs: Sequence[Run]) -> Section:
    """A row for each run, where they are of different models."""
    section = Section("cost", "Size, work and AUC")
    if len({(run.config["model.name"], run.config.get("data.image_size")) for run in runs}) < 2:
        section.parts.append(Missing("all runs are of one model; give runs of several, such as efficientnet_b0 to b7"))
        return section
    costs = [_cost(run) for run in runs]
    known = [(i, run, cost) for i, (run, cost) in enumerate(zip(runs, costs, strict=True)) if isinstance(cost, Cost)]
    points = [(i, run, cost, auc) for i, run, cost in known if isinstance(auc := _auc(run), Estimate)]
    if points:
        section.parts.append(_figure(points))
    caption = (
        "FLOPs are those of one image's forward pass, in 10⁹; images/s are those of training. AUC per video, test."
    )
    columns = ["run", "model", "side", "parameters", "GFLOPs", "images/s", "AUC"]
    rows = [_row(run, cost) for run, cost in zip(runs, costs, strict=True)]
    section.parts.append(Table("cost.csv", caption, columns, [Block("", rows)]))
    return section


def _row(run: Run, cost: Cost | Missing) -> Row:
    _, speeds = series(run, "train/images_per_s")
    speed = (
        f"{sorted(speeds)[len(speeds) // 2]:.3g}" if len(speeds) else Missing(f"{run.letter}: has no step in its log")
    )
    words: list[Cell] = (
        [cost] * 3 if isinstance(cost, Missing) else [str(cost.side), str(cost.parameters), f"{cost.flops / 1e9:.4g}"]
    )
    return Row(run.label, [run.config["model.name"], *words, speed, _auc(run)])


def _auc(run: Run) -> Cell:
    result = run.result("test")
    if not isinstance(result, Result):
        return result
    return estimate(result.metrics, "test/video/auc") or Missing(f"{run.letter}: test/video/auc is undefined")


def _cost(run: Run) -> Cost | Missing:
    """Counted on tensors without storage."""
    if not run.card:
        return Missing(f"{run.letter}: no model was validated yet")
    options = {key: value for key, value in run.card["options"].items() if key != "pretrained"}
    side = run.card["input"].size
    with torch.device("meta"):
        model = create_model(run.card["name"], **options).eval()
        image = torch.empty(1, 3, side, side)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return Cost(sum(each.numel() for each in model.parameters()), counter.get_total_flops(), side)


def _figure(points: Sequence[tuple[int, Run, Cost, Estimate]]) -> Picture:
    figure, axes_of = panels(1, 2, 3.6 + 0.2 * len(points), sharey=True)
    told = []
    for number, run, cost, auc in points:
        colour = style_of(number)["color"]
        for axes, x in zip(axes_of, (cost.parameters, cost.flops / 1e9), strict=True):
            axes.plot(x, auc.value, MARKERS[number % len(MARKERS)], color=colour, label=label_of(run))
        told.append(f"{run.letter}: {cost.parameters} parameters, {cost.flops / 1e9:.4g} GFLOPs, AUC {auc.value:.4f}")
    for axes, name in zip(axes_of, ("parameters", "GFLOPs of an image"), strict=True):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(EngFormatter(sep="") if name == "parameters" else StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        low, high = axes.get_xlim()
        axes.set_xlim(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)))
        axes.set_xlabel(name)
    axes_of[0].set_ylabel("test AUC per video")
    add_legend(figure, axes_of[0])
    title = "Test AUC per video against the number of parameters, and against the work of one forward pass."
    return picture("cost.png", figure, title, f"Scatter charts. {listing(told)}.")
