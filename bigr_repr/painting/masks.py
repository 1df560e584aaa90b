"""Photographs and masks as files: what of them goes beyond RGB pixels. Knows nothing of models or painting."""

# H W pixels

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bigr_repr._typing import PathLike
from bigr_repr.images.decode import as_rgb, decode_image
from bigr_repr.images.formats import image_errors, open_image
from bigr_repr.painting.windows import Mask


def read_mask(path: PathLike, size: tuple[int, int]) -> Mask:
    """A mask image (width, height) as bool (H, W): what is light and opaque, both from 128, is marked.

    Transparent pixels are unmarked, whatever color they hide: white strokes on a transparent layer mark the strokes.

    Raises ImageError for a file that is no image, ValueError for another size and for an image without light pixels.
    """
    image = decode_image(path)
    if image.size != size:
        found, wanted = (f"{width}x{height}" for width, height in (image.size, size))
        raise ValueError(f"{os.fspath(path)} is {found} pixels, the photograph {wanted}; a mask has the same size")
    mask: Mask = np.asarray(image.convert("L")) >= 128
    opaque = opacity(path)
    if opaque is not None:
        mask &= opaque >= 128
    if not mask.any():
        remedy = "nothing in it is light (128 or more) and opaque; paint white what to replace"
        raise ValueError(f"{os.fspath(path)} is empty: {remedy}")
    return mask


def opacity(path: PathLike) -> NDArray[np.uint8] | None:
    """How opaque the pixels of a picture are, upright: (H, W), 255 opaque; None where it has no transparency.

    Raises ImageError for a file that is no image, OSError for one that cannot be opened.
    """
    name = os.fspath(path)
    with Path(path).open("rb") as file, image_errors(name):
        image = open_image(file, name)
        if not image.has_transparency_data:
            return None
        return np.asarray(as_rgb(image.convert("RGBA").getchannel("A")).getchannel(0))


def color_profile(path: PathLike) -> bytes | None:
    """The ICC profile of an RGB photograph's colors, which `decode` leaves as they are; None where there is none."""
    with Path(path).open("rb") as file:
        image = open_image(file, os.fspath(path))
        profile: bytes | None = image.info.get("icc_profile")
        return profile if image.mode in ("RGB", "RGBA") else None
