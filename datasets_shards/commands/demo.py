"""`demo`: made-up videos in FF++'s layout."""

import sys
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from datasets_shards.commands.arguments import add_workers_argument, number


def add_arguments(parser: ArgumentParser) -> None:
    """The flags of `demo`."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write the tree of videos in")
    parser.add_argument(
        "--seed", type=number(int, 0, 2**32 - 1), metavar="N", default=0, help="draws identities and movements"
    )
    parser.add_argument(
        "--identities",
        type=number(int, 6, 1000),
        metavar="N",
        default=32,
        help="people, an even number: pairs make fakes",
    )
    parser.add_argument("--frames", type=number(int, 1, 10_000), metavar="N", default=12, help="frames per video")
    add_workers_argument(parser)


def run(args: Any) -> None:
    """Write a small made-up dataset in FF++'s layout; its numbers mean nothing for real detection."""
    from datasets_shards.demo import write_demo

    print(write_demo(args.out, args.seed, args.identities, args.frames, args.workers, progress=sys.stderr.isatty()))
