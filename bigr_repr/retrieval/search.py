"""Pictures, or ids that an index holds, as queries: encode, search, and gather what there is to see.

Knows nothing of pages.
"""

# q queries, k neighbors

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bigr_repr._typing import PathLike
from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.images.find import escape_path, find_images
from bigr_repr.retrieval.codes.regions import Region
from bigr_repr.retrieval.index.hamming import HammingIndex, Neighbors
from bigr_repr.retrieval.queries import encode_queries, model_of
from bigr_repr.retrieval.results.views import SearchView, look_at, photo_of, thumbnail
from bigr_repr.retrieval.stores.base import StoreIndex

__all__ = ["Searched", "search_ids", "search_images"]

Model = PathLike | Pretrained


@dataclass(frozen=True, kw_only=True, eq=False)
class Searched:
    """Queries by name, as text, and what was found for each.

    tokens: the queries' tokenizer codes, uint8 (q, bytes), or None.
    """

    names: Sequence[str]
    neighbors: Neighbors
    tokens: NDArray[np.uint8] | None
    photos: Sequence[Image.Image | None]
    region: Region | None
    rescored: bool

    def views(
        self, index: HammingIndex | StoreIndex, *, model: Model | None = None, images: Path | None = None
    ) -> list[SearchView]:
        """What there is to see, of q queries. images: the folder that the index's paths are relative to."""
        pre = None if self.tokens is None or not index.has_tokens else model_of(index.origin, model)
        return look_at(
            index, self.neighbors, self.names, self.tokens, self.photos,
            pre=pre, images=images, region=self.region, rescored=self.rescored,
        )  # fmt: skip


def search_images(
    index: HammingIndex | StoreIndex,
    images: Sequence[PathLike],
    k: int = 10,
    *,
    rescore: int = 0,
    region: Region | None = None,
    effort: int | None = None,
    model: Model | None = None,
) -> Searched:
    """Search for pictures like those in files: paths, folders, patterns.

    rescore, region, effort: as HammingIndex.rescored, search_region and search. model: where to load the model from
    that made the index; None: by the name that it has there. Equal distances come in the order of the rows.

    Raises ImageError for a picture that cannot be read, ValueError for another model than the index's, or for an index
    that lacks what is asked for.
    """
    files = [source.file for source in find_images(images)]
    pre = model_of(index.origin, model)
    assert index.origin is not None
    queries = encode_queries(files, pre, index.origin, index.binarizer)
    found = _search(index, queries.codes, queries.tokens, queries.vectors, k, rescore, region, effort)
    return Searched(
        names=[escape_path(os.path.basename(file)) for file in files],  # noqa: PTH119  (a name as found, not a path)
        neighbors=found, tokens=queries.tokens, photos=[thumbnail(file) for file in files],
        region=region, rescored=rescore > 0,
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

    Raises ValueError for an id that is not in the index; otherwise as search_images.
    """
    rows = index.rows.places(list(ids))
    if (rows < 0).any():
        remedy = f"ids are paths as embedded, for example {index.ids[0].as_py()!r}" if len(index) else "it is empty"
        raise ValueError(f"id {ids[int((rows < 0).argmax())]!r} is not in the index; {remedy}")
    tokens = index.tokens[rows] if index.has_tokens else None
    vectors = None if index.rows.vectors is None else index.rows.vectors[rows]
    found = _search(index, index.rows.codes[rows], tokens, vectors, k, rescore, region, effort)
    photos = [photo_of(id, images) for id in ids]
    return Searched(
        names=list(ids), neighbors=found, tokens=tokens, photos=photos, region=region, rescored=rescore > 0
    )  # fmt: skip


def _search(
    index: HammingIndex | StoreIndex,
    codes: NDArray[np.uint8],
    tokens: NDArray[np.uint8] | None,
    vectors: NDArray[np.float32] | None,
    k: int,
    rescore: int,
    region: Region | None,
    effort: int | None,
) -> Neighbors:
    if region is not None and rescore:
        raise ValueError("a region is compared only by bits: leave rescore out")
    if region is not None:
        return index.search_region(tokens if tokens is not None else codes, region, k)
    if rescore:
        if vectors is None:
            raise ValueError("this index holds no vectors to rescore by; build it with vectors kept")
        return index.rescored(codes, vectors, k, rescore=rescore, effort=effort)
    return index.search(codes, k, effort=effort)
