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
        what: Is counted, on a bar that goes away with the end.
    """

    def __init__(self, total: int, done: int, show: bool, what: str = "") -> None:
        self.total, self.done = total, done
        self.show = show
        self.bar = tqdm(
            total=total,
            initial=done,
            unit="sample" if what else "step",
            desc=what or None,
            leave=not what,
            disable=not (show and sys.stderr.isatty()),
        )

    def step(self, count: int = 1) -> None:
        """Count a step, or some samples."""
        self.done += count
        self.bar.update(count)

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
