"""One part of the report, in the process that `fdtrain.doctor.child.look` starts."""

import sys
from collections.abc import Iterator

from fdtrain.doctor.child import MARK
from fdtrain.doctor.report import Finding, guarded
from fdtrain.doctor.request import Request
from fdtrain.process import die_with_launcher


def _findings(part: str, request: Request) -> Iterator[Finding]:
    # Imported here, within the guard of `look`: the imports alone may fail, or end the process.
    if part == "device":
        from fdtrain.doctor.device import check_device

        yield from guarded("device", check_device, request)
    elif part == "data":
        from fdtrain.doctor.data import check_data

        yield from guarded("data", check_data, request)
    else:
        from fdtrain.doctor.dryrun import check_engine

        kind = part.removeprefix("dry-run ")
        yield from guarded(f"dry run {kind}", check_engine, request, kind)


if __name__ == "__main__":
    die_with_launcher()
    for finding in _findings(sys.argv[1], Request.parse(sys.argv[2])):
        # Libraries print to the same place, and not always whole lines.
        print(f"\n{MARK}{finding.to_json()}", flush=True)
