"""Linking faces into tracks, on boxes alone."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_shards.faces.detector import Box
from datasets_shards.faces.tracking import largest_faces, link, main_track


def box(x: float, y: float, side: float) -> Box:
    """A square box by its centre."""
    return round(x - side / 2), round(y - side / 2), round(x + side / 2), round(y + side / 2)


def centres(track: dict[int, Box]) -> list[float]:
    return [(left + right) / 2 for left, _, right, _ in track.values()]


def test_nobody() -> None:
    assert main_track([]) == {}
    assert main_track([[], []]) == {}
    assert link([[], []]) == []


def test_one_face_alone_is_kept_throughout() -> None:
    samples = [[box(300 + 10 * i, 200, 100 + i)] for i in range(32)]
    assert main_track(samples) == {i: boxes[0] for i, boxes in enumerate(samples)}


def test_two_people_crossing_keep_their_identity() -> None:
    """They pass each other within half a face's width; each goes on as it went."""
    samples = [[box(100 + 40 * i, 200, 100), box(700 - 40 * i, 250, 90)] for i in range(16)]
    assert main_track(samples) == {i: boxes[0] for i, boxes in enumerate(samples)}
    assert sorted(len(track.samples) for track in link(samples)) == [16, 16]


def test_a_gap() -> None:
    """The face turns away for six samples, while somebody else is seen; then it goes on, a little further."""
    here = [box(200, 200, 100)]
    samples = [here] * 8 + [[box(500, 200, 80)]] * 6 + [[box(260, 210, 95), box(505, 200, 80)]] * 8
    kept = main_track(samples)
    assert list(kept) == [*range(8), *range(14, 22)]
    assert max(centres(kept)) == 260


def test_a_near_passer_by_does_not_take_over() -> None:
    samples = [[box(300, 200, 100)] for _ in range(32)]
    for i in (10, 11, 12):
        samples[i] = [box(300, 200, 100), box(150 * (i - 8), 220, 250)]
    assert main_track(samples) == {i: boxes[0] for i, boxes in enumerate(samples)}


def test_a_passer_by_right_in_front() -> None:
    """He hides the face; his own, twice and a half as large, isn't taken for it."""
    samples = [[box(300, 200, 100)] for _ in range(32)]
    samples[10] = samples[11] = [box(310, 210, 250)]
    assert sorted(set(range(32)) - set(main_track(samples))) == [10, 11]


def test_who_is_large_and_long_there() -> None:
    small_always, large_half = [box(100, 100, 60)], [box(400, 200, 120)]
    samples = [small_always + large_half] * 8 + [small_always] * 8
    assert set(centres(main_track(samples))) == {400}
    samples = [small_always + large_half] * 3 + [small_always] * 29
    assert set(centres(main_track(samples))) == {100}


def test_twenty_faces_keep_their_places() -> None:
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(24):
        jitter = rng.normal(0, 8, (20, 2))
        crowd = [box(100 + 120 * (k % 5) + dx, 100 + 120 * (k // 5) + dy, 80) for k, (dx, dy) in enumerate(jitter)]
        crowd[7] = box(340 + jitter[7, 0], 220 + jitter[7, 1], 84)  # nearest to the camera
        samples.append([crowd[k] for k in rng.permutation(20)])
    tracks = link(samples)
    assert [len(track.samples) for track in tracks] == [24] * 20
    kept = main_track(samples)
    assert len(kept) == 24
    assert all(abs(x - 340) < 40 for x in centres(kept))


def test_one_face_goes_where_the_nearer_track_is() -> None:
    """Of two people one is lost; what is left isn't taken for the other."""
    samples = [[box(200, 200, 100), box(330, 200, 100)]] * 4 + [[box(325, 200, 100)]] * 4
    assert [track.samples for track in link(samples)] == [[0, 1, 2, 3], list(range(8))]


def test_a_jump_across_the_frame_is_another_face() -> None:
    samples = [[box(100, 200, 100)]] * 5 + [[box(900, 200, 100)]] * 3
    assert list(main_track(samples)) == [0, 1, 2, 3, 4]


def test_largest_faces() -> None:
    samples = [[box(100, 100, 50), box(300, 100, 60)], [], [box(100, 100, 40)]]
    assert largest_faces(samples) == {0: box(300, 100, 60), 2: box(100, 100, 40)}


boxes = st.builds(box, st.integers(0, 600), st.integers(0, 400), st.integers(20, 200))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(boxes, max_size=5), max_size=8), st.randoms(use_true_random=False))
def test_the_order_within_a_frame_is_of_no_account(samples: list[list[Box]], random) -> None:
    shuffled = [random.sample(found, len(found)) for found in samples]
    assert main_track(shuffled) == main_track(samples)
    tracks = link(samples)
    placed = sorted((i, b) for track in tracks for i, b in zip(track.samples, track.boxes, strict=True))
    assert placed == sorted((i, b) for i, found in enumerate(samples) for b in found)  # every face is in one track
