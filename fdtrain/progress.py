"""How far a run is: a progress bar on a terminal, plain lines elsewhere."""

import sys
from typing import Self

from tqdm import tqdm


class ProgressBar:
    """Shows the steps of a run.

    Args:
        total: Steps of the run.
        done: Steps done before.
        show: Whether this rank shows anything.
    """

    def __init__(self, total: int, done: int, show: bool) -> None:
        self.total, self.done = total, done
        self.show = show
        self.bar = tqdm(total=total, initial=done, unit="step", disable=not (show and sys.stderr.isatty()))

    def step(self) -> None:
        """Count a step."""
        self.done += 1
        self.bar.update()

    def report(self, values: dict[str, float]) -> None:
        """Show the values of a step: beside the bar, or as a line where there is none."""
        text = (
            f"loss {values['train/loss']:.4f}  lr {values['train/lr']:.2e}  "
            f"{values['train/images_per_s']:.1f} images/s  data wait {values['train/data_wait']:.1%}"
        )
        if "train/mfu" in values:
            text += f"  MFU {values['train/mfu']:.1%}"
        if not self.bar.disable:
            self.bar.set_postfix_str(text)
        elif self.show:
            print(f"step {self.done}/{self.total}  {text}", flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
