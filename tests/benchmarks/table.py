"""What benchmarks print."""

from typing import NamedTuple


class Line(NamedTuple):
    """One line of the table; `asked` is what the project asks of the figure, empty where it is only reported."""

    what: str
    figure: str
    asked: str
    detail: str = ""
