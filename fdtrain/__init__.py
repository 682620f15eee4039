"""Distributed training of face-forgery detectors, one JPEG quality level at a time."""

__version__ = "0.1.0"
