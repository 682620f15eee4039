"""What others would read the same images with: batches of 64, uint8, in main memory, from two workers or threads."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import simplejpeg
import torch
from torch import Tensor

BATCH, THREADS, PREFETCH = 64, 2, 3


def decode(content: bytes, out: np.ndarray | None = None) -> np.ndarray:
    """By libjpeg-turbo, with the settings that both loaders have."""
    image: np.ndarray = simplejpeg.decode_jpeg(content, "RGB", fastdct=False, fastupsample=False, buffer=out)
    return image


def turbo_limit(encoded: list[list[bytes]]) -> Iterator[range]:
    """Nothing but decoding: each thread has its share of all images and one buffer, and waits for nobody.

    Gives a range of a batch's length once a batch is decoded, by the thread that is behind.
    """
    size = decode(encoded[0][0]).shape

    def decode_some(thread: int, done: SimpleQueue[int]) -> None:
        out = np.empty(size, np.uint8)
        for batch in encoded:
            for content in batch[thread::THREADS]:
                decode(content, out)
            done.put(len(batch))

    queues: list[SimpleQueue[int]] = [SimpleQueue() for _ in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        running = [pool.submit(decode_some, thread, done) for thread, done in enumerate(queues)]
        for _ in encoded:
            yield range(max(done.get() for done in queues))
        for future in running:
            future.result()


def webdataset_pil(tars: list[Path]) -> Iterator[Tensor]:
    """WebDataset's own image decoder (PIL) and a DataLoader of two workers."""
    import webdataset as wds

    dataset = wds.WebDataset(list(map(str, tars)), shardshuffle=False).decode("rgb8").to_tuple("jpg", "cls")
    yield from _from_workers(dataset.batched(BATCH))


def webdataset_turbo(tars: list[Path]) -> Iterator[Tensor]:
    """As `webdataset_pil`, but decoded by the library that the torch loader has."""
    import webdataset as wds

    dataset = wds.WebDataset(list(map(str, tars)), shardshuffle=False).to_tuple("jpg", "cls").map_tuple(decode, int)
    yield from _from_workers(dataset.batched(BATCH))


def _from_workers(dataset: Any) -> Iterator[Tensor]:
    for images, _ in torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=THREADS):
        yield images


def dali_webdataset(tars: list[Path]) -> Iterator[Tensor]:
    """DALI's own reader, in order, with its index files, and its decoder as the DALI loader sets it."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=BATCH, num_threads=THREADS, device_id=None, prefetch_queue_depth=PREFETCH)
    def reading() -> object:
        encoded, _ = fn.readers.webdataset(
            paths=list(map(str, tars)),
            index_paths=[str(tar.with_suffix(".idx")) for tar in tars],
            ext=["jpg", "cls"],
            name="tars",
        )
        return fn.decoders.image(encoded, device="cpu", output_type=types.RGB, jpeg_fancy_upsampling=True)

    pipeline = reading()
    pipeline.build()
    for _ in range(pipeline.epoch_size("tars") // BATCH):
        (output,) = pipeline.run()
        yield torch.from_dlpack(output.as_tensor())


class PngFiles(torch.utils.data.Dataset):
    """Map-style: a PNG file for each sample, read by OpenCV."""

    def __init__(self, paths: list[Path], samples: int, transform: Callable[..., dict[str, np.ndarray]] | None) -> None:
        self.paths, self.samples, self.transform = paths, samples, transform

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, number: int) -> Tensor:
        import cv2

        image = cv2.cvtColor(cv2.imread(str(self.paths[number % len(self.paths)])), cv2.COLOR_BGR2RGB)
        return torch.from_numpy(image if self.transform is None else self.transform(image=image)["image"])


def png_files(paths: list[Path], samples: int, transform: Callable | None = None) -> Iterator[Tensor]:
    """`PngFiles` through a DataLoader of two workers."""
    import cv2

    cv2.setNumThreads(0)  # as many processes as cores already
    yield from torch.utils.data.DataLoader(PngFiles(paths, samples, transform), BATCH, num_workers=THREADS)


def albumentations_preset() -> Callable[..., dict[str, np.ndarray]]:
    """DeepfakeBench's training augmentation, which the preset `deepfakebench` stands for."""
    import albumentations as A

    colour = [A.RandomBrightnessContrast(0.1, 0.1), A.FancyPCA(), A.HueSaturationValue()]
    steps = [A.HorizontalFlip(p=0.5), A.Rotate([-10, 10], p=0.5), A.GaussianBlur([3, 7], p=0.5)]
    compose: Callable[..., dict[str, np.ndarray]] = A.Compose(
        [*steps, A.OneOf(colour, p=0.5), A.ImageCompression(40, 100, p=0.5)]
    )
    return compose
