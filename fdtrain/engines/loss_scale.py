"""The scale of fp16's losses, where no optimizer step is torch's own to watch (Micikevicius et al., ICLR 2018)."""

from dataclasses import dataclass
from typing import Any


@dataclass
class LossScale:
    """Follows the rules and defaults of `torch.amp.GradScaler`: half of it after a step whose gradients aren't finite,
    twice as much after so many good ones in a row.

    Args:
        value: What the loss is multiplied by, and its gradients are divided by.
        good_steps: Steps since the scale last changed.
        interval: Good steps until it grows.
    """

    value: float = 2.0**16
    good_steps: int = 0
    interval: int = 2000

    def update(self, was_applied: bool) -> None:
        """After each step, which was skipped where its gradients weren't finite."""
        if not was_applied:
            self.value, self.good_steps = self.value / 2, 0
            return
        self.good_steps += 1
        if self.good_steps == self.interval:
            self.value, self.good_steps = self.value * 2, 0

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"scale": self.value, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from saved numbers."""
        self.value, self.good_steps = state["scale"], state["good_steps"]
