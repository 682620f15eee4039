"""Arguments that several commands have."""

from jsonargparse import ArgumentParser, Namespace

from datasets_shards.schema import Quality, parse_quality
from fdtrain.config import DataConfig, UserError
from fdtrain.config.checks import in_range


def add_model(parser: ArgumentParser) -> None:
    """`--model`."""
    parser.add_argument("--model", required=True, help="A run folder, a checkpoint or model folder, or a models:/ URI.")


def add_shard_set(parser: ArgumentParser, split: str, about_split: str = "", several: bool = False) -> None:
    """`--data.*`: one split of one shard set.

    Args:
        parser: Gets them.
        split: The default.
        about_split: What else is to say of it.
        several: Whether several qualities may be given.
    """
    defaults = DataConfig()
    parser.add_argument("--data.root", required=True, help="Folder that pack wrote, or its URL.")
    parser.add_argument("--data.cache_dir", type=str | None, help="Local folder for the tars of a root by URL.")
    parser.add_argument(
        "--data.cache_bytes", type=int, default=defaults.cache_bytes, help="What the tars in it may add up to."
    )
    if several:
        about = "MozJPEG quality of the shard set, or raw; several for several sets of the root."
        parser.add_argument("--data.quality", type=int | str, nargs="+", default=[77], help=about)
    else:
        about = "MozJPEG quality of the shard set, or raw."
        parser.add_argument("--data.quality", type=int | str, default=77, help=about)
    parser.add_argument(
        "--data.split", choices=["train", "val", "test"], default=split, help=f"Which split. {about_split}".strip()
    )
    parser.add_argument("--batch_size", type=int, default=32, help="Samples of one forward pass.")


def shard_set_quality(arguments: Namespace) -> Quality:
    """The quality, with the numbers beside it checked. Raises UserError for one that is out of range."""
    return _qualities(arguments, [arguments.data.quality])[0]


def shard_set_qualities(arguments: Namespace) -> tuple[Quality, ...]:
    """As `shard_set_quality`, where there are several; none of them twice."""
    qualities = _qualities(arguments, arguments.data.quality)
    if len(set(qualities)) < len(qualities):
        raise UserError(f"data.quality: {' '.join(map(str, qualities))} names one twice; name each once")
    return qualities


def _qualities(arguments: Namespace, words: list[int | str]) -> tuple[Quality, ...]:
    in_range("data.cache_bytes", arguments.data.cache_bytes, 1)
    in_range("batch_size", arguments.batch_size, 1)
    try:
        return tuple(map(parse_quality, words))
    except ValueError as error:
        raise UserError(f"data.quality: {error}") from None
