"""TIFF files as Pillow opens them, with what it gets wrong set right. Knows nothing of colors.

Three faults of Pillow's plug-in are mended where it lays out what its decoders are to do: samples that libtiff has
brought into the machine's byte order are not swapped once more; planes of more than 8 bits go through libtiff, for the
plug-in's own reader of planes takes every sample for a byte; and of the pages the first full picture is taken.
"""

from __future__ import annotations

import re
from typing import IO, Final

from PIL import ImageFile, TiffImagePlugin

_BITS, _COMPRESSION, _PLANES, _EXTRA, _PAGE_KIND = 258, 259, 284, 338, 254
_THUMBNAIL: Final = 1  # the bit of NewSubfileType that marks a page of reduced resolution
_ORDERED: Final = re.compile(r";(16|32|64)[BL]?(S?F?)$")
_CODECS: Final = {
    33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 34887: "LERC", 34892: "lossy DNG JPEG", 34933: "PNG",
    34934: "JPEG XR", 22610: "JPEG XR", 50001: "WebP", 34927: "WebP", 50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip


def open_tiff(file: IO[bytes], filename: str) -> ImageFile.ImageFile:
    """The first full picture of a TIFF file, its pixels not read yet.

    Raises what Pillow raises, and OSError that names a compression that is not supported.
    """
    start = file.read(4)
    file.seek(0)
    if start == b"MM\0+":
        raise OSError("big-endian BigTIFF is not supported")
    try:
        image = TiffImagePlugin.TiffImageFile(file, filename)
    except SyntaxError as error:  # Pillow says no more than the number of a compression that it does not know
        codec = str(error)
        if not codec.isdecimal():
            raise
        raise _unsupported(_CODECS.get(int(codec), f"compression {codec}")) from error
    page = 0
    while image.tag_v2.get(_PAGE_KIND, 0) & _THUMBNAIL:
        page += 1
        try:
            image.seek(page)
        except EOFError:
            image.seek(0)
            break
    if image.tag_v2.get(_COMPRESSION) in (34927, 50001):  # in Pillow's list, but not in the libtiff that it ships
        raise _unsupported("WebP")
    _mend(image)
    return image


def _unsupported(codec: str) -> OSError:
    return OSError(f"TIFF with {codec} inside is not supported")


def _mend(image: TiffImagePlugin.TiffImageFile) -> None:
    """Set right how the pixels are to be read."""
    tags = image.tag_v2
    box = (0, 0, *image.size)
    if image.tile and image.tile[0].codec_name == "libtiff":
        rawmode, *rest = tuple(image.tile[0].args or ())
        image.tile = [ImageFile._Tile("libtiff", box, 0, (_ORDERED.sub(r";\1N\2", rawmode), *rest))]
    elif image.tile and tags.get(_PLANES) == 2 and len(image.tile) > 1 and max(tags.get(_BITS, (1,))) > 8:
        image.use_load_libtiff = True
        rawmode = f"{_interleaved(image)};16N"
        image.tile = [ImageFile._Tile("libtiff", box, 0, (rawmode, "raw", False, tags.offset))]


def _interleaved(image: TiffImagePlugin.TiffImageFile) -> str:
    """The raw mode of the samples when libtiff has put the planes together."""
    if image.mode == "RGBA" and image.tag_v2.get(_EXTRA, (2,))[0] == 1:
        return "RGBa"  # colors are multiplied by opacity
    return "RGBX" if image.mode == "RGB" and len(image.tag_v2[_BITS]) == 4 else image.mode
