"""Looking inside a model: attention maps, Grad-CAM and t-SNE as figures.

The modules need torch and matplotlib; the command line imports nothing of them to read its arguments.
"""

MAX_SAMPLES = 64
"""More rows of panels than these make an image that nobody looks at."""

MIN_POINTS = 5
"""t-SNE of fewer points shows nothing: its perplexity would be below 4/3 neighbours."""

DEFAULT_SAMPLES, DEFAULT_POINTS = 8, 1000
"""Faces in attention maps and Grad-CAM, and samples in the t-SNE at most, where nobody says how many."""
