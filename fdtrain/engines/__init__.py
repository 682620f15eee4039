"""What runs an optimizer step: backward, accumulation, clipping, mixed precision, gradient reduction."""

from fdtrain.engines.base import Engine, EngineState, StepResult
from fdtrain.engines.ddp import DDPEngine

__all__ = ["DDPEngine", "Engine", "EngineState", "StepResult"]
