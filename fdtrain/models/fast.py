"""What makes an EfficientNet train faster on a CPU, without another result and without another name for a weight.

tests/benchmarks/test_models.py measures each part.
"""

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_NEVER = 2**31 - 1


def speed_up(network: nn.Module) -> nn.Module:
    """Give the convolutions and activations of a timm EfficientNet their faster forms, in place.

    Parameters, their names and the results stay: modules change their class alone.

    Returns:
        The network itself.
    """
    for module in network.modules():
        if (form := _faster(module)) is not None:
            module.__class__ = form
    return network


def _faster(module: nn.Module) -> type[nn.Module] | None:
    from timm.layers import Conv2dSame  # seconds, which only a network of timm's has paid already

    if type(module) is nn.SiLU:
        return SiLU
    if isinstance(module, nn.Conv2d) and _is_depthwise_5x5(module):
        if type(module) is Conv2dSame and module.stride == (2, 2):
            return DepthwiseSame
        if type(module) is nn.Conv2d and (module.stride, module.padding) == ((1, 1), (2, 2)):
            return Depthwise
    return None


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for the next allocation of any size; for all of its life.

    By default glibc gives a large block back to the system as soon as it is freed, and a training step on a CPU spends
    a third of its time on having the same pages mapped and zeroed again. The price: what the process holds doesn't
    shrink after its peak.

    Returns:
        Whether the C library has these settings: glibc does, others don't.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))


class SiLU(nn.SiLU):
    """SiLU, in place only where no gradient wants its input: autograd would copy that first, a pass for nothing."""

    def forward(self, input: Tensor) -> Tensor:
        return F.silu(input, inplace=self.inplace and not (torch.is_grad_enabled() and input.requires_grad))


class Depthwise(nn.Conv2d):
    """Depthwise 5x5 convolution with stride 1 and padding 2; see `_Depthwise5x5`."""

    def forward(self, input: Tensor) -> Tensor:
        if _gains(input, self.weight):
            return _Depthwise5x5.apply(input, self.weight, self.bias, 1)
        return super().forward(input)


class DepthwiseSame(nn.Conv2d):
    """Depthwise 5x5 convolution with stride 2 and TensorFlow's padding; see `_Depthwise5x5`."""

    def forward(self, input: Tensor) -> Tensor:
        # An even side has 3 of padding in all, an odd one 4; the smaller half comes first.
        (top, bottom), (left, right) = ((1, 2) if side % 2 == 0 else (2, 2) for side in input.shape[2:])
        padded = F.pad(input, (left, right, top, bottom))
        if _gains(padded, self.weight):
            return _Depthwise5x5.apply(padded, self.weight, self.bias, 2)
        return F.conv2d(padded, self.weight, self.bias, stride=2, groups=self.groups)


class _Depthwise5x5(torch.autograd.Function):
    """F.conv2d, but its weight gradient is put together from kernels of at most three columns.

    oneDNN has a depthwise kernel for weight gradients up to that width. Beyond, it falls back on one for dense
    convolutions, which pads each channel to a block of 16 by 16: here some ten times slower.

    Stride 1 comes with padding 2, stride 2 with none.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride = stride
        return F.conv2d(images, weight, bias, stride, 2 if stride == 1 else 0, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (gradient,) = gradients
        images, weight = ctx.saved_tensors
        of_images = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            padding = (2, 2) if ctx.stride == 1 else (0, 0)
            of_images = _backward(gradient, images, weight, ctx.stride, padding, [True, False, False])[0]
        if ctx.needs_input_grad[1]:
            parts = _by_columns(gradient, images) if ctx.stride == 1 else _by_halves(gradient, images)
            of_weight = torch.cat(parts, dim=3)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum(dim=(0, 2, 3))
        return of_images, of_weight, of_bias, None


def _by_columns(gradient: Tensor, images: Tensor) -> list[Tensor]:
    """Stride 1, padding 2: the outer columns, which look two pixels aside, around the three in the middle."""
    left = _weight_gradient(gradient[..., 2:], images[..., :-2], 1, 1, (2, 0))
    middle = _weight_gradient(gradient, images, 3, 1, (2, 1))
    right = _weight_gradient(gradient[..., :-2], images[..., 2:], 1, 1, (2, 0))
    return [left, middle, right]


def _by_halves(gradient: Tensor, images: Tensor) -> list[Tensor]:
    """Stride 2, no padding: two columns further in the image is one further in the gradient."""
    left = _weight_gradient(F.pad(gradient, (0, 1)), images, 3, 2, (0, 0))
    right = _weight_gradient(F.pad(gradient, (1, 0)), images, 3, 2, (0, 0))
    return [left, right[..., 1:]]


def _weight_gradient(gradient: Tensor, images: Tensor, width: int, stride: int, padding: tuple[int, int]) -> Tensor:
    """`[C, 1, 5, width]`."""
    shape = images.new_empty((images.shape[1], 1, 5, width))
    return _backward(gradient, images, shape, stride, padding, [False, True, False])[1]


def _backward(
    gradient: Tensor, images: Tensor, weight: Tensor, stride: int, padding: tuple[int, int], wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.aten.convolution_backward(
        gradient, images, weight, None, [stride] * 2, list(padding), [1, 1], False, [0, 0], len(weight), wanted
    )


def _gains(images: Tensor, weight: Tensor) -> bool:
    """Whether there is a slow gradient to avoid, in the one precision and place where this was measured."""
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()  # which makes kernels of its own
        and weight.requires_grad
        and images.device.type == "cpu"
        and images.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and min(images.shape[2:]) > 4
    )


def _is_depthwise_5x5(module: nn.Conv2d) -> bool:
    return (
        module.kernel_size == (5, 5)
        and module.dilation == (1, 1)
        and module.groups == module.in_channels == module.out_channels
    )
