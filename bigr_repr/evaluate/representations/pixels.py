"""The pixels themselves as a representation. Knows nothing of networks, data sets or labels."""

# B batch

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bigr_repr.evaluate.representations.base import MIRROR, Reading, Representation, View
from bigr_repr.images.decode import center_crop

_PIXELS: Final = 32


class PixelRepresentation(Representation):
    """The pixels of the middle square, as numbers 0..255."""

    def __init__(self, name: str, side: str) -> None:
        if side and not (side.isdecimal() and 1 <= int(side) <= 256):
            raise ValueError(f"model={name!r}: the side after pixels: is an integer in 1..256, such as pixels:32")
        self._side = int(side or _PIXELS)
        self.name = name
        self.fingerprint = hashlib.sha256(f"pixels {self._side}".encode()).hexdigest()
        self.record = {"model": name, "model_sha256": None, "image_size": self._side}

    def default_view(self, reading: Reading) -> View:
        return View(item=f"pixels{MIRROR if reading.mirror else ''}")

    def prepare(self, image: Image.Image) -> NDArray[Any]:
        return center_crop(image, self._side)

    def compute(self, batch: list[NDArray[Any]], items: Sequence[str]) -> dict[str, NDArray[Any]]:
        return {"pixels": np.stack(batch).reshape(len(batch), -1)}
