"""A video file that is read once: hashed, demuxed and decoded from memory."""

import hashlib
import io
from pathlib import Path

from datasets_shards.frames.errors import check_file
from datasets_shards.schema import file_sha256

KEPT_BYTES = 256 << 20
"""FF++'s raw videos have 100 MB in the mean. A larger file is read anew for each purpose."""


class VideoContent(io.BytesIO):
    """The bytes of a video file, for `av.open`; nothing of it is Python, where a demuxer would lose a Ctrl-C.

    Args:
        path: the file.
        content: its bytes.

    Attributes:
        name: what FFmpeg takes for its name.
    """

    def __init__(self, path: Path, content: bytes) -> None:
        super().__init__(content)
        self.name = f"file:{path}"


def load_video(path: Path) -> tuple[VideoContent | None, int, str]:
    """Read a video file.

    Returns:
        Its content, or None where it has more than `KEPT_BYTES`; its size in bytes; its SHA-256.

    Raises:
        FrameError: no regular file.
        OSError: it can't be read.
    """
    check_file(path)
    size = path.stat().st_size
    if size > KEPT_BYTES:
        return None, size, file_sha256(path)
    content = path.read_bytes()
    return VideoContent(path, content), len(content), hashlib.sha256(content).hexdigest()
