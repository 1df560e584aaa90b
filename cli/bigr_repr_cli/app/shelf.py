"""Pictures that the page may show, each under an unguessable id. Independent of drawing and HTTP."""

from __future__ import annotations

import io
import secrets
import sys
import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from bigr_repr.images.decode import decode_image
from bigr_repr.images.formats import ImageError
from bigr_repr.system.files import replacing

SHOWN: Final = 1600  # longer side of the copy that the page shows, in pixels
FOLDER_BYTES: Final = 2 << 30  # of all uploads
_LOSSLESS: Final = 1 << 19  # pixels up to which the copy is lossless
_CHECKOUT: Final = Path(__file__).parents[3] / "examples" / "images"


class FullError(Exception):
    """Too much has been uploaded."""


@dataclass(frozen=True, eq=False)
class ShelfPicture:
    """A picture file. name: shown to the user. size: width and height, upright."""

    id: str
    path: Path
    name: str
    size: tuple[int, int]
    max_pixels: int

    @property
    def animated(self) -> bool:
        """Whether it is animated, so that only the file itself shows all of it."""
        return self.path.suffix == ".gif"

    @cached_property
    def shown(self) -> tuple[bytes, str]:
        """A copy for the page, and its media type."""
        if self.animated:
            return self.path.read_bytes(), "image/gif"
        image, file = decode_image(self.path, max_pixels=self.max_pixels, name=self.name), io.BytesIO()
        image.thumbnail((SHOWN, SHOWN))
        if image.width * image.height <= _LOSSLESS:
            image.save(file, "PNG")
            return file.getvalue(), "image/png"
        image.save(file, "WEBP", quality=92)
        return file.getvalue(), "image/webp"


class Shelf:
    """Uploads in a private folder, samples, and drawn pictures.

    max_pixels: larger pictures are refused, except drawn ones.
    """

    def __init__(self, folder: Path, max_pixels: int) -> None:
        self.folder, self.max_pixels = folder, max_pixels
        self._pictures: dict[str, ShelfPicture] = {}
        self._lock, self._bytes = threading.Lock(), 0

    def __getitem__(self, id: str) -> ShelfPicture:
        """Raises KeyError."""
        return self._pictures[id]

    def get(self, id: str | None) -> ShelfPicture | None:
        """The picture with this id, or None."""
        return None if id is None else self._pictures.get(id)

    def put(self, path: Path, name: str | None = None, *, drawn: bool = False) -> ShelfPicture:
        """Add a file. drawn: by the studio, so it may have any size.

        Raises ImageError, with a message that does not name the file's folder.
        """
        told, limit = name or path.name, sys.maxsize if drawn else self.max_pixels
        size = decode_image(path, max_pixels=limit, name=told).size
        picture = ShelfPicture(secrets.token_urlsafe(16), path, told, size, limit)
        self._pictures[picture.id] = picture
        return picture

    def upload(self, data: bytes, name: str) -> ShelfPicture:
        """Store an encoded picture. Raises ImageError for anything else, and FullError."""
        with self._lock:
            if self._bytes + len(data) > FOLDER_BYTES:
                raise FullError("too much has been uploaded; restart bigr-repr app")
            self._bytes += len(data)
        path = self.folder / secrets.token_hex(8)
        try:
            with replacing(path) as file:
                file.write(data)
            return self.put(path, Path(name.replace("\\", "/")).name[:200] or "picture")
        except BaseException:
            path.unlink(missing_ok=True)
            with self._lock:
                self._bytes -= len(data)
            raise

    @cached_property
    def samples(self) -> list[ShelfPicture]:
        """Sample photographs; none if the package was installed without them."""
        folder = next((each for each in (Path(__file__).with_name("samples"), _CHECKOUT) if each.is_dir()), None)
        if folder is None:
            return []
        found = []
        for path in sorted(folder.iterdir()):
            try:
                found.append(self.put(path))
            except (ImageError, OSError):  # notes next to the photographs
                continue
        return found
