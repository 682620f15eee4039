"""One video's rows of the table of faces: what is seen in its sampled frames, and which face of each is kept."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from datasets_shards.faces.detector import NUM_LANDMARKS, Box, Face, FaceSettings, find_faces
from datasets_shards.faces.tracking import largest_faces, main_track
from datasets_shards.frames import frame_numbers, read_frames
from datasets_shards.frames.content import load_video
from datasets_shards.frames.errors import FrameError
from datasets_shards.frames.masks import FORGED, MaskReader, resize_mask
from datasets_shards.schema import file_sha256
from datasets_shards.sources import Video
from datasets_shards.sources.benchmark_names import LANDMARKS, beside_frame

OK = "ok"
NO_FACE = "no face"
OTHER_FACE = "other face"
NOT_FORGED = "not forged"  # a fake's mask, which says where it is one, is empty or of somebody else
TOO_SMALL = "too small"
OTHER_SIZE = "other size"  # a face crop that isn't of the set's size; decided when packing, never in the file
UNREADABLE_FRAME = "unreadable frame"
UNREADABLE = "unreadable video"
STATUSES = (OK, NO_FACE, OTHER_FACE, NOT_FORGED, TOO_SMALL, OTHER_SIZE, UNREADABLE_FRAME, UNREADABLE)

FORGED_PART = 0.01
"""Of a face's box: a mask that covers less doesn't cover the face. Mouths alone are some 10 %."""

Row = dict[str, Any]
Images = Iterator[tuple[int, np.ndarray | FrameError]]


def detect_video(video: Video, settings: FaceSettings) -> list[Row]:
    """Sample a video and look for its face in every frame: one row of `table.FACES_SCHEMA` per sampled frame.

    All frames of a video file have one size, and so have the images of a folder that are frames of one video: then the
    face is followed through them (`tracking`). Images of different sizes are taken as unrelated, and of each the
    largest face is kept. Where the video has a manipulation mask, it is the face that the mask covers, and a frame
    whose mask doesn't cover it gives no sample: it isn't known to be a fake. Face crops are taken as they are.

    A video that can't be read gives a single row with its error, so that it is counted and doesn't stop the rest; so
    does, in a folder, every image that can't be read. The rows hold nothing but what JSON can.
    """
    facts = _facts(video)
    try:
        if video.files:
            facts |= _identity(video)
            numbers, times, content = frame_numbers(video), None, None
        else:
            from datasets_shards.frames.video import read_packets

            content, facts["bytes"], facts["sha256"] = load_video(video.path)
            packets = read_packets(video.path, content)
            numbers, times = list(range(packets.count)), packets.times
        numbers = settings.choice.pick(numbers)
        images = read_frames(video, numbers, times=times, content=content)
        rows = _crop_rows(video, images) if video.cropped else _face_rows(video, numbers, images, settings)
        rows[0] |= {} if times is None else {"times": times}
        return [facts | row for row in rows]
    except FrameError as error:
        return [facts | {"status": UNREADABLE, "reason": error.problem}]
    except OSError as error:
        return [facts | {"status": UNREADABLE, "reason": error.strerror or str(error)}]


def lost_rows(video: Video) -> list[Row]:
    """What stands for a video whose worker process didn't survive it: it is looked at again by the next call."""
    reason = "the process that read it was killed, for want of memory or by a defect of a decoder"
    return [_facts(video) | {"status": UNREADABLE, "reason": reason}]


def _facts(video: Video) -> Row:
    return {
        "method": video.method,
        "video": video.name,
        "target": video.target,
        "source": video.source,
        "path": video.relative,
        "compression": video.compression,
    }


def size_of(video: Video) -> int:
    """Bytes of a video's file, or of those of its image files that exist; nothing is opened.

    Raises:
        OSError: the video file can't be looked at.
    """
    if not video.files:
        return video.path.stat().st_size
    total = 0
    for _, name in video.files:
        try:
            total += (video.path / name).stat().st_size
        except FileNotFoundError:
            continue
    return total


def changed_at(video: Video) -> float:
    """When a video's file was last changed in any way, seconds since 1970; of image files the last one.

    Raises:
        OSError: the video file can't be looked at.
    """
    paths = [video.path / name for _, name in video.files] if video.files else [video.path]
    return max(path.stat().st_ctime for path in paths if path.exists() or not video.files)


def identity_of(video: Video) -> str:
    """SHA-256 of a video as it is now; what the column `sha256` has.

    Raises:
        OSError: the video file can't be read.
    """
    return str(_identity(video)["sha256"])


def _identity(video: Video) -> Row:
    """`bytes` and `sha256`: of the file, or for a folder over a line "name, tab, SHA-256" of each file that exists."""
    if not video.files:
        return {"bytes": video.path.stat().st_size, "sha256": file_sha256(video.path)}
    digest = hashlib.sha256()
    size: int | None = size_of(video)
    for _, name in video.files:
        try:
            digest.update(f"{name}\t{file_sha256(video.path / name)}\n".encode())
        except FileNotFoundError:
            continue
        except OSError:
            size = None  # not known in full: its row says why, and the next call looks at the video again
    return {"bytes": size, "sha256": digest.hexdigest()}


def _face_rows(video: Video, numbers: list[int], images: Images, settings: FaceSettings) -> list[Row]:
    rows: list[Row] = []
    seen: list[list[Face]] = []
    masks = MaskReader(video, numbers)
    forged: list[dict[Box, int]] = []  # pixels under the mask; empty where there is none
    for number, image in images:
        row: Row = {"frame": number, "reason": ""}
        faces: list[Face] = []
        mask = masks.at(number)
        if isinstance(image, FrameError):
            row |= {"status": UNREADABLE_FRAME, "reason": _named(image)}
        else:
            faces = find_faces(image, settings.upsample, settings.reduce)
            row |= {"frame_width": image.shape[1], "frame_height": image.shape[0], "faces": len(faces)}
            mask = None if mask is None else resize_mask(mask, *image.shape[:2])
        rows.append(row)
        seen.append(faces)
        forged.append({} if mask is None else {face.box: _forged_pixels(mask, face.box) for face in faces})

    def weigh(sample: int, box: Box) -> int:
        return forged[sample].get(box, 0)

    boxes = [[face.box for face in faces] for faces in seen]
    sizes = {(row["frame_width"], row["frame_height"]) for row in rows if "status" not in row}
    kept = (main_track if len(sizes) == 1 else largest_faces)(boxes, weigh)
    for i, (row, faces) in enumerate(zip(rows, seen, strict=True)):
        if "status" not in row:
            face = next((face for face in faces if face.box == kept.get(i)), None)
            row |= _status(faces, face, settings, None if face is None else forged[i].get(face.box))
    return rows


def _forged_pixels(mask: np.ndarray, box: Box) -> int:
    left, top, right, bottom = (max(0, side) for side in box)
    return int((mask[top:bottom, left:right] >= FORGED).sum())


def _status(faces: list[Face], face: Face | None, settings: FaceSettings, forged: int | None) -> Row:
    if face is None:
        if not faces:
            return {"status": NO_FACE}
        return {"status": OTHER_FACE, "reason": f"{len(faces)} seen, not the one that the video is about"}
    row: Row = {"confidence": face.confidence, "box": list(face.box), "landmarks": face.landmarks.ravel().tolist()}
    if forged is not None and forged < FORGED_PART * face.area:
        return row | {"status": NOT_FORGED, "reason": "its mask is empty, or covers somebody else"}
    if face.side < settings.min_face:
        return row | {"status": TOO_SMALL, "reason": f"{face.side} of at least {settings.min_face} pixels"}
    return row | {"status": OK}


def _crop_rows(video: Video, images: Images) -> list[Row]:
    """Face crops: decoded, though no face is looked for, since packing can no longer leave out one that is broken."""
    name_of = dict(video.files)
    rows = []
    for number, image in images:
        row: Row = {"frame": number, "reason": ""}
        if isinstance(image, FrameError):
            row |= {"status": UNREADABLE_FRAME, "reason": _named(image)}
        else:
            row |= {"status": OK, "frame_width": image.shape[1], "frame_height": image.shape[0]}
            row |= _crop_landmarks(video.path / name_of[number])
        rows.append(row)
    return rows


def _crop_landmarks(crop: Path) -> Row:
    """The landmarks that DeepfakeBench keeps beside a crop, in crop pixels, or why there are none.

    Of dlib's 81 points the first 68 are the 68 of the usual model.
    """
    try:
        path = Path(beside_frame(crop.as_posix(), LANDMARKS))
    except ValueError:
        return {}  # a plain folder of crops has no landmarks
    try:
        points = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, EOFError):
        return {"reason": f"{path.name}: not readable as landmarks"}
    if points.shape not in ((NUM_LANDMARKS, 2), (81, 2)) or points.dtype.kind not in "iuf":
        return {"reason": f"{path.name}: {points.shape} {points.dtype} isn't 68 or 81 landmarks"}
    landmarks = points[:NUM_LANDMARKS].astype(np.float32)
    if not np.isfinite(landmarks).all():
        return {"reason": f"{path.name}: landmarks that are no numbers"}
    return {"landmarks": landmarks.ravel().tolist()}


def _named(error: FrameError) -> str:
    """Of an image in a folder: the folder is the row's path, so the file's own name is enough."""
    return f"{Path(error.args[0]).name}: {error.problem}"
