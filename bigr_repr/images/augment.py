"""Random crops of training images, as in the published linear probes. Knows nothing of networks or labels."""

# H W picture, S side in pixels

from __future__ import annotations

import math
from typing import Final

import numpy as np
from PIL import Image

__all__ = ["random_resized_crop"]

_AREA: Final = (0.08, 1.0)  # fraction of the picture's area
_RATIO: Final = (3 / 4, 4 / 3)  # width / height
_TRIES: Final = 10


def random_resized_crop(
    image: Image.Image, side: int, random: np.random.Generator, *, least: float = _AREA[0], mirror: bool = True
) -> Image.Image:
    """A random part of a picture, `least`..1 of its area with an aspect ratio of 3/4..4/3, resized to (S, S).

    With `mirror`, it is mirrored half the time.
    After ten candidates that do not fit into the picture, the largest central crop with an allowed ratio is taken.
    """
    width, height = image.size
    box = _fallback(width, height)
    for _ in range(_TRIES):
        area = width * height * random.uniform(least, _AREA[1])
        ratio = math.exp(random.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, top = int(random.integers(width - wide + 1)), int(random.integers(height - high + 1))
            box = (left, top, left + wide, top + high)
            break
    cut = image.resize((side, side), Image.Resampling.BICUBIC, box=box)
    turned = random.random() < 0.5
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror and turned else cut


def _fallback(width: int, height: int) -> tuple[int, int, int, int]:
    wide, high = min(width, round(height * _RATIO[1])), min(height, round(width / _RATIO[0]))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high
