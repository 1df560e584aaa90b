"""Pictures that are queries: where they are, how the model sees them, how they are shown. Knows nothing of search."""

# S side in pixels

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bigr_repr._typing import PathLike
from bigr_repr.embed.dataset.entry import Entry
from bigr_repr.embed.inputs.fetch import EncodedPicture, fetch, pictures
from bigr_repr.embed.inputs.sources import container_entry, find_sources
from bigr_repr.images.decode import center_crop, decode_image
from bigr_repr.images.find import escape_path
from bigr_repr.images.formats import ImageError
from bigr_repr.images.parquet import Columns
from bigr_repr.retrieval.results.photos import thumbnail
from bigr_repr.system.threads import map_ahead

__all__ = ["QueryPicture", "name_pictures", "read_pictures"]

Failure = tuple[str, Exception]  # a name, and why it cannot be read


class QueryPicture(NamedTuple):
    """A query. pixels: uint8 (S, S, 3), as the model sees it."""

    name: str
    pixels: NDArray[np.uint8]
    photo: Image.Image


def _entries(images: PathLike | Sequence[PathLike], columns: Columns) -> tuple[list[Entry], list[Failure]]:
    """The pictures that are named, rows and members of Parquet and tar files among them, and what is not there.

    Raises FileNotFoundError if nothing at all is found.
    """
    found: list[Entry] = []
    missing: list[Failure] = []
    for given in [images] if isinstance(images, str | os.PathLike) else images:
        try:
            for source in find_sources([given], columns=columns):
                name = source.path if source.start is not None and source.size is None else source.file
                member = f"/{source.path}" if source.size is not None else ""
                found.append(Entry(escape_path(name + member), source.file, source.start, source.size))
        except FileNotFoundError as error:
            entry = container_entry(os.fspath(given))
            if entry is None:
                missing.append((escape_path(os.fspath(given)), error))
            else:
                found.append(entry)
    if not found:
        raise missing[0][1] if missing else ValueError("no query; name image files, folders or patterns")
    return found, missing


def name_pictures(
    images: PathLike | Sequence[PathLike] | Mapping[str, bytes], image_column: str
) -> tuple[Iterator[tuple[str, EncodedPicture]], list[Failure]]:
    """Pictures by name, and what is not there.  Raises FileNotFoundError if nothing is."""
    if isinstance(images, Mapping):
        return ((name, EncodedPicture(name, data)) for name, data in images.items()), []
    columns = Columns(image=image_column)
    entries, missing = _entries(images, columns)
    return zip((entry.path for entry in entries), pictures(entries, columns), strict=True), missing


def _read(side: int, icc: str, named: tuple[str, EncodedPicture]) -> QueryPicture | Failure:
    name, encoded = named
    try:
        picture = decode_image(fetch(encoded), name=encoded.name, icc=icc)
    except ImageError as error:
        return name, error
    return QueryPicture(name, center_crop(picture, side), thumbnail(picture))


def read_pictures(
    named: Iterable[tuple[str, EncodedPicture]], missing: list[Failure], side: int, icc: str
) -> tuple[list[QueryPicture], list[Failure]]:
    """The pictures that can be read, and why the others cannot, after the missing ones. Raises if none can."""
    read = list(map_ahead(partial(_read, side, icc), named))
    seen = [picture for picture in read if isinstance(picture, QueryPicture)]
    failures = missing + [picture for picture in read if not isinstance(picture, QueryPicture)]
    if not seen:
        raise failures[0][1]
    return seen, failures
