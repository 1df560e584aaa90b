"""Windows bitmaps with color masks that Pillow does not support. Knows nothing of other formats.

Source of the layout: Microsoft's documentation of BITMAPINFOHEADER, BITMAPV2INFOHEADER and BITMAPV3INFOHEADER.
"""

from __future__ import annotations

from typing import IO, Final

import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, Image

from bigr_repr.images.deferred import DeferredImage

_MASKED: Final = {3: 3, 6: 4}  # number of masks after the header, by its compression code
_HEADER: Final = 14  # bytes before that header


def open_bitmap(file: IO[bytes], filename: str) -> Image.Image:
    """The picture in a .bmp file; only its header is read.  Raises what Pillow raises, also for unsupported files."""
    try:
        return BmpImagePlugin.BmpImageFile(file, filename)
    except OSError:
        file.seek(0)
        head = file.read(70)
        masks = _masks(head)
        if not masks:
            raise
        width, height = (int.from_bytes(head[at : at + 4], "little", signed=True) for at in (18, 22))
        if width <= 0 or not height:
            raise
        size = (width, abs(height))
        return DeferredImage("BMP", size, lambda: _decoded(file, size, head, masks, upward=height > 0))


def _masks(head: bytes) -> list[int]:
    """The bit masks of red, green, blue and, if present, opacity; empty for other bitmaps."""
    length, bits, compression = (
        int.from_bytes(head[at : at + size], "little") for at, size in ((14, 4), (28, 2), (30, 4))
    )
    if bits not in (16, 32) or compression not in _MASKED or length < 40 or len(head) < 70:
        return []
    count = 4 if length >= 56 else _MASKED[compression]
    masks = [int.from_bytes(head[at : at + 4], "little") for at in range(54, 54 + 4 * count, 4)]
    return [mask for number, mask in enumerate(masks) if mask or number < 3] if all(masks[:3]) else []


def _decoded(file: IO[bytes], size: tuple[int, int], head: bytes, masks: list[int], *, upward: bool) -> Image.Image:
    """Raises OSError for a file that ends early."""
    width, height = size
    depth = int.from_bytes(head[28:30], "little") // 8
    stride = -(-width * depth // 4) * 4
    file.seek(int.from_bytes(head[10:14], "little"))
    data = file.read(stride * height)
    if len(data) < stride * height:
        raise OSError("file is truncated")
    pixels = np.frombuffer(data, np.uint8).reshape(height, stride)[:, : width * depth]
    values = np.ascontiguousarray(pixels).view(f"<u{depth}").astype(np.uint32)[:: -1 if upward else 1]
    return Image.fromarray(np.dstack([_channel(values, mask) for mask in masks]))


def _channel(values: NDArray[np.uint32], mask: int) -> NDArray[np.uint8]:
    """Samples of any bit depth as 0..255."""
    shift = (mask & -mask).bit_length() - 1
    samples = (values & np.uint32(mask)) >> np.uint32(shift)
    return np.asarray(np.rint(samples * (255 / (mask >> shift))), np.uint8)
