"""Reads masks from files. Knows nothing of models or painting."""

# H W pixels

from __future__ import annotations

import os

from bigr_repr._typing import PathLike
from bigr_repr.images.decode import MAX_PIXELS
from bigr_repr.images.pictures import marks_in_file
from bigr_repr.painting.windows import Mask


def read_mask(path: PathLike, size: tuple[int, int], *, max_pixels: int = MAX_PIXELS) -> Mask:
    """A mask image (width, height) as bool (H, W), see `to_marks`.

    Raises ImageError for a file that is not an image, ValueError for a wrong size or an image without light pixels.
    """
    mask = marks_in_file(path, max_pixels=max_pixels)
    if mask.shape[::-1] != size:
        found, wanted = (f"{width}x{height}" for width, height in (mask.shape[::-1], size))
        raise ValueError(
            f"{os.fspath(path)} is {found} pixels, the photograph {wanted}; a mask must have the same size"
        )
    if not mask.any():
        remedy = "nothing in it is light (128 or more) and opaque; paint the area to replace white"
        raise ValueError(f"{os.fspath(path)} is empty: {remedy}")
    return mask
