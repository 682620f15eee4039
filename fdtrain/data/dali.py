"""Decoding by NVIDIA DALI: on the GPU (nvJPEG) where there is one, else by its CPU operators."""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets_shards.schema import ShardSetError
from fdtrain.data.batch import Batch, to_batch
from fdtrain.data.intake import Intake
from fdtrain.data.plan import MicroBatch
from fdtrain.data.reader import Encoded, ShardReader, prepared, working
from fdtrain.data.threads import decode_sample, read_substitute

INPUT = "encoded"


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
    which finds and names it or takes its substitute, and another pipeline goes on. So does an image of another size.
    What is timed as decoding is the wait for DALI, whose threads can't be timed. Args: as `load_batches`.
    """
    gpu = (device.index or 0) if device.type == "cuda" else None
    pool = ThreadPoolExecutor(1, "read")
    coming = prepared(reader, batches, prefetch)
    reads: deque[tuple[MicroBatch, Future[list[Encoded]]]] = deque()
    decoding: deque[tuple[MicroBatch, list[bytes]]] = deque()  # what DALI has taken and not yet given back

    def read(batch: MicroBatch) -> list[Encoded]:
        with intake.timing("read"):
            return reader.read_batch(batch, intake)

    def read_more() -> None:
        while len(reads) < prefetch and (batch := next(coming, None)) is not None:
            reads.append((batch, pool.submit(read, batch)))

    with working(reader, pool):
        read_more()
        pipeline = _Pipeline(batch_size, reader.crop_size, threads, gpu)
        while reads or decoding:
            try:
                # Waits for a batch to be read only if there is none to decode meanwhile.
                while reads and len(decoding) <= prefetch and (reads[0][1].done() or not decoding):
                    batch, reading = reads.popleft()
                    read_more()
                    decoding.append((batch, _readable(reader, batch, reading.result(), intake)))
                    with intake.timing("decode"):
                        pipeline.feed(decoding[-1][1])
                with intake.timing("decode"):
                    images = pipeline.take(len(decoding[0][1]))
            except _RefusedError as refused:
                fault = refused
            else:
                batch, _ = decoding.popleft()
                yield to_batch(reader, batch, images, device)
                continue
            del pipeline
            before = intake.substituted
            while decoding:
                batch, contents = decoding.popleft()
                yield to_batch(reader, batch, _decode_alone(reader, batch, contents, intake), device)
            if intake.substituted == before:  # libjpeg-turbo took them all: then it wasn't an image
                raise fault
            pipeline = _Pipeline(batch_size, reader.crop_size, threads, gpu)


class _RefusedError(RuntimeError):
    """DALI's pipeline came to its end, or gave something else than the images that were asked for."""


class _Pipeline:
    """DALI's decoder. Any number of batches may be fed before the first is taken: they are decoded one by one.

    Args:
        batch_size: The largest batch.
        size: Side of every image, pixels.
        threads: Of the CPU.
        gpu: Number of the device, None for the CPU.
    """

    def __init__(self, batch_size: int, size: int, threads: int, gpu: int | None) -> None:
        from nvidia.dali import fn, pipeline_def, types

        # Of depth 1, or it would wait for several batches before it decodes the first. Its default, the dynamic
        # executor, queues what is fed, and its outputs may be kept: their memory isn't used again while they are
        # referred to (nvidia.dali.pipeline, `release_outputs`; TensorCPU.__dlpack__). Hence no copies below.
        @pipeline_def(batch_size=batch_size, num_threads=threads, device_id=gpu, prefetch_queue_depth=1)
        def decoding() -> object:
            return fn.decoders.image(
                fn.external_source(name=INPUT, dtype=types.UINT8, ndim=1),
                device="cpu" if gpu is None else "mixed",
                output_type=types.RGB,
                # Without it the GPU's chroma differs from every CPU decoder's.
                jpeg_fancy_upsampling=True,
                # A share for the hardware decoder, which not every GPU has and which takes baseline images only, would
                # split a batch over two decoders: which of them had a sample, and so its pixels, would depend on the
                # rest of the batch.
                hw_decoder_load=0.0,
            )

        self._size, self._gpu = size, gpu
        self._pipeline: Any = decoding()
        self._pipeline.build()

    def feed(self, contents: list[bytes]) -> None:
        """Begin to decode a batch. Raises _RefusedError."""
        try:
            self._pipeline.feed_input(INPUT, [np.frombuffer(content, np.uint8) for content in contents])
            self._pipeline.schedule_run()
        except RuntimeError as error:
            raise _RefusedError(str(error)) from error

    def take(self, count: int) -> Tensor:
        """The images of the oldest batch that was fed, uint8 `[count, H, W, 3]` on the device. Raises _RefusedError."""
        # Bound to torch's stream, DALI frees the memory in its order: not before the work that torch queued is done.
        stream = None if self._gpu is None else torch.cuda.current_stream(self._gpu)
        try:
            (output,) = self._pipeline.outputs(stream)
        except RuntimeError as error:
            raise _RefusedError(str(error)) from error
        if (found := output.shape()) != [(self._size, self._size, 3)] * count:
            raise _RefusedError(f"DALI gave images of the shapes {sorted(set(found))} for {count} of {self._size} px")
        return torch.from_dlpack(output.as_tensor())


def _readable(reader: ShardReader, batch: MicroBatch, encoded: list[Encoded], intake: Intake) -> list[bytes]:
    """Put substitutes in place of samples that can't be read, or that are known to be bad by now."""
    found: list[bytes] = []
    for i, read in enumerate(encoded):
        content = intake.fault(int(batch.rows[i]), int(batch.qualities[i])) or read
        attempts = count()
        while isinstance(content, ShardSetError):
            content = read_substitute(reader, batch, i, next(attempts), content, intake)
        found.append(content)
    return found


def _decode_alone(reader: ShardReader, batch: MicroBatch, contents: list[bytes], intake: Intake) -> Tensor:
    images = torch.empty((len(contents), reader.crop_size, reader.crop_size, 3), dtype=torch.uint8)
    with intake.timing("decode"):
        for i, content in enumerate(contents):
            decode_sample(reader, batch, i, content, images[i].numpy(), intake)
    return images
