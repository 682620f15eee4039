"""One video of a source, whatever it lies on disk as."""

from dataclasses import dataclass
from pathlib import Path

from datasets_shards.schema import DEEPFAKE_DETECTION, datasets_of, label_of

ACTOR = "actor "


@dataclass(frozen=True)
class Video:
    """One video of the source: a video file, or a folder of image files.

    Args:
        method: FF++'s directory name, such as "youtube" or "Deepfakes"; "real" or "fake" in a plain folder.
        name: what its samples are named by, such as "004" or "004_982".
        target: identity whose video it is (whose face was replaced, in a fake).
        source: identity that drove the manipulation; empty for a real video, and where nobody knows.
        compression: raw, c0, c23 or c40; "none" for a plain folder.
        path: the video file, or the folder of its image files.
        relative: path from the root of the source, with "/", as tables and digests record it.
        files: frame number and name in `path` of each image file, by number; empty for a video file.
        cropped: whether the image files are face crops already, which are taken as they are.
        mask: video file or folder of image files with the manipulation masks, where there is one.
        named: whether its name says who is in it; else `target` stands for whoever it is.
    """

    method: str
    name: str
    target: str
    source: str
    compression: str
    path: Path
    relative: str
    files: tuple[tuple[int, str], ...] = ()
    cropped: bool = False
    mask: Path | None = None
    named: bool = True

    @property
    def label(self) -> int:
        """0 real, 1 fake."""
        return label_of(self.method)

    @property
    def identities(self) -> tuple[str, ...]:
        """Everybody whose face or movement is in the video; actors never are people of the YouTube videos."""
        people = (self.target, self.source) if self.source else (self.target,)
        if not is_actor_method(self.method):
            return people
        return tuple(name if name.startswith(ACTOR) else f"{ACTOR}{name}" for name in people)


def is_actor_method(method: str) -> bool:
    """Whether the method belongs to the DeepFakeDetection data set: paid actors, no official split."""
    return datasets_of([method]) == [DEEPFAKE_DETECTION]
