"""Pictures of the scored frames, one PNG each."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import nn

from datasets_shards.frames import read_frames
from datasets_shards.frames.errors import FrameError
from datasets_shards.schema import write_atomic
from fdtrain.config import UserError
from fdtrain.figures.annotated import annotated_figure
from fdtrain.figures.panels import png
from fdtrain.models import cam_layer
from fdtrain.predict.crops import FileCrops, Frame, as_video
from fdtrain.predict.scores import to_images
from fdtrain.tasks import Task

LONGEST_NAME = 40
"""Letters of a file's name in that of its pictures: of any alphabet they leave room for the rest in 255 bytes."""

LONGEST_TITLE = 70
"""Letters that fit over the narrowest picture."""


class Annotator:
    """Draws into one folder: `00012-634_660-00095.png` is frame 95 of 634_660.mp4, the input of row 12 (from 0).

    Args:
        folder: Absent or empty, or the pictures of two calls would stand side by side.
        task: In evaluation mode.
        name: Of its model.

    Raises:
        UserError: the folder isn't empty.
    """

    def __init__(self, folder: Path, task: Task, name: str) -> None:
        self.folder, self.task, self.name = folder, task, name
        self.layer: nn.Module = cam_layer(name, task.model)
        folder.mkdir(parents=True, exist_ok=True)

    def draw(self, row: int, file: FileCrops, scores: np.ndarray, with_frames: bool) -> None:
        """A picture of each scored frame of a file.

        Args:
            row: The file's, in the table of files.
            file: Its crops.
            scores: P(fake) of each, `[N]`.
            with_frames: Whether the frame is more than the crop.

        Raises:
            UserError: the file can no longer be read; its scores were made a moment ago.
        """
        places = self._with_pictures(file) if with_frames else ((frame, None) for frame in file.scored)
        for (frame, image), crop, score in zip(places, file.read_crops(), scores.tolist(), strict=True):
            of_video = f", frame {frame.number}" if file.input.kind == "video" else ""
            figure = annotated_figure(
                self.task,
                self.layer,
                to_images(crop[None], self.task),
                score,
                _title(file.input.path) + of_video,
                self.name,
                image,
                frame.box,
            )
            name = f"{row:05d}-{Path(file.input.path).stem[:LONGEST_NAME]}-{frame.number:05d}.png"
            write_atomic(self.folder / name, png(figure))

    def _with_pictures(self, file: FileCrops) -> Iterator[tuple[Frame, np.ndarray]]:
        by_number = {frame.number: frame for frame in file.scored}
        if not by_number:
            return
        try:
            for number, image in read_frames(as_video(file.input), list(by_number)):
                if isinstance(image, FrameError):
                    raise image
                yield by_number[number], image
        except FrameError as error:
            raise UserError(f"{file.input.path}: changed while it was scored ({error.problem}); run it again") from None


def _title(path: str) -> str:
    """The end of a path that is long; matplotlib takes what is between dollar signs for a formula."""
    end = path if len(path) <= LONGEST_TITLE else f"…{path[1 - LONGEST_TITLE :]}"
    return end.replace("$", r"\$")


def check_folder(folder: Path) -> None:
    """Raise UserError where there is anything in the folder, or it is a file."""
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"annotate: {folder} isn't empty; name another folder")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"annotate: {folder} is a file; name a folder")
