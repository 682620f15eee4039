"""How often one of several equally good models becomes champion: `make benchmarks`. Prints figures."""

import numpy as np
import pytest

from tests.benchmarks.table import Line
from tests.contests import promoted

THREADS = 1


@pytest.mark.parametrize("best_of", [1, 4, 16])
def test_the_best_of_equally_good_models(table: list[Line], best_of: int) -> None:
    """By the interval's 95 % one contest in forty is won by luck."""
    shares = {
        held: promoted(np.random.default_rng(0), best_of, repeats=150, draws=400, held_out=held)
        for held in (False, True)
    }
    table.append(Line(f"best of {best_of}, chosen and judged by all people: promoted", f"{shares[False]:.1%}", ""))
    table.append(Line(f"best of {best_of}, judged by people held out: promoted", f"{shares[True]:.1%}", "below 5 %"))
    assert shares[True] < 0.12
