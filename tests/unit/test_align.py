"""The alignment's arithmetic, and the resampling against scikit-image's."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import map_coordinates
from skimage.data import astronaut
from skimage.filters import gaussian
from skimage.transform import SimilarityTransform, warp

from datasets_shards.crops.align import (
    CropSettings,
    apply_alignment,
    cut_crop,
    estimate_alignment,
    five_points,
    source_region,
    square_around,
    template_points,
)
from tests.conftest import REPOSITORY
from tests.unit.conftest import FACE


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
    crop = CropSettings(size)
    matrix = turn(scale, angle, x, y)
    landmarks = landmarks_at(apply_alignment(matrix, template_points(crop)))
    alignment = estimate_alignment(landmarks, np.zeros(4), crop, (100, 100))
    assert alignment == pytest.approx(np.linalg.inv(matrix), abs=1e-6)
    assert five_points(landmarks).shape == (5, 2)


def test_margin_shrinks_the_face_about_the_centre() -> None:
    tight, wide = template_points(CropSettings(256, 1.0)), template_points(CropSettings(256, 2.0))
    assert wide - 128 == pytest.approx((tight - 128) / 2)


def test_landmarks_in_one_point_have_no_pose() -> None:
    with pytest.raises(ValueError, match="no alignment"):
        estimate_alignment(np.zeros((68, 2)), np.zeros(4), CropSettings(), (100, 100))


@pytest.mark.parametrize(
    ("box", "margin", "expected"),
    [
        ((100, 100, 200, 200), 1.3, (85, 85, 130)),
        ((100, 110, 200, 190), 1.0, (100, 100, 100)),  # the longer side counts
        ((10, 560, 110, 640), 1.3, (0, 510, 130)),  # moved into the frame of 640 x 640
        ((-20, 0, 80, 100), 1.3, (0, 0, 130)),
        ((20, 20, 620, 620), 1.3, (-70, -70, 780)),  # doesn't fit: stays centred
    ],
)
def test_the_square_around_a_box(box: tuple, margin: float, expected: tuple) -> None:
    assert square_around(np.array(box), margin, (640, 640)) == expected


def test_without_alignment_pixels_are_only_scaled() -> None:
    image = np.ascontiguousarray(astronaut())
    box, landmarks = np.array([140, 60, 240, 160], np.int32), np.zeros((68, 2), np.float32)
    for size in (130, 260, 65):
        alignment = estimate_alignment(landmarks, box, CropSettings(size, 1.3, "none"), image.shape[:2])
        crop = cut_crop(image, alignment, CropSettings(size))
        if size == 130:
            assert np.array_equal(crop, image[45:175, 125:255])
        centre = apply_alignment(alignment, np.array([[189.5, 109.5]]))  # between the middle pixels
        assert centre == pytest.approx(np.full((1, 2), size / 2 - 0.5))


def test_a_mask_goes_the_way_of_its_frame() -> None:
    mask = np.zeros((200, 200), np.uint8)
    mask[60:140, 60:140] = 255
    alignment = turn(1.3, 0.2, -20, -60)
    cut, picture = (
        cut_crop(mask, alignment, CropSettings(160)),
        cut_crop(np.repeat(mask[:, :, None], 3, 2), alignment, CropSettings(160)),
    )
    assert cut.shape == (160, 160)
    assert ((cut > 127) == (picture[:, :, 0] > 127)).mean() > 0.999
    half = cut_crop(mask // 2, alignment, CropSettings(160))
    assert half.max() == 127  # a bicubic kernel would overshoot beside the edge


@given(st.floats(0.2, 4), st.floats(-3, 3), st.floats(-300, 300), st.floats(-300, 300))
@settings(max_examples=25, deadline=None)
def test_a_crop_depends_on_its_region_alone(scale: float, angle: float, x: float, y: float) -> None:
    image = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    alignment = turn(scale, angle, x, y)
    left, top, right, bottom = source_region(alignment, 64)
    rows, columns = slice(max(0, top), max(1, bottom)), slice(max(0, left), max(1, right))
    if right <= 0 or bottom <= 0 or left >= 320 or top >= 240:  # beyond the frame, where its edge is repeated
        return
    black = np.zeros_like(image)
    black[rows, columns] = image[rows, columns]
    assert np.array_equal(cut_crop(image, alignment, CropSettings(64)), cut_crop(black, alignment, CropSettings(64)))


def test_the_description_says_what_was_done() -> None:
    similarity, plain, theirs = (
        CropSettings(align=align).describe() for align in ("similarity", "none", "as they are")
    )
    assert "similarity" in similarity["alignment"]
    assert "square around the detected box" in plain["alignment"]
    assert (theirs["alignment"], theirs["margin"], theirs["resampling"]) == ("the source's own crops", None, "none")
    assert CropSettings(dct_scale=4).describe()["dct_scale"] == "8/4"


def test_resampling_agrees_with_skimage() -> None:
    image = (gaussian(astronaut(), 2, channel_axis=2) * 255).astype(np.uint8)
    matrix = turn(0.9, 0.3, 40.3, -150.7)
    ours = cut_crop(image, matrix, CropSettings(128))
    theirs = warp(image, np.linalg.inv(matrix), output_shape=(128, 128), order=3, mode="edge") * 255
    assert ours.dtype == np.uint8
    assert np.abs(ours - theirs).max() < 2.5


def test_shrinking_does_not_alias() -> None:
    board = np.kron(np.indices((200, 200)).sum(0) % 2 * 255, np.ones((1, 1))).astype(np.uint8)
    crop = cut_crop(np.repeat(board[:, :, None], 3, 2), turn(0.3, 0.1, 0, 0), CropSettings(50))
    assert crop.std() < 8  # a checkerboard of single pixels is grey from afar


def test_beyond_the_frame_its_edge_goes_on() -> None:
    image = np.full((60, 60, 3), (200, 100, 50), np.uint8)
    assert (cut_crop(image, turn(1, 0.2, 30, 30), CropSettings(128)) == (200, 100, 50)).all()


def test_nothing_moves_under_the_identity() -> None:
    image = astronaut()[:64, :64]
    assert np.array_equal(cut_crop(np.ascontiguousarray(image), np.eye(3), CropSettings(64)), image)


def deepfakebench_crop(frame: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """The arithmetic of DeepfakeBench's preprocessing at 256 pixels and margin 1.3, OpenCV's warpAffine included."""
    mean_face = np.array(
        [[30.2946, 51.6963], [65.5318, 51.5014], [48.0252, 71.7366], [33.5493, 92.3655], [62.7299, 92.2041]]
    )
    goal = ((mean_face + np.array([8, 0])) * 256 / 112 + 256 * 0.3 / 2) / 1.3
    matrix = np.asarray(SimilarityTransform.from_estimate(landmarks[[37, 44, 30, 49, 55]], goal).params)
    y, x = np.mgrid[:256, :256]
    places = np.linalg.inv(matrix)[:2] @ np.stack([x.ravel(), y.ravel(), np.ones(256 * 256)])
    places = np.round(places * 32) / 32
    bands = [
        map_coordinates(frame[:, :, band].astype(float), places[::-1], order=1, mode="grid-constant", cval=0)
        for band in range(3)
    ]
    return np.stack(bands, axis=1).reshape(256, 256, 3)


@pytest.mark.parametrize("cut", [(0, 0), (150, 60)])  # the second's crop reaches beyond the frame
def test_deepfakebenchs_crop(cut: tuple[int, int]) -> None:
    from datasets_shards.faces.detector import find_faces

    (face,) = find_faces(np.ascontiguousarray(FACE))
    frame = np.ascontiguousarray(astronaut()[cut[1] :, cut[0] :])
    landmarks = face.landmarks + np.array([92 - cut[0], -cut[1]])
    theirs = deepfakebench_crop(frame, landmarks)

    def difference(align: str) -> tuple[float, float]:
        """Mean distance of the face's landmarks in the two crops, pixels, and PSNR in decibels."""
        crop = CropSettings(256, align=align)
        alignment = estimate_alignment(landmarks, np.zeros(4), crop, frame.shape[:2])
        goal = estimate_alignment(landmarks, np.zeros(4), CropSettings(256, align="deepfakebench"), frame.shape[:2])
        apart = apply_alignment(alignment, landmarks) - apply_alignment(goal, landmarks)
        error = cut_crop(frame, alignment, crop) - theirs
        return float(np.hypot(*apart.T).mean()), float(20 * np.log10(255 / np.sqrt(np.mean(error**2))))

    assert difference("deepfakebench")[1] > 55
    distance, decibels = difference("similarity")
    assert distance > 1
    assert decibels < 30


def grating(frequency: float, shrink: float, size: int = 256) -> float:
    """What comes back of a grating, cycles per frame pixel, in a crop: amplitude, as a share of that in the frame."""
    wave = 128 + 100 * np.cos(2 * np.pi * frequency * np.arange(math.ceil(size * shrink) + 64))
    frame = np.repeat(np.tile(wave.round().astype(np.uint8), (len(wave), 1))[:, :, None], 3, 2)
    crop = cut_crop(frame, turn(1 / shrink, 0, -16, -16), CropSettings(size))[size // 2, 20:-20, 0].astype(float)
    return float((crop - crop.mean()).std() * 2**0.5 / 100)


@pytest.mark.parametrize("shrink", [1.2, 1.5, 1.7, 2.0, 3.0])
def test_what_a_crop_cant_show_is_filtered_off(shrink: float) -> None:
    """No worse than Pillow's bicubic resize, which has the same kernel; a sharper one would ring."""
    frequency = 0.45
    side = math.ceil(256 * shrink)
    wave = 128 + 100 * np.cos(2 * np.pi * frequency * np.arange(side))
    picture = Image.fromarray(np.tile(wave.round().astype(np.uint8), (side, 1)))
    theirs = np.asarray(picture.resize((256, 256), Image.Resampling.BICUBIC))[128, 20:-20].astype(float)
    alias = grating(frequency, shrink)
    assert alias < (theirs - theirs.mean()).std() * 2**0.5 / 100 + 0.01
    if shrink >= 1.7:
        assert alias < 0.1
    assert grating(0.1 / shrink, shrink) > 0.95  # and what it can show is there


SIMD = """
import sys
import numpy as np
from datasets_shards.crops.align import CropSettings, cut_crop
from tests.unit.test_align import turn

image = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
for scale in (0.35, 0.5, 0.8, 1.3):
    for frame in (image, np.ascontiguousarray(image[:, :, 0])):
        sys.stdout.buffer.write(cut_crop(frame, turn(scale, 0.2, 0, 0), CropSettings(200)).tobytes())
"""


def test_crops_are_the_same_without_vector_instructions() -> None:
    fast, plain = (
        subprocess.run(
            [sys.executable, "-c", SIMD], capture_output=True, check=True, cwd=REPOSITORY, env=os.environ | added
        ).stdout
        for added in ({}, {"VIPS_NOVECTOR": "1"})
    )
    assert len(fast) == 4 * 4 * 200 * 200
    assert fast == plain
