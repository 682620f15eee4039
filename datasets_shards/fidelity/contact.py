"""The contact sheet: one face as it is, and at every quality, each with its numbers below."""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from datasets_shards.fidelity.curves import Curve, decode_jpeg
from datasets_shards.fidelity.measures import measure

COLUMNS = 5
GAP = 12
LINE = 18
SHOWN = 512
"""Side of the largest tile, pixels; larger crops are shown smaller."""
MIN_TILE = 176
"""Width that the numbers below a tile need, pixels."""


def draw_contact_sheet(pixels: np.ndarray, curve: Curve, qualities: list[int]) -> bytes:
    """A PNG file of all tiles, row after row from the lowest quality up.

    Args:
        pixels: the uncompressed crop, RGB uint8 [H, W, 3].
        curve: what encodes; one without scaling.
        qualities: ascending.
    """
    height, width = pixels.shape[:2]
    tiles = [(pixels, ["uncompressed", f"{width} by {height} pixels", ""])]
    for quality in qualities:
        data = curve.encode(pixels, quality)
        decoded = decode_jpeg(data)
        numbers = measure(pixels, decoded, 8 * len(data))
        psnr = f"{numbers.psnr:.1f} dB" if np.isfinite(numbers.psnr) else "exact"
        lines = [f"quality {quality}", f"{len(data):,} bytes, {numbers.bpp:.2f} bpp"]
        tiles.append((decoded, [*lines, f"PSNR {psnr}, SSIM {numbers.ssim:.3f}"]))

    scale = min(1.0, SHOWN / max(height, width))
    shown = (max(1, round(width * scale)), max(1, round(height * scale)))
    cell = (max(shown[0], MIN_TILE) + GAP, shown[1] + 3 * LINE + GAP)
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * cell[0] + GAP, rows * cell[1] + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    bold, plain = ImageFont.load_default(15), ImageFont.load_default(13)
    for i, (tile, lines) in enumerate(tiles):
        left, top = GAP + i % columns * cell[0], GAP + i // columns * cell[1]
        image = Image.fromarray(tile)
        sheet.paste(image if scale == 1 else image.resize(shown, Image.Resampling.LANCZOS), (left, top))
        for number, line in enumerate(lines):
            at = (left, top + shown[1] + 3 + number * LINE)
            draw.text(at, line, fill="black" if number == 0 else "#444444", font=plain if number else bold)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
