"""Contact sheets of pictures of the same size. Knows nothing of what they show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

__all__ = ["contact_sheet"]


def contact_sheet(
    pictures: Sequence[Image.Image], columns: int, *, gap: int = 2, gray: int = 255, edge: int | None = None
) -> Image.Image:
    """Pictures of one size in rows of `columns`, as RGB, `gap` pixels apart, on a gray of 0..255.

    edge: pixels around all of them, 0..gap; None: as many as between them.
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
    cut = 0 if edge is None else gap - edge
    inner = sheet[:, cut : sheet.shape[1] - cut, cut : sheet.shape[2] - cut]
    return Image.fromarray(inner.permute(1, 2, 0).contiguous().numpy())
