"""From a face in a frame to encoded samples."""
