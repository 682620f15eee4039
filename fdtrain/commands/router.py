"""`python -m fdtrain router`."""

from jsonargparse import ArgumentParser, Namespace

from datasets_shards.schema import parse_quality
from fdtrain.config import DEFAULT_TRACKING_URI, DataConfig, UserError
from fdtrain.config.checks import in_range


def add_arguments(parser: ArgumentParser) -> None:
    """The model, its qualities, and the images that it is calibrated on."""
    parser.add_argument("--model", required=True, help="Name of the model, such as meso4, whose champions are joined.")
    parser.add_argument("--qualities", nargs="+", type=str, help="Of which champions. Default: of all that there are.")
    parser.add_argument("--data.root", required=True, help="Folder that pack wrote, or its URL: a set of each quality.")
    parser.add_argument("--data.cache_dir", type=str | None, help="Local folder for the tars of a root by URL.")
    parser.add_argument(
        "--data.cache_bytes", type=int, default=DataConfig.cache_bytes, help="What the tars in it may add up to."
    )
    parser.add_argument("--batch_size", type=int, default=32, help="Samples of one forward pass.")
    parser.add_argument(
        "--tracking.uri", default=DEFAULT_TRACKING_URI, help="Tracking URI; MLFLOW_TRACKING_URI wins over it."
    )


def run(arguments: Namespace) -> None:
    """Register one model over the champions of all qualities, which asks the one that an image's JPEG quality needs."""
    in_range("data.cache_bytes", arguments.data.cache_bytes, 1)
    in_range("batch_size", arguments.batch_size, 1)
    try:
        qualities = arguments.qualities and [parse_quality(word) for word in dict.fromkeys(arguments.qualities)]
    except ValueError as error:
        raise UserError(f"qualities: {error}") from None

    from fdtrain.registry.router import ShardRoot, find_champions, register_router
    from fdtrain.runtime import start
    from fdtrain.tracking import tracking_uri

    uri, data = tracking_uri(arguments.tracking.uri), arguments.data
    with start("fp32") as runtime:
        if runtime.world_size > 1:
            raise UserError("router: it runs in one process; call it without torchrun")
        champions = find_champions(arguments.model, qualities, uri)
        root = ShardRoot(data.root, data.cache_dir, data.cache_bytes, arguments.batch_size)
        done = register_router(arguments.model, champions, root, runtime, uri)
    print(f"registered {done.name} version {done.version}: champion ({done.verdict.reason})")
