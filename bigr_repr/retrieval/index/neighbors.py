"""Results of a search. Knows nothing of how it is done."""

# q queries, k neighbors

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from bigr_repr.retrieval.codes.filters import Filter

__all__ = ["Found", "Neighbors", "Scope", "Within"]


class Within(TypedDict, total=False):
    """Restrictions of a search.

    where: only rows that match: an expression over the index's columns, or a Filter. radius: the maximum distance of a
    hit. offset: number of nearest hits to skip, for later pages of a list.
    """

    where: str | Filter | None
    radius: float | None
    offset: int


class Neighbors(NamedTuple):
    """The hits of a search, nearest first.

    ids: (q, k), paths as objects of str, or int64. distances: (q, k), int32 numbers of differing bits; after rescoring,
    float32 cosine distances, 0..2. If fewer than k were found: id None or -1, distance -1 or NaN; there are fewer than
    k columns if a filter leaves fewer rows.
    """

    ids: NDArray[Any]
    distances: NDArray[Any]


class Found(NamedTuple):
    """Neighbors by row number, because an id may name several rows. rows: (q, k) int64, -1 if nothing was found."""

    rows: NDArray[np.int64]
    ids: NDArray[Any]
    distances: NDArray[Any]

    @property
    def neighbors(self) -> Neighbors:
        """Only ids and distances."""
        return Neighbors(self.ids, self.distances)

    def cut(self, radius: float | None, offset: int) -> Found:
        """Without the first `offset` hits, and without those farther than radius."""
        rows, ids, distances = (part[:, offset:] for part in self)
        if radius is None:
            return Found(rows, ids, distances)
        far = (rows >= 0) & ~(distances <= radius)
        nothing: Any = None if ids.dtype == object else -1
        return Found(
            np.where(far, -1, rows), np.where(far, nothing, ids),
            np.where(far, -1 if distances.dtype.kind == "i" else np.nan, distances).astype(distances.dtype),
        )  # fmt: skip


class Scope(NamedTuple):
    """The scope of a search. rows: the only ones, ascending; None: all. depth: hits to find before the cut.

    passing(): whether each row of the index is among them. chosen: the filter that they pass.
    """

    rows: NDArray[np.int64] | None
    depth: int
    radius: float | None
    offset: int
    passing: Callable[[], NDArray[np.bool_]] | None = None
    chosen: Filter | None = None

    @classmethod
    def of(cls, count: int, k: int, rows: NDArray[np.int64] | None, radius: float | None, offset: int) -> Scope:
        """The scope for k hits among all or some of count rows.  Raises ValueError for numbers out of range."""
        if not count:
            raise ValueError("the index is empty; add codes first")
        if not 1 <= k <= count:
            raise ValueError(f"k={k} is outside 1..{count}, the codes in the index; ask for fewer")
        if offset < 0 or (radius is not None and not radius >= 0):
            raise ValueError(f"offset={offset} and radius={radius} must be 0 or more")
        return cls(rows, min(k + offset, count if rows is None else len(rows)), radius, offset)
