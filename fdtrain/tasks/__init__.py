"""What a training step and an evaluation step of a model are."""

from torch import nn

from fdtrain.config import Config
from fdtrain.models import InputSpec
from fdtrain.tasks.base import Task
from fdtrain.tasks.classification import ClassificationTask

__all__ = ["ClassificationTask", "Task", "create_task"]


def create_task(config: Config, model: nn.Module, spec: InputSpec) -> Task:
    """The task of the configuration's model. Raises UserError where `model.freeze` or `train.compile` don't suit it."""
    task = _task(config, model, spec)
    if config.train.compile != "off":
        task.compile_part(config.train.compile)
    return task


def _task(config: Config, model: nn.Module, spec: InputSpec) -> Task:
    freeze = config.model.freeze or ()
    if config.model.name == "multi_attention":
        from fdtrain.models.multi_attention import MultiAttentionNetwork
        from fdtrain.tasks.multi_attention import MultiAttentionTask

        assert isinstance(model, MultiAttentionNetwork)
        return MultiAttentionTask(model, spec, config.loss, config.multi_attention, freeze)
    return ClassificationTask(model, spec, config.loss, freeze)
