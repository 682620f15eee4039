"""What the tests on a GPU share: what they measured is shown at the end, whatever pytest captures."""

from collections.abc import Callable, Iterator

import pytest
import torch

Measured = Callable[[str], None]


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Measured:
    """Takes lines to be shown when all tests are done."""
    return lambda line: record_property("measured", line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show them."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    lines = [value for report in reports for name, value in report.user_properties if name == "measured"]
    if lines:
        terminalreporter.section("measured")
        for line in dict.fromkeys(map(str, lines)):
            terminalreporter.line(line)


@pytest.fixture
def precision_as_before() -> Iterator[None]:
    """TF32 as a test found it."""
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = convolution
