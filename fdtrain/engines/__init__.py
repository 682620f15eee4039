"""What runs an optimizer step: backward, accumulation, clipping, mixed precision, gradient reduction."""

from fdtrain.engines.base import Engine, EngineState, StepResult
from fdtrain.engines.create import choose_engine, create_engine
from fdtrain.engines.ddp import DDPEngine

__all__ = ["DDPEngine", "Engine", "EngineState", "StepResult", "choose_engine", "create_engine"]
