"""`python -m fdtrain evaluate`."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from fdtrain.commands.arguments import add_shard_set, shard_set_qualities
from fdtrain.config import UserError
from fdtrain.config.checks import in_range
from fdtrain.metrics import DRAWS, VIDEO_SCORES, parse_video_score


def add_arguments(parser: ArgumentParser) -> None:
    """The models, the data, what is measured and where the results go."""
    parser.add_argument(
        "--model",
        nargs="+",
        required=True,
        help="A run folder, a checkpoint or model folder, or a models:/ URI; several with --matrix.",
    )
    add_shard_set(parser, "test", several=True)
    parser.add_argument(
        "--matrix", type=bool, nargs="?", const=True, default=False, help="Every model on every quality."
    )
    parser.add_argument("--metric", default="video/auc", help="What the table and the heat map of a matrix show.")
    parser.add_argument(
        "--video_score",
        default="mean",
        help=f"A video's score of those of its frames: {', '.join(VIDEO_SCORES)} or topK, the mean of the K highest.",
    )
    parser.add_argument("--draws", type=int, default=DRAWS, help="Draws of the bootstrap, for 95 % intervals.")
    parser.add_argument("--seed", type=int, default=0, help="Of the bootstrap.")
    parser.add_argument(
        "--out",
        required=True,
        help="JSON file of the metrics, with the predictions beside it as Parquet; with --matrix a folder.",
    )


def run(arguments: Namespace) -> None:
    """Score trained models on shard sets."""
    qualities = shard_set_qualities(arguments)
    in_range("draws", arguments.draws, 100)
    in_range("seed", arguments.seed, 0)
    parse_video_score(arguments.video_score)
    out = Path(arguments.out)
    _check(arguments, out)

    from fdtrain.evaluation.evaluate import Data, Measuring, evaluate, evaluate_matrix

    data = arguments.data
    source = Data(data.root, qualities, data.cache_dir, data.cache_bytes)
    measuring = Measuring(data.split, arguments.draws, arguments.seed, arguments.video_score)
    if arguments.matrix:
        evaluate_matrix(
            arguments.model, source, out, metric=arguments.metric, batch_size=arguments.batch_size, measuring=measuring
        )
    else:
        evaluate(arguments.model[0], source, out, batch_size=arguments.batch_size, measuring=measuring)


def _check(arguments: Namespace, out: Path) -> None:
    """Raise UserError where `matrix` and the other arguments don't go together."""
    if not arguments.matrix:
        if len(arguments.model) > 1:
            raise UserError(f"model: {len(arguments.model)} models; add --matrix to compare them, or take one")
        if arguments.metric != "video/auc":
            raise UserError("metric: has an effect with --matrix only; metrics.json has all of them")
        if out.suffix != ".json":
            raise UserError(f"out: {out} must end in .json; the predictions go beside it under .parquet")
        return
    from fdtrain.evaluation.matrix import check_metric

    check_metric(arguments.metric)
    if out.suffix == ".json" or (out.exists() and not out.is_dir()):
        raise UserError(f"out: {out}: a matrix is a folder of files; name a folder")
