"""ICC profiles: converts pictures in other color spaces to sRGB. Knows nothing of files.

A profile that describes sRGB, as most do, leaves the numbers bit for bit as they are; so does one that is damaged,
or that does not match the picture's pixel format.
"""

from __future__ import annotations

import io
from functools import lru_cache
from itertools import product
from typing import Final, NamedTuple

from PIL import Image, ImageCms

ICC: Final = ("convert", "ignore")
_SAME: Final = 2  # levels by which a profile may differ from sRGB and still count as sRGB: rounding, and version 4
_LONGEST: Final = 8 << 20  # bytes; profiles for printing presses take 3 MB
_MODES: Final = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}


class ToSrgb(NamedTuple):
    """A conversion to sRGB. mode: Pillow's name of the input's pixel format."""

    mode: str
    transform: ImageCms.ImageCmsTransform

    def __call__(self, image: Image.Image) -> Image.Image:
        """Convert pixels of mode to RGB."""
        return ImageCms.applyTransform(image, self.transform)  # type: ignore[return-value]  # in place: None


@lru_cache(16)
def to_srgb(profile: bytes) -> ToSrgb | None:
    """The conversion of a profile's pixels to sRGB; None if they are sRGB already, or if the profile is unusable."""
    if len(profile) > _LONGEST:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODES.get(source.profile.xcolor_space)
        if mode is None:
            return None
        target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        found = ToSrgb(mode, ImageCms.buildTransform(source, target, mode, "RGB"))
        return None if mode != "CMYK" and _changes_nothing(found) else found
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _changes_nothing(conversion: ToSrgb) -> bool:
    levels = range(0, 256, 17)
    if conversion.mode == "L":
        before = Image.frombytes("L", (256, 1), bytes(range(256)))
    else:
        before = Image.frombytes(
            "RGB", (16, 256), bytes(value for color in product(levels, repeat=3) for value in color)
        )
    after = conversion(before).tobytes()
    return all(abs(x - y) <= _SAME for x, y in zip(before.convert("RGB").tobytes(), after, strict=True))
