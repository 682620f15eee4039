"""What tests of `torch.compile` share."""

import pytest

from fdtrain.config import UserError
from fdtrain.tasks.base import require_compiler


def _is_there_a_compiler() -> bool:
    try:
        require_compiler()
    except UserError:
        return False
    return True


needs_compiler = pytest.mark.skipif(not _is_there_a_compiler(), reason="torch.compile needs a C++ compiler")
"""Skips a test where `train.compile` would be refused."""
