"""Settings of the data: which samples, how they are loaded and augmented."""

from dataclasses import dataclass
from typing import Literal

from datasets_shards.schema import Quality, parse_quality
from fdtrain.config.checks import UserError, all_in_range, in_range, without_effect


@dataclass
class DataConfig:
    """Which samples.

    Args:
        root: Folder that `python -m datasets_shards pack --out` wrote, or its URL, such as `s3://bucket/root`.
        cache_dir: Folder on a local disk for the tars of a root by URL; shared by all processes of a node.
        cache_bytes: What the tars in it may add up to; those used last stay.
        quality: MozJPEG quality of the shard set, 1 to 100, or `raw`.
        image_size: Side of the images that the model sees, pixels. Default: the crop size of the shard set.
        on_bad_sample: `error` stops at a training image that can't be read or decoded; `skip` warns, counts, and takes
            the plan's substitute, which is the same in every run. Evaluation always stops.
        max_bad_share: Share of the training samples that `skip` puts up with; above it the run stops.
        mix: Qualities that are mixed in training, with the weight of each, such as `{77: 1, 15: 2}`; validation and
            test stay at `quality`. Default: training at `quality` as well.
        methods: Methods of the training and validation splits, such as `[youtube, Deepfakes]`; the test split keeps
            all. Default: all.
        frames_per_video: At most so many frames of each training video, evenly spaced. Default: all that are packed.
        videos_fraction: Share of the training split's identities, with all their videos, for learning curves; a smaller
            share is part of a larger one.
        balance: `none`: each training sample once in an epoch; `class`: real and fake equally often; `method`: each
            method equally often.
        shuffle: `full`: any sample may follow any other; `blocks`: neighbours stay near each other, so that reading
            from a network file system is mostly sequential.
        block_samples: Samples of a block, with `shuffle` `blocks`.
        contest_share: Share of the validation split's groups of people that don't choose the best model, but judge it
            against the champion. Default: none; half of them in the trials of a sweep.
        buffer_blocks: Blocks that are read, and mixed with each other, at a time, with `shuffle` `blocks`. Default: as
            many as hold 256 videos, and 8 at least.
    """

    root: str = ""
    cache_dir: str | None = None
    cache_bytes: int = 100_000_000_000
    quality: int | Literal["raw"] = 77
    image_size: int | None = None
    on_bad_sample: Literal["error", "skip"] = "error"
    max_bad_share: float = 0.01
    mix: dict[str, float] | None = None
    methods: list[str] | None = None
    frames_per_video: int | None = None
    videos_fraction: float = 1.0
    balance: Literal["none", "class", "method"] = "none"
    shuffle: Literal["full", "blocks"] = "full"
    block_samples: int = 1024
    buffer_blocks: int | None = None
    contest_share: float | None = None

    def validate(self) -> None:
        """Raise UserError for a setting that is missing or out of range."""
        if not self.root:
            raise UserError("data.root: not set; give the folder that 'python -m datasets_shards pack --out' wrote")
        if not isinstance(self.quality, str):
            in_range("data.quality", self.quality, 1, 100)
        in_range("data.image_size", self.image_size, 32)
        in_range("data.max_bad_share", self.max_bad_share, 0, 1)
        in_range("data.contest_share", self.contest_share, 0, 0.9)
        counts = {
            "data.frames_per_video": self.frames_per_video,
            "data.block_samples": self.block_samples,
            "data.buffer_blocks": self.buffer_blocks,
            "data.cache_bytes": self.cache_bytes,
        }
        all_in_range(counts, 1)
        if self.shuffle != "blocks":
            for name in ("block_samples", "buffer_blocks"):
                remedy = "set data.shuffle to blocks"
                without_effect(f"data.{name}", getattr(self, name), getattr(DataConfig, name), remedy)
        if self.on_bad_sample != "skip":
            remedy = "set data.on_bad_sample to skip"
            without_effect("data.max_bad_share", self.max_bad_share, DataConfig.max_bad_share, remedy)

    @property
    def training_qualities(self) -> dict[Quality, float]:
        """What training reads, with the weight of each quality.

        Raises:
            UserError: `data.mix` names something else than qualities, or none.
        """
        if self.mix is None:
            return {self.quality: 1.0}
        try:
            mix = {parse_quality(name): weight for name, weight in self.mix.items()}
        except ValueError as error:
            raise UserError(f"data.mix: {error}") from None
        if len(mix) < len(self.mix):
            raise UserError(f"data.mix: {', '.join(map(str, self.mix))} name a quality twice; give each once")
        if not mix:
            raise UserError("data.mix: names no quality; give at least one, or leave the key away")
        return mix

    @property
    def is_mixed(self) -> bool:
        """Whether training reads anything else than `quality`. Raises UserError as `training_qualities`."""
        return set(self.training_qualities) != {self.quality}


@dataclass
class LoaderConfig:
    """How images get from the tars to the device.

    Args:
        kind: `dali`, `torch` (libjpeg-turbo in a thread pool), or `auto`: DALI on a GPU, torch on a CPU.
        threads: Decoding threads of each rank. Default: the rank's share of the cores.
        prefetch: Micro-batches that are read and decoded ahead.
    """

    kind: Literal["dali", "torch", "auto"] = "auto"
    threads: int | None = None
    prefetch: int = 3

    def validate(self) -> None:
        """Raise UserError for a setting that is out of range."""
        all_in_range({"loader.threads": self.threads, "loader.prefetch": self.prefetch}, 1)


@dataclass
class AugmentConfig:
    """What is done to training images, on the device and by draws that depend on the sample's place in the run alone.

    Args:
        preset: `none`; `flip`; `deepfakebench`: flip, rotation, blur, colour and JPEG as that benchmark's detectors are
            trained with; `compression`: JPEG with MozJPEG's tables at a random quality.
        jpeg_quality: Lowest and highest quality of the preset's JPEG, such as `[10, 95]`. Default: the preset's own.
    """

    preset: Literal["none", "flip", "deepfakebench", "compression"] = "none"
    jpeg_quality: tuple[int, int] | None = None
