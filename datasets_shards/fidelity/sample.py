"""Which uncompressed crops a report looks at: a few, spread evenly over methods and videos, drawn by a seed."""

from collections.abc import Callable
from pathlib import Path

from datasets_shards.errors import InputError, first_few
from datasets_shards.fidelity.drawing import CropSample, Progress
from datasets_shards.fidelity.packed import is_packed, open_raw, sample_packed
from datasets_shards.sources import Selection

EVERYTHING = Selection()


def sample_crops(
    source: Path,
    count: int,
    seed: int,
    workers: int = 1,
    *,
    selection: Selection = EVERYTHING,
    faces: Path | None = None,
    size: int | None = None,
    margin: float | None = None,
    progress: Progress = lambda iterable, **_: iterable,
    tell: Callable[[str], None] = lambda line: None,
) -> CropSample:
    """Draw `count` crops, or all where there are fewer.

    Args:
        source: what `pack` takes; or the `raw` set of a root that pack wrote, or such a root.
        count: number of crops.
        seed: draws videos and frames.
        workers: number of processes; the sample doesn't depend on it.
        selection: which videos of the source.
        faces: table of the faces in the source; without it the face stage runs on the videos that are drawn.
        size: side of the crops that are cut, pixels (default: that of pack).
        margin: their side over that of the tight face (default: that of pack).
        progress: called with an iterator, `total` and `desc`; wraps it, such as with a bar.
        tell: takes a line about each video that can't be used.

    Raises:
        InputError: the source holds neither videos nor a raw set, or no usable face; a setting of videos given for a
            packed set.
        ShardSetError: a damaged set.
    """
    if is_packed(source):
        given = {"--faces": faces, "--size": size, "--margin": margin}
        flags = [flag for flag, value in given.items() if value is not None]
        flags += ["flags that select videos"] * (selection != EVERYTHING)
        if flags:
            raise InputError(f"{first_few(flags)}: {source} holds crops that are cut already; leave that away")
        return sample_packed(open_raw(source), count, seed)
    # The face stage and its models are loaded for videos alone.
    from datasets_shards.fidelity.videos import sample_videos

    return sample_videos(source, count, seed, workers, selection, faces, size, margin, progress, tell)
