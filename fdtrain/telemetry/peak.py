"""Peak rates of GPUs, the denominator of model FLOP utilization (Chowdhery et al., PaLM, JMLR 2023, appendix B)."""

import re
from types import MappingProxyType
from typing import Literal

Precision = Literal["fp32", "tf32", "bf16", "fp16"]

# TFLOP/s by fp32, tf32, bf16, fp16: dense (a datasheet's figure "with sparsity" is twice that), summed in fp32, and at
# the boost clock. 0: the GPU has no such units. Sources: NVIDIA's datasheets of the GPU named (nvidia.com/data-center),
# for the GeForce and RTX cards the whitepapers of the architectures "GA102" (2020) and "Ada" (2022), appendix A, for
# V100 and T4 those of "Volta" (2017) and "Turing" (2018), for B200 the datasheet of HGX B200, an eighth of it each.
_TFLOPS = MappingProxyType(
    {
        "B200": (75, 1125, 2250, 2250),
        "GH200": (67, 494.7, 989.4, 989.4),
        "H200 NVL": (60, 417.5, 835.5, 835.5),
        "H200": (67, 494.7, 989.4, 989.4),
        "H100 NVL": (60, 417.5, 835.5, 835.5),
        "H100 PCIe": (51, 378, 756, 756),
        "H100 80GB HBM3": (67, 494.7, 989.4, 989.4),
        "A100": (19.5, 156, 312, 312),
        "A30": (10.3, 82, 165, 165),
        "A40": (37.4, 74.8, 149.7, 149.7),
        "A10": (31.2, 62.5, 125, 125),
        "L40S": (91.6, 183, 362, 362),
        "L40": (90.5, 90.5, 181, 181),
        "L4": (30.3, 60, 121, 121),
        "V100-SXM2": (15.7, 0, 0, 125),
        "V100-PCIE": (14, 0, 0, 112),
        "V100S-PCIE": (16.4, 0, 0, 130),
        "T4": (8.1, 0, 0, 65),
        "RTX 6000 Ada Generation": (91.1, 182.1, 364.2, 364.2),
        "RTX A6000": (38.7, 77.4, 154.8, 154.8),
        "RTX 4090": (82.6, 82.6, 165.2, 165.2),
        "RTX 3090": (35.6, 35.6, 71, 71),
    }
)
_ORDER = ("fp32", "tf32", "bf16", "fp16")


def peak_flops(device_name: str, precision: Precision) -> float | None:
    """FLOP/s of a GPU at its best, by the name that CUDA gives it; None where that isn't known.

    A part of a GPU (MIG, vGPU), a laptop's, or another variant under a similar name has other rates, and is not known.
    """
    if re.search(r"\b(MIG|GRID|Laptop|Max-Q|Ti|D|\d+[ABCQ])\b", device_name):
        return None
    # The longest name that fits: "H100 NVL" before "H100".
    for known in sorted(_TFLOPS, key=len, reverse=True):
        if re.search(rf"(?<![\w.]){re.escape(known)}(?!\w)", device_name):
            return _TFLOPS[known][_ORDER.index(precision)] * 1e12 or None
    return None
