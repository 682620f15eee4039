"""A small dataset in FaceForensics++'s own layout, made up from one photograph.

It is a demonstration and a test bed: it shows that every stage works, in minutes and without anybody's data. All its
people are warped copies of one face and its forgeries are four image filters, so numbers got from it mean nothing for
the detection of real deepfakes.
"""

import json
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

from tqdm import tqdm

from datasets_shards.demo.identities import generator, make_portrait
from datasets_shards.demo.manipulations import MANIPULATIONS
from datasets_shards.demo.videos import camera, film, forge, write_video
from datasets_shards.errors import InputError
from datasets_shards.pool import default_workers, ordered_map
from datasets_shards.schema import SPLITS, write_atomic
from datasets_shards.staging import staged

RECORD_NAME = "demo.json"
FORMAT = "fdtrain-demo"
FORMAT_VERSION = 2  # raised with every change that alters a pixel, so that an older demo isn't taken for this one
# of the pairs, for validation and again for test: more than FF++'s 14 %, which would be two pairs
HELD_OUT_SHARE = 0.2
MINIMUM_IDENTITIES = 2 * len(SPLITS)
MAXIMUM_IDENTITIES = 1000  # three digits, as in FF++
WARNING = (
    "This is a demonstration and a test bed, made up from one photograph: "
    "numbers got from it mean nothing for the detection of real deepfakes."
)
README = f"""{WARNING}

The folders and the split files are laid out like FaceForensics++ (raw). Every person is a warped, recoloured and relit
copy of the same photograph, scikit-image's astronaut (NASA, public domain). The four manipulations are image filters
that carry the names of FaceForensics++'s methods and leave traces of a similar kind:

  Deepfakes        the source's inner face at low resolution, blended in with a colour mismatch
  Face2Face        the target's face smoothed and sharpened again
  FaceSwap         the source's face pasted in with a hard border
  NeuralTextures   the target's mouth re-rendered at low resolution, with an upsampling grid

A fake AAA_BBB.mp4 has target AAA and source BBB. {RECORD_NAME} says how the folder was made.
"""


@dataclass(frozen=True)
class DemoSummary:
    """What a demo folder holds.

    Args:
        folder: where it is.
        seed: what everything was drawn from.
        identities: number of people, one real video each.
        frames: frames per video.
        videos: number of videos by method, `youtube` for the real ones.
        pairs: number of [target, source] pairs by split; each makes two fakes per manipulation.
        bytes: size of all videos.
        written: False where a finished demo of the same parameters was found and left as it was.
    """

    folder: Path
    seed: int
    identities: int
    frames: int
    videos: dict[str, int]
    pairs: dict[str, int]
    bytes: int
    written: bool

    def __str__(self) -> str:
        """Three lines for a person to read."""
        what = "wrote" if self.written else "found finished, left as it is:"
        pairs = ", ".join(f"{split} {count}" for split, count in self.pairs.items())
        return (
            f"{what} {self.folder}: {sum(self.videos.values())} videos of {self.frames} frames, "
            f"{self.bytes / 1e6:.1f} MB, seed {self.seed}\n"
            f"{self.identities} identities ({', '.join(self.videos)}); pairs: {pairs}\n{WARNING}"
        )


@dataclass(frozen=True)
class _PairJob:
    """Everything a worker needs to write the videos of two people."""

    folder: Path
    seed: int
    pair: tuple[int, int]
    frames: int


def write_demo(
    out: Path,
    seed: int = 0,
    identities: int = 32,
    frames: int = 12,
    workers: int | None = None,
    progress: bool = False,
) -> DemoSummary:
    """Write the demo dataset into `out`, which appears only when it is complete.

    The same `seed`, `identities` and `frames` give the same bytes, whatever the number of workers. With more than one
    worker, processes are spawned: a script that calls this needs `if __name__ == "__main__":`.

    Args:
        out: a folder that doesn't exist or is empty, or a finished demo of the same parameters, which is left alone.
        seed: 0 or more.
        identities: an even number from 6 to 1000; neighbours form a pair, and a pair makes 2 real videos and 8 fakes.
        frames: frames per video at 25 frames a second, 1 or more.
        workers: number of processes; by default one per core that may be used.
        progress: show a progress bar on stderr.

    Raises:
        InputError: a parameter out of its range, an `out` that holds anything else, is a mount point or is being
            written, or a full disk.
    """
    _check(seed, identities, frames, workers)
    out = out.resolve()  # a rename would replace a link, not what it points to
    parameters = {"seed": seed, "identities": identities, "frames": frames}
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        return _finished(out, parameters)
    pairs = [(first, first + 1) for first in range(0, identities, 2)]
    with staged(out) as folder:
        jobs = [_PairJob(folder, seed, pair, frames) for pair in pairs]
        with closing(ordered_map(_write_pair, jobs, min(workers or default_workers(), len(jobs)))) as sizes:
            total = sum(tqdm(sizes, "demo videos", len(jobs), unit="pair", disable=not progress))
        splits = _split(pairs)
        (folder / "splits").mkdir()
        for split, members in splits.items():
            names = [[_name(target), _name(source)] for target, source in members]
            (folder / "splits" / f"{split}.json").write_text(json.dumps(names, indent=2) + "\n")
        (folder / "README.txt").write_text(README)
        summary = DemoSummary(
            folder=out,
            **parameters,
            videos=dict.fromkeys(("youtube", *MANIPULATIONS), identities),
            pairs={split: len(members) for split, members in splits.items()},
            bytes=total,
            written=True,
        )
        _record(folder, summary)
    return summary


def _check(seed: int, identities: int, frames: int, workers: int | None) -> None:
    """Raise InputError where a parameter is out of its range."""
    if seed < 0:
        raise InputError(f"seed {seed} is negative; it must be 0 or more")
    if identities % 2 or not MINIMUM_IDENTITIES <= identities <= MAXIMUM_IDENTITIES:
        allowed = f"an even number from {MINIMUM_IDENTITIES} to {MAXIMUM_IDENTITIES}"
        raise InputError(f"identities {identities}: must be {allowed}, since every split needs a pair")
    if frames < 1:
        raise InputError(f"frames {frames}: a video needs 1 or more")
    if workers is not None and workers < 1:
        raise InputError(f"workers {workers}: must be 1 or more")


def _split(pairs: list[tuple[int, int]]) -> dict[str, list[tuple[int, int]]]:
    """Cut the pairs into train, val and test. Identities are drawn independently, so their order needs no shuffling."""
    held_out = max(1, round(HELD_OUT_SHARE * len(pairs)))
    cuts = {"train": pairs[: -2 * held_out], "val": pairs[-2 * held_out : -held_out], "test": pairs[-held_out:]}
    return {split: cuts[split] for split in SPLITS}


def _write_pair(job: _PairJob) -> int:
    """Write two people's real videos and the fakes of each with the other's face; their size in bytes."""
    portraits = {person: make_portrait(job.seed, person) for person in job.pair}
    paths = []
    for target, source in permutations(job.pair):
        rng = generator(job.seed, target, source)
        views = camera(rng, job.frames)
        real = film(portraits[target], views, rng)
        paths.append(_video_path(job.folder, "youtube", _name(target)))
        write_video(paths[-1], real)
        for method, manipulate in MANIPULATIONS.items():
            patch = manipulate(portraits[target], portraits[source], rng)
            paths.append(_video_path(job.folder, method, f"{_name(target)}_{_name(source)}"))
            write_video(paths[-1], forge(real, views, patch, rng))
    return sum(path.stat().st_size for path in paths)


def _name(identity: int) -> str:
    return f"{identity:03d}"


def _video_path(folder: Path, method: str, video: str) -> Path:
    """FF++'s place for a raw video."""
    sequences = "manipulated_sequences" if method in MANIPULATIONS else "original_sequences"
    return folder / sequences / method / "raw" / "videos" / f"{video}.mp4"


def _record(folder: Path, summary: DemoSummary) -> None:
    """Write `demo.json`: what the folder follows from and what it holds, the same for equal demos wherever they are."""
    content = {key: value for key, value in asdict(summary).items() if key not in ("folder", "written")}
    head = {"format": FORMAT, "format_version": FORMAT_VERSION, "note": WARNING}
    write_atomic(folder / RECORD_NAME, json.dumps(head | content, indent=2).encode() + b"\n")


def _finished(out: Path, parameters: dict[str, int]) -> DemoSummary:
    """The summary of a demo that is already there. Raises InputError where `out` is anything else."""
    remedy = "remove it or choose another --out"
    record: dict[str, Any] = {}
    try:
        record = json.loads((out / RECORD_NAME).read_bytes())
        is_demo = record.get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        is_demo = False
    if not is_demo:
        raise InputError(f"{out}: exists and is no demo dataset; {remedy}")
    wanted = {"format_version": FORMAT_VERSION, **parameters}
    if other := [
        f"{key} {record.get(key)} (asked for: {value})" for key, value in wanted.items() if record.get(key) != value
    ]:
        raise InputError(f"{out}: holds a demo of another {', '.join(other)}; {remedy}")
    sizes = [path.stat().st_size for path in out.glob("*_sequences/*/raw/videos/*.mp4")]
    if len(sizes) != sum(record["videos"].values()) or sum(sizes) != record["bytes"]:
        raise InputError(f"{out}: holds a demo that was changed: {len(sizes)} videos, {sum(sizes)} bytes; {remedy}")
    return DemoSummary(
        out, **parameters, videos=record["videos"], pairs=record["pairs"], bytes=record["bytes"], written=False
    )
