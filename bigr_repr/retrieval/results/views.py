"""What there is to see of a search: the query, its hits, their photographs and their decoded codes, as arrays.

Knows nothing of pages or of how a montage is laid out.
"""

# h w token grid, S side in pixels

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.images.decode import decode_image
from bigr_repr.images.find import unescape_path
from bigr_repr.images.formats import ImageError
from bigr_repr.retrieval.codes.decoding import decode_codes, token_distances
from bigr_repr.retrieval.codes.provenance import describe_origin
from bigr_repr.retrieval.codes.regions import Region
from bigr_repr.retrieval.index.hamming import HammingIndex, Neighbors
from bigr_repr.retrieval.stores.base import StoreIndex

__all__ = ["HitView", "SearchView", "look_at"]

log = logging.getLogger(__name__)
_THUMBNAIL: Final = 320  # pixels of the longer side


@dataclass(frozen=True, kw_only=True, eq=False)
class HitView:
    """One hit. photo: the picture behind its id, where it was found; decoded: its code as a picture; differing: bits of
    each token that differ from the query's, (h, w), with `bits_per_token` as the most there can be."""

    id: str
    distance: float
    photo: Image.Image | None
    decoded: Image.Image | None
    differing: NDArray[np.int32] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchView:
    """One query and its hits, nearest first.

    n_bits: compared for each distance; 0: the distances are cosine distances. origin: what the codes are of, in words.
    region: the part that was compared, as shares of the side (x, y, w, h).
    """

    name: str
    photo: Image.Image | None
    decoded: Image.Image | None
    hits: Sequence[HitView]
    n_bits: int
    bits_per_token: int
    origin: str
    rows: int
    region: tuple[float, float, float, float] | None = None


def look_at(
    index: HammingIndex | StoreIndex,
    found: Neighbors,
    names: Sequence[str],
    tokens: NDArray[np.uint8] | None,
    photos: Sequence[Image.Image | None],
    *,
    pre: Pretrained | None = None,
    images: Path | None = None,
    region: Region | None = None,
    rescored: bool = False,
) -> list[SearchView]:
    """The views of q queries.

    found: of index.search… names, photos, tokens (q, bytes), or None: of the queries. pre: to decode tokenizer codes
    with, where index and query have them. images: the folder that ids are paths in; a hit whose picture is not there,
    or cannot be read, is shown without.
    """
    layout = index.layout
    bits = 0 if rescored else index.n_bits
    share = None
    if region is not None and layout is not None:
        bits = region.w * region.h * layout.bits_per_token
        share = (region.x / layout.width, region.y / layout.height, region.w / layout.width, region.h / layout.height)
    decodable = pre is not None and layout is not None and tokens is not None
    views = []
    for i, name in enumerate(names):
        held = [j for j, item in enumerate(found.ids[i]) if item is not None and item != -1]
        ids = found.ids[i][held]
        own = theirs = None
        pictures: list[Image.Image | None] = [None] * (1 + len(held))
        if decodable and pre is not None and tokens is not None and isinstance(index, HammingIndex):
            own, theirs = tokens[i], np.ascontiguousarray(index.tokens[index.rows.places(list(ids))])
            pictures = [Image.fromarray(pixels) for pixels in decode_codes(pre, np.concatenate([own[None], theirs]))]
        hits = [
            HitView(
                id=str(item), distance=float(found.distances[i][j]), photo=photo_of(str(item), images),
                decoded=pictures[1 + n],
                differing=token_distances(own, theirs[n], layout) if own is not None and theirs is not None and layout
                else None,
            )
            for n, (j, item) in enumerate(zip(held, ids, strict=True))
        ]  # fmt: skip
        views.append(
            SearchView(
                name=name, photo=photos[i], decoded=pictures[0], hits=hits, n_bits=bits,
                bits_per_token=0 if layout is None else layout.bits_per_token, origin=describe_origin(index.origin),
                rows=len(index), region=share,
            )
        )  # fmt: skip
    return views


def thumbnail(source: str | Path, longest: int = _THUMBNAIL) -> Image.Image:
    """A picture, upright, no side longer than so many pixels.  Raises ImageError."""
    picture = decode_image(source)
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return picture


def photo_of(id: str, images: Path | None) -> Image.Image | None:
    """The picture at a path that an index holds, relative to the folder `images`; None if it cannot be read."""
    path: Any = Path(unescape_path(id))
    try:
        return thumbnail(path if images is None else images / path)
    except ImageError as error:
        log.info("no photograph for a hit: %s", error)
        return None
