"""Distributed training of face-forgery detectors, one JPEG quality level at a time."""

from datasets_shards import __version__

__all__ = ["__version__"]
