"""One identity through a video: faces of sampled frames are linked into tracks, and one track is kept.

Sampled frames may lie many frames apart, so a face is followed by where it is, how large it is and how it moved, not
by overlap alone. A track that stays away for a few samples may come back. Who somebody is isn't looked at: where a cut
puts another person in the same place, the track goes on.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linear_sum_assignment

from datasets_shards.faces.detector import Box

# In face widths, the geometric mean of the two boxes' sides. Faces of two people rarely come nearer than one; a head
# that is sampled twice a second hardly moves by more.
REACH = 1.0
REACH_PER_MISSED = 0.5
MAX_REACH = 3.0
MAX_RATIO = 2.0  # of the sides of a face in consecutive samples
MISSED, MISSED_PART = 8, 4  # a track may stay away for 8 samples, or a quarter of all of them where that is more
IMPOSSIBLE = 1e6


@dataclass
class Track:
    """One face through the samples.

    Args:
        samples: positions in the list of samples, ascending.
        boxes: its box in each of them.
    """

    samples: list[int] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)

    @property
    def area(self) -> int:
        """Total area over all samples, pixels: large for who is large, and for who is long there."""
        return sum((right - left) * (bottom - top) for left, top, right, bottom in self.boxes)


def no_preference(_sample: int, _box: Box) -> int:
    """Weigh all faces alike."""
    return 0


def main_track(samples: Sequence[Sequence[Box]], weigh: Callable[[int, Box], int] = no_preference) -> dict[int, Box]:
    """The face that a video is about: the track with the largest total weight, of equals the largest total area.

    A person who walks past, however near, is large for a few samples only; a face in the background, or a false
    detection, is small.

    Args:
        samples: all boxes of each sampled frame, frames in their order; the order of boxes within a frame is of no
            account.
        weigh: what goes before the area of a box in a sample, such as how much of it is forged.

    Returns:
        The box of the kept track by position in `samples`, where it has one.
    """
    tracks = link(samples)
    if not tracks:
        return {}

    def rank(track: Track) -> tuple[int, ...]:
        weight = sum(map(weigh, track.samples, track.boxes))
        return weight, track.area, len(track.samples), -track.samples[0]

    best = max(tracks, key=rank)
    return dict(zip(best.samples, best.boxes, strict=True))


def link(samples: Sequence[Sequence[Box]]) -> list[Track]:
    """All tracks, by first sample and box: sample by sample, faces go to tracks at the least total distance."""
    tracks: list[Track] = []
    most_missed = max(MISSED, len(samples) // MISSED_PART)
    for sample, found in enumerate(samples):
        boxes = sorted(found)
        live = [track for track in tracks if sample - track.samples[-1] - 1 <= most_missed]
        taken = set()
        if live and boxes:
            costs = np.array([[_distance(track, box, sample) for box in boxes] for track in live])
            for row, column in zip(*linear_sum_assignment(costs), strict=True):
                if costs[row, column] < IMPOSSIBLE:
                    live[row].samples.append(sample)
                    live[row].boxes.append(boxes[column])
                    taken.add(column)
        tracks.extend(Track([sample], [box]) for i, box in enumerate(boxes) if i not in taken)
    return tracks


def _distance(track: Track, box: Box, sample: int) -> float:
    """How far a box is from where a track may be by now, in face widths, plus the change in size in doublings."""
    x, y, side = _place(box)
    last_x, last_y, last_side = _place(track.boxes[-1])
    elapsed = sample - track.samples[-1]
    places = [(last_x, last_y)]
    if len(track.samples) > 1:  # it may have stopped, or have gone on as it went
        before_x, before_y, _ = _place(track.boxes[-2])
        steps = elapsed / (track.samples[-1] - track.samples[-2])
        places.append((last_x + steps * (last_x - before_x), last_y + steps * (last_y - before_y)))
    width = math.sqrt(side * last_side)
    distance = min(math.hypot(x - there_x, y - there_y) for there_x, there_y in places) / width
    growth = abs(math.log2(side / last_side))
    reach = min(MAX_REACH, REACH + REACH_PER_MISSED * (elapsed - 1))
    if distance > reach or growth > math.log2(MAX_RATIO):
        return IMPOSSIBLE
    return distance + growth


def _place(box: Box) -> tuple[float, float, float]:
    """Centre, and side of the square of equal area."""
    left, top, right, bottom = box
    return (left + right) / 2, (top + bottom) / 2, math.sqrt((right - left) * (bottom - top))


def largest_faces(samples: Sequence[Sequence[Box]], weigh: Callable[[int, Box], int] = no_preference) -> dict[int, Box]:
    """The largest box of each sample, for images that are no frames of one video; `weigh` as of `main_track`."""
    return {
        i: max(boxes, key=lambda box: (weigh(i, box), (box[2] - box[0]) * (box[3] - box[1]), box))
        for i, boxes in enumerate(samples)
        if boxes
    }
