"""What is wrong with a video or an image."""

from pathlib import Path

from datasets_shards.errors import InputError


class FrameError(InputError):
    """A video or an image that can't be decoded as far as it should; the message names the file.

    Args:
        path: the file.
        problem: what is wrong with it.
    """

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(path, problem)  # both, so that it can be pickled back from a worker
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.args[0]}: {self.problem}"
