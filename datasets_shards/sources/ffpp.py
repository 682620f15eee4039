"""FaceForensics++'s own tree, as its download script writes it.

<root>/original_sequences/{youtube,actors}/<compression>/videos/004.mp4
<root>/manipulated_sequences/<method>/<compression>/videos/004_982.mp4
<root>/manipulated_sequences/<method>/masks/videos/004_982.mp4
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets_shards.errors import InputError, first_few
from datasets_shards.sources.listing import Folder, Selection, Source, is_video, look_into, subfolders, walk
from datasets_shards.sources.names import COMPRESSIONS, PARTS, choose_compression, people_of
from datasets_shards.sources.video import Video

LAYOUT = "FaceForensics++ videos"
EXAMPLE = f"original_sequences/youtube/<{'|'.join(COMPRESSIONS)}>/videos/000.mp4"


@dataclass(frozen=True)
class _Place:
    """The videos of a method at a compression."""

    part: str
    folder: Path
    compression: str
    found: Folder

    @property
    def method(self) -> str:
        return self.folder.name


def recognizes(root: Path) -> bool:
    """Whether there is a video of any compression, or a link that was to be one."""
    return any(True for _ in _places(root))


def read(root: Path, selection: Selection) -> Source:
    """List the videos of one compression.

    Raises:
        InputError: several compressions and none chosen, one chosen that isn't there, a method or a file name that FF++
            doesn't have, an unreadable folder, links alone that lead nowhere.
    """
    places = list(_places(root))
    asked = [place for place in places if selection.methods is None or place.method in selection.methods]
    for place in asked:
        if place.method not in PARTS[place.part]:
            raise InputError(
                f"{place.folder}: {place.method!r} is no method of {place.part} in FF++, which has "
                f"{', '.join(PARTS[place.part])}; rename the folder, move it away or choose with --methods"
            )
    methods = frozenset(place.method for place in places if place.method in PARTS[place.part])
    present = [name for name in COMPRESSIONS if any(place.compression == name for place in asked or places)]
    chosen = choose_compression(root, present, selection.compression)
    videos: list[Video] = []
    skipped: list[str] = []
    masks: dict[Path, dict[str, Path]] = {}
    for place in asked:
        if place.compression != chosen:
            continue
        skipped += place.found.skipped
        if place.folder not in masks:
            masks[place.folder] = _masks(place.folder / "masks", root, skipped)
        for path in filter(is_video, place.found.files):
            target, source = people_of(place.method, path.stem, path)
            mask = masks[place.folder].get(path.stem)
            relative = path.relative_to(root).as_posix()
            videos.append(Video(place.method, path.stem, target, source, chosen, path, relative, mask=mask))
    if asked and not videos:
        raise InputError(f"--source {root}: no video can be read: {first_few(skipped)}")
    return Source(LAYOUT, root, chosen, videos, methods, skipped=skipped)


def _places(root: Path) -> Iterator[_Place]:
    """Every place under `root` that holds a video, or something else by a video's name."""
    for part in PARTS:
        for folder in subfolders(root / part):
            for compression in subfolders(folder):
                if compression.name in COMPRESSIONS:
                    found = look_into(compression / "videos", root)
                    if found.skipped or any(map(is_video, found.files)):
                        yield _Place(part, folder, compression.name, found)


def _masks(folder: Path, root: Path, skipped: list[str]) -> dict[str, Path]:
    """Every mask below `folder`, at whatever depth, by its video's name: a video file, or a folder of PNG files."""
    masks: dict[str, Path] = {}
    for here, files in walk(folder, root, skipped):
        if any(path.suffix == ".png" for path in files):
            masks[here.name] = here
        masks |= {path.stem: path for path in files if is_video(path)}
    return masks
