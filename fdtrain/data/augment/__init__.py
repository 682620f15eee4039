"""Augmentation of whole batches on the device, the same for both loaders and any number of ranks."""

from fdtrain.data.augment.pipeline import Augmenter
from fdtrain.data.augment.settings import PRESETS, AugmentSettings, augment_settings

__all__ = ["PRESETS", "AugmentSettings", "Augmenter", "augment_settings"]
