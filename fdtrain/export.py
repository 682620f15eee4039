"""A trained model as a program: `python -m fdtrain export` writes what runs without this project."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datasets_shards.schema import sync_path
from fdtrain.models.weights import MODEL_NAME, open_model

BATCHES = (1, 2, 5)
"""Batch sizes at which the program is held against the model."""

TOLERANCE = 1e-4
"""Largest difference of a logit that passes."""


def export(place: str | Path, out: Path) -> None:
    """Write a model as a torch.export program with a batch of any size.

    The file holds the model's `model.json` too (`extra_files` of `torch.export.load`): input size, mean and std are in
    it. The program takes normalized float32 `[B, 3, S, S]` and gives logits `[B, 2]`.

    Args:
        place: As `open_model`.
        out: The `.pt2` file; its folder is made where it isn't there.

    Raises:
        UserError: the model can't be loaded.
        FloatingPointError: the program's logits aren't the model's.
    """
    model, card = open_model(place)
    side = card["input"].size
    # With the other memory format the program would have that of this one image sewn in.
    model = model.to(memory_format=torch.contiguous_format)
    out.parent.mkdir(parents=True, exist_ok=True)  # before what takes its time
    program = export_program(model, side)
    part = out.with_name(f".{out.stem}.part.pt2")  # torch warns of another ending
    try:
        card_json = json.dumps(card | {"input": vars(card["input"])}, indent=2)
        torch.export.save(program, part, extra_files={MODEL_NAME: card_json})
        difference = largest_difference(model, part, side)
        if not difference <= TOLERANCE:
            raise FloatingPointError(
                f"{out}: its logits differ from the model's by {difference:.2g}; it was not written"
            )
        sync_path(part)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    print(f"{out}: {card['name']}, {side} px, any batch; logits within {difference:.1e} of the model's")


def export_program(model: nn.Module, side: int) -> torch.export.ExportedProgram:
    """The program of a model in evaluation mode, for a batch of any size of square images."""
    # Two images: a batch of one would be taken for a constant.
    example = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        return portable(torch.export.export(model.eval(), (example,), dynamic_shapes=({0: batch},)))


def portable(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """A program, changed in place so that it runs on another device and under autocast.

    `torch.export` asserts before every cast that its input has the dtype and the device of the example's.
    """
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.find_nodes(
                op="call_function", target=torch.ops.aten._assert_tensor_metadata.default
            ):
                module.graph.erase_node(node)
            module.recompile()
    return program


@torch.no_grad()
def largest_difference(model: nn.Module, path: Path, side: int) -> float:
    """How far the logits of the program in a file are from the model's, over `BATCHES` of noise."""
    program: Any = torch.export.load(path).module()
    generator = torch.Generator().manual_seed(1)
    differences = []
    for size in BATCHES:
        images = torch.randn(size, 3, side, side, generator=generator)
        differences.append((program(images) - model(images)).abs().max().item())
    return max(differences)
