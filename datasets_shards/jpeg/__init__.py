"""The JPEG step: MozJPEG and its settings, and scaling in the DCT domain."""
