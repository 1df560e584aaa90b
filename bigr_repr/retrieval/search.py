"""Pictures, or ids that an index holds, as queries: encode, search, and gather what there is to see.

Knows nothing of pages.
"""

# q queries, k neighbors

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bigr_repr._typing import PathLike
from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.images.decode import center_crop, decode_image
from bigr_repr.images.find import escape_path, find_images
from bigr_repr.images.formats import ImageError
from bigr_repr.retrieval.codes.regions import Region
from bigr_repr.retrieval.index.hamming import HammingIndex
from bigr_repr.retrieval.index.neighbors import Found
from bigr_repr.retrieval.queries import encode_queries, model_of
from bigr_repr.retrieval.results.photos import PhotoFinder, thumbnail
from bigr_repr.retrieval.results.views import Searched, SearchView, look_at
from bigr_repr.retrieval.stores.base import StoreIndex
from bigr_repr.system.threads import map_ahead

__all__ = ["search_ids", "search_images", "views_of"]

Model = PathLike | Pretrained
AnyIndex = HammingIndex | StoreIndex


@dataclass(frozen=True, kw_only=True)
class _Request:
    k: int
    rescore: int
    region: Region | None
    effort: int | None

    def __post_init__(self) -> None:
        if self.region is not None and self.rescore:
            raise ValueError("a region is compared only by bits: leave rescore out")


def search_images(
    index: AnyIndex,
    images: PathLike | Sequence[PathLike] | Mapping[str, bytes],
    k: int = 10,
    *,
    rescore: int = 0,
    region: Region | None = None,
    effort: int | None = None,
    model: Model | None = None,
) -> Searched:
    """Search for pictures like those in files: paths, folders, patterns; or in encoded files' bytes, by name.

    rescore, region, effort: as HammingIndex.rescored, search_region and search. model: where to load the model from
    that made the index; None: by the name that it has there. Equal distances come in the order of the rows. A picture
    that cannot be read ends among the `failures` of the answer.

    Raises ImageError or FileNotFoundError if none can be read, ValueError for another model than the index's, or for
    an index that lacks what is asked for.
    """
    request = _Request(k=k, rescore=rescore, region=region, effort=effort)
    sources = _sources(images)
    pre = model_of(index.provenance, model)
    assert index.provenance is not None
    read = list(map_ahead(partial(_read, pre.config.image_size), sources))
    pictures = [picture for picture in read if isinstance(picture, _Picture)]
    failures = [picture for picture in read if not isinstance(picture, _Picture)]
    if not pictures:
        raise failures[0][1]
    queries = encode_queries([picture.pixels for picture in pictures], pre, index.provenance, index.binarizer)
    found = _find(index, queries.codes, queries.tokens, queries.vectors, request)
    return Searched(
        names=[picture.name for picture in pictures],
        titles=[PurePath(picture.name).name for picture in pictures], found=found, tokens=queries.tokens,
        photos=[picture.photo for picture in pictures], region=region, rescored=rescore > 0,
        failures=[(name, str(error)) for name, error in failures],
    )  # fmt: skip


def search_ids(
    index: HammingIndex,
    ids: Sequence[str],
    k: int = 10,
    *,
    rescore: int = 0,
    region: Region | None = None,
    effort: int | None = None,
    images: Path | None = None,
) -> Searched:
    """Search for rows like those with these ids, by their stored codes: no model runs.

    Of an id that several rows have, the first row is taken.

    Raises ValueError for an id that is not in the index; otherwise as search_images.
    """
    request = _Request(k=k, rescore=rescore, region=region, effort=effort)
    rows = index.rows.places(list(ids))
    if (rows < 0).any():
        remedy = f"ids are paths as embedded, for example {index.ids[0].as_py()!r}" if len(index) else "it is empty"
        raise ValueError(f"id {ids[int((rows < 0).argmax())]!r} is not in the index; {remedy}")
    tokens = index.tokens[rows] if index.has_tokens else None
    vectors = None if index.rows.vectors is None else index.rows.vectors[rows]
    found = _find(index, index.rows.codes[rows], tokens, vectors, request)
    photo_of = PhotoFinder(images)
    photos = [photo_of(id, row) for id, row in zip(ids, rows.tolist(), strict=True)]
    return Searched(
        names=ids, titles=ids, found=found, tokens=tokens, photos=photos, region=region, rescored=rescore > 0
    )


def views_of(
    searched: Searched, index: AnyIndex, *, model: Model | None = None, images: Path | None = None
) -> list[SearchView]:
    """What there is to see of q queries.

    index: that was searched. model: as search_images. images: the folder that the index's paths are relative to.
    """
    pre = None if searched.tokens is None or not index.has_tokens else model_of(index.provenance, model)
    return look_at(index, searched, PhotoFinder(images), pre)


class _Picture(NamedTuple):
    """A query. pixels: uint8 (S, S, 3), as the model sees it."""

    name: str
    pixels: NDArray[np.uint8]
    photo: Image.Image


_Source = tuple[str, str | bytes | FileNotFoundError]  # a name, and what decode_image takes, or why there is nothing


def _sources(images: PathLike | Sequence[PathLike] | Mapping[str, bytes]) -> list[_Source]:
    """Raises FileNotFoundError if nothing at all is found."""
    if isinstance(images, Mapping):
        return list(images.items())
    found: list[_Source] = []
    for given in [images] if isinstance(images, str | os.PathLike) else images:
        try:
            found += [(escape_path(source.file), source.file) for source in find_images([given])]
        except FileNotFoundError as error:
            found.append((escape_path(os.fspath(given)), error))
    missing = [source for _, source in found if isinstance(source, FileNotFoundError)]
    if not found or len(missing) == len(found):
        raise missing[0] if missing else ValueError("no query; name image files, folders or patterns")
    return found


def _read(side: int, named: _Source) -> _Picture | tuple[str, ImageError | FileNotFoundError]:
    name, source = named
    if isinstance(source, FileNotFoundError):
        return name, source
    try:
        picture = decode_image(source, name=None if isinstance(source, str) else name)
    except ImageError as error:
        return name, error
    return _Picture(name, center_crop(picture, side), thumbnail(picture))


def _find(
    index: AnyIndex,
    codes: NDArray[np.uint8],
    tokens: NDArray[np.uint8] | None,
    vectors: NDArray[np.float32] | None,
    request: _Request,
) -> Found:
    if request.region is not None:
        return index.find_region(tokens if tokens is not None else codes, request.region, request.k)
    if request.rescore:
        if vectors is None:
            raise ValueError("this index holds no vectors to rescore by; build it with vectors kept")
        return index.find_rescored(codes, vectors, request.k, rescore=request.rescore, effort=request.effort)
    return index.find(codes, request.k, effort=request.effort)
