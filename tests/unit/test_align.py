"""The alignment's arithmetic, and the resampling against scikit-image's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.data import astronaut
from skimage.filters import gaussian
from skimage.transform import SimilarityTransform, warp

from datasets_shards.crops.align import (
    CropSettings,
    apply_alignment,
    cut_crop,
    estimate_alignment,
    five_points,
    template_points,
)


def landmarks_at(points: np.ndarray) -> np.ndarray:
    """68 landmarks whose five points are `points`."""
    landmarks = np.zeros((68, 2))
    landmarks[36:42], landmarks[42:48], landmarks[30], landmarks[48], landmarks[54] = points
    return landmarks


def turn(scale: float, angle: float, x: float, y: float) -> np.ndarray:
    return np.asarray(SimilarityTransform(scale=scale, rotation=angle, translation=(x, y)).params)


@given(
    st.floats(0.2, 4), st.floats(-3, 3), st.floats(-500, 500), st.floats(-500, 500), st.sampled_from([128, 256, 380])
)
def test_a_turned_template_comes_back_upright(scale: float, angle: float, x: float, y: float, size: int) -> None:
    settings = CropSettings(size)
    matrix = turn(scale, angle, x, y)
    landmarks = landmarks_at(apply_alignment(matrix, template_points(settings)))
    assert estimate_alignment(landmarks, settings) == pytest.approx(np.linalg.inv(matrix), abs=1e-6)
    assert five_points(landmarks).shape == (5, 2)


def test_margin_shrinks_the_face_about_the_centre() -> None:
    tight, wide = template_points(CropSettings(256, 1.0)), template_points(CropSettings(256, 2.0))
    assert wide - 128 == pytest.approx((tight - 128) / 2)


def test_resampling_agrees_with_skimage() -> None:
    image = (gaussian(astronaut(), 2, channel_axis=2) * 255).astype(np.uint8)
    matrix = turn(0.9, 0.3, 40.3, -150.7)
    ours = cut_crop(image, matrix, 128)
    theirs = warp(image, np.linalg.inv(matrix), output_shape=(128, 128), order=3, mode="edge") * 255
    assert ours.dtype == np.uint8
    assert np.abs(ours - theirs).max() < 2.5


def test_shrinking_does_not_alias() -> None:
    board = np.kron(np.indices((200, 200)).sum(0) % 2 * 255, np.ones((1, 1))).astype(np.uint8)
    crop = cut_crop(np.repeat(board[:, :, None], 3, 2), turn(0.3, 0.1, 0, 0), 50)
    assert crop.std() < 8  # a checkerboard of single pixels is grey from afar


def test_beyond_the_frame_its_edge_goes_on() -> None:
    image = np.full((60, 60, 3), (200, 100, 50), np.uint8)
    assert (cut_crop(image, turn(1, 0.2, 30, 30), 128) == (200, 100, 50)).all()


def test_nothing_moves_under_the_identity() -> None:
    image = astronaut()[:64, :64]
    assert np.array_equal(cut_crop(np.ascontiguousarray(image), np.eye(3), 64), image)
