"""The face stage over a source: every video once, whatever stops it in between."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from datasets_shards.errors import InputError, first_few
from datasets_shards.faces.detector import FaceSettings, describe_detector, landmark_model
from datasets_shards.faces.journal import Journal, Look, differences, open_journal
from datasets_shards.faces.rows import OK, STATUSES, Row, changed_at, detect_video, identity_of, lost_rows
from datasets_shards.faces.table import FaceTable, current_size, made_with, read_rows, write_table
from datasets_shards.pool import ordered_map
from datasets_shards.sources import Video


def _no_bar(results: Iterable[Any], **_: int) -> Iterable[Any]:
    return results


def detect_faces(
    videos: list[Video],
    settings: FaceSettings,
    path: Path,
    workers: int,
    progress: Callable[..., Iterable[Any]] = _no_bar,
    tell: Callable[[str], None] = lambda line: None,
) -> FaceTable:
    """Run the face stage over `videos`, in their order, and write its table.

    A video is looked at once: those that the table at `path` has, or the journal of a call that was stopped, are taken
    from there, unless they have changed (size, or time and content) or couldn't be read. The file's bytes depend on the
    videos and the settings alone.

    Args:
        videos: what to look at.
        settings: sampling and detection.
        path: where the table goes, or already is.
        workers: number of processes.
        progress: wraps the iterator over the videos that are looked at, such as with a bar; called with `initial`, the
            number of those that are done already, and `total`.
        tell: takes a line for people about what is done already.

    Raises:
        InputError: there is no usable face in any video, or no landmark model; the table or the journal was made with
            other settings, or is of more videos than these; another process writes the table.
    """
    landmark_model()
    detector = describe_detector()
    with open_journal(path, made_with(settings, detector)) as journal:
        old = _existing(path, settings, detector)
        done = _finished(videos, journal, old, path)
        todo = [video for video in videos if video.relative not in done]
        if not todo and old is not None and list(old.spans) == [video.relative for video in videos]:
            tell(f"nothing to do: {path} has all {len(videos)} videos")
            journal.remove()
            return old
        if done:
            tell(f"continuing: {len(done)} of {len(videos)} videos are done")
        work = partial(detect_video, settings=settings)
        with closing(ordered_map(work, todo, workers, lost_rows)) as results:
            for rows in progress(results, initial=len(done), total=len(videos)):
                journal.add(rows)
        if not any(row["status"] == OK for rows in _rows(videos, journal, old) for row in rows):
            counts = Counter(row["status"] for rows in _rows(videos, journal, old) for row in rows)
            journal.remove()
            seen = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
            raise InputError(f"no usable face in any of {len(videos)} videos ({seen})")
        write_table(path, settings, detector, _rows(videos, journal, old))
        journal.remove()
    return FaceTable.load(path)


def _existing(path: Path, settings: FaceSettings, detector: dict[str, str]) -> FaceTable | None:
    if not path.exists():
        return None
    old = FaceTable.load(path)
    there, here = made_with(old.settings, old.detector), made_with(settings, detector)
    if there != here:
        raise InputError(
            f"--out {path}: this table was made with other settings ({differences(there, here)}); give another --out, "
            "or the settings of then"
        )
    return old


def _finished(videos: list[Video], journal: Journal, old: FaceTable | None, path: Path) -> set[str]:
    """Paths of the videos that needn't be looked at again."""
    looks = {**(old.looks() if old is not None else {}), **journal.looks}
    # Rows that nobody asks for would be dropped here, and hours of detection with them.
    if extra := sorted(set(looks) - {video.relative for video in videos}):
        raise InputError(
            f"--out {path}: has faces of {len(extra)} videos that aren't selected now: {first_few(extra)}; give "
            "another --out, or select them too"
        )
    return {video.relative for video in videos if video.relative in looks and _is_done(video, looks[video.relative])}


def _is_done(video: Video, look: Look) -> bool:
    """Whether another look would give the same; a file that couldn't be read may have been on its way to its place."""
    if not look.is_readable or look.bytes is None or look.bytes != current_size(video):
        return False
    try:
        return changed_at(video) < look.time or identity_of(video) == look.sha256
    except OSError:
        return False


def _rows(videos: list[Video], journal: Journal, old: FaceTable | None) -> Iterator[list[Row]]:
    for video in videos:
        if video.relative in journal.looks:
            yield journal.rows(video.relative)
        else:
            assert old is not None
            yield read_rows(old.path, *old.spans[video.relative])
