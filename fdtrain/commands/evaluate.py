"""`python -m fdtrain evaluate`."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from fdtrain.commands.arguments import add_model, add_shard_set, shard_set_quality
from fdtrain.config import UserError


def add_arguments(parser: ArgumentParser) -> None:
    """The model, the data and where the results go."""
    add_model(parser)
    add_shard_set(parser, "test")
    parser.add_argument(
        "--out", required=True, help="JSON file of the metrics; the predictions go beside it as Parquet."
    )


def run(arguments: Namespace) -> None:
    """Score a trained model on a shard set."""
    quality = shard_set_quality(arguments)
    out = Path(arguments.out)
    if out.suffix != ".json":
        raise UserError(f"out: {out} must end in .json; the predictions go beside it under .parquet")

    from fdtrain.evaluate import evaluate

    data = arguments.data
    evaluate(
        arguments.model,
        data.root,
        quality,
        data.split,
        out,
        batch_size=arguments.batch_size,
        cache_dir=data.cache_dir,
        cache_bytes=data.cache_bytes,
    )
