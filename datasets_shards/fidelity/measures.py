"""PSNR, SSIM and size of one encoded crop, and what a sample of crops says about them."""

from dataclasses import dataclass

import numpy as np

DATA_RANGE = 255
SSIM_SIGMA = 1.5
SSIM_WINDOW = 11  # scikit-image cuts its Gaussian at 3.5 sigma, which makes 11x11 pixels
PERCENTILES = (5, 95)
MEASURES = ("psnr", "ssim", "bytes", "bpp")


@dataclass(frozen=True)
class Measured:
    """One crop at one point of a curve.

    Args:
        psnr: dB over RGB; infinite where the crop came back exactly.
        ssim: 1 for equal images.
        bytes: size of the file; a fraction where it is an estimate in bits.
        bpp: bits of the file per pixel of the original crop.
    """

    psnr: float
    ssim: float
    bytes: float
    bpp: float


@dataclass(frozen=True)
class Summary:
    """One measure over a sample.

    Args:
        mean: arithmetic mean; infinite where a single value is.
        low: 5th percentile.
        high: 95th percentile.
    """

    mean: float
    low: float
    high: float


def measure(crop: np.ndarray, decoded: np.ndarray, bits: int) -> Measured:
    """Compare a crop with what came back of it.

    Args:
        crop: the uncompressed crop, RGB uint8 [H, W, 3], at least 11 pixels a side.
        decoded: RGB uint8 [H, W, 3].
        bits: size of the file.
    """
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    with np.errstate(divide="ignore"):  # equal images: an infinite PSNR
        psnr = peak_signal_noise_ratio(crop, decoded, data_range=DATA_RANGE)
    ssim = structural_similarity(
        crop,
        decoded,
        data_range=DATA_RANGE,
        channel_axis=2,
        gaussian_weights=True,
        sigma=SSIM_SIGMA,
        use_sample_covariance=False,
    )
    height, width = crop.shape[:2]
    return Measured(float(psnr), float(ssim), bits / 8, bits / (height * width))


def summarize(values: np.ndarray) -> Summary:
    """Mean and percentiles of one measure, float [crops]."""
    # Percentiles that occur in the sample: interpolating between two infinite values would give NaN.
    low, high = np.percentile(values, PERCENTILES, method="inverted_cdf")
    return Summary(float(values.mean()), float(low), float(high))
