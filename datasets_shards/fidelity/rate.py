"""The size that JPEG's entropy coding gives to quantized coefficients: sequential mode, optimum Huffman tables.

Nothing is written; the lengths are counted. ITU-T T.81: F.1.2 (symbols), K.2 (optimum code lengths, at most 16 bits,
no code of all ones), B.2 (marker segments; one for all tables of a kind, as MozJPEG groups them). The zero that
follows a byte 0xFF of coded data is counted as one in 256 bytes, as if those bytes were random.

At 8x8 this is within 2 % of the files that MozJPEG without trellis writes of 256x256 photographs, qualities 5 to 95.
"""

import heapq
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

MAX_RUN = 15  # zeros that one symbol can hold; longer runs take ZRL symbols of 16
ZRL, EOB = 0xF0, 0x00
MAX_CODE_BITS = 16


@dataclass(frozen=True)
class Component:
    """The quantized blocks of a component in the order in which a scan holds them.

    Args:
        blocks: int [blocks, n, n], [:, 0, 0] the DC; vertical frequency along the second axis.
        table: which pair of Huffman tables codes it: 0 luma, 1 chroma.
    """

    blocks: np.ndarray
    table: int


def estimate_bits(components: list[Component]) -> int:
    """Bits of a whole file: coded data, Huffman and quantization tables, and the other marker segments of a JFIF file.

    The blocks may be of any size up to 16x16; a run of zeros over 15 takes ZRL symbols as in 8x8.
    """
    data = tables = 0
    for number in sorted({component.table for component in components}):
        mine = [component for component in components if component.table == number]
        symbols = [_dc_symbols(c.blocks) for c in mine], [_ac_symbols(c.blocks) for c in mine]
        for kind in symbols:
            counts = np.sum([count for count, _ in kind], axis=0)
            lengths = code_lengths(counts)
            data += int((lengths * counts).sum()) + sum(extra for _, extra in kind)
            tables += 1 + 16 + int((counts > 0).sum())  # in DHT: class, counts, values
        tables += 1 + 64  # in DQT, with 8-bit entries
    count = len(components)
    others = 2 + 18 + 4 + 4 + (4 + 6 + 3 * count) + (4 + 1 + 2 * count + 3) + 2  # SOI, APP0, DQT, DHT, SOF, SOS, EOI
    coded = -(-data // 8)
    return 8 * (coded + coded // 256 + tables + others)


def code_lengths(counts: np.ndarray) -> np.ndarray:
    """Code length of every symbol, bits, int [256]; 0 for one that doesn't occur. T.81 K.2."""
    used = [int(i) for i in np.flatnonzero(counts)]
    if not used:
        return np.zeros(256, dtype=np.int64)
    # One symbol more, of count 1 and last in order, takes the code of all ones.
    heap: list[tuple[int, int, tuple[int, ...]]] = [(int(counts[i]), -i, (i,)) for i in used]
    heap.append((1, -256, (256,)))
    heapq.heapify(heap)
    lengths = np.zeros(257, dtype=np.int64)
    while len(heap) > 1:
        low, high = heapq.heappop(heap), heapq.heappop(heap)
        merged = low[2] + high[2]
        lengths[list(merged)] += 1
        heapq.heappush(heap, (low[0] + high[0], min(low[1], high[1]), merged))
    histogram = np.bincount(lengths[lengths > 0], minlength=MAX_CODE_BITS + 1)
    _limit_lengths(histogram)
    # The shortest codes go to the most frequent symbols; the longest one is the reserved code.
    histogram[np.flatnonzero(histogram)[-1]] -= 1
    ordered = sorted(used, key=lambda i: (-counts[i], i))
    result = np.zeros(256, dtype=np.int64)
    result[ordered] = np.repeat(np.arange(len(histogram)), histogram)
    return result


def _limit_lengths(histogram: np.ndarray) -> None:
    """Bring codes of more than 16 bits down to it, in place: T.81 figure K.3."""
    for length in range(len(histogram) - 1, MAX_CODE_BITS, -1):
        while histogram[length] > 0:
            shorter = length - 2
            while histogram[shorter] == 0:
                shorter -= 1
            histogram[length] -= 2
            histogram[length - 1] += 1
            histogram[shorter + 1] += 2
            histogram[shorter] -= 1


@lru_cache
def zigzag(size: int) -> np.ndarray:
    """Positions of a size x size block, row after row, in zigzag order: int [size * size]."""
    rows, columns = np.divmod(np.arange(size * size), size)
    diagonal = rows + columns
    along = np.where(diagonal % 2 == 1, rows, columns)  # odd diagonals run down, even ones up
    return np.lexsort((along, diagonal))


def _magnitude_bits(values: np.ndarray) -> np.ndarray:
    """JPEG's category of a value: bits of its magnitude, 0 for 0."""
    return np.frexp(np.abs(values).astype(np.float64))[1]


def _dc_symbols(blocks: np.ndarray) -> tuple[np.ndarray, int]:
    """Counts of the DC symbols [256] and the bits that follow them: each DC less the one before."""
    size = _magnitude_bits(np.diff(blocks[:, 0, 0], prepend=0))
    return np.bincount(size, minlength=256), int(size.sum())


def _ac_symbols(blocks: np.ndarray) -> tuple[np.ndarray, int]:
    """Counts of the AC symbols (run of zeros, size) [256] and the bits that follow them."""
    count, side = len(blocks), blocks.shape[1]
    ordered = blocks.reshape(count, -1)[:, zigzag(side)[1:]]
    if ordered.shape[1] == 0:  # blocks of one pixel have no AC
        return np.zeros(256, dtype=np.int64), 0
    block, position = np.nonzero(ordered)
    first = np.diff(block, prepend=-1) != 0
    run = position - np.where(first, -1, np.roll(position, 1)) - 1
    size = _magnitude_bits(ordered[block, position])
    counts = np.bincount((run % 16) << 4 | size, minlength=256)
    counts[ZRL] += (run // 16).sum()
    counts[EOB] += (ordered[:, -1] == 0).sum()
    return counts, int(size.sum())
