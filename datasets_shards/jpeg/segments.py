"""What a JPEG file says about itself: markers, frame header and quantization tables (ITU-T T.81, annex B)."""

import struct
from dataclasses import dataclass

SOI, EOI, SOS, DQT = 0xD8, 0xD9, 0xDA, 0xDB
SOF_BASELINE, SOF_EXTENDED, SOF_PROGRESSIVE = 0xC0, 0xC1, 0xC2

_FORMS = {SOF_BASELINE: "baseline", SOF_EXTENDED: "extended", SOF_PROGRESSIVE: "progressive"}
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # without DHT, JPG and DAC
_STANDALONE = {0x01, *range(0xD0, 0xD9)}  # TEM, RST and SOI: no length follows
_SUBSAMPLING = {(1, 1): "4:4:4", (2, 1): "4:2:2", (2, 2): "4:2:0", (1, 2): "4:4:0", (4, 1): "4:1:1"}


@dataclass(frozen=True)
class JpegFacts:
    """What the headers of a JPEG file say.

    Args:
        sof: marker of the frame header, 0xC0 to 0xCF.
        form: "baseline", "extended" or "progressive"; "other" for lossless, hierarchical and arithmetic coding.
        width: pixels.
        height: pixels.
        sampling: horizontal and vertical sampling factor of each component.
        tables: identifier of each component's quantization table.
        table_bits: 8, or 16 where any table has 16-bit entries.
        quant_tables: each table by identifier, 64 entries in zigzag order.
        markers: every marker up to the first scan, in order.
    """

    sof: int
    form: str
    width: int
    height: int
    sampling: tuple[tuple[int, int], ...]
    tables: tuple[int, ...]
    table_bits: int
    quant_tables: dict[int, tuple[int, ...]]
    markers: tuple[int, ...]

    @property
    def components(self) -> int:
        """1 in a grey image, 3 in a coloured one."""
        return len(self.sampling)

    @property
    def subsampling(self) -> str:
        """Such as "4:2:0"; "grey" with one component, and the luma's factors ("3x1") where there is no such name."""
        if self.components == 1:
            return "grey"
        luma, *chroma = self.sampling
        written = f"{luma[0]}x{luma[1]}"
        return _SUBSAMPLING.get(luma, written) if set(chroma) == {(1, 1)} else written


def jpeg_segments(data: bytes) -> list[tuple[int, bytes]]:
    """The marker segments of a JPEG file up to the first scan, as (marker, content): 0xDB DQT, 0xC0 baseline SOF.

    Raises:
        ValueError: no JPEG file, or one that ends before its first scan.
    """
    return _read_segments(data)[0]


def describe_jpeg(data: bytes) -> JpegFacts:
    """What the headers say; of the image data only that it has an end.

    Raises:
        ValueError: no JPEG file, a truncated one, or one whose headers contradict each other.
    """
    segments, scan = _read_segments(data)
    if data.find(bytes((0xFF, EOI)), scan) < 0:  # in image data a zero byte follows every 0xFF that is no marker
        raise ValueError("truncated JPEG: the image data has no end marker")
    frames = [(marker, content) for marker, content in segments if marker in _FRAMES]
    if len(frames) != 1:
        raise ValueError(f"damaged JPEG: {len(frames) or 'no'} frame header{'s' * (len(frames) > 1)} before the scan")
    sof, frame = frames[0]
    if len(frame) < 6 or not frame[5] or len(frame) != 6 + 3 * frame[5]:
        raise ValueError("damaged JPEG: the frame header has another length than its components need")
    height, width = struct.unpack_from(">HH", frame, 1)
    if not height or not width:
        raise ValueError(f"damaged JPEG: the frame header says {width}x{height} pixels")
    tables, bits = _read_tables([content for marker, content in segments if marker == DQT])
    used = tuple(frame[8::3])
    if missing := sorted(set(used) - set(tables)):
        raise ValueError(f"damaged JPEG: quantization table {missing[0]} is used and isn't there")
    return JpegFacts(
        sof=sof,
        form=_FORMS.get(sof, "other"),
        width=width,
        height=height,
        sampling=tuple((factors >> 4, factors & 15) for factors in frame[7::3]),
        tables=used,
        table_bits=bits,
        quant_tables=tables,
        markers=tuple(marker for marker, _ in segments),
    )


def _read_segments(data: bytes) -> tuple[list[tuple[int, bytes]], int]:
    """The segments, and the position of the first scan's image data."""
    if data[:2] != bytes((0xFF, SOI)):
        raise ValueError(f"no JPEG: it begins with {data[:2].hex(' ') or 'nothing'} instead of ff d8")
    segments: list[tuple[int, bytes]] = []
    position = 2
    while position + 2 <= len(data):
        if data[position] != 0xFF:
            raise ValueError(f"damaged JPEG: no marker at byte {position}")
        marker = data[position + 1]
        if marker == 0xFF:  # any number of fill bytes may come before a marker
            position += 1
            continue
        if marker == EOI:
            raise ValueError("damaged JPEG: it ends without image data")
        if marker in _STANDALONE:
            position += 2
            continue
        if position + 4 > len(data):
            break
        end = position + 2 + struct.unpack_from(">H", data, position + 2)[0]
        if end < position + 4:
            raise ValueError(f"damaged JPEG: the segment at byte {position} has an impossible length")
        if end > len(data):
            break
        segments.append((marker, data[position + 4 : end]))
        if marker == SOS:
            return segments, end
        position = end
    raise ValueError(f"truncated JPEG: it ends after {len(data)} bytes, before its image data")


def _read_tables(contents: list[bytes]) -> tuple[dict[int, tuple[int, ...]], int]:
    """The quantization tables of the DQT segments, and 16 where one has 16-bit entries, else 8."""
    tables, bits = {}, 8
    for content in contents:
        position = 0
        while position < len(content):
            wide, identifier = content[position] >> 4, content[position] & 15
            size = 128 if wide else 64
            entries = content[position + 1 : position + 1 + size]
            if len(entries) != size or wide > 1:
                raise ValueError("damaged JPEG: a quantization table has another length than it says")
            tables[identifier] = struct.unpack(">64H", entries) if wide else tuple(entries)
            bits = 16 if wide else bits
            position += 1 + size
    return tables, bits
