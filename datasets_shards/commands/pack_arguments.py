"""The flags of `pack`."""

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from datasets_shards.commands.arguments import (
    SettingError,
    add_source_arguments,
    add_switch,
    number,
)
from datasets_shards.jpeg.settings import Encoder, JpegSettings, Mode, Subsampling
from datasets_shards.schema import Quality, parse_quality

QUALITIES = (77, 60, 15, 10)
SIZE = 256


def add_arguments(parser: ArgumentParser) -> None:
    """The flags of `pack`."""
    add_source_arguments(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="root folder; each quality becomes a folder in it"
    )
    parser.add_argument(
        "--qualities",
        type=_quality,
        metavar="Q",
        nargs="+",
        default=list(QUALITIES),
        help="MozJPEG qualities, 1 to 100; 'raw' is a set of lossless PNG",
    )
    parser.add_argument(
        "--faces", type=Path, metavar="FILE", help="table of faces; without it the face stage runs first"
    )
    parser.add_argument(
        "--splits",
        type=Path,
        metavar="DIR",
        help="folder with FF++'s train.json, val.json and test.json (default: SOURCE/splits, else those of "
        "DeepfakeBench's JSON file, else drawn by identity)",
    )
    parser.add_argument("--seed", type=number(int, 0, 2**32 - 1), metavar="N", default=0, help="of a drawn split")
    parser.add_argument(
        "--shard-samples",
        type=number(int, 1, 1_000_000),
        metavar="N",
        default=1024,
        help="samples a tar is meant to have",
    )
    add_switch(parser, "--masks", "pack the manipulation masks too, as .mask.png")
    _add_crop_arguments(parser)
    _add_jpeg_arguments(parser)
    parser.add_argument(
        "--num-tasks",
        type=number(int, 1, 100_000),
        metavar="K",
        default=1,
        help="share the shards out among K calls, such as the tasks of a Slurm array; then call once with --merge",
    )
    parser.add_argument("--task-id", type=number(int, 0, 99_999), metavar="I", help="which of them this is, from 0")
    add_switch(parser, "--merge", "write the manifest and index over what the tasks packed")


def _add_crop_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--size",
        type=number(int, 16, 4096),
        metavar="N",
        help=f"side of a crop, pixels (default: {SIZE}, or that of a source's own crops)",
    )
    parser.add_argument(
        "--margin",
        type=number(float, 1, 4),
        metavar="N",
        help="side of a crop over the tight face (default: 1.3)",
    )
    parser.add_argument(
        "--align",
        choices=("similarity", "deepfakebench", "none"),
        help="turn and scale the face to a canonical pose, do so as DeepfakeBench's preprocessing does, or cut the "
        "square around its box as FF++ does (default: similarity)",
    )
    parser.add_argument(
        "--dct-scale",
        type=number(int, 1, 16),
        metavar="N",
        default=8,
        help="scale the crops by 8/N in the DCT domain, as libjpeg v7's encoder does; 16 halves them",
    )


def _add_jpeg_arguments(parser: ArgumentParser) -> None:
    defaults = JpegSettings()
    parser.add_argument(
        "--encoder",
        choices=Encoder.__args__,  # type: ignore[attr-defined]
        default=defaults.encoder,
        help="MozJPEG in this process, or the cjpeg on PATH: one process per crop, --workers at a time",
    )
    for name, values, text in (
        ("mode", Mode, "baseline is what nvJPEG's hardware decoder reads; progressive is cjpeg's own default"),
        ("subsampling", Subsampling, "of the chroma; auto is cjpeg's rule: 4:4:4 from 90, 4:2:2 from 80, else 4:2:0"),
    ):
        parser.add_argument(
            f"--jpeg.{name}",
            choices=values.__args__,  # type: ignore[attr-defined]
            default=getattr(defaults, name),
            help=text,
        )
    parser.add_argument("--jpeg.trellis", type=bool, default=defaults.trellis, help="trellis quantization")
    parser.add_argument("--jpeg.deringing", type=bool, default=defaults.deringing, help="overshoot beside white")
    parser.add_argument(
        "--jpeg.quant_table", type=number(int, 0, 8), metavar="N", default=defaults.quant_table, help="base table"
    )


def _quality(text: Any) -> Quality:
    try:
        return parse_quality(text)
    except ValueError as error:
        raise SettingError(str(error)) from None
