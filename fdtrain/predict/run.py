"""`python -m fdtrain predict` as a function: what is found in files, in worker processes; the model, here."""

import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from tqdm import tqdm

from datasets_shards.errors import InputError
from datasets_shards.faces.detector import landmark_model
from datasets_shards.jpeg.mozjpeg import require_encoder
from datasets_shards.pool import ordered_map
from fdtrain.config import HostError
from fdtrain.metrics import parse_video_score
from fdtrain.models.weights import open_model
from fdtrain.predict.annotate import Annotator, check_folder
from fdtrain.predict.crops import FileCrops, describe_failure, lost_crops, make_crops
from fdtrain.predict.inputs import find_inputs
from fdtrain.predict.recipe import Wishes, plan_crops
from fdtrain.predict.scores import score_crops, score_files, video_score
from fdtrain.predict.tables import Table, check_out, frames_path, opened_tables
from fdtrain.runtime import start
from fdtrain.tasks import Task


@dataclass(frozen=True)
class Request:
    """What is to be scored, and how.

    Args:
        model: As `open_model`.
        paths: As `find_inputs`.
        out: The table of files; its suffix is its form.
        wishes: How crops are made.
        video_score: As `scores.video_score`.
        annotate: Folder for pictures of the scored frames; None for none.
        batch_size: Crops of one forward pass.
        workers: Processes that look for faces.
    """

    model: str
    paths: Sequence[str]
    out: Path
    wishes: Wishes
    video_score: str
    annotate: Path | None
    batch_size: int
    workers: int


def predict(request: Request) -> None:
    """Score files, and write the tables of files and frames. Under torchrun rank 0 does it alone.

    A file that gives no score is a row with the reason. The tables appear when they are whole; memory doesn't grow with
    the number of files but for their names.

    Raises:
        UserError: a setting, or the model, can't be used.
        HostError: not one file gave a score (the tables say why), the detector is missing, or a worker was killed.
        FloatingPointError: the model gave a score that isn't finite.
    """
    check_out(request.out)
    parse_video_score(request.video_score)
    if request.annotate is not None:
        check_folder(request.annotate)
    inputs, passed_over = find_inputs(request.paths)
    model, card = open_model(request.model)
    recipe, notes = plan_crops(card, request.wishes, request.model)
    tally = Tally()
    with _inputs_faults(), start("fp32") as runtime, _ended_by_sigterm():
        if not runtime.is_main:
            return
        if not recipe.are_crops:
            landmark_model()
        if recipe.jpeg_quality is not None:
            require_encoder(recipe.jpeg)
        task = Task(model, card["input"]).to(runtime.device).eval()
        annotator = Annotator(request.annotate, task, card["name"]) if request.annotate else None
        for line in notes:
            print(line)
        if passed_over:
            print(f"passed over {passed_over} files in the folders that are neither images nor videos", flush=True)
        with tempfile.TemporaryDirectory(prefix="fdtrain-predict-") as folder, opened_tables(request.out) as tables:
            work = partial(make_crops, recipe=recipe, folder=Path(folder))
            with closing(ordered_map(work, inputs, min(request.workers, len(inputs)), lost_crops)) as found:
                scored = score_files(partial(score_crops, task), found, request.batch_size)
                for row, (file, scores) in enumerate(tqdm(scored, "scoring", len(inputs), unit="file", disable=None)):
                    _write(tables, file, scores, request.video_score)
                    if annotator:
                        annotator.draw(row, file, scores, with_frames=not recipe.are_crops)
                    file.discard()
                    tally.add(file)
    print(tally.describe(request.out))
    if not tally.scored:
        raise HostError(f"none of {tally.files} files gave a score; the first: {tally.first_failure}")


@dataclass
class Tally:
    """What is told at the end."""

    files: int = 0
    scored: int = 0
    frames: int = 0
    without: int = 0
    several_faces: int = 0
    first_failure: str = ""

    def add(self, file: FileCrops) -> None:
        """Count a file."""
        self.files += 1
        self.frames += len(file.scored)
        self.without += len(file.frames) - len(file.scored)
        self.several_faces += any((frame.faces or 0) > 1 for frame in file.frames)
        if failure := describe_failure(file):
            self.first_failure = self.first_failure or f"{file.input.path}: {failure}"
        else:
            self.scored += 1

    def describe(self, out: Path) -> str:
        """Lines for people."""
        lines = [f"scored {self.scored} of {self.files} files, {self.frames} frames ({self.without} not scored)"]
        if failed := self.files - self.scored:
            lines.append(f"{failed} without a score; the first: {self.first_failure}")
        if self.several_faces:
            lines.append(f"{self.several_faces} with several faces in a frame, of which one was scored")
        return "\n".join([*lines, f"scores in {out}, frame by frame in {frames_path(out)}"])


def _write(tables: tuple[Table, Table], file: FileCrops, scores: np.ndarray, how: str) -> None:
    files, frames = tables
    path, seen = file.input.path, [frame.faces for frame in file.frames if frame.faces is not None]
    files.add(
        {
            "path": path,
            "kind": file.input.kind,
            "score": video_score(scores, how) if len(scores) else None,
            "scored": len(scores),
            "sampled": len(file.frames),
            "faces": max(seen, default=None),
            "error": describe_failure(file),
        }
    )
    values = iter(scores.tolist())
    for frame in file.frames:
        left, top, right, bottom = frame.box or (None,) * 4
        frames.add(
            {
                "path": path,
                "frame": frame.number,
                "score": None if frame.error else next(values),
                "faces": frame.faces,
                "confidence": frame.confidence,
                "left": left,
                "top": top,
                "right": right,
                "bottom": bottom,
                "error": frame.error,
            }
        )


@contextmanager
def _inputs_faults() -> Iterator[None]:
    """The offline stage's errors as ours."""
    try:
        yield
    except InputError as error:
        raise HostError(str(error)) from None


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM as an exception, so that what was begun is cleaned away."""

    def leave(number: int, _frame: Any) -> NoReturn:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
