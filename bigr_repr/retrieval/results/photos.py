"""Finds the photographs behind an index's ids. Knows nothing of search."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Final

from PIL import Image

from bigr_repr.embed.dataset.entry import Entry
from bigr_repr.embed.dataset.locate import RowLocator, read_thumbnail
from bigr_repr.embed.inputs.fetch import fetch, pictures
from bigr_repr.embed.inputs.sources import container_entry, member_entry
from bigr_repr.images.decode import decode_image
from bigr_repr.images.find import unescape_path
from bigr_repr.images.formats import ImageError
from bigr_repr.images.parquet import USUAL_COLUMNS, Columns
from bigr_repr.retrieval.codes.source import DataFile, DataSource

__all__ = ["PhotoFinder", "thumbnail"]

log = logging.getLogger(__name__)
_FILES: Final = 8  # of data sets whose paths are kept
_LONGEST: Final = 320  # longer side of a thumbnail, in pixels


class PhotoFinder:
    """Finds the photograph of a row: by its id, at its location in the data set, or as a thumbnail in the data set.

    images: the folder that ids are relative to, or the tar or Parquet file; None: as the data set recorded, or else the
    current folder. source: the rows' data set. image_column: of Parquet files; None: as the data set was made, or else
    `image`. inside: a folder or file; pictures and their tar and Parquet files are read only there, after following
    links, because ids and data sets may be untrusted. None: anywhere. Thumbnails in the data set are always read.
    """

    def __init__(
        self,
        images: Path | None = None,
        source: DataSource | None = None,
        *,
        image_column: str | None = None,
        inside: Path | None = None,
    ) -> None:
        self._images, self._source, self._column, self._inside = images, source, image_column, inside

    def __call__(self, id: str, row: int) -> Image.Image | None:
        """The row's picture as a thumbnail; None if it cannot be read."""
        for found in self.encoded(id, row):
            try:
                return thumbnail(decode_image(found, name=id))
            except ImageError as error:
                log.info("no photograph for row %d: %s", row, error)
        return None

    def encoded(self, id: str, row: int, *, thumbnails: bool = True) -> Iterator[str | bytes]:
        """The row's encoded picture from each place that has it: a path, or an encoded file's bytes."""
        several = self._source is not None and len(self._source.folders) > 1  # which may share names
        recorded = several or self._images is None  # the current folder may hold other files of those names
        places = (self._of_row, self._at) if recorded else (self._at, self._of_row)
        for find in (*places, self._kept) if thumbnails else places:
            try:
                if (found := find(id, row)) is not None:
                    yield found
            except (ImageError, OSError, ValueError) as error:
                log.info("no photograph for row %d: %s", row, error)

    def _at(self, id: str, row: int) -> str | bytes | None:
        """By its id. A name may occur twice in a tar file: then only the data set knows which one it was."""
        path = unescape_path(id)
        if self._images is None:
            return path if Path(path).is_file() and self._may_read(path) else None
        if self._images.is_dir():
            file = os.path.normpath(self._images.absolute() / path)
            inside = Path(file).is_relative_to(os.path.normpath(self._images.absolute()))  # ids are untrusted
            return file if inside and Path(file).is_file() and self._may_read(file) else None
        entry = member_entry(str(self._images), path)
        return None if entry is None else self._encoded(entry, self._locator_of(row))

    def _of_row(self, id: str, row: int) -> str | bytes | None:
        locator = self._locator_of(row)
        if self._source is None or locator is None:
            path = unescape_path(id)
            holders = (path.rpartition("#")[0], *map(str, Path(path).parents))
            entry = container_entry(path) if self._images is None and any(map(self._may_read, holders)) else None
            return None if entry is None else self._encoded(entry, None)
        _, part, place = self._place_of(id, row)
        found = None if place is None else locator.entry(part.name, place)
        return self._encoded(found, locator) if found is not None and found.path == id else None

    def _kept(self, id: str, row: int) -> bytes | None:
        """The thumbnail stored in the data set."""
        if self._source is None:
            return None
        folder, part, place = self._place_of(id, row)
        return None if place is None else read_thumbnail(folder, part.name, place, id)

    def _place_of(self, id: str, row: int) -> tuple[str, DataFile, int | None]:
        """The data set, file and place in that file of a row; no place if it cannot be told.

        Once the index has dropped rows of a file, the place is that of the only row with this path there.
        """
        assert self._source is not None
        folder, part, place = self._source.place_of(row)
        if part.held == part.rows:
            return folder, part, place
        found = self._paths(folder, part.name).get(id, ())
        return folder, part, found[0] if len(found) == 1 else None

    def _locator_of(self, row: int) -> RowLocator | None:
        return None if self._source is None else self._locators(self._source.place_of(row)[0])

    @cached_property
    def _paths(self) -> Callable[[str, str], dict[str, list[int]]]:
        return lru_cache(_FILES)(_paths)

    @cached_property
    def _locators(self) -> Callable[[str], RowLocator | None]:
        return cache(_locator)

    def _may_read(self, file: str) -> bool:
        """Whether a path is a regular file inside `inside`, after following links; True without one."""
        if self._inside is None:
            return True
        try:
            found = Path(file).resolve(strict=True)
            return found.is_file() and found.is_relative_to(self._inside.resolve(strict=True))
        except (OSError, ValueError, RuntimeError):
            return False

    def _encoded(self, entry: Entry, locator: RowLocator | None) -> str | bytes | None:
        if not self._may_read(entry.file):
            return None
        recorded = USUAL_COLUMNS if locator is None else locator.columns
        (picture,) = pictures([entry], recorded if self._column is None else Columns(image=self._column))
        return fetch(picture)


def _paths(folder: str, part: str) -> dict[str, list[int]]:
    """The places of every path in a file of a data set.  Raises OSError or ValueError for one that cannot be read."""
    from bigr_repr.embed.dataset.read import EmbeddingSet

    batches = EmbeddingSet(folder, only=[part]).column_batches(["path"])
    places: dict[str, list[int]] = {}
    for place, path in enumerate(path for batch in batches for path in batch.column("path").to_pylist()):
        places.setdefault(path, []).append(place)
    return places


def _locator(folder: str) -> RowLocator | None:
    """The locator of a data set's inputs; None if the data set cannot be found."""
    try:
        return RowLocator(folder)
    except (OSError, ValueError):
        return None


def thumbnail(picture: Image.Image, longest: int = _LONGEST) -> Image.Image:
    """The picture with no side longer than `longest` pixels; changed in place."""
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return picture
