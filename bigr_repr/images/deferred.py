"""Pictures that are decoded on load(), by decoders other than Pillow's. Knows nothing of formats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image


class DeferredImage(Image.Image):
    """A picture of which only the header has been read: its size can be checked before load() calls decode.

    format, size (width, height), mode: as in Pillow; after load(), mode and size are the decoded picture's.
    """

    def __init__(
        self, format: str, size: tuple[int, int], decode: Callable[[], Image.Image], *, mode: str = "RGB"
    ) -> None:
        super().__init__()
        self.format, self._size, self._mode = format, size, mode
        self._decode: Callable[[], Image.Image] | None = decode

    def load(self) -> Any:
        """Decode the picture, once."""
        if self._decode is not None:
            image, self._decode = self._decode(), None
            image.load()
            self.im, self._mode, self._size = image.im, image.mode, image.size
            self.info |= image.info
        return super().load()
