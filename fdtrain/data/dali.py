"""Decoding by NVIDIA DALI: on the GPU (nvJPEG) where there is one, else by its CPU operators."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import numpy as np
import torch

from fdtrain.data.batch import Batch, to_batch
from fdtrain.data.intake import Intake
from fdtrain.data.plan import MicroBatch
from fdtrain.data.reader import Encoded, ShardReader, read_ahead
from fdtrain.data.threads import decode_sample, read_substitute


def decode_with_dali(
    reader: ShardReader,
    batches: Iterable[MicroBatch],
    *,
    batch_size: int,
    device: torch.device,
    threads: int,
    prefetch: int,
    intake: Intake,
) -> Generator[Batch, None, None]:
    """Batches in the order of the plan: the reader's bytes go through an external source into DALI's decoder.

    DALI's own reader is not used, since its shuffling and its state depend on the world size. An image that DALI
    refuses ends its pipeline and is named by no message of it: what was under way then goes through libjpeg-turbo,
    which finds and names it or takes its substitute, and another pipeline goes on. Args: as `load_batches`.
    """
    on_gpu = device.type == "cuda"
    with ThreadPoolExecutor(1, "read") as pool:
        reading = read_ahead(reader, batches, prefetch, pool, intake)
        in_flight: deque[tuple[MicroBatch, list[Encoded]]] = deque()  # what DALI has taken and not yet given back

        def source() -> list[np.ndarray]:
            batch, encoded = next(reading)  # StopIteration ends DALI's epoch
            encoded = _readable(reader, batch, encoded, intake)
            in_flight.append((batch, encoded))
            return [np.frombuffer(content, np.uint8) for content in encoded if isinstance(content, bytes)]

        try:
            while True:
                pipeline = _build(source, batch_size, threads, prefetch, (device.index or 0) if on_gpu else None)
                try:
                    while True:
                        with intake.timing("decode"):
                            (output,) = pipeline.run()
                        batch, _ = in_flight.popleft()
                        tensor = output.as_tensor()
                        # DALI uses its buffer again for a later batch, so the images are copied out of it.
                        images = torch.from_dlpack(tensor).clone() if on_gpu else torch.from_numpy(np.array(tensor))
                        yield to_batch(reader, batch, images, device)
                except StopIteration:
                    return
                except RuntimeError as error:
                    if not in_flight:
                        raise
                    fault = error
                finally:
                    del pipeline
                before = intake.substituted
                while in_flight:
                    batch, encoded = in_flight.popleft()
                    yield to_batch(reader, batch, _decode_alone(reader, batch, encoded, intake), device)
                if intake.substituted == before:  # libjpeg-turbo took them all: then it wasn't an image
                    raise fault
        finally:
            reading.close()
            pool.shutdown(cancel_futures=True)


def _build(
    source: Callable[[], list[np.ndarray]], batch_size: int, threads: int, prefetch: int, gpu: int | None
) -> Any:
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=batch_size, num_threads=threads, device_id=gpu, prefetch_queue_depth=prefetch)
    def decoding() -> object:
        encoded = fn.external_source(source=source, batch=True, dtype=types.UINT8, ndim=1)
        return fn.decoders.image(
            encoded,
            device="cpu" if gpu is None else "mixed",
            output_type=types.RGB,
            # Without it the GPU's chroma differs from every CPU decoder's.
            jpeg_fancy_upsampling=True,
        )

    pipeline = decoding()
    pipeline.build()
    return pipeline


def _readable(reader: ShardReader, batch: MicroBatch, encoded: list[Encoded], intake: Intake) -> list[Encoded]:
    """Put substitutes in place of samples that couldn't be read."""
    found = list(encoded)
    for i, content in enumerate(found):
        for attempt in count():
            if isinstance(content, bytes):
                break
            content = read_substitute(reader, batch, i, attempt, content, intake)
        found[i] = content
    return found


def _decode_alone(reader: ShardReader, batch: MicroBatch, encoded: list[Encoded], intake: Intake) -> torch.Tensor:
    images = torch.empty((len(encoded), reader.crop_size, reader.crop_size, 3), dtype=torch.uint8)
    for i, content in enumerate(encoded):
        decode_sample(reader, batch, i, content, images[i].numpy(), intake)
    return images
