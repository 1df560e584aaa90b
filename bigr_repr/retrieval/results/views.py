"""Views of a search: the query, its hits, their photographs and their decoded codes, as arrays.

Knows nothing of pages or montage layout.
"""

# q queries, k neighbors, h w token grid, S side in pixels

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bigr_repr.retrieval.codes.provenance import describe_provenance
from bigr_repr.retrieval.codes.regions import Region, TokenLayout
from bigr_repr.retrieval.index.hamming import HammingIndex
from bigr_repr.retrieval.index.neighbors import Found
from bigr_repr.retrieval.stores.base import StoreIndex

if TYPE_CHECKING:
    from PIL import Image

    from bigr_repr.checkpoints.pretrained import Pretrained

    _Decoded = tuple[Image.Image | None, NDArray[np.int32] | None]

__all__ = ["HitView", "SearchView", "Searched", "look_at"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Searched:
    """Queries, and the hits of each.

    names: of the queries, as given; titles: as shown. found: rows, ids and distances (q, k). tokens: the queries'
    tokenizer codes, uint8 (q, bytes), or None. photos: of the queries, None if missing. failures: pictures that could
    not be read, and why; they are not among the q queries. near: if hits were grouped, for each query and hit the ids
    listed under it.
    """

    names: Sequence[str]
    titles: Sequence[str]
    found: Found
    tokens: NDArray[np.uint8] | None
    photos: Sequence[Image.Image | None]
    region: Region | None
    rescored: bool
    failures: Sequence[tuple[str, str]] = ()
    near: Sequence[Sequence[Sequence[str]]] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class HitView:
    """One hit.

    photo: the picture behind its id, if found; decoded: its code as a picture; differing: number of each token's bits
    that differ from the query's, (h, w) in 0..bits_per_token.
    """

    id: str
    distance: float
    photo: Image.Image | None
    decoded: Image.Image | None
    differing: NDArray[np.int32] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchView:
    """One query and its hits, nearest first.

    n_bits: number of bits compared; 0: distances are cosine distances. provenance: a description.
    region: the compared part, as shares of the side (x, y, w, h).
    """

    name: str
    photo: Image.Image | None
    decoded: Image.Image | None
    hits: Sequence[HitView]
    n_bits: int
    bits_per_token: int
    provenance: str
    rows: int
    region: tuple[float, float, float, float] | None = None


def look_at(
    index: HammingIndex | StoreIndex,
    searched: Searched,
    photo_of: Callable[[str, int], Image.Image | None],
    pre: Pretrained | None = None,
) -> list[SearchView]:
    """The views of q queries.

    photo_of(id, row): the photograph of a hit, or None. pre: the model that decodes tokenizer codes, if index and query
    have them; None: decode nothing.
    """
    layout, region = index.layout, searched.region
    bits, share = 0 if searched.rescored else index.n_bits, None
    if region is not None and layout is not None:
        bits, share = region.w * region.h * layout.bits_per_token, region.shares(layout)
    views = []
    for i, name in enumerate(searched.titles):
        held = np.flatnonzero(searched.found.rows[i] >= 0)
        rows, distances = searched.found.rows[i][held], searched.found.distances[i][held]
        own, hits = _decoded(index, searched, i, rows, pre)
        listed = [
            HitView(id=str(id), distance=float(distance), photo=photo_of(str(id), int(row)), decoded=picture,
                    differing=differing)
            for id, distance, row, (picture, differing) in zip(
                searched.found.ids[i][held], distances, rows, hits, strict=True
            )
        ]  # fmt: skip
        views.append(
            SearchView(
                name=name, photo=searched.photos[i], decoded=own, hits=listed, n_bits=bits, rows=len(index),
                bits_per_token=0 if layout is None else layout.bits_per_token, region=share,
                provenance=describe_provenance(index.provenance),
            )
        )  # fmt: skip
    return views


def _decoded(
    index: HammingIndex | StoreIndex, searched: Searched, query: int, rows: NDArray[np.int64], pre: Pretrained | None
) -> tuple[Image.Image | None, list[_Decoded]]:
    """A query's decoded code, and each hit's with the differing bits per token; None without codes."""
    layout: TokenLayout | None = index.layout
    if pre is None or layout is None or searched.tokens is None or not isinstance(index, HammingIndex):
        return None, [(None, None)] * len(rows)
    from PIL import Image

    from bigr_repr.retrieval.codes.decoding import decode_codes, token_distances

    own, theirs = searched.tokens[query], np.ascontiguousarray(index.tokens[rows])
    first, *others = (Image.fromarray(pixels) for pixels in decode_codes(pre, np.concatenate([own[None], theirs])))
    return first, list(zip(others, token_distances(own, theirs, layout), strict=True))
