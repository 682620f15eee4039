"""The meter of a run."""

from torch import nn

from fdtrain.config import Config
from fdtrain.models import InputSpec
from fdtrain.runtime import Runtime
from fdtrain.telemetry.flops import StepFlops
from fdtrain.telemetry.meter import StepMeter
from fdtrain.telemetry.peak import peak_flops


def create_meter(config: Config, model: nn.Module, spec: InputSpec, side: int, runtime: Runtime) -> StepMeter:
    """A `StepMeter` that counts FLOPs where the device's peak rate is known: counting takes a few seconds.

    Args:
        config: Of the run.
        model: Its model, on the CPU, before it is compiled.
        spec: Its input.
        side: Of the decoded images, pixels.
        runtime: This rank's surroundings.
    """
    peak = peak_flops(runtime.device_name, runtime.precision)
    flops = StepFlops(config, model, spec, side) if peak else None
    return StepMeter(runtime, config.train.global_batch_size, peak, flops.per_image if flops else None)
