"""How fast a run goes and what it waits for: a progress bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Self

from tqdm import tqdm


class StepTimer:
    """Times steps between two reports.

    Args:
        total: Steps of the run.
        done: Steps done before.
        images_per_step: Global batch size.
        show: Whether this rank shows anything.
    """

    def __init__(self, total: int, done: int, images_per_step: int, show: bool) -> None:
        self.total, self.done = total, done
        self.images_per_step = images_per_step
        self.show = show
        self.bar = tqdm(total=total, initial=done, unit="step", disable=not (show and sys.stderr.isatty()))
        self._reset()

    def _reset(self) -> None:
        self._began = time.perf_counter()
        self._spent = {"waiting": 0.0, "augmenting": 0.0, "paused": 0.0}
        self._steps = 0

    @contextmanager
    def timing(self, what: Literal["waiting", "augmenting", "paused"]) -> Iterator[None]:
        """Around the wait for data, the augmentation, or what is no training: validation, a checkpoint."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._spent[what] += time.perf_counter() - began

    def step(self) -> None:
        """Count a step."""
        self._steps += 1
        self.done += 1
        self.bar.update()

    def rates(self) -> dict[str, float]:
        """Since the last call: images/s over all ranks, and this rank's shares of time that are no computation.

        On a GPU augmentation is queued like any other work, so its share is next to nothing there.
        """
        seconds = time.perf_counter() - self._began - self._spent["paused"]
        rates = {
            "train/images_per_s": self._steps * self.images_per_step / seconds,
            "train/data_wait": self._spent["waiting"] / seconds,
            "train/augment_share": self._spent["augmenting"] / seconds,
        }
        self._reset()
        return rates

    def report(self, values: dict[str, float]) -> None:
        """Show the values of a step: beside the bar, or as a line where there is none."""
        text = (
            f"loss {values['train/loss']:.4f}  lr {values['train/lr']:.2e}  "
            f"{values['train/images_per_s']:.1f} images/s  data wait {values['train/data_wait']:.1%}"
        )
        if not self.bar.disable:
            self.bar.set_postfix_str(text)
        elif self.show:
            print(f"step {self.done}/{self.total}  {text}", flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
