"""JPEG 2000 files as opened by Pillow, with checks and bit depths that it lacks. Knows nothing of colors.

In color pictures of more than 8 bits, Pillow's rounding turns the brightest samples black. Such pictures are decoded
by OpenCV if it is installed, and otherwise refused.  Source of the layout: ISO 15444-1, annexes A and I.
"""

from __future__ import annotations

import io
import os
from typing import IO, Final

import numpy as np
from PIL import Image, ImageFile, Jpeg2KImagePlugin

from bigr_repr.images.deferred import DeferredImage

_START, _SIZE, _TILE, _END = b"\xff\x4f", b"\xff\x51", b"\xff\x90", b"\xff\xd9"
_CHANNELS: Final = {3: "RGB", 4: "RGBA"}


def open_jpeg2000(file: IO[bytes], filename: str) -> Image.Image:
    """The picture in a file or a bare code stream; bytes after its end are ignored.

    Raises OSError for a file that ends early, because its missing tiles would decode to gray; OSError that names what
    is not supported for color of more than 8 bits without OpenCV; and what Pillow raises.
    """
    size = file.seek(0, os.SEEK_END)
    start, end = _code_stream(file, size)
    precisions = _walk(file, start, end)
    file.seek(0)
    if end < size:
        file = io.BytesIO(file.read(end))  # the decoder would parse what follows as boxes
    image = Jpeg2KImagePlugin.Jpeg2KImageFile(file, filename)
    if len(precisions) > 1 and max(precisions) > 8:
        if len(set(precisions)) > 1:
            raise OSError(f"JPEG 2000 with channels of {min(precisions)} to {max(precisions)} bits is not supported")
        return _deep(file, image, max(precisions))
    return image


def _deep(file: IO[bytes], header: ImageFile.ImageFile, bits: int) -> Image.Image:
    def decode() -> Image.Image:
        file.seek(0)
        pixels = _decode_deep(file.read(), len(header.mode))
        return Image.fromarray((pixels >> (bits - 8)).astype(np.uint8), header.mode)

    image = DeferredImage("JPEG2000", header.size, decode, mode=header.mode)
    image.info = dict(header.info)
    return image


def _decode_deep(data: bytes, channels: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    """Samples as stored, channels last."""
    what = f"JPEG 2000 with {channels} channels of more than 8 bits"
    try:
        import cv2
    except ImportError:
        raise OSError(f"{what} is not supported without OpenCV: pip install opencv-python-headless") from None
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if channels > 2 else None
    if pixels is None or pixels.dtype != np.uint16 or pixels.shape[2:] != (channels,):
        raise OSError(f"{what} of this kind is not supported")
    order = [2, 1, 0, 3][:channels]
    return np.ascontiguousarray(pixels[..., order])


def _code_stream(file: IO[bytes], size: int) -> tuple[int, int]:
    """Start and latest possible end of the code stream.  Raises OSError if a box extends beyond the file."""
    file.seek(0)
    if file.read(2) == _START:
        return 0, size
    start, kind = 0, b""
    while kind != b"jp2c":  # length, type, content
        file.seek(start)
        length, kind = int.from_bytes(file.read(4)), file.read(4)
        header = 16 if length == 1 else 8
        length = int.from_bytes(file.read(8)) if length == 1 else length or size - start
        if length < header or start + length > size:
            raise OSError("file is truncated")
        start += length
    return start - length + header, start


def _walk(file: IO[bytes], start: int, end: int) -> list[int]:
    """Bits of each component of a code stream.  Raises OSError unless it reaches its end marker."""
    precisions: list[int] = []
    at = start + 2
    while at < end:
        file.seek(at)
        marker, length = file.read(2), int.from_bytes(file.read(2))
        if marker == _END:
            return precisions
        if len(marker) < 2 or length < 2:
            break
        content = file.read(length - 2)
        at += 2 + length
        if marker == _SIZE:
            precisions = [(depth & 0x7F) + 1 for depth in content[36::3]]
        elif marker == _TILE:  # length of its part, header included; 0: up to the end marker
            size = int.from_bytes(content[2:6])
            if not size and file.read(end - at).rfind(_END) >= 0:
                return precisions
            at += size - 2 - length if size else end
    raise OSError("file is truncated")
