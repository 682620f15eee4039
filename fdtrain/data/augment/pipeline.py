"""From random numbers to operations: flip, rotation and scale, blur, colour, JPEG, in DeepfakeBench's order."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from threading import Barrier
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from fdtrain.data.augment.jpeg import recompress
from fdtrain.data.augment.ops import BLUR_KERNELS, YIQ, blur, from_planes, recolour, to_planes, warp
from fdtrain.data.augment.settings import AugmentSettings
from fdtrain.data.batch import Batch
from fdtrain.data.draws import draws

AUGMENT_STREAM = 1
"""Stream of `draws` that augmentation takes its numbers from."""

_DRAWS = 14  # numbers for each image; each has its meaning whatever the settings, see `draw_operations`


@dataclass(frozen=True, eq=False)
class Operations:
    """What happens to each image of a batch.

    Args:
        flip: bool `[B]`.
        warps: bool `[B]`, the images to rotate or scale.
        maps: float32 `[B, 2, 2]`, from output to input pixels about the centre, any flip included.
        blur_size: int64 `[B]`, 0 for none.
        recolours: bool `[B]`.
        colours: float32 `[B, 3, 4]`, colour matrices.
        quality: int64 `[B]`, JPEG quality, 0 for no JPEG.
    """

    flip: np.ndarray
    warps: np.ndarray
    maps: np.ndarray
    blur_size: np.ndarray
    recolours: np.ndarray
    colours: np.ndarray
    quality: np.ndarray

    def part(self, which: slice | np.ndarray) -> "Operations":
        """Those of some images."""
        return Operations(**{name: values[which] for name, values in vars(self).items()})


def draw_operations(settings: AugmentSettings, seed: int, positions: np.ndarray) -> Operations:
    """The operations of the images at these positions of the run, int64 `[B]`: a function of seed and position."""
    numbers = draws(seed, positions, AUGMENT_STREAM, _DRAWS).T
    flip = numbers[0] < settings.flip_p
    rotates, scales = numbers[1] < settings.rotation_p, numbers[3] < settings.scale_p
    angle = np.where(rotates, np.deg2rad(settings.rotation_degrees) * (2 * numbers[2] - 1), 0.0)
    low, high = settings.scale
    scale = np.where(scales, low + (high - low) * numbers[4], 1.0)
    sizes = np.array(settings.blur_sizes)
    worst, best = settings.jpeg_quality
    recolours = numbers[7] < settings.colour_p
    return Operations(
        flip=flip,
        warps=rotates | scales,
        maps=_maps(flip, angle, scale),
        blur_size=np.where(numbers[5] < settings.blur_p, sizes[(numbers[6] * len(sizes)).astype(int)], 0),
        recolours=recolours,
        colours=_colours(settings, numbers[8] < 0.5, 2 * numbers[9:12] - 1),
        quality=np.where(numbers[12] < settings.jpeg_p, worst + (numbers[13] * (best - worst + 1)).astype(int), 0),
    )


def _maps(flip: np.ndarray, angle: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Output to input: undo the scale, turn back, mirror. A positive angle turns the content anticlockwise."""
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    mirror = np.where(flip, -1.0, 1.0)
    rows = np.array([[mirror * cos, -mirror * sin], [sin, cos]])
    return rows.transpose(2, 0, 1).astype(np.float32)


def _colours(settings: AugmentSettings, is_linear: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """float32 `[B, 3, 4]` from bool `[B]` and numbers `[3, B]` in [-1, 1): the whole colour change as one matrix.

    Either slope and shift, the same for all channels; or hue, saturation and value, as a turn and a stretch of the
    plane (I, Q) in YIQ and a shift: linear, where HSV needs a branch for each pixel, and luma is kept.
    """
    slope = 1 + settings.contrast * numbers[0]
    angle = np.deg2rad(settings.hue_degrees) * numbers[0]
    stretch = 1 + settings.saturation * numbers[1]
    cos, sin = stretch * np.cos(angle), stretch * np.sin(angle)
    chroma = np.zeros((len(angle), 3, 3))
    chroma[:, 0, 0] = 1
    chroma[:, 1, 1], chroma[:, 1, 2], chroma[:, 2, 1], chroma[:, 2, 2] = cos, -sin, sin, cos
    hue = np.linalg.inv(YIQ) @ chroma @ YIQ
    matrix = np.where(is_linear[:, None, None], slope[:, None, None] * np.eye(3), hue)
    shift = 255 * np.where(is_linear, settings.brightness * numbers[1], settings.value * numbers[2])
    offset = np.broadcast_to(shift[:, None, None], (len(shift), 3, 1))
    return np.concatenate([matrix, offset], 2).astype(np.float32)


def apply_operations(images: Tensor, operations: Operations, settings: AugmentSettings) -> Tensor:
    """Change images.

    Args:
        images: uint8 `[B, H, W, 3]`, contiguous. They stay as they are.
        operations: One of each kind for each image.
        settings: For the JPEG's tables.

    Returns:
        uint8 `[B, H, W, 3]`; the images themselves if nothing is to be done.
    """
    turns = operations.flip & ~operations.warps  # the other flips are part of the affine map
    sizes, jpegs = operations.blur_size, operations.quality > 0
    images = _change(images, turns, lambda chosen: chosen.flip(2))
    floats = operations.warps | (sizes > 0) | operations.recolours
    # One way to float and back for all three.
    images = _change(images, floats, lambda chosen: _change_floats(chosen, operations.part(floats)))
    quality = operations.quality[jpegs]
    return _change(images, jpegs, lambda chosen: recompress(chosen, quality, settings.jpeg_tables))


def _change_floats(images: Tensor, operations: Operations) -> Tensor:
    """What is computed in floats, uint8 `[n, H, W, 3]` to the same: rotation and scale, blur and colour."""
    planes = to_planes(images)
    maps = operations.maps[operations.warps]
    planes = _change(planes, operations.warps, lambda chosen: warp(chosen, maps)).contiguous()  # as `to_planes` isn't
    for size in BLUR_KERNELS:
        planes = _change(planes, operations.blur_size == size, partial(blur, size=size))
    colours = torch.from_numpy(operations.colours[operations.recolours]).to(images.device)
    planes = _change(planes, operations.recolours, lambda chosen: recolour(chosen, colours))
    return from_planes(planes)


def _change(values: Tensor, which: np.ndarray, operation: Callable[[Tensor], Tensor]) -> Tensor:
    """The values with some of them changed, without a copy where it is all or none, as for a single image."""
    if which.all():
        return operation(values)
    if not which.any():
        return values
    index = torch.from_numpy(np.flatnonzero(which)).to(values.device)
    return values.index_copy(0, index, operation(values[index]))


def _single_threaded_pool(threads: int) -> ThreadPoolExecutor:
    """A pool whose threads compute alone.

    Torch's own threads would share the pixels of one image, and spend more time waiting for each other than working.
    `torch.set_num_threads` sets the calling thread's number, but also what threads started later begin with, so that
    is set back once the pool's threads are there.
    """
    usual, started = torch.get_num_threads(), Barrier(threads + 1)

    def start() -> None:
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(threads, "augment", initializer=start)
    for _ in range(threads):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(usual)
    return pool


class Augmenter:
    """Augments batches. What happens to an image depends on it, the seed and its position in the run alone.

    The same bytes come out whatever the batch, the rank and the threads. A GPU's agree with a CPU's but for the last
    bit of a float before rounding.

    Args:
        settings: Probabilities and ranges.
        seed: Of the run, 0 to 2**64 - 1.
        threads: On a CPU, the threads that share the images of a batch, each with one compute thread of torch.

    Close it, or use it in a `with`, to end its threads.
    """

    def __init__(self, settings: AugmentSettings, seed: int, threads: int = 1) -> None:
        self.settings = settings
        self.seed = seed
        self.threads = threads
        self._pool = _single_threaded_pool(threads)

    def augment(self, batch: Batch) -> Batch:
        """A batch with its images augmented by its samples' positions."""
        return replace(batch, images=self(batch.images, batch.positions.numpy()))

    def __call__(self, images: Tensor, positions: np.ndarray) -> Tensor:
        """Augment one batch.

        Args:
            images: uint8 `[B, 3, H, W]`, channels_last. They stay as they are.
            positions: int64 `[B]`, places of the samples in the run (`MicroBatch.positions`).

        Returns:
            uint8 `[B, 3, H, W]`, channels_last, on the same device; the images themselves if nothing is to be done.
        """
        assert images.dtype == torch.uint8
        assert images.shape[1] == 3
        assert len(images) == len(positions)
        if self.settings.does_nothing or not len(positions):
            return images
        operations = draw_operations(self.settings, self.seed, positions)
        images = images.permute(0, 2, 3, 1).contiguous()
        if images.device.type == "cpu":
            result = self._apply_one_by_one(images, operations)
        else:
            result = apply_operations(images, operations, self.settings)
        return result.permute(0, 3, 1, 2)

    def _apply_one_by_one(self, images: Tensor, operations: Operations) -> Tensor:
        """A CPU works on what fits into its cache: one image at a time is twice as fast as operation by operation."""
        result = torch.empty_like(images)
        numbers = iter(range(len(images)))

        def work() -> None:
            for number in numbers:
                part = slice(number, number + 1)
                result[part] = apply_operations(images[part], operations.part(part), self.settings)

        # Threads help themselves: to hand out image by image would wake this one for each.
        for done in [self._pool.submit(work) for _ in range(self.threads)]:
            done.result()
        return result

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> "Augmenter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
