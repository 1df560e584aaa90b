"""Pictures as other tools write them: each must give the pixels that its author meant, or a failure that says why not.

Pixels are compared with decoders that share no code with ours: OpenCV and tifffile.
"""

from __future__ import annotations

import asyncio
import base64
import io
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from struct import pack
from typing import Any
from zlib import compress, crc32

import cv2
import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin
from tiny_model import picture, tiny_model

from bigr_repr.embed import embed_images
from bigr_repr.features.extract import extract_features
from bigr_repr.images import jpeg2000
from bigr_repr.images.color import to_srgb
from bigr_repr.images.decode import as_rgb, decode_image
from bigr_repr.images.formats import ImageError
from bigr_repr.images.metadata import without_metadata
from bigr_repr.retrieval import build_index
from bigr_repr.retrieval.search import search_images
from bigr_repr.serve.service import Service

Array = NDArray[Any]
RAMP = (np.add.outer(np.arange(64) * 500, np.arange(64) * 520)[..., None] * [1.0, 0.5, 0.8]).astype(np.uint16)
OPAQUE = np.full((64, 64, 1), 65535, np.uint16)


def decoded(data: bytes, **options: Any) -> Array:
    return np.asarray(decode_image(data, **options)).astype(int)


def same(data: bytes, wanted: Array, tolerance: int = 0) -> bool:
    """Whether a picture decodes to what an independent decoder made of it, gray or color."""
    wanted = wanted[..., None] if wanted.ndim == 2 else wanted
    return bool(np.abs(decoded(data) - wanted.astype(int)).max() <= tolerance)


def by_opencv(data: bytes) -> Array:
    """Pixels by OpenCV, gray or RGB, as deep as the file is."""
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return found if found.ndim == 2 else found[..., 2::-1]


def tiff(array: Array, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


# ---- silently wrong pixels: JPEG 2000 of more than 8 bits


@pytest.mark.parametrize(
    "array",
    [
        np.full((64, 64, 3), 65535, np.uint16),
        RAMP,
        np.dstack([RAMP, OPAQUE]),
        RAMP[..., 0],
        np.full((64, 64), 65535, "u2"),
    ],
    ids=["white", "ramp", "opaque", "gray", "white-gray"],
)
def test_jpeg2000_of_16_bits_does_not_wrap(array: Array) -> None:
    data = cv2.imencode(".jp2", array)[1].tobytes()
    assert same(data, by_opencv(data) / 257, tolerance=1)  # high bytes, or rounded
    assert np.array_equal(np.asarray(as_rgb(Image.open(io.BytesIO(data)))), decoded(data))


def test_deep_jpeg2000_is_refused_where_nothing_decodes_it_right(monkeypatch: pytest.MonkeyPatch) -> None:
    data = cv2.imencode(".jp2", RAMP)[1].tobytes()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImageError, match=r"pip install opencv") as caught:
        decode_image(data)
    assert caught.value.kind == "unsupported"


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_deep_jpeg2000_by_another_encoder_is_right_or_refused(channels: int) -> None:
    array = np.full((64, 64, channels), 65535, np.uint16)
    array[:32, :, : channels - (channels != 3)] = 20000
    data = pytest.importorskip("imagecodecs").jpeg2k_encode(array, level=0)
    if channels == 2:  # gray with opacity, which OpenCV does not read
        with pytest.raises(ImageError, match="2 channels of more than 8 bits") as caught:
            decode_image(data)
        assert caught.value.kind == "unsupported"
    else:
        assert same(data, array[..., :3] >> 8)


def test_jpeg2000_with_channels_of_different_depth_is_refused() -> None:
    data = bytearray(cv2.imencode(".jp2", np.dstack([RAMP, OPAQUE]))[1].tobytes())
    data[data.index(b"\xff\x51") + 4 + 36 + 3 * 3] = 7  # of alpha, which then would come out transparent
    with pytest.raises(ImageError, match="channels of 8 to 16 bits") as caught:
        decode_image(bytes(data))
    assert caught.value.kind == "unsupported"


# ---- TIFF: byte order, planes, thumbnails


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("kind", ["f4", "i4", "i2", "u2", "u1"])
def test_tiff_in_either_byte_order(kind: str, compression: str | None, order: str) -> None:
    values = np.linspace(0, 1, 4096).reshape(64, 64) * {"f4": 1, "i4": 60000, "i2": 32767, "u2": 65535, "u1": 255}[kind]
    data = tiff(values.astype(kind), byteorder=order, compression=compression, photometric="minisblack")
    known = tifffile.imread(io.BytesIO(data)).astype(float)
    full = {"f4": 1, "i4": 65535, "i2": 65535, "u2": 65535, "u1": 255}[kind]  # the scales that decode_image states
    assert same(data, np.rint(known * 255 / full), tolerance=1)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("layout", [{}, {"tile": (16, 16)}, {"rowsperstrip": 8}, {"compression": "zlib"}], ids=str)
@pytest.mark.parametrize("kind", ["rgb", "rgba", "premultiplied", "separated"])
def test_planes_of_16_bits(kind: str, layout: dict[str, Any], order: str) -> None:
    planes = np.moveaxis(RAMP, -1, 0)
    more: dict[str, Any] = {"photometric": "separated" if kind == "separated" else "rgb"}
    if kind == "separated":
        planes = np.concatenate([planes, 0 * planes[:1]])
    elif kind != "rgb":
        planes = np.concatenate([planes, OPAQUE[None, ..., 0]])
        more["extrasamples"] = ["assocalpha" if kind == "premultiplied" else "unassalpha"]
    data = tiff(planes, planarconfig="separate", byteorder=order, **more, **layout)
    known = tifffile.imread(io.BytesIO(data))[:3]
    wanted = np.moveaxis(known, 0, -1) >> 8
    assert same(data, 255 - wanted if kind == "separated" else wanted, tolerance=1)


def test_columns_of_an_uncompressed_planar_tiff() -> None:
    planes = np.zeros((3, 64, 64), np.uint16)
    planes[:] = np.arange(64) * 1000
    found = decoded(tiff(planes, photometric="rgb", planarconfig="separate"))
    assert (found[:, 32] == 125).all()
    assert (found[:, 63] == 63000 >> 8).all()
    one = tiff(np.moveaxis(planes, 0, -1).copy(), photometric="rgb", planarconfig="contig")
    assert np.array_equal(found, decoded(one))


def test_of_a_tiff_with_a_thumbnail_first_the_full_picture_is_taken() -> None:
    full = np.asarray(picture(1))
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(full[::4, ::4].copy(), photometric="rgb", subfiletype=1)
        writer.write(full, photometric="rgb")
    assert same(file.getvalue(), full)
    assert same(tiff(full, photometric="rgb", subfiletype=1), full)  # there is no other
    for order, big in (("<", False), (">", False), ("<", True)):
        file = io.BytesIO()
        with tifffile.TiffWriter(file, byteorder=order, bigtiff=big) as writer:  # as cameras arrange it
            writer.write(full[::4, ::4].copy(), photometric="rgb", subfiletype=1, subifds=2)
            writer.write(full[::2, ::2].copy(), photometric="rgb", subfiletype=1)
            writer.write(full, photometric="rgb", compression="zlib")
        assert same(file.getvalue(), full)


TURNS: dict[int, Callable[[Array], Array]] = {
    2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: np.rot90,
}  # fmt: skip


@pytest.mark.parametrize(
    "layout", [{}, {"compression": "zlib"}, {"planarconfig": "separate"}, {"tile": (16, 16)}], ids=str
)
@pytest.mark.parametrize("turn", TURNS)
def test_a_tiff_is_turned_whatever_its_layout(turn: int, layout: dict[str, Any]) -> None:
    pixels = np.asarray(picture(2, 48, 32))
    deep = (pixels.astype(np.uint16) << 8) if "planarconfig" in layout else pixels
    array = np.moveaxis(deep, -1, 0) if "planarconfig" in layout else deep
    data = tiff(array, photometric="rgb", extratags=[(274, "H", 1, turn, True)], metadata=None, **layout)
    assert same(data, TURNS[turn](pixels))


# ---- forms of formats that are rare


def test_gray_of_16_bits_is_read_whole_when_it_is_large() -> None:
    deep = np.linspace(0, 65535, 1100 * 1000).reshape(1100, 1000).astype(np.uint16)
    file = io.BytesIO()
    Image.fromarray(deep).save(file, "PNG")
    found = decoded(file.getvalue())
    assert found.shape == (1100, 1000, 3)
    assert np.abs(found[..., 0] - deep / 257).max() <= 1


def test_a_bitmap_without_its_file_header_is_read() -> None:
    data = saved(picture(3), "BMP")
    assert same(data, np.asarray(picture(3)))
    assert same(data[14:], np.asarray(picture(3)))


@pytest.mark.parametrize("upward", [True, False])
@pytest.mark.parametrize(
    "masks",
    [(0xF800, 0x07E0, 0x001F), (0x0300, 0x7000, 0x0001), (0xFF000000, 0xFF00, 0xFF0000), (0x3FF, 0xFFC00, 0x3FF00000)],
    ids=str,
)
def test_bitmaps_with_colors_at_any_place(masks: tuple[int, ...], upward: bool) -> None:
    wide = max(masks) > 0xFFFF
    pixels = np.random.default_rng(0).integers(0, 2**32 if wide else 2**16, (5, 7), dtype=np.uint64)
    rows = pixels[::-1] if upward else pixels
    body = b"".join(row.tobytes().ljust(28 if wide else 16, b"\0") for row in rows.astype("<u4" if wide else "<u2"))
    head = pack("<IiiHHIIiiII", 40, 7, 5 if upward else -5, 1, 32 if wide else 16, 3, 0, 0, 0, 0, 0) + pack(
        "<3I", *masks
    )
    data = b"BM" + pack("<IHHI", 0, 0, 0, 14 + len(head)) + head + body
    wanted = [np.rint((pixels & mask) * 255.0 / mask) for mask in masks]
    assert same(data, np.dstack(wanted), tolerance=1)
    if wide:  # which Pillow does not know
        with pytest.raises(ImageError) as caught:
            decode_image(data[:-9])
        assert caught.value.kind == "truncated"


@pytest.mark.parametrize("kind", ["P1", "P2", "P3"])
def test_pnm_in_plain_text_is_read(kind: str) -> None:
    pixels = np.asarray(picture(3, 6, 4))
    values = {"P1": (pixels[..., 0] > 127).astype(int), "P2": pixels[..., 0], "P3": pixels}[kind]
    head = f"{kind}\n# words\n6 4\n" + ("" if kind == "P1" else "255\n")
    data = (head + " ".join(map(str, values.ravel().tolist())) + "\n").encode()
    assert same(data, (1 - values) * 255 if kind == "P1" else values)
    with pytest.raises(ImageError) as caught:
        decode_image(data[:-9])
    assert caught.value.kind == "truncated"


# ---- one picture, whether it comes as a file or opened


def png(array: Array, depth: int, color: int, *chunks: bytes) -> bytes:
    rows = b"".join(b"\0" + row.tobytes() for row in array)
    header = ck(b"IHDR", pack(">IIBBBBB", 8, len(array), depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + ck(b"IDAT", compress(rows)) + ck(b"IEND", b"")


def ck(kind: bytes, body: bytes, wrong: int = 0) -> bytes:
    return pack(">I", len(body)) + kind + body + pack(">I", crc32(kind + body) ^ wrong)


@pytest.mark.parametrize(
    ("depth", "color", "key"),
    [(1, 0, [1]), (2, 0, [2]), (4, 0, [5]), (16, 0, [0x1234]), (16, 2, [0x1234] * 3)],
)
def test_an_opened_picture_is_what_its_file_is(depth: int, color: int, key: list[int]) -> None:
    samples = np.arange(32).reshape(4, 8) * (2**depth - 1) // 31
    samples[0, :4] = key[0]
    wide = np.repeat(samples, len(key), axis=1)
    if depth == 16:
        rows: Array = wide.astype(">u2").view(np.uint8)
    else:
        bits = (wide[..., None] >> np.arange(depth - 1, -1, -1)) & 1
        rows = np.packbits(bits.reshape(4, -1).astype(np.uint8), axis=1)
    data = png(rows, depth, color, ck(b"tRNS", pack(f">{len(key)}H", *key)))
    wanted = np.where(samples == key[0], 255, np.rint(samples * 255 / (2**depth - 1)))  # transparent over white
    assert same(data, wanted, tolerance=1)
    opened = Image.open(io.BytesIO(data))
    assert np.array_equal(np.asarray(as_rgb(opened)), decoded(data))
    assert np.array_equal(np.asarray(as_rgb(opened)), decoded(data))  # as often as one likes


# ---- metadata that is damaged, oversized or unknown

PICTURE = picture(0, 64, 48)
file = io.BytesIO()
PICTURE.save(file, "PNG")
PNG = file.getvalue()
JPEG = cv2.imencode(".jpg", np.asarray(PICTURE)[..., ::-1])[1].tobytes()
BIG = bytes(1_100_000)
TURNED = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x03\0\0\0\0\0\0\0"  # EXIF: orientation 3, upside down
MPF = b"MPF\0II*\0\x08\0\0\0\x02\0\x00\xb0\x07\0\x04\0\0\0000100\x01\xb0\x04\0\x01\0\0\0\x63\0\0\0\0\0\0\0"
PNG_CHUNKS = {
    "text over the limit, packed": ck(b"zTXt", b"k\0\0" + compress(BIG)),
    "text over the limit": ck(b"tEXt", b"k\0" + b"a" * len(BIG)),
    "international text over the limit": ck(b"iTXt", b"k\0\1\0\0\0" + compress(BIG)),
    "profile over the limit": ck(b"iCCP", b"k\0\0" + compress(BIG)),
    "text with a wrong checksum": ck(b"tEXt", b"k\0a", 1),
    "time with a wrong checksum": ck(b"tIME", bytes(7), 1),
    "gamma with a wrong checksum": ck(b"gAMA", pack(">I", 45455), 1),
    "private with a wrong checksum": ck(b"prVt", b"x", 1),
    "EXIF with a wrong checksum": ck(b"eXIf", TURNED, 1),
    "profile with a wrong checksum": ck(b"iCCP", b"k\0\0" + compress(b"x"), 1),
    "empty sRGB": ck(b"sRGB", b""),
    "empty gAMA": ck(b"gAMA", b""),
    "short gAMA": ck(b"gAMA", b"ab"),
    "short cHRM": ck(b"cHRM", b"abc"),
    "empty pHYs": ck(b"pHYs", b""),
    "short pHYs": ck(b"pHYs", b"\0"),
    "empty acTL": ck(b"acTL", b""),
    "short acTL": ck(b"acTL", b"abc"),
    "unknown compression of text": ck(b"zTXt", b"k\0\7abc"),
    "unknown compression of a profile": ck(b"iCCP", b"k\0\7abc"),
    "text that does not unpack": ck(b"zTXt", b"k\0\0garbage"),
    "EXIF of one byte": ck(b"eXIf", b"x"),
}


def seg(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + pack(">H", len(body) + 2) + body


JPEG_SEGMENTS = {
    "empty APP0": seg(0xE0, b""),
    "APP0 that ends after its name": seg(0xE0, b"JFIF\0"),
    "short APP0": seg(0xE0, b"JFIF\0\1"),
    "APP2 that ends after its name": seg(0xE2, b"ICC_PROFILE\0"),
    "short APP2": seg(0xE2, b"ICC_PROFILE\0\1"),
    "APP14 that ends after its name": seg(0xEE, b"Adobe"),
    "short APP14": seg(0xEE, b"Adobe\0\x64"),
    "short APP1": seg(0xE1, b"Exif\0\0"),
    "APP1 that points nowhere": seg(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff"),
    "short APP13": seg(0xED, b"Photoshop 3.0\0008BIM"),
    "empty comment": seg(0xFE, b""),
    "index of more pictures than there are": seg(0xE2, MPF),
}


@pytest.mark.parametrize("where", ["first", "last"])
@pytest.mark.parametrize("chunk", PNG_CHUNKS.values(), ids=PNG_CHUNKS)
def test_damaged_metadata_of_a_png_is_no_damage(chunk: bytes, where: str) -> None:
    if chunk == PNG_CHUNKS["EXIF with a wrong checksum"] and where == "last":
        pytest.skip("what follows the pixels is read without regard to its checksum, and here its content is whole")
    place = 33 if where == "first" else len(PNG) - 12
    data = PNG[:place] + chunk + PNG[place:]
    assert same(data, by_opencv(PNG))


@pytest.mark.parametrize("segment", JPEG_SEGMENTS.values(), ids=JPEG_SEGMENTS)
def test_damaged_metadata_of_a_jpeg_is_no_damage(segment: bytes) -> None:
    data = JPEG[:2] + segment + JPEG[2:]
    assert same(data, by_opencv(JPEG), tolerance=2)
    assert np.array_equal(decoded(data), decoded(JPEG))


def test_what_tells_pixels_stays_when_other_metadata_is_set_aside() -> None:
    upside_down = np.asarray(PICTURE)[::-1, ::-1]
    turned = PNG[:33] + ck(b"eXIf", TURNED) + ck(b"tEXt", b"x", 1) + PNG[33:]
    assert same(turned, upside_down)
    assert np.array_equal(
        decoded(JPEG[:2] + seg(0xE1, b"Exif\0\0" + TURNED) + seg(0xEE, b"Adobe") + JPEG[2:]), decoded(JPEG)[::-1, ::-1]
    )
    clear = PNG[:33] + ck(b"tRNS", pack(">3H", *np.asarray(PICTURE)[0, 0])) + ck(b"gAMA", b"") + PNG[33:]
    assert (decoded(clear)[0, 0] == 255).all()
    for damaged in (ck(b"tRNS", bytes(6), 1), ck(b"tRNS", b"x")):  # without it nobody knows the pixels
        with pytest.raises(ImageError) as caught:
            decode_image(PNG[:33] + damaged + PNG[33:])
        assert caught.value.kind == "corrupt"


def test_a_png_that_lacks_no_more_than_its_end_mark_is_whole() -> None:
    for missing in range(1, 13):
        assert same(PNG[:-missing], by_opencv(PNG))
    for missing in (30, 60):
        with pytest.raises(ImageError) as caught:
            decode_image(PNG[:-missing])
        assert caught.value.kind == "truncated"


@pytest.mark.slow
def test_a_million_blocks_of_metadata_do_not_fill_memory() -> None:
    chunks = ck(b"tEXt", b"", 1) * 300_000
    data = PNG[:33] + chunks + PNG[33:]
    tracemalloc.start()
    try:
        with pytest.raises(ImageError):
            decode_image(data)
        assert tracemalloc.get_traced_memory()[1] < 30 * len(data)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("boxed", [True, False])
def test_bytes_after_the_end_of_jpeg2000_are_passed_over(boxed: bool) -> None:
    file = io.BytesIO()
    PICTURE.save(file, "JPEG2000", no_jp2=not boxed, tile_size=(32, 32))
    data = file.getvalue()
    for tail in (b"", b"\0", b"\xff", b"trailing" * 9, data):
        assert same(data + tail, np.asarray(PICTURE))
    for cut in (1, 2, 100):
        with pytest.raises(ImageError) as caught:
            decode_image(data[:-cut])
        assert caught.value.kind == "truncated"


# ---- words that fit


def _later(name: str, *arguments: Any, **options: Any) -> Callable[[], bytes]:
    def encode() -> bytes:
        codecs = pytest.importorskip("imagecodecs")
        data: bytes = getattr(codecs, name)(*arguments, **options)
        return data

    return encode


EIGHT = (RAMP >> 8).astype(np.uint8)


@pytest.mark.parametrize(
    ("encode", "words"),
    [
        *((lambda c=c: tiff(EIGHT, photometric="rgb", compression=c), word) for c, word in [
            ("jpegxl", "JPEG XL"), ("jpeg2000", "JPEG 2000"), ("webp", "WebP"), ("lerc", "LERC"), ("png", "PNG"),
            ("jpegxr", "JPEG XR"),
        ]),
        (lambda: tiff(EIGHT, bigtiff=True, byteorder=">", photometric="rgb"), "big-endian BigTIFF"),
        (_later("jpeg_encode", RAMP[..., 0] >> 4, bitspersample=12), "12-bit"),
        (_later("jpegls_encode", EIGHT), "JPEG-LS"),
        (_later("jpegxl_encode", EIGHT), "JPEG XL .* pip install pillow-jxl-plugin"),
        (lambda: b"\0\0\0\x18ftypheic" + bytes(99), "HEIC .* pip install pillow-heif"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_cannot_be_decoded_is_named(
    encode: Callable[[], bytes], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("imagecodecs")
    for package in ("pillow_heif", "pillow_jxl", "pillow_jxl.JpegXLImagePlugin"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImageError, match=words) as caught:
        decode_image(encode(), name="x")
    assert caught.value.kind == "unsupported"


@pytest.mark.parametrize("data", [PNG, JPEG], ids=["png", "jpeg"])
def test_truncated_is_said_where_bytes_are_missing_and_only_there(data: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(data[: len(data) // 2])
    assert caught.value.kind == "truncated"
    header = b"IHDR" if data is PNG else b"\xff\xc0"
    place = data.index(header) + (4 if data is PNG else 5)
    wrong = data[:place] + b"\0\0\1\0" + data[place + 4 :]  # more rows or columns than the data has
    with pytest.raises(ImageError) as caught:
        decode_image(wrong)
    assert caught.value.kind == "corrupt"


# ---- color


# XYZ of the primaries under D50, and the exponent of the curve, as in the published specifications.
PROFILES = {
    "Display P3": ([(0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)], 2.2),
    "Adobe RGB": ([(0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446)], 2.2),
    "ProPhoto": ([(0.7977, 0.2880, 0.0), (0.1352, 0.7119, 0.0), (0.0313, 0.0001, 0.8249)], 1.8),
}
SRGB = np.array([(0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)]).T


def icc(primaries: list[tuple[float, float, float]] | None, gamma: float) -> bytes:
    """An ICC profile, version 2, of a matrix and a curve, or of only a curve for gray.  Source: ICC.1:2001-04."""

    def xyz(values: tuple[float, float, float]) -> bytes:
        return b"XYZ \0\0\0\0" + pack(">3i", *(round(value * 65536) for value in values))

    curve = b"curv\0\0\0\0" + pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = {b"desc": b"desc\0\0\0\0\0\0\0\2x\0" + bytes(79), b"wtpt": xyz((0.9642, 1.0, 0.8249))}
    if primaries is None:
        tags[b"kTRC"] = curve
    else:
        tags |= {name + b"XYZ": xyz(values) for name, values in zip((b"r", b"g", b"b"), primaries, strict=True)}
        tags |= {name + b"TRC": curve for name in (b"r", b"g", b"b")}
    body, table, start = b"", pack(">I", len(tags)), 132 + 12 * len(tags)
    for name, content in tags.items():
        table += name + pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    kind = b"GRAY" if primaries is None else b"RGB "
    head = pack(">I4sI4s4s4s", start + len(body), b"\0" * 4, 0x02100000, b"mntr", kind, b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + pack(">3i", 63190, 65536, 54061) + bytes(48)
    return head[:128] + table + body


def in_srgb(pixels: Array, primaries: list[tuple[float, float, float]], gamma: float) -> Array:
    """What pixels of such a profile are in sRGB, by the formulas of both."""
    linear = (pixels / 255.0) ** gamma @ np.array(primaries) @ np.linalg.inv(SRGB).T
    linear = linear.clip(0, 1)
    coded = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(coded * 255))


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_converted_to_srgb(name: str, format: str) -> None:
    primaries, gamma = PROFILES[name]
    data = saved(PICTURE, format, icc_profile=icc(primaries, gamma))
    wanted = in_srgb(np.asarray(PICTURE), primaries, gamma)
    assert np.abs(decoded(data) - wanted).max() <= 4
    assert np.abs(decoded(data) - wanted).mean() < 0.6
    assert np.abs(decoded(data) - np.asarray(PICTURE)).mean() > 2
    assert np.array_equal(decoded(data, icc="ignore"), np.asarray(PICTURE))
    assert np.array_equal(np.asarray(as_rgb(Image.open(io.BytesIO(data)))), decoded(data))
    for choice in ("convert", "ignore"):  # once, or never
        image = decode_image(data, icc=choice)
        assert np.array_equal(np.asarray(as_rgb(image)), np.asarray(image))
    with pytest.raises(ValueError, match="icc='maybe' is unknown; choose one of convert, ignore"):
        decode_image(data, icc="maybe")


def test_a_gray_profile_is_converted_to_srgb() -> None:
    gray = PICTURE.convert("L")
    wanted = in_srgb(np.repeat(np.asarray(gray)[..., None], 3, 2), [tuple(row) for row in SRGB.T.tolist()], 1.0)
    assert np.abs(decoded(saved(gray, "PNG", icc_profile=icc(None, 1.0))) - wanted).max() <= 2
    rgb = saved(PICTURE, "TIFF", icc_profile=icc(None, 1.0))  # a profile of other pixels tells nothing
    assert np.array_equal(decoded(rgb), np.asarray(PICTURE))


def test_a_profile_that_is_srgb_or_damaged_changes_no_bit() -> None:
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (own, b"", b"x", own[:100], own[:-300], bytes(len(own)), icc(None, 2.2)[:140]):
        assert to_srgb(profile) is None
        assert np.array_equal(decoded(saved(PICTURE, "PNG", icc_profile=profile)), np.asarray(PICTURE))


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["convert", "ignore"])
def test_queries_treat_profiles_as_their_index_does(choice: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    profile = icc(*PROFILES["ProPhoto"])
    for number in range(3):
        (tmp_path / "photos" / f"{number}.png").write_bytes(saved(picture(number), "PNG", icc_profile=profile))
    model, query = tiny_model(), tmp_path / "photos" / "1.png"
    embed_images(tmp_path / "photos", tmp_path / "data", model=model, layers=[2], codes=True, icc=choice)
    index = build_index(tmp_path / "data", tmp_path / "index", binarizer="bits")
    assert search_images(index, query, 1, model=model).found.distances.tolist() == [[0]]
    service = Service(model, index=tmp_path / "index")
    try:
        state = service.live.current  # type: ignore[union-attr]
        text = base64.b64encode(query.read_bytes()).decode()
        (encoded,) = asyncio.run(service.queries_of_pictures([text], state))
        assert encoded.code.tobytes() == index.rows.codes[1].tobytes()
        other = {"convert": "ignore", "ignore": "convert"}[choice]
        embed_images(tmp_path / "photos", tmp_path / "other", model=model, layers=[2], codes=True, icc=other)
        with pytest.raises(ValueError, match="handles color profiles differently"):
            service._check_index(build_index(tmp_path / "other", tmp_path / "other-index", binarizer="bits"))
    finally:
        service.close()


# ---- pictures in memory


def test_numbers_of_any_kind_are_pixels() -> None:
    shades = np.asarray(PICTURE) > 127
    assert np.array_equal(np.asarray(as_rgb(shades)), shades * 255)
    model = tiny_model()
    for side in (32, 40, 200):
        tensor = torch.rand(3, side, side, generator=torch.Generator().manual_seed(side)).bfloat16()
        found = extract_features(tensor, model=model, layer=2)
        assert np.array_equal(found, extract_features(tensor.float(), model=model, layer=2))
    assert extract_features(torch.rand(2, 3, 48, 48).bfloat16(), model=model, layer=2).shape == (2, 64)


def test_boxes_of_jpeg2000_with_a_long_length_are_walked_over() -> None:
    stream = b"\xff\x4f\xff\x51rest"
    plain = pack(">I4s", 12, b"ftyp") + b"jp2 "
    long = pack(">I4sQ", 1, b"free", 16 + 5) + b"12345"
    for code in (pack(">I4sQ", 1, b"jp2c", 16 + len(stream)), pack(">I4s", 8 + len(stream), b"jp2c")):
        data = plain + long + code + stream
        start, stop = jpeg2000._code_stream(io.BytesIO(data), len(data))
        assert data[start:stop] == stream
    with pytest.raises(OSError, match="truncated"):
        jpeg2000._code_stream(io.BytesIO(plain + long), len(plain + long) - 1)


def test_good_metadata_is_kept_before_all_is_set_aside() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    file = io.BytesIO()
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "a text")
    picture(1, 8, 8).save(file, "PNG", icc_profile=profile, pnginfo=text)
    first, second = without_metadata(file.getvalue())
    assert (b"iCCP" in first, b"tEXt" in first, b"iCCP" in second) == (True, False, False)
    file = io.BytesIO()
    picture(1, 8, 8).save(file, "JPEG", icc_profile=profile)
    adobe = b"\xff\xee" + pack(">H", 14) + b"Adobe" + bytes(7)
    note = b"\xff\xfe" + pack(">H", 6) + b"note"
    data = file.getvalue()[:2] + adobe + note + file.getvalue()[2:]
    first, second = without_metadata(data)
    assert (adobe in first, note in first, b"ICC_PROFILE" in first) == (True, False, True)
    assert (adobe in second, note in second, b"ICC_PROFILE" in second) == (True, False, False)
