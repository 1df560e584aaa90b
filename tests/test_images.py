"""Laws of decoding: colors, orientation, broken files, limits; and of the crop's geometry."""

import io
import os
import pickle
import random
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin, features

from bigr_repr.images import decode as decoding
from bigr_repr.images.decode import as_rgb, center_crop, decode_image, load_image
from bigr_repr.images.find import find_images
from bigr_repr.images.formats import ErrorKind, ImageError

Pixels = NDArray[np.uint8]


def scene(height: int = 24, width: int = 32, noise: int = 40) -> Pixels:
    rng = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(height) * 5, np.arange(width) * 4)[..., None] * np.array([1.0, 0.5, 0.8])
    return np.clip(ramp + rng.integers(0, noise, (height, width, 3)), 0, 255).astype(np.uint8)


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pixels(source: bytes | str | Path) -> Pixels:
    image = decode_image(source)
    assert image.mode == "RGB"
    return np.asarray(image).astype(np.uint8)


def png(width: int, height: int, depth: int, color: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    body = b"".join(chunk(*pair) for pair in chunks)
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(values: NDArray[Any], bits: int, sample_format: int, photometric: int = 1, data: bytes | None = None) -> bytes:
    """An uncompressed gray TIFF, byte order as of values."""
    order = ">" if values.dtype.byteorder == ">" else "<"
    data = values.tobytes() if data is None else data
    tags = [(256, values.shape[1]), (257, values.shape[0]), (258, bits), (259, 1), (262, photometric), (273, 134)]
    tags += [(277, 1), (278, values.shape[0]), (279, len(data)), (339, sample_format)]
    directory = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    return head + struct.pack(order + "H", len(tags)) + directory + struct.pack(order + "I", 0) + data


RGB = Image.fromarray(scene())
GRAY = RGB.convert("L")
TURNED = RGB.transpose(Image.Transpose.ROTATE_180)
FILES: dict[str, bytes] = {
    "jpeg": encode(RGB, "JPEG"),
    "jpeg-progressive": encode(RGB, "JPEG", progressive=True),
    "jpeg-cmyk": encode(RGB.convert("CMYK"), "JPEG"),
    "png": encode(RGB, "PNG"),
    "png-palette": encode(RGB.convert("P"), "PNG"),
    "png-16": encode(Image.fromarray(np.array(GRAY).astype(np.uint16) * 257), "PNG"),
    "apng": encode(RGB, "PNG", save_all=True, append_images=[TURNED]),
    "webp": encode(RGB, "WEBP"),
    "webp-lossless": encode(RGB.convert("RGBA"), "WEBP", lossless=True),
    "webp-animated": encode(RGB, "WEBP", save_all=True, append_images=[TURNED]),
    "gif": encode(RGB, "GIF"),
    "gif-animated": encode(RGB, "GIF", save_all=True, append_images=[TURNED]),
    "tiff": encode(RGB, "TIFF"),
    "tiff-lzw": encode(RGB, "TIFF", compression="tiff_lzw"),
    "tiff-deflate": encode(RGB, "TIFF", compression="tiff_adobe_deflate"),
    "tiff-jpeg": encode(RGB, "TIFF", compression="jpeg"),
    "tiff-float": encode(GRAY.convert("F"), "TIFF"),
    "tiff-pages": encode(RGB, "TIFF", save_all=True, append_images=[TURNED]),
    "bmp": encode(RGB, "BMP"),
    "bmp-palette": encode(RGB.convert("P"), "BMP"),
    "ppm": encode(RGB, "PPM"),
    "pgm": encode(GRAY, "PPM"),
    "qoi": encode(RGB, "QOI"),
    "jp2": encode(RGB, "JPEG2000"),
    "j2k-tiled": encode(RGB, "JPEG2000", no_jp2=True, tile_size=(16, 16)),
} | ({"avif": encode(RGB, "AVIF")} if features.check("avif") else {})
each_file = pytest.mark.parametrize("name", FILES)


# ---- every format


@each_file
def test_every_format_gives_the_first_picture_close_to_what_was_saved(name: str) -> None:
    found = pixels(FILES[name]).astype(int)
    wanted = np.array(RGB if len(np.unique(found - found[..., :1])) > 1 else GRAY.convert("RGB")).astype(int)
    lossless = name in ("png", "apng", "webp-lossless", "tiff", "tiff-lzw", "tiff-deflate", "tiff-pages", "bmp", "ppm")
    lossless |= name in ("pgm", "png-16", "tiff-float", "qoi")
    assert np.abs(found - wanted).mean() <= (0 if lossless else 16)


@each_file
def test_bytes_path_and_string_give_the_same(name: str, tmp_path: Path) -> None:
    file = tmp_path / "picture"  # the content tells the format, not the name
    file.write_bytes(FILES[name])
    assert np.array_equal(pixels(FILES[name]), pixels(file))
    assert np.array_equal(pixels(FILES[name]), pixels(str(file)))


@pytest.mark.skipif("avif" not in FILES, reason="this Pillow cannot encode AVIF")
def test_avif_is_told_from_heic_by_its_compatible_brands() -> None:
    data = FILES["avif"]
    assert data[4:12] == b"ftypavif"
    assert np.array_equal(pixels(data[:8] + b"mif1" + data[12:]), pixels(data))


def test_many_threads_decode_as_one_does() -> None:
    work = list(FILES.values()) * 8
    with ThreadPoolExecutor(8) as pool:
        for data, found in zip(work, pool.map(pixels, work), strict=True):
            assert np.array_equal(found, pixels(data))


# ---- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF"])
def test_exif_orientation_is_applied_once(format: str, orientation: int) -> None:
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow cannot encode AVIF")
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {"quality": 95} if format in ("JPEG", "AVIF") else {}
    smooth = Image.fromarray(scene(noise=1))
    opposite = {6: 8, 8: 6}.get(orientation, orientation)
    turned = Image.new("RGB", smooth.size)
    turned.paste(smooth)
    turned.getexif()[0x0112] = opposite
    stored = ImageOps.exif_transpose(turned)  # as a camera held that way would have stored it
    data = encode(stored, format, exif=exif, **options)
    upright = decode_image(data)
    assert upright.size == smooth.size
    assert np.abs(np.array(upright).astype(int) - np.array(smooth)).mean() < 4
    assert as_rgb(upright).tobytes() == upright.tobytes()
    if format != "TIFF":  # Pillow turns a TIFF itself when it loads it
        assert as_rgb(Image.open(io.BytesIO(data))).tobytes() == upright.tobytes()


def test_damaged_exif_does_not_spoil_a_picture() -> None:
    good = encode(RGB, "PNG")
    for exif in (b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0", b"junk" * 10):
        assert np.array_equal(pixels(encode(RGB, "PNG", exif=exif)), pixels(good))


# ---- colors


def over_white(color: Pixels, alpha: Pixels) -> NDArray[np.float64]:
    return (color.astype(float) * alpha[..., None] + 255.0 * (255 - alpha[..., None])) / 255


def test_transparency_is_composited_over_white() -> None:
    color, alpha = scene(), np.random.default_rng(1).integers(0, 256, (24, 32), dtype=np.uint8)
    gray = np.array(GRAY)
    rgba = Image.fromarray(np.dstack([color, alpha]))
    for image in (rgba, rgba.convert("RGBa")):
        assert np.abs(np.array(as_rgb(image)) - over_white(color, alpha)).max() <= (1 if image is rgba else 3)
    la = Image.merge("LA", [GRAY, Image.fromarray(alpha)])
    for image in (la, la.convert("La")):
        wanted = over_white(np.dstack([gray] * 3), alpha)
        assert np.abs(np.array(as_rgb(image)) - wanted).max() <= (1 if image is la else 3)
    for format, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        assert np.abs(pixels(encode(rgba, format, **options)) - over_white(color, alpha)).max() <= 1
    assert np.abs(pixels(encode(la, "PNG")) - over_white(np.dstack([gray] * 3), alpha)).max() <= 1


def test_palette_transparency_of_both_kinds() -> None:
    palette = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).convert("P")
    palette.putpalette([200, 0, 0, 0, 100, 0, 0, 0, 50])
    by_bytes = pixels(encode(palette, "PNG", transparency=bytes([0, 128, 255])))
    assert by_bytes[0].tolist() == [[255, 255, 255], [127, 177, 127], [0, 0, 50]]
    for data in (encode(palette, "PNG", transparency=1), encode(palette, "GIF", transparency=1)):
        assert pixels(data)[0].tolist() == [[200, 0, 0], [255, 255, 255], [0, 0, 50]]


def test_transparent_colors_are_compared_at_the_depth_of_the_pixels() -> None:
    key = struct.pack(">H", 1)
    assert pixels(png(4, 1, 2, 0, b"\0" + bytes([0b00_01_10_11]), (b"tRNS", key)))[0, :, 0].tolist() == [
        0,
        255,
        170,
        255,
    ]
    assert pixels(png(2, 1, 8, 0, bytes([0, 1, 2]), (b"tRNS", key)))[0, :, 0].tolist() == [255, 2]
    rows = b"\0" + struct.pack(">6H", 1024, 2048, 3072, 10, 20, 30)
    deep = png(2, 1, 16, 2, rows, (b"tRNS", struct.pack(">3H", 1024, 2048, 3072)))
    assert pixels(deep)[0].tolist() == [[255, 255, 255], [0, 0, 0]]
    gray = png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 1028, 1029), (b"tRNS", struct.pack(">H", 1028)))
    assert pixels(gray)[0, :, 0].tolist() == [255, 4]


def test_16_bit_gray_is_scaled_not_clipped() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    wanted = np.rint(values / 257)
    for data in (
        encode(Image.fromarray(values), "PNG"),
        tiff(values, 16, 1),
        tiff(values.astype(">u2"), 16, 1),
        b"P5 256 256 65535\n" + values.astype(">u2").tobytes(),
    ):
        assert np.array_equal(pixels(data)[..., 1], wanted)
    assert np.array_equal(np.array(as_rgb(values))[..., 1], wanted)
    assert np.array_equal(np.array(as_rgb(values.astype(">u2")))[..., 1], wanted)
    assert np.array_equal(pixels(tiff(values, 16, 1, photometric=0))[..., 1], 255 - wanted)  # white is zero


def test_12_bit_gray_is_scaled_by_its_own_white() -> None:
    packed = int(f"{0:012b}{4095:012b}{2048:012b}{16:012b}", 2).to_bytes(6)
    assert pixels(tiff(np.zeros((1, 4), np.uint16), 12, 1, data=packed))[0, :, 0].tolist() == [0, 255, 128, 1]


@pytest.mark.parametrize(
    ("values", "sample_format", "wanted"),
    [
        (np.array([[0, 100, 255]], np.int32), 2, [0, 100, 255]),
        (np.array([[0, 257, 65535]], np.int32), 2, [0, 1, 255]),
        (np.array([[-100, 0, 100]], np.int32), 2, [0, 128, 255]),
        (np.array([[0, 2**31, 2**32 - 1]], np.uint32), 1, [0, 128, 255]),
        (np.array([[7, 7, 7]], np.int32), 2, [7, 7, 7]),
        (np.array([[-7, -7, -7]], np.int32), 2, [0, 0, 0]),
        (np.array([[0, 0.5, 1]], np.float32), 3, [0, 128, 255]),
        (np.array([[0, 1.5, 255]], np.float32), 3, [0, 2, 255]),
        (np.array([[0, 25700, 60000]], np.float32), 3, [0, 100, 233]),
        (np.array([[-1, 0, 1]], np.float32), 3, [0, 128, 255]),
        (np.array([[np.nan, -np.inf, np.inf, 0.25]], np.float32), 3, [0, 0, 0, 64]),
        (np.array([[np.nan, np.nan]], np.float32), 3, [0, 0]),
    ],
)
def test_pixels_without_a_stated_white_follow_the_rule(
    values: NDArray[Any], sample_format: int, wanted: list[int]
) -> None:
    assert pixels(tiff(values, 32, sample_format))[0, :, 0].tolist() == wanted


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB", "HSV", "RGBX", "RGBA", "LA", "PA", "I", "F", "I;16"]
)
def test_as_rgb_takes_every_mode(mode: str) -> None:
    smooth = Image.fromarray(scene(noise=1))
    gray = mode in ("L", "LA", "I", "F", "I;16")
    image = Image.fromarray(np.array(smooth.convert("L")).astype(np.uint16) * 257) if mode == "I;16" else smooth
    for step in {"LA": ["LA"], "PA": ["P", "PA"], "I": ["L", "I"], "F": ["L", "F"], "I;16": []}.get(mode, [mode]):
        image = image.convert(step)
    assert image.mode == mode
    found = as_rgb(image)
    assert found.mode == "RGB"
    error = np.abs(np.array(found).astype(int) - np.array(smooth.convert("L").convert("RGB") if gray else smooth))
    assert error.mean() < (130 if mode == "1" else 20 if mode in ("P", "PA") else 3)


def test_cmyk_jpeg_is_not_inverted() -> None:
    red = Image.new("RGB", (16, 16), (220, 30, 20))
    assert np.abs(pixels(encode(red.convert("CMYK"), "JPEG", quality=95)).astype(int) - [220, 30, 20]).max() < 12


def test_as_rgb_of_arrays() -> None:
    color = scene()
    assert np.array_equal(np.array(as_rgb(color)), color)
    assert np.array_equal(np.array(as_rgb(color[::-1, ::2])), color[::-1, ::2])
    assert np.array_equal(np.array(as_rgb(color / 255)), color)
    assert np.array_equal(np.array(as_rgb((color / 255).astype(np.float16))), color)
    gray = np.dstack([color[..., 0]] * 3)
    assert np.array_equal(np.array(as_rgb(color[..., 0])), gray)
    assert np.array_equal(np.array(as_rgb(color[..., :1])), gray)
    alpha = np.full((24, 32, 1), 128, np.uint8)
    layered = np.array(as_rgb(np.concatenate([color, alpha], 2)))
    assert np.abs(layered - over_white(color, alpha[..., 0])).max() <= 1


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 8, 8), np.uint8), "moveaxis"),
        (np.zeros((2, 8, 8, 3), np.uint8), "one image at a time"),
        (np.zeros((8, 8, 2), np.uint8), r"\(8, 8, 2\)"),
        (np.zeros((0, 8), np.uint8), r"\(0, 8\)"),
        (np.zeros((8, 8), np.int64), "int64.*astype"),
        (np.zeros((8, 8), complex), "complex.*astype"),
        (np.full((8, 8), 255.0), r"255\.\.255 is not within \[0, 1\]"),
        (np.full((8, 8), -0.1), "rescale"),
        (np.full((8, 8), np.nan), "nan"),
    ],
)
def test_as_rgb_refuses_what_it_would_have_to_guess(array: NDArray[Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        as_rgb(array)


def test_as_rgb_refuses_other_types_and_half_pictures() -> None:
    with pytest.raises(TypeError, match="str; for files see decode"):
        as_rgb("cat.jpg")  # type: ignore[arg-type]
    with pytest.raises(ImageError) as error:
        as_rgb(Image.open(io.BytesIO(FILES["jpeg"][:700])))
    assert error.value.kind == "truncated"


# ---- broken files


def outcome(data: bytes | bytearray, **options: int) -> Pixels | ImageError:
    try:
        return np.array(decode_image(bytes(data), **options))
    except ImageError as error:
        return error


def kind_of(source: Any, **options: Any) -> str:
    with pytest.raises(ImageError) as error:
        decode_image(source, **options)
    assert error.value.kind in get_args(ErrorKind)
    message = str(error.value)
    assert message.isprintable()
    assert message == error.value.message == str(pickle.loads(pickle.dumps(error.value)))
    assert pickle.loads(pickle.dumps(error.value)).kind == error.value.kind
    return error.value.kind


@each_file
def test_a_shortened_file_is_an_error_or_the_whole_picture(name: str) -> None:
    data, whole = FILES[name], pixels(FILES[name])
    for length in range(0, len(data), 1 + len(data) // 400):
        found = outcome(data[:length])
        if isinstance(found, ImageError):
            assert found.kind in ("empty", "not-an-image", "truncated", "corrupt", "unsupported")
        else:
            assert np.array_equal(found, whole), length
    if not name.startswith("tiff"):  # a TIFF's directory may come last, and lack altogether
        assert kind_of(data[: len(data) // 3]) == "truncated"


@each_file
def test_random_damage_gives_a_picture_or_an_image_error(name: str) -> None:
    rng = random.Random(name)
    for _ in range(150):
        data = bytearray(FILES[name])
        for _ in range(rng.randint(1, 5)):
            data[rng.randrange(min(len(data), rng.choice([64, 256, 10**6])))] = rng.randrange(256)
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        found = outcome(data, max_pixels=100_000)
        assert str(found).isprintable() if isinstance(found, ImageError) else found.shape[2] == 3


@pytest.mark.parametrize("padding", [b"\0", b"\xff", b"<p>error</p>"])
def test_a_jpeg_filled_up_to_its_full_length_is_truncated(padding: bytes) -> None:
    data = encode(Image.fromarray(scene(200, 300)), "JPEG")
    for part in (0.3, 0.6, 0.9):
        kept = int(len(data) * part)
        assert kind_of(data[:kept] + padding * (len(data) - kept)) == "truncated"
    assert decode_image(data + padding * 100).size == (300, 200)  # what follows a whole picture does no harm


@pytest.mark.parametrize("pack", ["zip", "gztar"])
def test_an_archive_is_called_one(pack: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(FILES["png"])
    packed = Path(shutil.make_archive(str(tmp_path / "packed"), pack, tmp_path / "in"))
    with pytest.raises(ImageError, match=r"archive is not read; unpack it, or pack its pictures as a \.tar") as caught:
        decode_image(packed)
    assert caught.value.kind == "not-an-image"


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>not found</html>", "not-an-image"),
        (b"\0" * 100, "not-an-image"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 50, "unsupported"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + b"\0" * 50, "unsupported"),
        (b"\xff\x0a" + b"\0" * 50, "unsupported"),
        (b"%PDF-1.7", "unsupported"),
        (FILES["png"][:20] + b"!" + FILES["png"][21:], "corrupt"),
        (png(2, 2, 8, 7, b""), "corrupt"),
        (tiff(np.zeros((2, 2), np.float64), 64, 3), "unsupported"),
    ],
)
def test_what_is_no_picture_is_told_apart(
    head: bytes, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for plugin in ("pillow_heif", "pillow_jxl", "pillow_jxl.JpegXLImagePlugin"):
        monkeypatch.setitem(sys.modules, plugin, None)  # as where they are not installed
    assert kind_of(head) == kind
    file = tmp_path / "line\nbreak.jpg"
    file.write_bytes(head)
    assert kind_of(file) == kind
    with pytest.raises(ImageError, match=r"line\\nbreak\.jpg: "):
        decode_image(file)


def test_files_that_cannot_be_read_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, kind in [("no.jpg", "missing"), ("link.jpg", "missing"), ("a\0b", "missing"), ("\ud800", "missing")]:
        assert kind_of(f"{tmp_path}/{name}") == kind
    for name in ("", "pipe.jpg", "loop.jpg", "n" * 300):
        assert kind_of(f"{tmp_path}/{name}") == "unreadable"
    (tmp_path / "good.png").write_bytes(FILES["png"])
    assert kind_of(tmp_path / "good.png/below.png") == "missing"

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 500:
                raise OSError(5, "Input/output error")
            return super().read(size)

    monkeypatch.setattr("builtins.open", lambda *_: Failing(FILES["png"]))
    assert kind_of(tmp_path / "good.png") == "unreadable"

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    assert kind_of(tmp_path / "good.png") == "unreadable"


def test_wrong_arguments_are_no_image_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="ndarray; for pixels see as_rgb"):
        decode_image(np.zeros((8, 8, 3), np.uint8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_pixels=0 must be at least 1"):
        decode_image(FILES["png"], max_pixels=0)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(RuntimeError, match="set it to False"):
        decode_image(FILES["jpeg"])


# ---- limits


@each_file
def test_max_pixels_is_the_callers_and_inclusive(name: str) -> None:
    assert decode_image(FILES[name], max_pixels=24 * 32).size == (32, 24)
    assert kind_of(FILES[name], max_pixels=24 * 32 - 1) == "too-large"


@pytest.mark.parametrize("side", [20_000, 2**31 - 1])
def test_a_bomb_is_refused_by_its_header_alone(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("pixels were allocated")

    monkeypatch.setattr("PIL.Image.core.new", never)
    bombs = [png(side, side, 8, 2, b"\0" * 1000), b"P6 %d %d 255\n" % (side, side) + b"\0" * 1000]
    bombs += [b"qoif" + struct.pack(">IIBB", side, side, 3, 0) + b"\xfd" * 1000]
    for bomb in bombs:
        assert kind_of(bomb) == "too-large"


def test_the_limit_neither_uses_nor_changes_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Image.MAX_IMAGE_PIXELS
    kind_of(FILES["png"], max_pixels=5)
    assert before == Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    for name in ("jpeg", "png", "bmp", "ppm", "jp2"):
        assert decode_image(FILES[name]).size == (32, 24)


def test_the_default_limit_stops_a_webp_of_36_bytes_and_268_megapixels() -> None:
    data = bytearray(encode(Image.new("RGB", (64, 64), "teal"), "WEBP", lossless=True))
    assert data[12:16] == b"VP8L"
    data[21:25] = struct.pack("<I", (16383 | 16383 << 14) | int.from_bytes(data[21:25], "little") & 0xF0000000)
    assert kind_of(bytes(data)) == "too-large"


# ---- geometry


def test_crop_follows_the_stated_steps() -> None:
    def noise(width: int, height: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))

    box, bicubic = Image.Resampling.BOX, Image.Resampling.BICUBIC
    image = noise(701, 300)  # 175 * 64 / 75 = 149.3
    by_hand = image.resize((350, 150), box).resize((175, 75), box).resize((149, 64), bicubic).crop((42, 0, 106, 64))
    assert np.array_equal(center_crop(image, 64), np.array(by_hand))
    image = noise(128, 161)  # exactly twice the size is halved too
    assert np.array_equal(center_crop(image, 64), np.array(image.resize((64, 80), box).crop((0, 8, 64, 72))))
    image = noise(20, 30)  # smaller ones are enlarged
    assert np.array_equal(center_crop(image, 64), np.array(image.resize((64, 96), bicubic).crop((0, 16, 64, 80))))


@pytest.mark.parametrize("size", [1, 7, 64, 256])
def test_crop_laws(size: int) -> None:
    exact = Image.fromarray(scene(size, size))
    assert np.array_equal(center_crop(exact, size), scene(size, size))
    rng = random.Random(size)
    for _ in range(20):
        shape = (rng.randint(1, 900), rng.randint(1, 900))
        plain = center_crop(Image.new("RGB", shape, (9, 99, 199)), size)
        assert plain.shape == (size, size, 3)
        assert plain.dtype == np.uint8
        assert plain.flags.writeable
        assert (plain == [9, 99, 199]).all()


def test_crop_takes_the_middle() -> None:
    wide = np.zeros((50, 150, 3), np.uint8)
    wide[:, :50, 0], wide[:, 50:100, 1], wide[:, 100:, 2] = 200, 200, 200
    for image in (wide, wide.transpose(1, 0, 2)):
        middle = center_crop(Image.fromarray(np.ascontiguousarray(image)), 40)[4:-4, 4:-4]
        assert np.abs(middle.astype(int) - [0, 200, 0]).max() <= 2


@pytest.mark.parametrize("shape", [(1, 10_000), (10_000, 1), (2, 65_000), (3, 10_000)])
def test_extreme_shapes_stay_small(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    resize: Callable[..., Image.Image] = Image.Image.resize
    sizes: list[tuple[int, int]] = []

    def watched(self: Image.Image, size: tuple[int, int], *rest: Any, **options: Any) -> Image.Image:
        sizes.append(size)
        return resize(self, size, *rest, **options)

    monkeypatch.setattr(Image.Image, "resize", watched)
    data = encode(Image.new("RGB", shape, "teal"), "PNG")
    assert (load_image(data, 256) == [0, 128, 128]).all()
    assert max(width * height for width, height in sizes) <= decoding.MAX_ASPECT * 256 * 256


def test_crop_refuses_bad_arguments() -> None:
    with pytest.raises(ValueError, match="size=0 must be at least 1"):
        center_crop(RGB, 0)
    with pytest.raises(ValueError, match="mode L is not RGB; pass it through as_rgb"):
        center_crop(GRAY, 8)


def test_load_image_is_decode_then_crop(tmp_path: Path) -> None:
    assert np.array_equal(load_image(FILES["jpeg"], 16), center_crop(decode_image(FILES["jpeg"]), 16))
    with pytest.raises(ImageError, match="no such file"):
        load_image(tmp_path / "x.jpg", 16)
    with pytest.raises(ImageError, match="max_pixels=5"):
        load_image(FILES["jpeg"], 16, max_pixels=5)


def test_the_example_photographs_decode() -> None:
    folder = Path(__file__).parent.parent / "examples"
    table = (folder / "README.md").read_text()
    found = list(find_images(folder / "images"))
    assert len(found) == 12
    for source in found:
        assert f"`images/{source.path}`" in table
        assert Path(source.file).stat().st_size < 80_000
        assert load_image(source.file, 64).std() > 10


def test_tiff_tags_are_those_pillow_reads() -> None:
    """The gray rule reads three tags from Pillow; this pins where it finds them."""
    image = Image.open(io.BytesIO(tiff(np.zeros((2, 2), np.uint16), 16, 1)))
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    assert (image.tag_v2[258], image.tag_v2[262], image.tag_v2[339]) == ((16,), 1, (1,))
