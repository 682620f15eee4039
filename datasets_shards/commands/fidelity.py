"""`fidelity`: what each encoder and setting costs, and how near it stays to the uncompressed crop."""

from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from datasets_shards.commands.arguments import (
    SettingError,
    add_selection_arguments,
    add_workers_argument,
    number,
    selection_from,
)

QUALITIES = (5, 10, 15, 20, 30, 40, 50, 60, 70, 77, 85, 90, 95)
DCT_SCALES = (6, 10, 12, 16)
SMARTSCALE = (4, 16)


def add_arguments(parser: ArgumentParser) -> None:
    """The flags of `fidelity`."""
    parser.add_argument("--config", action="config", metavar="FILE", help="YAML file with any of these settings")
    add_selection_arguments(parser, "; or the raw set that pack wrote, or its root")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write the report in")
    parser.add_argument(
        "--sample",
        type=number(int, 1, 4096),
        metavar="N",
        default=64,
        help="crops to measure, drawn evenly over methods and videos",
    )
    parser.add_argument("--seed", type=number(int, 0, 2**32 - 1), metavar="N", default=0, help="draws the crops")
    parser.add_argument(
        "--qualities",
        type=number(int, 1, 100),
        metavar="Q",
        nargs="+",
        default=list(QUALITIES),
        help="JPEG qualities, 1 to 100",
    )
    parser.add_argument(
        "--dct-scales",
        type=_dct_scale,
        metavar="N",
        nargs="*",
        default=list(DCT_SCALES),
        help="block sizes N of DCT scaling by 8/N; none for no such curve",
    )
    parser.add_argument(
        "--smartscale",
        type=number(int, 1, 16),
        metavar="N",
        nargs="*",
        default=list(SMARTSCALE),
        help="block sizes of SmartScale, which is emulated; none for no such curve",
    )
    parser.add_argument(
        "--smartscale-tables",
        choices=("resampled", "corner"),
        default="resampled",
        help="quantization of its blocks: the 8x8 table resampled to them, or its low-frequency corner as in libjpeg 8",
    )
    parser.add_argument("--faces", type=Path, metavar="FILE", help="table of the faces in a tree of videos")
    parser.add_argument(
        "--size", type=number(int, 16, 4096), metavar="N", help="side of a crop from videos, pixels (default: 256)"
    )
    parser.add_argument(
        "--margin",
        type=number(float, 1, 4),
        metavar="N",
        help="side of a crop from videos over the tight face (default: 1.3)",
    )
    add_workers_argument(parser)


def run(args: Any) -> None:
    """Report PSNR, SSIM and size against the uncompressed crops, for MozJPEG and others, at every quality."""
    from tqdm import tqdm

    from datasets_shards.fidelity.curves import PROGRESSIVE, build_curves
    from datasets_shards.fidelity.report import measure_crops
    from datasets_shards.fidelity.sample import sample_crops
    from datasets_shards.fidelity.write import PAGE, check_out, write_report
    from datasets_shards.jpeg.mozjpeg import require_encoder
    from datasets_shards.staging import staged

    require_encoder(PROGRESSIVE)
    with staged(args.out, check_out) as folder:
        bar = partial(tqdm, disable=None)
        sample = sample_crops(
            args.source,
            args.sample,
            args.seed,
            args.workers,
            selection=selection_from(args),
            faces=args.faces,
            size=args.size,
            margin=args.margin,
            progress=partial(bar, unit="video"),
            tell=partial(print, flush=True),
        )
        if len(sample.crops) < args.sample:
            print(f"crops: {len(sample.crops)}; {args.source} doesn't give {args.sample}")
        qualities = sorted(set(args.qualities))
        curves = build_curves(args.dct_scales, args.smartscale, args.smartscale_tables)
        measuring = partial(bar, total=len(sample.crops), desc="measuring", unit="crop")
        points = measure_crops(sample.crops, curves, qualities, args.workers, measuring)
        settings = {
            "seed": args.seed,
            "qualities": ", ".join(map(str, qualities)),
            "DCT scales N": ", ".join(map(str, args.dct_scales)) or "none",
            "SmartScale blocks": ", ".join(map(str, args.smartscale)) or "none",
            "SmartScale tables": args.smartscale_tables,
        }
        write_report(folder, sample, points, qualities, settings)
    print(f"written: {args.out / PAGE} ({len(sample.crops)} crops, {len(curves)} curves, {len(qualities)} qualities)")


def _dct_scale(text: Any) -> int:
    block = number(int, 1, 16)(text)
    if block == 8:
        raise SettingError("8 scales nothing; its curve is MozJPEG baseline, which is always there")
    return block
