"""Frames out of what a source holds: video files and image files."""
