"""Blending a painting into a photograph through a mask. Knows nothing of models or files; arrays in, arrays out."""

# H W pixels

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bigr_repr.painting.pasting import check_blend, opencv
from bigr_repr.painting.windows import Mask

_ERODED = 4  # OpenCV takes the photograph's gradients in the mask's outermost three pixels

PixelArray = NDArray[np.uint8]


def paste(photo: PixelArray, painting: PixelArray, mask: Mask, blend: str = "none", band: int = 8) -> PixelArray:
    """The photograph with the painting where the mask is: uint8 (H, W, 3), a new array.

    blend: "none": marked pixels come from the painting, all others from the photograph, bit for bit. "feather": outside
    the mask the painting fades out over `band` pixels; beyond these the photograph is unchanged. "poisson": inside the
    mask the painting's gradients are fitted to the photograph around it (Pérez et al., Poisson image editing, 2003;
    OpenCV's seamlessClone); outside it is unchanged.
    """
    check_blend(blend, band)
    if blend == "feather":
        from scipy.ndimage import distance_transform_edt

        if not mask.any():
            return photo.copy()
        away = distance_transform_edt(~mask)
        share = np.where(away <= band, 1 - away / (band + 1), 0)[:, :, None].astype(np.float32)
        faded: PixelArray = np.rint(photo + share * (painting.astype(np.float32) - photo)).astype(np.uint8)
        return faded
    chosen = _fitted(photo, painting, mask) if blend == "poisson" and mask.any() else painting
    pasted: PixelArray = np.where(mask[:, :, None], chosen, photo)
    return pasted


def _fitted(photo: PixelArray, painting: PixelArray, mask: Mask) -> PixelArray:
    """The painting with its own gradients inside the mask and the photograph's colors around it."""
    cv2 = opencv()
    # OpenCV needs a border around the mask, fixes the rim of the mask's bounding box to the photograph and shrinks the
    # mask. Leave room for all three, so that the painting's gradients reach as far as the mask.
    room = _ERODED + 2
    around = ((room, room), (room, room), (0, 0))
    wide = cv2.dilate(np.pad(mask, room).astype(np.uint8), np.ones((2 * _ERODED + 1,) * 2, np.uint8))
    left, top, width, height = cv2.boundingRect(wide)
    fitted = cv2.seamlessClone(
        np.pad(painting, around, mode="edge"),
        np.pad(photo, around, mode="edge"),
        255 * wide,
        (left + width // 2, top + height // 2),
        cv2.NORMAL_CLONE,
    )
    inner: PixelArray = fitted[room:-room, room:-room]
    return inner
