"""`verify`: is a shard set whole, and what it says it is?"""

from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from datasets_shards.commands.arguments import add_workers_argument
from datasets_shards.errors import InputError, first_few


def add_arguments(parser: ArgumentParser) -> None:
    """The flags of `verify`."""
    parser.add_argument("folder", type=Path, metavar="ROOT/q77", help="a shard set, or a root folder with several")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="don't decode the images, and give stock readers the first tar of each split only",
    )
    add_workers_argument(parser)


def run(args: Any) -> None:
    """Check shard sets against their manifests, down to every image, and say what stock readers read from them."""
    from tqdm import tqdm

    from datasets_shards.verify import compare_sets, find_sets, verify_set
    from datasets_shards.verify.findings import Findings

    folders = find_sets(args.folder)
    findings = Findings()
    reports = []
    for folder in folders:
        report = verify_set(folder, args.quick, args.workers, partial(tqdm, disable=None, leave=False))
        for line in report.lines:
            print(line)
        for line in report.findings.report():
            print(line)
        findings.extend(report.findings)
        reports.append(report)
    across = Findings()
    compare_sets(reports, across)
    for line in across.report():
        print(line)
    findings.extend(across)
    if findings.total:
        count = "1 problem" if findings.total == 1 else f"{findings.total} problems"
        wrong = first_few([str(report.folder) for report in reports if report.findings.total] or map(str, folders))
        remedy = f"copy anew from where it is whole, or delete {wrong} and pack again"
        raise InputError(f"{count} in {args.folder}, listed above; {remedy}")
    together = f", and {len(folders)} sets hold the same samples" if len(folders) > 1 else ""
    how = "without decoding" if args.quick else "every image decoded"
    print(f"verified: {args.folder}, {how}{together}, nothing wrong")
