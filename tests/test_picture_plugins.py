"""HEIC and JPEG XL by the plug-ins, where they are installed: right pixels, and nothing decoded that is too large."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tiny_model import picture

from bigr_repr.images import plugins
from bigr_repr.images.decode import as_rgb, decode_image
from bigr_repr.images.formats import ImageError, open_image

PICTURE = picture(1, 48, 40)
PIXELS = np.asarray(PICTURE)
UPSIDE_DOWN = Image.Exif()
UPSIDE_DOWN[0x0112] = 3


def decoded(data: bytes, **options: Any) -> NDArray[Any]:
    return np.asarray(decode_image(data, **options)).astype(int)


def same(data: bytes, wanted: NDArray[Any], tolerance: int = 0) -> bool:
    found = decoded(data)
    return found.shape == wanted.shape and bool(np.abs(found - wanted).max() <= tolerance)


def why(data: bytes, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        decode_image(data, **options)
    return caught.value.kind


# ---- JPEG XL


def jxl(array: NDArray[Any], **options: Any) -> bytes:
    pytest.importorskip("pillow_jxl")
    data: bytes = pytest.importorskip("imagecodecs").jpegxl_encode(array, **{"lossless": True, **options})
    return data


@pytest.mark.parametrize("boxed", [True, False])
def test_jpeg_xl_gives_its_pixels(boxed: bool) -> None:
    data = jxl(PIXELS, usecontainer=boxed)
    assert same(data, PIXELS)
    assert same(data + b"trailing", PIXELS)
    assert why(data, max_pixels=48 * 40 - 1) == "too-large"
    for cut in (2, 11):
        assert why(data[:cut]) in ("truncated", "not-an-image")
    for cut in (len(data) // 2, len(data) - 1):
        assert why(data[:cut]) in ("truncated", "corrupt")
    clear = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 255, np.uint8)])
    clear[0, 0, 3] = 0
    assert decoded(jxl(clear))[0, 0].tolist() == [255, 255, 255]
    gray = PIXELS[..., 0].copy()
    assert same(jxl(gray), np.repeat(gray[..., None], 3, 2))
    deep = PIXELS.astype(np.uint16) * 257
    assert np.array_equal(decoded(jxl(deep), icc="ignore"), PIXELS)
    assert not same(jxl(deep), PIXELS, 9)  # its samples are linear, as its profile says
    shades = np.linspace(0, 1, 40 * 48, dtype=np.float32).reshape(40, 48)
    assert np.array_equal(decoded(jxl(shades), icc="ignore")[..., 0], np.rint(shades * 255))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (16, 8), (320, 240), (1000, 7), (7, 1000), (1920, 1080), (12, 10)])
def test_jpeg_xl_is_measured_before_it_is_decoded(size: tuple[int, int]) -> None:
    width, height = size
    assert open_image(io.BytesIO(jxl(np.zeros((height, width, 3), np.uint8))), "x").size == size


def test_jpeg_xl_is_turned_as_the_standard_says() -> None:
    pytest.importorskip("pillow_jxl")
    file = io.BytesIO()
    PICTURE.save(file, "JPEG", exif=UPSIDE_DOWN, quality=95)
    packed = pytest.importorskip("imagecodecs").jpegxl_encode_jpeg(file.getvalue())
    assert np.array_equal(decoded(packed), decoded(file.getvalue()))  # a JPEG file, which comes out as it went in
    assert not same(packed, PIXELS, 99)
    boxed = io.BytesIO()
    PICTURE.save(boxed, "JXL", lossless=True, exif=UPSIDE_DOWN.tobytes())
    assert same(boxed.getvalue(), PIXELS)  # EXIF does not count


# ---- HEIC


def heic(image: Image.Image, **options: Any) -> bytes:
    pytest.importorskip("pillow_heif").register_heif_opener()
    file = io.BytesIO()
    image.save(file, "HEIF", **{"quality": -1, "chroma": 444, **options})
    return file.getvalue()


def test_heic_gives_its_pixels() -> None:
    data = heic(PICTURE)
    assert same(data, PIXELS, 1)
    assert np.abs(np.asarray(as_rgb(Image.open(io.BytesIO(data)))).astype(int) - PIXELS).max() <= 1
    assert why(data, max_pixels=48 * 40 - 1) == "too-large"
    for cut in (20, 40, 200, len(data) // 2, len(data) - 1):
        assert why(data[:cut]) == "truncated"
    gray = PICTURE.convert("L")
    assert same(heic(gray), np.asarray(gray.convert("RGB")), 1)
    clear = PICTURE.convert("RGBA")
    clear.putpixel((0, 0), (1, 2, 3, 0))
    assert decoded(heic(clear))[0, 0].min() >= 254


def test_heic_of_10_bits_is_scaled() -> None:
    heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    deep = PIXELS.astype(np.uint16) * 257
    heif.from_bytes("RGB;16", PICTURE.size, deep.tobytes()).save(file, quality=-1, chroma=444)
    assert same(file.getvalue(), PIXELS, 1)


def test_heic_is_turned_once() -> None:
    assert same(heic(PICTURE, exif=UPSIDE_DOWN.tobytes()), PIXELS[::-1, ::-1], 1)


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ([(1, 1), (4, 5), (6, 3), (0, 32), (0, 32)], (50, 40)),  # height 8 x (4 + 1), 5 : 4
        ([(1, 1), (4, 5), (0, 3), (8, 5), (0, 64)], (72, 40)),
        ([(0, 1), (1, 2), (4999, 13), (0, 3), (2, 2), (69999, 18), (0, 32)], (70000, 5000)),
    ],
)
def test_the_size_is_read_from_the_header_of_jpeg_xl(fields: list[tuple[int, int]], size: tuple[int, int]) -> None:
    bits, place = 0, 0
    for value, width in fields:
        bits |= value << place
        place += width
    assert plugins._size_of(b"\xff\x0a" + bits.to_bytes(-(-place // 8), "little") + bytes(8)) == size
