"""Metadata in encoded pictures: removes it, and tells whether a file is complete.

Damaged metadata does not damage the picture. A file that cannot be decoded is tried again without its optional parts,
which costs nothing for intact files. Knows nothing of decoders.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_LIMIT: Final = 1 << 20  # bytes of a color profile
_MOST: Final = 100_000  # maximum number of blocks examined: each takes hundreds of bytes of memory
_END: Final = b"\0\0\0\0IEND\xae\x42\x60\x82"
_SOS, _EOI = 0xDA, 0xD9
_ALONE: Final = {0x01, *range(0xD0, 0xDA)}  # JPEG markers without a length
# JPEG segments that define colors or orientation: marker, first bytes, and the minimum size for reading them.
_TELLING: Final = ((0xE0, b"JFIF\0", 14), (0xEE, b"Adobe", 12))
_USEFUL: Final = ((0xE1, b"Exif\0\0", 14), (0xE2, b"ICC_PROFILE\0", 15))


class _Segment(NamedTuple):
    """A complete PNG chunk or JPEG segment. kind: its name or marker."""

    kind: bytes
    body: bytes
    whole: bytes


def has_metadata(head: bytes) -> bool:
    """Whether a file with these first bytes is in a format that without_metadata supports."""
    return head.startswith((_PNG, b"\xff\xd8"))


def without_metadata(data: bytes) -> Iterator[bytes]:
    """Smaller files with the same pixels, to be tried one by one: without damaged metadata, then without any.

    Parts needed to interpret the pixels stay: transparency in PNG, the color transform in JPEG. A PNG file that
    lacks only its end mark gets one. Yields nothing for formats whose decoders ignore metadata, or for files that
    cannot be parsed.
    """
    for useful in (True, False):
        if data.startswith(_PNG):
            parts, rest = _chunks(data)
            rest = _END if _END.startswith(rest) and parts and parts[-1].kind != b"IEND" else rest
            yield _PNG + b"".join(part.whole for part in parts if _kept_chunk(part, useful)) + rest
        elif data.startswith(b"\xff\xd8"):
            parts, rest = _segments(data)
            yield b"\xff\xd8" + b"".join(part.whole for part in parts if _kept_segment(part, useful)) + rest


def is_complete(data: bytes) -> bool:
    """Whether a PNG or JPEG file contains its end marker, so that nothing is missing; False for other formats."""
    if data.startswith(_PNG):
        parts, _ = _chunks(data)
        return any(part.kind == b"IEND" for part in parts)
    return data.startswith(b"\xff\xd8") and bytes([0xFF, _EOI]) in _segments(data)[1]


def jpeg_process(data: bytes) -> int | None:
    """The marker of a JPEG file's frame (0xC0 and so on), which identifies its coding; None if there is none."""
    kinds = [part.kind[0] for part in _segments(data)[0]] if data.startswith(b"\xff\xd8") else []
    frames = [kind for kind in kinds if kind == 0xF7 or (0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC))]
    return frames[0] if frames else None


# ---- PNG: length, name, content, checksum


def _chunks(data: bytes) -> tuple[list[_Segment], bytes]:
    """Complete chunks up to IEND, and the bytes after the last of them."""
    parts: list[_Segment] = []
    start = len(_PNG)
    while start + 12 <= len(data) and len(parts) < _MOST:
        end = start + 12 + int.from_bytes(data[start : start + 4])
        if end > len(data):
            break
        parts.append(_Segment(data[start + 4 : start + 8], data[start + 8 : end - 4], data[start:end]))
        start = end
        if parts[-1].kind == b"IEND":
            return parts, b""
    return parts, data[start:]


def _kept_chunk(part: _Segment, useful: bool) -> bool:
    if part.kind[:1].isupper() or part.kind == b"tRNS":
        return True
    intact = zlib.crc32(part.kind + part.body).to_bytes(4) == part.whole[-4:]
    return useful and intact and (part.kind == b"eXIf" or (part.kind == b"iCCP" and _is_profile(part.body)))


def _is_profile(body: bytes) -> bool:
    _, _, packed = body.partition(b"\0")
    reader = zlib.decompressobj()
    try:
        reader.decompress(packed[1:], _LIMIT)
    except zlib.error:
        return False
    return packed[:1] == b"\0" and reader.eof


# ---- JPEG: marker, length, content


def _segments(data: bytes) -> tuple[list[_Segment], bytes]:
    """Segments up to the first scan, and the rest, from the scan or the first bytes that are not a segment."""
    parts: list[_Segment] = []
    start = 2
    while start + 4 <= len(data) and data[start] == 0xFF and len(parts) < _MOST:
        marker = data[start + 1]
        if marker == 0xFF:  # a fill byte
            start += 1
            continue
        length = 0 if marker in _ALONE else int.from_bytes(data[start + 2 : start + 4])
        end = start + 2 + length
        if marker in (_SOS, _EOI) or end > len(data) or (length < 2 and marker not in _ALONE):
            break
        parts.append(_Segment(bytes([marker]), data[start + 4 : end], data[start:end]))
        start = end
    return parts, data[start:]


def _kept_segment(part: _Segment, useful: bool) -> bool:
    marker = part.kind[0]
    if not (0xE0 <= marker <= 0xEF or marker == 0xFE):
        return True
    kept = (*_TELLING, *_USEFUL) if useful else _TELLING
    return any(marker == kind and part.body.startswith(start) and len(part.body) >= size for kind, start, size in kept)
