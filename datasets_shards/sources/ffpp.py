"""FaceForensics++'s own tree, as its download script writes it.

<root>/original_sequences/{youtube,actors}/<compression>/videos/004.mp4
<root>/manipulated_sequences/<method>/<compression>/videos/004_982.mp4
<root>/manipulated_sequences/<method>/masks/videos/004_982.mp4
"""

from pathlib import Path

from datasets_shards.errors import InputError
from datasets_shards.sources.listing import Selection, Source, entries, subfolders, video_files
from datasets_shards.sources.names import COMPRESSIONS, PARTS, choose_compression, people_of
from datasets_shards.sources.video import Video

LAYOUT = "FaceForensics++ videos"
EXAMPLE = f"original_sequences/youtube/<{'|'.join(COMPRESSIONS)}>/videos/000.mp4"


def recognizes(root: Path) -> bool:
    """Whether there is a video of any compression."""
    return any(True for _ in _video_folders(root))


def read(root: Path, selection: Selection) -> Source:
    """List the videos of one compression.

    Raises:
        InputError: several compressions and none chosen, one chosen that isn't there, a method or a file name that FF++
            doesn't have, an unreadable folder.
    """
    folders = _video_folders(root)
    present = [name for name in COMPRESSIONS if any(compression == name for _, compression, _, _ in folders)]
    chosen = choose_compression(root, present, selection.compression)
    videos = []
    for method, compression, paths, masks in folders:
        if compression != chosen:
            continue
        for path in paths:
            target, source = people_of(method, path.stem, path)
            relative = path.relative_to(root).as_posix()
            videos.append(Video(method, path.stem, target, source, chosen, path, relative, mask=masks.get(path.stem)))
    return Source(LAYOUT, root, chosen, videos)


def _video_folders(root: Path) -> list[tuple[str, str, list[Path], dict[str, Path]]]:
    """Every (method, compression, videos, mask of each) under `root` that holds a video."""
    found = []
    for part, methods in PARTS.items():
        for folder in subfolders(root / part):
            masks: dict[str, Path] | None = None
            for compression in subfolders(folder):
                if compression.name not in COMPRESSIONS:
                    continue
                paths = video_files(compression / "videos")
                if not paths:
                    continue
                if folder.name not in methods:
                    raise InputError(
                        f"{folder}: {folder.name!r} is no method of {part} in FF++, which has {', '.join(methods)}; "
                        "rename the folder or move it away"
                    )
                if masks is None:
                    masks = _masks(folder / "masks")
                found.append((folder.name, compression.name, paths, masks))
    return found


def _masks(folder: Path) -> dict[str, Path]:
    """Every mask video below `folder`, at whatever depth, by its video's name."""
    here = {path.stem: path for path in video_files(folder)}
    for entry in entries(folder):
        if entry.is_dir():
            here |= _masks(Path(entry.path))
    return here
