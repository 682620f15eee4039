"""What the report says in words: what is measured, scaled and emulated, and why."""

from datasets_shards.fidelity.measures import DATA_RANGE, PERCENTILES, SSIM_SIGMA, SSIM_WINDOW


def _line(text: str) -> str:
    return " ".join(text.split())


LEAD = _line("""
What each encoder and setting costs in bytes, and how near it stays to the uncompressed crop: the crop before any JPEG
step. The videos that it was cut from had their own compression.
""")

PSNR = _line(f"""
10 log10({DATA_RANGE}² / MSE), the mean squared error over all pixels and the three channels of RGB (scikit-image's
peak_signal_noise_ratio).
""")

SSIM = _line(f"""
Wang et al. 2004: Gaussian window of {SSIM_WINDOW}×{SSIM_WINDOW} pixels, sigma {SSIM_SIGMA}, population covariance,
K1 = 0.01, K2 = 0.03, data range {DATA_RANGE}; taken on R, G and B each and averaged (scikit-image's
structural_similarity with gaussian_weights=True, use_sample_covariance=False, channel_axis=2).
""")

SIZE = "The whole file with its headers and tables; bits per pixel (bpp) are its bits over the crop's pixels."

SUMMARY = _line(f"""
Mean, and the {PERCENTILES[0]}th and {PERCENTILES[1]}th percentile as values that occur in the sample (inverse of the
empirical distribution).
""")

QUALITY = _line("""
The quality number is each encoder's own: libjpeg-turbo scales the tables of the standard's Annex K, MozJPEG those of
N. Robidoux, so only the curves by rate compare them. Chroma is subsampled by cjpeg's rule on every curve: 4:2:0 below
quality 80, 4:2:2 below 90, then 4:4:4. That makes the steps there.
""")

LIMIT = _line("""
A baseline JPEG holds quantization steps up to 255; progressive may use 16-bit tables. MozJPEG's default table has
larger steps up to quality 69, which baseline cuts to 255: those frequencies are quantized more finely than the quality
says, unless they are zero either way. A table with 16-bit entries takes 64 bytes more in the file, which tells in small
crops. Progressive with 8-bit tables sets this apart from what several scans cost or gain.
""")

NO_LIMIT = "No quality of this report has a larger step: the limit changes nothing here."

SCALING = _line("""
DCT scaling by 8/N is what libjpeg 7's encoder does: an N×N DCT, the low 8×8 coefficients kept (or, for N < 8, padded
with zeros). MozJPEG takes pixels, so the scaled coefficients pass through an inverse 8×8 DCT and rounding. For PSNR and
SSIM the decoded image is taken back to the size of the crop the way a libjpeg 7 decoder scales by N/8 (8×8 coefficients
cut or padded to N×N), and bits per pixel count the pixels of the original crop.
""")

SMARTSCALE_WHY = _line("""
SmartScale is an extension of IJG's libjpeg 8 and later: blocks of N×N pixels, N from 1 to 16, in place of 8×8. Such a
stream isn't what ITU-T T.81 defines, and only that library reads it: libjpeg-turbo, MozJPEG and nvJPEG know blocks of
8×8 alone, and so do the decoders that stand on them. A shard that standard readers are to read can't hold one, and no
encoder here writes one. So its effect is emulated in numpy: YCbCr as in JFIF, chroma subsampled as MozJPEG does at that
quality, an N×N DCT, quantization, and back to pixels; no file is written.
""")

SMARTSCALE_TABLES = {
    "resampled": _line("""
The quantization table is MozJPEG's baseline table resampled to N×N: coefficient k of an N-point DCT has the frequency
of index 8k/N of an 8-point one, the step there is interpolated linearly along both axes (beyond the last entry the last
one holds) and rounded. IJG's own library takes the table's low-frequency corner instead, and codes at most 8×8
coefficients of a larger block; --smartscale-tables corner emulates that.
"""),
    "corner": _line("""
As in IJG's own library, a block keeps at most its low 8×8 coefficients, with the same entries of MozJPEG's baseline
table as in 8×8, whatever frequency they stand for there. --smartscale-tables resampled reads the table at the frequency
of each coefficient instead.
"""),
}

SMARTSCALE_HOW = _line("""
Coefficients are scaled by 8/N, so that a flat block has the DC that it has in 8×8, as in libjpeg; larger blocks are
thereby quantized more coarsely at the same quality, smaller ones more finely. Quantization rounds to nearest, so the
curve to set it beside is MozJPEG without trellis. The size is an estimate: JPEG's run and size symbols with DC
prediction, the code lengths of optimum Huffman tables, headers and tables included. At 8×8 that estimate is within 2 %
of the files that MozJPEG without trellis writes of 256×256 pixels at qualities from 5 to 95, and PSNR agrees to
0.01 dB. At 4×4 to 16×16, with the table's corner, it is within 3 % of streams that libjpeg 9f wrote of a face.
""")


def exact_crops(count: int) -> str:
    """On crops that came back exactly, `count` times."""
    if count:
        return f"{count} times a crop came back exactly: its PSNR is infinite, so is that mean; figures leave it out."
    return "No crop came back exactly, so every PSNR is finite."
