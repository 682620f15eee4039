"""What runs an optimizer step: backward, accumulation, clipping, mixed precision, gradient reduction."""

from fdtrain.engines.base import Engine, EngineState, StepResult
from fdtrain.engines.create import choose_engine, create_engine
from fdtrain.engines.ddp import DDPEngine
from fdtrain.engines.sync_norm import check_sync_batchnorm

__all__ = ["DDPEngine", "Engine", "EngineState", "StepResult", "check_sync_batchnorm", "choose_engine", "create_engine"]
