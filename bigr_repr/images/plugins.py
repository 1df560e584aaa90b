"""HEIC and JPEG XL through plug-ins for Pillow, if installed. Knows nothing of colors.

Sources: ISO/IEC 18181-1, annex D, for the header of JPEG XL; 18181-2 for its boxes.
"""

from __future__ import annotations

from typing import IO, Any, Final

from PIL import Image

from bigr_repr.images.deferred import DeferredImage

_RATIOS: Final = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}  # width, height
_WIDTHS: Final = (9, 13, 18, 30)  # bits of a size, by selector
_HEADER: Final = 64  # bytes; ten of them are used


def open_jxl(file: IO[bytes], filename: str) -> Image.Image:
    """The picture in a JPEG XL file; only its header is read.  Raises ImportError without pillow-jxl-plugin.

    EXIF orientation applies only to files that contain a recompressed JPEG file.
    """
    from pillow_jxl.JpegXLImagePlugin import JXLImageFile

    def decode() -> Image.Image:
        try:
            image: Any = JXLImageFile(file, filename)
        except RuntimeError as error:  # it gives no details
            raise OSError("JPEG XL data is damaged or truncated") from error
        if not image.jpeg:
            image.info.pop("exif", None)
        return image  # type: ignore[no-any-return]

    size = _size_of(_code_stream(file))
    file.seek(0)
    return DeferredImage("JXL", size, decode)


def open_heif(file: IO[bytes], filename: str) -> Image.Image:
    """The picture in a HEIC or HEIF file; only its header is read.  Raises ImportError without pillow-heif."""
    import pillow_heif

    plugin: Any = pillow_heif  # its calls are not annotated
    image: Image.Image = plugin.HeifImageFile(file, filename)
    return image


def _code_stream(file: IO[bytes]) -> bytes:
    """The first bytes of a code stream, in boxes or bare.  Raises OSError if there are none."""
    start = file.read(_HEADER)
    if start.startswith(b"\xff\x0a"):
        return start
    at = 0
    while True:
        file.seek(at)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4]), head[4:8]
        skipped = 16 if length == 1 else 8
        if length == 1:
            length = int.from_bytes(head[8:16])
        if kind in (b"jxlc", b"jxlp"):
            file.seek(at + skipped + (4 if kind == b"jxlp" else 0))
            return file.read(_HEADER)
        if length < skipped:  # 0: up to the end of the file, which then has no picture
            raise OSError("file is truncated")
        at += length


def _size_of(stream: bytes) -> tuple[int, int]:
    bits, place = int.from_bytes(stream[2:], "little"), 0
    if not stream.startswith(b"\xff\x0a") or len(stream) < 12:
        raise OSError("file is truncated")

    def read(count: int) -> int:
        nonlocal place
        place += count
        return (bits >> (place - count)) & ((1 << count) - 1)

    def side(small: int) -> int:
        return 8 * (read(5) + 1) if small else 1 + read(_WIDTHS[read(2)])

    small = read(1)
    height = side(small)
    ratio = read(3)
    if not ratio:
        return side(small), height
    across, down = _RATIOS[ratio]
    return height * across // down, height
