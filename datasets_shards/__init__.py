"""Offline stage: FaceForensics++ videos -> aligned face crops -> MozJPEG -> WebDataset shards."""
