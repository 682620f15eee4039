"""Decoding by NVIDIA DALI: on the GPU (nvJPEG) where there is one, else by its CPU operators."""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from datasets_shards.schema import ShardSetError
from fdtrain.data.batch import Batch, to_batch
from fdtrain.data.plan import MicroBatch
from fdtrain.data.reader import ShardReader, read_ahead
from fdtrain.data.threads import decode_image


def decode_with_dali(
    reader: ShardReader,
    batches: Iterable[MicroBatch],
    *,
    batch_size: int,
    device: torch.device,
    threads: int,
    prefetch: int,
) -> Generator[Batch, None, None]:
    """Batches in the order of the plan: the reader's bytes go through an external source into DALI's decoder.

    DALI's own reader is not used, since its shuffling and its state depend on the world size. Args: as `load_batches`.
    """
    from nvidia.dali import fn, pipeline_def, types

    on_gpu = device.type == "cuda"
    with ThreadPoolExecutor(1, "read") as pool:
        reading = read_ahead(reader, batches, prefetch, pool)
        in_flight: deque[MicroBatch] = deque()  # what DALI has taken and not yet given back

        def source() -> list[np.ndarray]:
            batch, encoded = next(reading)  # StopIteration ends DALI's epoch
            in_flight.append(batch)
            return [np.frombuffer(content, np.uint8) for content in encoded]

        @pipeline_def(
            batch_size=batch_size,
            num_threads=threads,
            device_id=(device.index or 0) if on_gpu else None,
            prefetch_queue_depth=prefetch,
        )
        def decoding() -> object:
            encoded = fn.external_source(source=source, batch=True, dtype=types.UINT8, ndim=1)
            return fn.decoders.image(
                encoded,
                device="mixed" if on_gpu else "cpu",
                output_type=types.RGB,
                # Without it the GPU's chroma differs from every CPU decoder's.
                jpeg_fancy_upsampling=True,
            )

        pipeline = decoding()
        pipeline.build()
        try:
            while True:
                try:
                    (output,) = pipeline.run()
                except StopIteration:
                    return
                except RuntimeError as error:
                    raise _name_the_sample(reader, in_flight, error) from None
                batch = in_flight.popleft()
                tensor = output.as_tensor()
                # DALI uses its buffer again for a later batch, so the images are copied out of it.
                images = torch.from_dlpack(tensor).clone() if on_gpu else torch.from_numpy(np.array(tensor))
                yield to_batch(reader, batch, images, device)
        finally:
            reading.close()
            del pipeline
            pool.shutdown(cancel_futures=True)


def _name_the_sample(reader: ShardReader, in_flight: Iterable[MicroBatch], error: RuntimeError) -> Exception:
    """DALI's message names no sample: find the first one in flight that libjpeg-turbo refuses as well."""
    scratch = np.empty((reader.crop_size, reader.crop_size, 3), np.uint8)
    for batch in in_flight:
        for row, quality in zip(batch.rows.tolist(), batch.qualities.tolist(), strict=True):
            try:
                decode_image(reader, row, quality, reader.read(row, quality), scratch)
            except ShardSetError as fault:
                return fault
    return error
