"""`python -m fdtrain doctor`."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from datasets_shards.schema import parse_quality, write_atomic
from fdtrain.config import DEFAULT_TRACKING_URI, DataConfig, HostError, ModelConfig, UserError
from fdtrain.config.checks import in_range
from fdtrain.doctor import PARTS, Request, examine
from fdtrain.doctor.report import Report, as_json, count


def add_arguments(parser: ArgumentParser) -> None:
    """What is looked at."""
    defaults = DataConfig()
    parser.add_argument("--data.root", type=str | None, help="Folder that pack wrote, or its URL. Default: no data.")
    parser.add_argument(
        "--data.quality", type=int | str | None, help="MozJPEG quality of the one shard set. Default: all of the root."
    )
    parser.add_argument("--data.cache_dir", type=str | None, help="Local folder for the tars of a root by URL.")
    parser.add_argument(
        "--data.cache_bytes", type=int, default=defaults.cache_bytes, help="What the tars in it may add up to."
    )
    parser.add_argument("--run.dir", default="runs", help="Where runs will be written; its disk is tried.")
    parser.add_argument(
        "--model.name", default=ModelConfig.name, help="Whose checkpoints that disk must have room for."
    )
    parser.add_argument(
        "--tracking.uri", default=DEFAULT_TRACKING_URI, help="MLflow's; MLFLOW_TRACKING_URI wins over it."
    )
    parser.add_argument("--skip", nargs="+", choices=PARTS, default=[], help="What is not looked at.")
    parser.add_argument(
        "--limit_s", type=float, default=120.0, help="Seconds for the devices, the data and each dry run."
    )
    parser.add_argument("--json", type=str | None, help="File to write the findings to as well.")


def run(arguments: Namespace) -> None:
    """Look whether this host can train: versions, devices, disk, data, MLflow, ten steps of each engine."""
    data = arguments.data
    in_range("data.cache_bytes", data.cache_bytes, 1)
    in_range("limit_s", arguments.limit_s, 1, 86_400)
    try:
        quality = None if data.quality is None else parse_quality(data.quality)
    except ValueError as error:
        raise UserError(f"data.quality: {error}") from None
    if quality is not None and data.root is None:
        raise UserError("data.quality: has no effect without data.root; give that, or leave it out")

    request = Request(
        root=data.root,
        quality=quality,
        cache_dir=data.cache_dir,
        cache_bytes=data.cache_bytes,
        run_dir=arguments.run.dir,
        model=arguments.model.name,
        tracking_uri=arguments.tracking.uri,
        skip=tuple(arguments.skip),
        limit_s=arguments.limit_s,
    )
    findings = examine(request, Report().print)
    if not findings:  # rank 0 has them all
        return
    if arguments.json:
        write_atomic(Path(arguments.json), as_json(findings))
    failures, warnings = count(findings, "failure"), count(findings, "warning")
    if failures:
        failed = dict.fromkeys(finding.what for finding in findings if finding.level == "failure")
        raise HostError(f"{failures} of {len(findings)} checks failed: {', '.join(failed)}; see above what to do")
    counted = f"{len(findings)} check{'s' * (len(findings) != 1)}, {warnings} warning{'s' * (warnings != 1)}"
    print(f"{counted}, no failure")
