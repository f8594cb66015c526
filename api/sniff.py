"""What a file is, told from its first bytes: the format, and the size that its header declares.

Nothing is decoded here, and nothing is trusted: each reader looks at a few fields at known places
and refuses what does not fit. Real parsing happens in a child process of the worker.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from api.problems import Problem

Read = Callable[[int, int], bytes]
"""``read(offset, count)`` returns so many bytes of the file, fewer at its end."""

HEAD_BYTES = 64
_MOST_SEGMENTS = 4096
_MOST_BOXES = 4096
_TAIL_BYTES = 1 << 20


@dataclass(frozen=True)
class Sniffed:
    """What the header of a picture says.

    Attributes:
        format: name as in ``nifcore.picture.FORMATS``.
        media_type: MIME type.
        width, height: in pixels, before any rotation that EXIF asks for.
    """

    format: str
    media_type: str
    width: int
    height: int


class _Short(Exception):
    """The file ends within its header."""


class _Odd(Exception):
    """A field of the header makes no sense."""


def _take(read: Read, offset: int, layout: str) -> tuple[Any, ...]:
    count = struct.calcsize(layout)
    data = read(offset, count)
    if len(data) < count:
        raise _Short
    return struct.unpack(layout, data)


def _png(read: Read, size: int) -> tuple[int, int]:
    length, kind, width, height = _take(read, 8, ">I4sII")
    if kind != b"IHDR" or length != 13:
        raise _Odd
    offset = 8
    for _ in range(_MOST_SEGMENTS):
        length, kind = _take(read, offset, ">I4s")
        offset += 12 + length
        if offset > size:
            raise _Short
        if kind == b"IEND":
            break
    return width, height


def _jpeg(read: Read, size: int) -> tuple[int, int]:
    offset = 2
    found: tuple[int, int] | None = None
    for _ in range(_MOST_SEGMENTS):
        mark, kind = _take(read, offset, ">BB")
        if mark != 0xFF:
            raise _Odd
        if kind == 0xFF:  # a fill byte
            offset += 1
            continue
        if kind == 0x01 or 0xD0 <= kind <= 0xD7:
            offset += 2
            continue
        if kind == 0xD9:
            raise _Odd
        (length,) = _take(read, offset + 2, ">H")
        if length < 2:
            raise _Odd
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            _, height, width = _take(read, offset + 4, ">BHH")
            found = width, height
        if kind == 0xDA:
            if found is None:
                raise _Odd
            # Without an end mark after the samples, the file was cut off.
            if not _contains(read, offset + 2 + length, size, b"\xff\xd9"):
                raise _Short
            return found
        offset += 2 + length
    raise _Odd


def _contains(read: Read, start: int, size: int, wanted: bytes) -> bool:
    """Look for ``wanted`` from the end backwards, where it normally is."""
    end = size
    while end > start:
        begin = max(start, end - _TAIL_BYTES)
        if wanted in read(begin, end - begin + len(wanted) - 1):
            return True
        end = begin
    return False


def _webp(read: Read, size: int) -> tuple[int, int]:
    (riff,) = _take(read, 4, "<I")
    if riff + 8 > size:
        raise _Short
    kind = read(12, 4)
    if kind == b"VP8X":
        a, b, c, d, e, f = _take(read, 24, "<6B")
        return 1 + (a | b << 8 | c << 16), 1 + (d | e << 8 | f << 16)
    if kind == b"VP8L":
        signature, bits = _take(read, 20, "<BI")
        if signature != 0x2F:
            raise _Odd
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        if read(23, 3) != b"\x9d\x01\x2a":
            raise _Odd
        width, height = _take(read, 26, "<HH")
        return width & 0x3FFF, height & 0x3FFF
    raise _Odd


def _gif(read: Read, size: int) -> tuple[int, int]:
    width, height = _take(read, 6, "<HH")
    return width, height


def _bmp(read: Read, size: int) -> tuple[int, int]:
    (header,) = _take(read, 14, "<I")
    if header == 12:
        width, height = _take(read, 18, "<HH")
        return width, height
    if not 16 <= header <= 256:
        raise _Odd
    width, height = _take(read, 18, "<ii")
    return width, abs(height)


def _qoi(read: Read, size: int) -> tuple[int, int]:
    width, height = _take(read, 4, ">II")
    return width, height


def _ppm(read: Read, size: int) -> tuple[int, int]:
    # The header is text; comments in it may be long, so a page of it is looked at.
    text = re.sub(rb"#[^\r\n]*[\r\n]", b" ", read(0, 4096))
    match = re.match(rb"P[1-6]\s+(\d{1,9})\s+(\d{1,9})\s", text)
    if match is None:
        raise _Short if size < 16 else _Odd
    return int(match[1]), int(match[2])


def _tiff(read: Read, size: int) -> tuple[int, int]:
    order = "<" if read(0, 2) == b"II" else ">"
    (offset,) = _take(read, 4, order + "I")
    (entries,) = _take(read, offset, order + "H")
    if not entries or entries > _MOST_SEGMENTS:
        raise _Odd
    found: dict[int, int] = {}
    for index in range(entries):
        at = offset + 2 + 12 * index
        tag, kind, _ = _take(read, at, order + "HHI")
        if tag in (256, 257):
            (found[tag],) = _take(read, at + 8, order + ("H" if kind == 3 else "I"))
    if len(found) != 2:
        raise _Odd
    return found[256], found[257]


def _boxes(
    read: Read, start: int, end: int, wanted: tuple[bytes, ...], budget: list[int]
) -> list[tuple[int, int]]:
    """Return where the contents of all boxes on the path ``wanted`` begin and end."""
    found: list[tuple[int, int]] = []
    at = start
    while at + 8 <= end:
        budget[0] -= 1
        if budget[0] < 0:
            raise _Odd
        length, kind = _take(read, at, ">I4s")
        content = at + 8
        if length == 1:
            (length,) = _take(read, content, ">Q")
            content += 8
        elif length == 0:
            length = end - at
        if length < content - at:
            raise _Odd
        if at + length > end:
            raise _Short
        if kind == wanted[0]:
            if kind == b"meta":
                content += 4  # a full box: version and flags come first
            if len(wanted) == 1:
                found.append((content, at + length))
            else:
                found += _boxes(read, content, at + length, wanted[1:], budget)
        at += length
    return found


def _avif(read: Read, size: int) -> tuple[int, int]:
    sizes = []
    for start, _ in _boxes(read, 0, size, (b"meta", b"iprp", b"ipco", b"ispe"), [_MOST_BOXES]):
        _, width, height = _take(read, start, ">III")
        sizes.append((width, height))
    if not sizes:
        raise _Odd
    # Thumbnails and tiles have sizes of their own; the picture is the largest.
    return max(sizes, key=lambda each: each[0] * each[1])


def _jpeg2000(read: Read, size: int) -> tuple[int, int]:
    if read(0, 4) == b"\xff\x4f\xff\x51":
        x1, y1, x0, y0 = _take(read, 8, ">IIII")
        return x1 - x0, y1 - y0
    for start, _ in _boxes(read, 0, size, (b"jp2h", b"ihdr"), [_MOST_BOXES]):
        height, width = _take(read, start, ">II")
        return width, height
    raise _Odd


_Header = Callable[[Read, int], tuple[int, int]]
_FORMATS: tuple[tuple[str, str, str, _Header], ...] = (
    (r"\x89PNG\r\n\x1a\n", "PNG", "image/png", _png),
    (r"\xff\xd8\xff", "JPEG", "image/jpeg", _jpeg),
    (r"RIFF.{4}WEBP", "WEBP", "image/webp", _webp),
    (r".{4}ftyp(?:avif|avis|mif1|msf1)", "AVIF", "image/avif", _avif),
    (r"\x00\x00\x00\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", "JPEG2000", "image/jp2", _jpeg2000),
    (r"II\x2a\x00|MM\x00\x2a", "TIFF", "image/tiff", _tiff),
    (r"BM.{12}", "BMP", "image/bmp", _bmp),
    (r"GIF8[79]a", "GIF", "image/gif", _gif),
    (r"P[1-6]\s", "PPM", "image/x-portable-anymap", _ppm),
    (r"qoif", "QOI", "image/qoi", _qoi),
)
_MAGIC = tuple(
    (re.compile(pattern.encode(), re.DOTALL), name, media_type, header)
    for pattern, name, media_type, header in _FORMATS
)

FORMATS = tuple(name for _, name, _, _ in _FORMATS)
"""Formats that the service accepts."""


def sniff(read: Read, size: int, *, max_pixels: int, max_side: int) -> Sniffed:
    """Tell what a file is and refuse what need not be tried.

    Args:
        read: gives bytes of the file.
        size: its length.
        max_pixels, max_side: the largest picture that is accepted.

    Raises:
        Problem: ``unsupported_image``, ``damaged_image`` or ``too_many_pixels``.
    """
    head = read(0, HEAD_BYTES)
    found = next((each for each in _MAGIC if each[0].match(head)), None)
    if found is None:
        shown = head[:8].hex(" ") or "nothing"
        raise Problem(
            "unsupported_image",
            f"the file begins with {shown}; accepted are {', '.join(FORMATS)}",
            accepted=list(FORMATS),
        )
    _, name, media_type, header = found
    try:
        width, height = header(read, size)
    except _Short:
        raise Problem("damaged_image", f"the {name} file is truncated at {size} bytes") from None
    except _Odd:
        raise Problem("damaged_image", f"the header of the {name} file makes no sense") from None
    if width <= 0 or height <= 0:
        raise Problem("damaged_image", f"the {name} header declares {width}x{height} pixels")
    if width * height > max_pixels or max(width, height) > max_side:
        raise Problem(
            "too_many_pixels",
            f"the {name} header declares {width}x{height} pixels; {max_pixels} pixels and "
            f"{max_side} a side are accepted",
            width=width,
            height=height,
        )
    return Sniffed(name, media_type, width, height)
