"""Contact sheets of pictures of the same size. Knows nothing of what they show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

__all__ = ["contact_sheet"]


def contact_sheet(pictures: Sequence[Image.Image], columns: int, *, gap: int = 2, gray: int = 255) -> Image.Image:
    """RGB pictures of one size in rows of `columns`, `gap` pixels apart and from the edge, on a gray of 0..255.

    Raises ValueError for no pictures, or pictures of different sizes.
    """
    import torch
    from torchvision.utils import make_grid

    if not pictures or any(picture.size != pictures[0].size for picture in pictures):
        raise ValueError("a contact sheet needs pictures, all of one size")
    pixels = torch.from_numpy(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]))
    # At least two: make_grid draws no edge around a single picture.
    tiles = pixels.permute(0, 3, 1, 2)
    if len(tiles) == 1:
        sheet = torch.nn.functional.pad(tiles[0], (gap, gap, gap, gap), value=gray)
    else:
        sheet = make_grid(tiles, nrow=columns, padding=gap, pad_value=gray)
    return Image.fromarray(sheet.permute(1, 2, 0).numpy())
