"""From image files to upright RGB pixels: decode, orient, crop; with one typed error. Knows nothing of models.

Colors are 8-bit sRGB: where an ICC profile defines another color space, they are converted, or left as they are
with icc="ignore". `decode_image` documents how every other kind of picture is handled.

Pillow's process-wide settings are neither used nor changed: the size limit is an argument, only formats from a
short list are opened, and pixels never come from a memory-mapped file that others may be writing.
"""
# ruff: noqa: PTH114, PTH116, PTH123  (paths are str or PathLike; converting each to a Path adds nothing)

from __future__ import annotations

import io
import os
import stat
from contextlib import suppress
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from bigr_repr._typing import PathLike
from bigr_repr.images.color import ICC, to_srgb
from bigr_repr.images.find import escape_path, one_line
from bigr_repr.images.formats import ImageError, explained, image_errors, open_image
from bigr_repr.images.metadata import has_metadata, without_metadata

MAX_PIXELS: Final = 200_000_000  # admits the largest phone photographs; 0.8 GB decoded, at Pillow's 4 bytes per pixel
ROUNDING: Final = 1e-6  # floats this far outside [0, 1] are taken as 0 or 1
MAX_ASPECT: Final = 16  # longer pictures are cropped to their middle before they are resized

# ---- decoding


def decode_image(
    source: bytes | PathLike, *, max_pixels: int = MAX_PIXELS, name: str | None = None, icc: str = "convert"
) -> Image.Image:
    """The picture in a file (str or path) or in an encoded file's bytes, upright, as an RGB image with 8-bit channels.

    EXIF orientation is applied. Transparency of any kind is composited over white. 1-bit, gray, palette, CMYK, YCbCr,
    LAB and HSV become RGB. The first frame of an animation or page of a document is taken. 16-bit gray is scaled,
    65535 to 255 (12-bit TIFF: 4095 to 255); 16-bit color keeps its high bytes. 32-bit integer and float pixels have no
    defined full scale: the first of [0, 1] (floats only), [0, 255] and [0, 65535] that contains all values is used,
    else the picture's own range is stretched to black and white. Non-finite floats are black. Pictures with an ICC
    profile other than sRGB's are converted; icc="ignore" disregards profiles. Damaged or unknown metadata is tolerated.

    A truncated file is an error, never a half-gray picture. (A JPEG whose data was damaged without being shortened
    can decode to wrong pixels: the format has no checksum.)  max_pixels: pictures with a larger width times height
    are refused by their header alone; above 178 956 970, Pillow's own limit refuses some formats too. name: what
    errors call the picture; None: the path, or "image bytes".

    Thread-safe.  Raises ImageError for everything that can be wrong with the picture; TypeError for another kind of
    source; ValueError for max_pixels below 1; RuntimeError while PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set.
    """
    if icc not in ICC:
        raise ValueError(f"icc={icc!r} is unknown; choose one of {', '.join(ICC)}")
    return _decoded(source, max_pixels, name, icc)[0]


def decode_with_profile(source: bytes | PathLike, *, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, bytes | None]:
    """The picture as `decode_image` returns it, and the ICC profile that its colors need.

    An RGB picture with a profile keeps its own values, bit for bit; any other is converted, and has None.  Raises as
    `decode_image` does.
    """
    return _decoded(source, max_pixels, None, None)


def _decoded(
    source: bytes | PathLike, max_pixels: int, name: str | None, icc: str | None
) -> tuple[Image.Image, bytes | None]:
    """See `decode_image`, and for icc=None `decode_with_profile`."""
    if max_pixels < 1:
        raise ValueError(f"max_pixels={max_pixels} must be at least 1")
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set in this process, so truncated pictures would pass for "
            "complete ones; "
            "set it to False"
        )
    if isinstance(source, bytes | bytearray | memoryview):
        name = "image bytes" if name is None else one_line(name)
    elif isinstance(source, str | os.PathLike):
        name = _name(source) if name is None else one_line(name)
    else:
        raise TypeError(f"decode takes a path or a file's bytes, not {type(source).__name__}; for pixels see as_rgb")
    with image_errors(name), _open(source, name) as file:
        stored = load_stored(file, name, max_pixels)
        kept = stored.info.get("icc_profile") if icc is None and stored.mode in ("RGB", "RGBA") else None
        image = _upright(stored, icc or ("ignore" if kept else "convert"))
        image.info.pop("icc_profile", None)  # already applied, or to be ignored from here on
        return image, kept or None


def load_stored(file: IO[bytes], name: str, max_pixels: int) -> Image.Image:
    """The picture in a file as it is stored, fully decoded even if its metadata is damaged, unknown or too large.

    name: what errors call it.  Raises ImageError.
    """
    try:
        return _load(file, name, max_pixels)
    except ImageError as error:
        file.seek(0)
        if error.kind not in ("corrupt", "truncated", "unsupported") or not has_metadata(file.read(16)):
            raise
        file.seek(0)
        data = file.read()
        for smaller in without_metadata(data):
            with suppress(ImageError):
                return _load(io.BytesIO(smaller), name, max_pixels)
        raise explained(error, data, name) from error


def _load(file: IO[bytes], name: str, max_pixels: int) -> Image.Image:
    with image_errors(name):
        image = open_image(file, name)
        width, height = image.size
        if width * height > max_pixels:
            raise ImageError(
                "too-large", f"{name}: {width} x {height} pixels are more than max_pixels={max_pixels}; raise it"
            )
        image.load()
        return image


def _name(path: PathLike) -> str:
    try:
        return one_line(escape_path(os.fspath(path)))
    except UnicodeEncodeError:  # no file can have such a name
        return ascii(path)


def _open(source: bytes | bytearray | memoryview | PathLike, name: str) -> IO[bytes]:
    if isinstance(source, bytes | bytearray | memoryview):
        if not len(source):
            raise ImageError("empty", f"{name}: no bytes")
        return io.BytesIO(source)
    try:
        status = os.stat(source)
        if stat.S_ISDIR(status.st_mode):
            raise ImageError("unreadable", f"{name}: is a folder; name an image file")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe could wait for ever
            raise ImageError("unreadable", f"{name}: is not a regular file; save it as one")
        if status.st_size == 0:
            raise ImageError("empty", f"{name}: the file is empty; fetch it again")
        return open(source, "rb")
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: no file can have such a name
        if isinstance(error, ImageError):
            raise
        broken = "a link to a file that is not there" if os.path.islink(source) else "no such file"
        raise ImageError("missing", f"{name}: {broken}") from None


# ---- pixels to upright RGB

_TRANSPOSE: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ORIENTATION: Final = 0x0112
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SAMPLE_FORMAT = 258, 262, 339


def _upright(image: Image.Image, icc: str) -> Image.Image:
    """The image in RGB with EXIF orientation applied; the same object if nothing needs to be done."""
    try:
        method = _TRANSPOSE.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # damaged metadata does not spoil a good picture
        method = None
    rgb = _in_srgb(image) if icc == "convert" else _to_rgb(image)
    if method is not None:
        rgb = rgb.transpose(method)
        rgb.info.clear()  # the orientation in it has been applied
    return rgb


def _in_srgb(image: Image.Image) -> Image.Image:
    """The image in sRGB."""
    profile = image.info.get("icc_profile")
    conversion = to_srgb(profile) if isinstance(profile, bytes) and profile else None
    if conversion is None or (conversion.mode == "CMYK") != (image.mode == "CMYK"):
        return _to_rgb(image)
    if conversion.mode == "CMYK":
        return conversion(image)
    rgb = _to_rgb(image)
    if conversion.mode == "RGB":
        return conversion(rgb)
    return conversion(rgb.getchannel(0)) if _is_gray(image) else rgb


def _is_gray(image: Image.Image) -> bool:
    return image.mode[0] in "1LIF" and image.mode != "LAB"


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_gray(image)).convert("RGB")
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        layer = image.convert("RGBA")
        rgb = Image.new("RGB", image.size, "white")
        rgb.paste(layer, mask=layer)
        return rgb
    return image.convert("RGB")


def _gray(image: Image.Image) -> NDArray[np.uint8]:
    """Pixels of modes I;16…, I and F as 8-bit gray, by the rule documented in decode_image()."""
    tags: Any = getattr(image, "tag_v2", {})
    values = np.asarray(image)
    if image.mode == "I" and image.format == "TIFF" and tags.get(_TIFF_SAMPLE_FORMAT, (1,))[0] == 1:
        values = values.view(np.uint32)  # Pillow's I is signed; this file's pixels are not
    if image.mode.startswith("I;16"):
        full = 4095 if tags.get(_TIFF_BITS, (16,))[0] == 12 else 65535
        low, high = 0.0, float(full)
    elif image.format == "PPM" and image.mode == "I":
        low, high = 0.0, 65535.0  # Pillow has already scaled to this range
    else:
        low, high = _value_range(values)
    gray = np.empty(values.shape, np.uint8)
    flat_values, flat_gray = values.reshape(-1), gray.reshape(-1)
    for start in range(0, values.size, 1 << 20):  # in chunks: a whole picture in double precision would be large
        piece = (flat_values[start : start + (1 << 20)].astype(np.float64) - low) * 255 / (high - low)
        piece = np.nan_to_num(piece, nan=0.0, posinf=0.0, neginf=0.0)
        flat_gray[start : start + (1 << 20)] = np.rint(np.clip(piece, 0, 255))
    if tags.get(_TIFF_PHOTOMETRIC) == 0:  # "white is zero", which Pillow applies only to 8-bit pixels
        gray = 255 - gray
    key = image.info.get("transparency")
    if isinstance(key, int):
        gray[values == key] = 255
    return gray


def _value_range(values: NDArray[Any]) -> tuple[float, float]:
    """The values that are mapped to black and white."""
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    if low >= 0:
        for full in (1.0, 255.0, 65535.0):
            if high <= full and (full > 1 or values.dtype.kind == "f"):
                return 0.0, full
    return (low, high) if high > low else (low, low + 1)


def as_rgb(image: Image.Image | NDArray[Any], *, icc: str = "convert") -> Image.Image:
    """A picture that is already in memory as an upright RGB image with 8-bit channels.

    A PIL image of any mode is converted as in decode_image() (an RGB one that needs no change is returned as is); one
    whose file has not been read yet is read as by decode_image(). An array is (H, W), (H, W, 1), (H, W, 3) or
    (H, W, 4), where the fourth channel is opacity over white. uint8 is used as it is; uint16 is scaled, 65535 to 255;
    float16/32/64 in [0, 1] is scaled, 1 to 255, and rounded; bool becomes 0 or 255.

    Raises ValueError for an array of another shape, dtype or range, ImageError for a PIL image that cannot be loaded,
    TypeError for anything else.
    """
    if isinstance(image, Image.Image):
        with image_errors("PIL image"):
            if content := unread(image):
                return decode_image(content, max_pixels=image.width * image.height, name="PIL image", icc=icc)
            image.load()
            return _upright(image, icc)
    if not isinstance(image, np.ndarray):
        raise TypeError(f"an image is a PIL image or a NumPy array, not {type(image).__name__}; for files see decode")
    if image.ndim not in (2, 3) or 0 in image.shape or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        first = image.ndim == 3 and image.shape[0] in (1, 3, 4)
        remedy = "put channels last with np.moveaxis(image, 0, -1)" if first else "pass one image at a time"
        raise ValueError(f"image array of shape {image.shape} is not (H, W) or (H, W, 1, 3 or 4 channels); {remedy}")
    pixels = _bytes_of(image)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    return _to_rgb(Image.fromarray(np.ascontiguousarray(pixels)))


def unread(image: Image.Image) -> bytes | None:
    """The file of a PIL image not yet decoded, if Pillow alone would get some of its pixels wrong; else None."""
    if image.format not in ("PNG", "TIFF", "JPEG2000") or not isinstance(image, ImageFile.ImageFile):
        return None
    file = image.fp
    if file is None or not image.tile or image.tell():
        return None
    place = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(place)
    return content


def _bytes_of(image: NDArray[Any]) -> NDArray[np.uint8]:
    if image.dtype == np.uint8:
        return image
    if image.dtype == np.bool_:
        return image.astype(np.uint8) * np.uint8(255)
    if image.dtype.newbyteorder("=") == np.uint16:
        return np.rint(image / 257).astype(np.uint8)
    if image.dtype.kind != "f":
        raise ValueError(
            f"image array of dtype {image.dtype} is not uint8, uint16, bool or float; use .astype(np.uint8)"
        )
    low, high = float(image.min()), float(image.max())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # phrased so that NaN fails
        found = f"float image with values {low:.7g}..{high:.7g} is not within [0, 1]"
        raise ValueError(f"{found}; rescale or clip it, or pass uint8")
    pixels: NDArray[np.uint8] = np.rint(image.astype(np.float32).clip(0, 1) * 255).astype(np.uint8)
    return pixels


# ---- geometry


def center_crop(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The middle square of an RGB image, resized: (size, size, 3), uint8, writable.

    As in ADM's training pipeline: while the shorter side is at least twice size, both sides are halved (rounded down)
    with a box filter; then both are multiplied by size / shorter side (rounded, halves to even) with an antialiased
    bicubic filter; then the square is cut from ((W - size) // 2, (H - size) // 2). An image longer than 16 times its
    shorter side is first cut to its middle 16:1, which keeps time and memory bounded.

    Raises ValueError for size below 1 or an image that is not RGB.
    """
    if size < 1:
        raise ValueError(f"size={size} must be at least 1 pixel")
    if image.mode != "RGB":
        raise ValueError(f"image of mode {image.mode} is not RGB; pass it through as_rgb first")
    width, height = image.size
    longest = MAX_ASPECT * min(width, height)
    if max(width, height) > longest:
        left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
        image = image.crop((left, top, left + min(width, longest), top + min(height, longest)))
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.array(image.crop((left, top, left + size, top + size)))


def load_image(
    source: bytes | PathLike, size: int, *, max_pixels: int = MAX_PIXELS, name: str | None = None, icc: str = "convert"
) -> NDArray[np.uint8]:
    """decode(source), then center_crop to (size, size, 3), uint8.  Raises as decode does."""
    return center_crop(decode_image(source, max_pixels=max_pixels, name=name, icc=icc), size)
