"""The photographs behind an index's ids. Knows nothing of search."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

from PIL import Image

from bigr_repr.images.decode import decode_image
from bigr_repr.images.find import unescape_path
from bigr_repr.images.formats import ImageError

__all__ = ["PhotoFinder", "thumbnail"]

log = logging.getLogger(__name__)
_LONGEST: Final = 320  # pixels of a thumbnail's longer side


class PhotoFinder:
    """Finds the photograph of a row by its id. images: the folder that ids are paths in; None: the current folder."""

    def __init__(self, images: Path | None = None) -> None:
        self._images = images

    def __call__(self, id: str, row: int) -> Image.Image | None:
        """The row's picture as a thumbnail; None if it cannot be read."""
        path: Any = Path(unescape_path(id))
        try:
            return thumbnail(decode_image(path if self._images is None else self._images / path))
        except ImageError as error:
            log.info("no photograph for row %d: %s", row, error)
            return None


def thumbnail(picture: Image.Image, longest: int = _LONGEST) -> Image.Image:
    """The picture with no side longer than `longest` pixels; changed in place."""
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return picture
