"""Offline stage: FaceForensics++ videos -> aligned face crops -> MozJPEG -> WebDataset shards."""

__version__ = "0.1.0"
