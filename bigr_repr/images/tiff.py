"""TIFF files as opened by Pillow, with its bugs worked around. Knows nothing of colors.

Three faults of Pillow's plug-in are corrected in the tasks it sets up for its decoders: samples that libtiff has
already converted to native byte order are not swapped again; planes of more than 8 bits go through libtiff, because the
plug-in's own reader of planes treats every sample as a byte; and the first full-size page is taken.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import IO, Final, Literal

import PIL
from PIL import ImageFile, TiffImagePlugin

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PLANES, _EXTRA, _PAGE_KIND = 256, 257, 258, 259, 284, 338, 254
_SUBIMAGES: Final = 330
_THUMBNAIL: Final = 1  # the bit of NewSubfileType that marks a page of reduced resolution
_PAGES: Final = 100  # searched for a full-size picture
_NAMED_CODEC: Final = ("raw",) if int(PIL.__version__.partition(".")[0]) < 13 else ()  # an argument until Pillow 12
_ORDERED: Final = re.compile(r";(16|32|64)[BL]?(S?F?)$")
_CODECS: Final = {
    33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 34887: "LERC", 34892: "lossy DNG JPEG", 34933: "PNG",
    34934: "JPEG XR", 22610: "JPEG XR", 50001: "WebP", 34927: "WebP", 50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip


def open_tiff(file: IO[bytes], filename: str) -> ImageFile.ImageFile:
    """The first full-size picture of a TIFF file, its pixels not read yet.

    Raises what Pillow raises, and OSError that names an unsupported compression.
    """
    start = file.read(4)
    file.seek(0)
    if start == b"MM\0+":
        raise OSError("big-endian BigTIFF is not supported")
    try:
        image = _full(TiffImagePlugin.TiffImageFile(file, filename), file, filename)
    except SyntaxError as error:  # Pillow reports only the number of an unknown compression
        codec = str(error)
        if not codec.isdecimal():
            raise
        raise _unsupported(_CODECS.get(int(codec), f"compression {codec}")) from error
    if image.tag_v2.get(_COMPRESSION) in (34927, 50001):  # in Pillow's list, but not in its bundled libtiff
        raise _unsupported("WebP")
    _mend(image)
    return image


def _full(image: TiffImagePlugin.TiffImageFile, file: IO[bytes], filename: str) -> TiffImagePlugin.TiffImageFile:
    """The first page that is not a thumbnail, else the first subimage of the first page, else that page."""
    page = 0
    while image.tag_v2.get(_PAGE_KIND, 0) & _THUMBNAIL:
        page += 1
        try:
            if page == _PAGES:
                raise EOFError
            image.seek(page)
        except EOFError:
            image.seek(0)
            return next(_subimages(image, file, filename), image)
    return image


def _subimages(
    image: TiffImagePlugin.TiffImageFile, file: IO[bytes], filename: str
) -> Iterator[TiffImagePlugin.TiffImageFile]:
    """Full-size pictures that the first page points to, each opened as if it were the first page."""
    file.seek(0)
    data = file.read()
    big = data.startswith(b"II+\0")
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    offsets = _big_pointers(data) if big else image.tag_v2.get(_SUBIMAGES, ())
    start, size = (8, 8) if big else (4, 4)
    for offset in ((offsets,) if isinstance(offsets, int) else offsets)[:_PAGES]:
        pointed = data[:start] + offset.to_bytes(size, order) + data[start + size :]
        found = TiffImagePlugin.TiffImageFile(io.BytesIO(pointed), filename)
        if not found.tag_v2.get(_PAGE_KIND, 0) & _THUMBNAIL:
            yield found


def _big_pointers(data: bytes) -> tuple[int, ...]:
    """Offsets of the subimages of a BigTIFF file's first page: Pillow ignores their number type."""

    def number(at: int, size: int = 8) -> int:
        return int.from_bytes(data[at : at + size], "little")

    page = number(8)
    for entry in range(page + 8, page + 8 + 20 * min(number(page), 1000), 20):
        if number(entry, 2) == _SUBIMAGES:
            count = min(number(entry + 4), _PAGES)
            place = entry + 12 if count == 1 else number(entry + 12)
            return tuple(number(place + 8 * index) for index in range(count))
    return ()


def _unsupported(codec: str) -> OSError:
    return OSError(f"TIFF with {codec} inside is not supported")


def _mend(image: TiffImagePlugin.TiffImageFile) -> None:
    """Correct how the pixels are to be read."""
    tags = image.tag_v2
    box = (0, 0, tags[_WIDTH], tags[_HEIGHT])  # image.size is that of the picture after rotation
    if image.tile and image.tile[0].codec_name == "libtiff":
        rawmode, *rest = tuple(image.tile[0].args or ())
        image.tile = [ImageFile._Tile("libtiff", box, 0, (_ORDERED.sub(r";\1N\2", rawmode), *rest))]
    elif image.tile and tags.get(_PLANES) == 2 and len(image.tile) > 1 and max(tags.get(_BITS, (1,))) > 8:
        image.use_load_libtiff = True
        rawmode = f"{_interleaved(image)};16N"
        image.tile = [ImageFile._Tile("libtiff", box, 0, (rawmode, *_NAMED_CODEC, False, tags.offset))]


def _interleaved(image: TiffImagePlugin.TiffImageFile) -> str:
    """The raw mode of the samples after libtiff has interleaved the planes."""
    if image.mode == "RGBA" and image.tag_v2.get(_EXTRA, (2,))[0] == 1:
        return "RGBa"  # premultiplied alpha
    return "RGBX" if image.mode == "RGB" and len(image.tag_v2[_BITS]) == 4 else image.mode
