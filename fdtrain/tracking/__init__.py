"""MLflow: what is recorded of a run, how it gets there, and what becomes of it while the server is away.

Records go to the run folder first (`outbox`); a thread of rank 0 sends them in order (`tracker`, `sender`), and
`python -m fdtrain sync RUN` what a dead server has missed (`sync`). No training step waits for any of it but for a line
written to a file.
"""

from fdtrain.tracking.client import SQLITE_PREFIX, connect, git_revision, tracking_uri
from fdtrain.tracking.datasets import describe_datasets
from fdtrain.tracking.parents import close_parent_run, open_parent_run
from fdtrain.tracking.system import watch_system
from fdtrain.tracking.tracker import Tracker

__all__ = [
    "SQLITE_PREFIX",
    "Tracker",
    "close_parent_run",
    "connect",
    "describe_datasets",
    "git_revision",
    "open_parent_run",
    "tracking_uri",
    "watch_system",
]
