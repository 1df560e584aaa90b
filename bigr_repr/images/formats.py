"""Opening image files by their first bytes, with one typed error. Knows nothing of colors, sizes or models.

Magic numbers rather than PIL.Image.open, which would try every plug-in (one starts a PostScript interpreter) and
check the size against a process-wide setting instead of the caller's. Checks that some plug-ins lack are added.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Final, Literal

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    QoiImagePlugin,
    WebPImagePlugin,
)

from bigr_repr.images.bitmap import open_bitmap
from bigr_repr.images.find import one_line
from bigr_repr.images.jpeg2000 import open_jpeg2000
from bigr_repr.images.metadata import is_complete, jpeg_process
from bigr_repr.images.plugins import open_heif, open_jxl
from bigr_repr.images.tiff import open_tiff

ErrorKind = Literal[
    "missing", "unreadable", "empty", "not-an-image", "unsupported", "truncated", "corrupt", "too-large", "timeout",
    "crashed", "unreachable",
]  # fmt: skip


class ImageError(ValueError):
    """A picture that cannot be read. str() is one line: the picture, what is wrong, and the remedy if there is one.

    kind: "missing"      no such file
          "unreadable"   a folder, a pipe, no permission, or the disk failed while reading
          "unreachable"  its store or server did not answer
          "empty"        the file has no bytes
          "not-an-image" the first bytes match no image format
          "unsupported"  an image format, or a variant of one, that this installation cannot decode
          "truncated"    the file ends before the picture does
          "corrupt"      the file contradicts itself
          "too-large"    more pixels than max_pixels, or than fit in memory
          "timeout"      decoding it, in a process, took longer than allowed
          "crashed"      decoding it crashed its process
    """

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(kind, message)  # both in args, so that the error can be pickled between processes
        self.kind: ErrorKind = kind
        self.message = message

    def __str__(self) -> str:
        return self.message


# Pillow's decoders report what went wrong only as text.
_TRUNCATED: Final = re.compile(
    r"truncated|not enough (image )?data|unexpected end|reached eof|end of (file|data)|requires a buffer|but only got"
    r"|incomplete checksum|no more images|index out of range|not enough values"
    r"|insufficient input data|cannot read full|size too small"  # of HEIC
)
_UNSUPPORTED: Final = re.compile(
    r"not (yet )?supported|unsupported|unknown pixel mode|not (available|installed)|cannot handle"
)


@contextmanager
def image_errors(name: str) -> Iterator[None]:
    """Turn whatever Pillow and its decoders raise into an ImageError about the picture named name."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        said = one_line(f"{type(error).__name__}: {error}")[:200]
        if isinstance(error, OSError) and error.errno is not None:
            raise ImageError("unreadable", f"{name}: {error.strerror}") from error
        if isinstance(error, MemoryError):
            raise ImageError("too-large", f"{name}: out of memory; lower max_pixels") from error
        if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
            raise ImageError("too-large", f"{name}: beyond PIL.Image.MAX_IMAGE_PIXELS ({said})") from error
        if _TRUNCATED.search(said.lower()):
            raise ImageError("truncated", f"{name}: ends before the picture does; fetch it again ({said})") from error
        if isinstance(error, ImportError) or _UNSUPPORTED.search(said.lower()):
            remedy = "convert it to JPEG or PNG, or upgrade Pillow"
            raise ImageError("unsupported", f"{name}: cannot be decoded here; {remedy} ({said})") from error
        raise ImageError("corrupt", f"{name}: damaged, or not what its header says ({said})") from error


# JPEG codings that no decoder here can read, by the marker of the frame.
_PROCESSES: Final = {0xC3: "lossless JPEG", 0xF7: "JPEG-LS"} | dict.fromkeys(
    (0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF, 0xCB), "hierarchical or lossless JPEG"
)


def explained(error: ImageError, data: bytes, name: str) -> ImageError:
    """An error about encoded bytes, refined by what the bytes reveal about its cause."""
    if coding := _PROCESSES.get(jpeg_process(data) or 0):
        return ImageError("unsupported", f"{name}: {coding} cannot be decoded; convert it to JPEG or PNG")
    if error.kind == "truncated" and is_complete(data):
        said = error.message.rpartition("fetch it again ")[2]
        return ImageError("corrupt", f"{name}: damaged, or not what its header says {said}")
    return error


# ---- formats


def _open_png(file: IO[bytes], filename: str) -> ImageFile.ImageFile:
    """Correct the transparent color: Pillow scales 2, 4 and 16-bit pixels to 8 bits, but not that color."""
    depth = file.read(25)[-1]
    file.seek(0)
    image = PngImagePlugin.PngImageFile(file, filename)
    key = image.info.get("transparency")
    if image.mode == "L" and isinstance(key, int) and depth in (2, 4):
        image.info["transparency"] = key * 255 // (2**depth - 1)
    elif image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image


def _open_webp(file: IO[bytes], filename: str) -> ImageFile.ImageFile:
    """Detect truncated WebP files, for which Pillow reports only that there is no decoder."""
    stated = 8 + int.from_bytes(file.read(8)[4:], "little")
    if stated > file.seek(0, os.SEEK_END):
        raise OSError("file is truncated")
    file.seek(0)
    return WebPImagePlugin.WebPImageFile(file, filename)


def _open_jpeg(file: IO[bytes], filename: str) -> ImageFile.ImageFile:
    """Take the first picture of an MPO file, so that its index need not be parsed."""
    return JpegImagePlugin.JpegImageFile(file, filename)


_Opener = Callable[[IO[bytes], str], Image.Image]
_FORMATS: Final[tuple[tuple[re.Pattern[bytes], _Opener], ...]] = (
    (re.compile(rb"\xff\xd8\xff"), _open_jpeg),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), _open_png),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), _open_webp),
    (re.compile(rb"GIF8[79]a"), GifImagePlugin.GifImageFile),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), open_tiff),
    (re.compile(rb"BM"), open_bitmap),
    (re.compile(rb"....ftyp(avif|avis|(mif1|msf1).*avif)", re.DOTALL), AvifImagePlugin.AvifImageFile),
    (re.compile(rb"\xffO\xffQ|\0\0\0\x0cjP  \r\n\x87\n"), open_jpeg2000),
    (re.compile(rb"P[1-6f]\s"), PpmImagePlugin.PpmImageFile),
    (re.compile(rb"qoif"), QoiImagePlugin.QoiImageFile),
    (re.compile(rb"[\x28\x34\x38\x40\x6c\x7c]\0\0\0.{8}\x01\0", re.DOTALL), BmpImagePlugin.DibImageFile),
)
_PLUGINS: Final[tuple[tuple[re.Pattern[bytes], str, str, _Opener], ...]] = (
    (re.compile(rb"....ftyp(hei|hev|mif1|msf1)", re.DOTALL), "HEIC", "pillow-heif", open_heif),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "JPEG XL", "pillow-jxl-plugin", open_jxl),
)
_UNREAD: Final[tuple[tuple[re.Pattern[bytes], str], ...]] = (
    (re.compile(rb"8BPS"), "a Photoshop file"),
    (re.compile(rb"P7\s"), "PAM"),
    (re.compile(rb"\s*<svg|%PDF|%!PS"), "a vector graphic or document"),
)
_ARCHIVES: Final[tuple[tuple[re.Pattern[bytes], str], ...]] = (
    (re.compile(rb"PK(?:\x03\x04|\x05\x06)"), "a ZIP archive"),
    (re.compile(rb"\x1f\x8b"), "a gzip archive"),
    (re.compile(rb"7z\xbc\xaf\x27\x1c"), "a 7z archive"),
    (re.compile(rb"Rar!\x1a\x07"), "a RAR archive"),
)
_HEAD: Final = 64  # bytes examined; they include the brands of an AVIF file


def open_image(file: IO[bytes], name: str) -> Image.Image:
    """The picture in an encoded file, of which only the header is read.  Raises anything; see above."""
    head = file.read(_HEAD)
    file.seek(0)
    for magic, opener in _FORMATS:
        if magic.match(head):
            return opener(file, "")  # without a name, so that Pillow does not map the file into memory
    for magic, what, package, opener in _PLUGINS:
        if magic.match(head):
            try:
                return opener(file, "")
            except ImportError as error:
                remedy = f"install it with pip install {package}, or convert the picture to JPEG or PNG"
                said = f"{name}: {what} cannot be decoded without {package}; {remedy}"
                raise ImageError("unsupported", said) from error
    for magic, what in _UNREAD:
        if magic.match(head):
            raise ImageError("unsupported", f"{name}: {what} cannot be decoded; convert it to JPEG or PNG")
    for magic, what in _ARCHIVES:
        if magic.match(head):
            raise ImageError("not-an-image", f"{name}: {what} is not read; unpack it, or pack its pictures as a .tar")
    raise ImageError("not-an-image", f"{name}: its first bytes match no image format that can be decoded")
