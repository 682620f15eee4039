"""The detectors: a name makes a model, a folder holds one.

Every model maps normalized `[B, 3, H, W]` float images to logits `[B, 2]`; class 0 is real, class 1 is fake. A network
with one output z = logit P(real) gives `[z, 0]`, whose softmax is the sigmoid.
"""

from fdtrain.models.card import InputSpec
from fdtrain.models.registry import cam_layer, create_model, input_spec, model_names
from fdtrain.models.weights import load_model, save_model

__all__ = ["InputSpec", "cam_layer", "create_model", "input_spec", "load_model", "model_names", "save_model"]
