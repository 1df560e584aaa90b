"""Searches with pictures, or with ids in an index: encodes, searches, and collects the views.

Knows nothing of pages.
"""

# q queries, k neighbors

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property, partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack

import numpy as np

from bigr_repr._typing import PathLike
from bigr_repr.retrieval.index.hamming import HammingIndex
from bigr_repr.retrieval.index.neighbors import Found
from bigr_repr.retrieval.request import AnyIndex, Asked, QueryCodes, SearchRequest
from bigr_repr.retrieval.results.views import Searched, SearchView, look_at

if TYPE_CHECKING:
    from bigr_repr.checkpoints.pretrained import Pretrained
    from bigr_repr.features.exported.model import ExportedModel

__all__ = ["search_ids", "search_images", "views_of"]

Model: TypeAlias = "PathLike | Pretrained | ExportedModel"


def search_images(
    index: AnyIndex,
    images: PathLike | Sequence[PathLike] | Mapping[str, bytes],
    k: int = 10,
    *,
    model: Model | None = None,
    image_column: str = "image",
    **asked: Unpack[Asked],
) -> Searched:
    """Search for pictures like those in files: paths, folders, patterns, and rows of Parquet and tar files.

    A Parquet or tar file stands for all pictures in it, `train.parquet#17` and `shard.tar/0017.jpg` for one. images may
    also map names to the bytes of encoded files.

    model: the one that made the index; None: the recorded one. image_column: of Parquet files. asked: see Asked and
    Within. Unreadable pictures are listed in `failures` of the result.

    Raises ImageError or FileNotFoundError if no picture can be read or, with weights, if not all can; ValueError for a
    model other than the index's, or for an index that lacks what is requested.
    """
    from bigr_repr.retrieval.queries import encode_queries, icc_of, model_of
    from bigr_repr.retrieval.results.asked import name_pictures, read_pictures

    request = SearchRequest.of(k, asked)
    named, missing = name_pictures(images, image_column)
    pre = model_of(index.provenance, model)
    assert index.provenance is not None
    seen, failures = read_pictures(named, missing, pre.config.image_size, icc_of(index.provenance))
    if request.weights is not None and failures:
        raise failures[0][1]
    queries = encode_queries([picture.pixels for picture in seen], pre, index.provenance, index.binarizer)
    found, near = _answer(index, QueryCodes(queries.codes, queries.tokens, queries.vectors), request)
    names, photos = [picture.name for picture in seen], [picture.photo for picture in seen]
    return Searched(
        names=_as_one(names, request), titles=_as_one([PurePath(name).name for name in names], request), found=found,
        tokens=queries.tokens if request.weights is None else None, photos=photos[: len(found.rows)],
        region=request.region, rescored=request.rescore > 0, near=near,
        failures=[(name, str(error)) for name, error in failures],
    )  # fmt: skip


def search_ids(
    index: AnyIndex,
    ids: Sequence[str],
    k: int = 10,
    *,
    images: Path | None = None,
    image_column: str | None = None,
    **asked: Unpack[Asked],
) -> Searched:
    """Search for rows like those with these ids, by their stored codes, without running a model.

    If several rows have an id, the first is used. images, image_column: as in views_of.

    Raises ValueError for an id that is not in the index; otherwise as search_images.
    """
    request = SearchRequest.of(k, asked)
    if isinstance(index, HammingIndex):
        rows = index.rows.places(list(ids))
        example, source = index.ids[0].as_py() if len(index) else None, index.source
    else:
        rows, example, source = np.array([index.row_of(id) for id in ids], np.int64), None, None
    if (rows < 0).any():
        remedy = "ids are paths as embedded" + ("" if example is None else f", for example {example!r}")
        raise ValueError(f"id {ids[int((rows < 0).argmax())]!r} is not in the index; {remedy}")
    codes, tokens, vectors = index.codes_of(rows), None, None
    if isinstance(index, HammingIndex):
        tokens = index.tokens[rows] if index.has_tokens else None
        vectors = None if index.rows.vectors is None else index.rows.vectors[rows]
    found, near = _answer(index, QueryCodes(codes, tokens, vectors), request)
    shown = list(zip(ids, rows.tolist(), strict=True))[: len(found.rows)]
    photos = _Photos(shown, partial(_photo_finder, images, source, image_column))
    return Searched(
        names=_as_one(ids, request), titles=_as_one(ids, request), found=found, photos=photos, region=request.region,
        tokens=tokens if request.weights is None else None, rescored=request.rescore > 0, near=near,
    )  # fmt: skip


def views_of(
    searched: Searched,
    index: AnyIndex,
    *,
    model: Model | None = None,
    images: Path | None = None,
    image_column: str | None = None,
) -> list[SearchView]:
    """The views of q queries.

    index: the searched one. model: as in search_images. images: the folder that the index's paths are relative to, or
    the tar or Parquet file that was embedded. image_column: of Parquet files; None: as the data set was made.
    """
    from bigr_repr.features.exported.model import ExportedModel
    from bigr_repr.retrieval.queries import model_of

    pre = None if searched.tokens is None or not index.has_tokens else model_of(index.provenance, model)
    decoder = None if isinstance(pre, ExportedModel) else pre  # an exported network decodes nothing
    source = index.source if isinstance(index, HammingIndex) else None
    return look_at(index, searched, _photo_finder(images, source, image_column), decoder)


class _Photos(Sequence[Any]):
    """The pictures of rows, each found when it is first looked at: most searches show none."""

    def __init__(self, rows: Sequence[tuple[str, int]], finder: Callable[[], Callable[[str, int], Any]]) -> None:
        self._rows, self._finder = rows, finder

    @cached_property
    def _find(self) -> Callable[[str, int], Any]:
        return cache(self._finder())

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Any:
        chosen = self._rows[place]
        return [self._find(*row) for row in chosen] if isinstance(place, slice) else self._find(*chosen)


def _photo_finder(images: Path | None, source: Any, image_column: str | None) -> Callable[[str, int], Any]:
    from bigr_repr.retrieval.results.photos import PhotoFinder

    return PhotoFinder(images, source, image_column=image_column)


def _as_one(names: Sequence[str], request: SearchRequest) -> Sequence[str]:
    """Names of queries; a single name for weighted pictures."""
    if request.weights is None:
        return names
    return [
        " ".join(f"{weight:+g}*{name}" for weight, name in zip(request.weights, names, strict=True)).removeprefix("+")
    ]


def _answer(
    index: AnyIndex, queries: QueryCodes, request: SearchRequest
) -> tuple[Found, Sequence[Sequence[Sequence[str]]]]:
    """The hits and, if grouping is requested, the ids of the hits listed under each."""
    found, members = request.answer(index, queries)
    return found, [
        [index.names_of(np.array([row for row, _ in group], np.int64)) for group in groups] for groups in members
    ]
