"""What benchmarks share."""

import os
from collections.abc import Iterator

import pytest

from tests.benchmarks.table import Line


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[Line]]:
    """Lines that are printed when all of a module is measured, on its `THREADS` threads."""
    lines: list[Line] = []
    loads = [os.getloadavg()[0]]
    yield lines
    loads.append(os.getloadavg()[0])
    machine = f"{os.cpu_count()} cores, {request.module.THREADS} threads"
    print(f"\n\nload average {loads[0]:.2f} before, {loads[1]:.2f} after; {machine}")
    for line in lines:
        asked = f"asked: {line.asked}" if line.asked else ""
        print(f"{line.what:48s} {line.figure:>17s}  {asked:18s} {line.detail}".rstrip())
