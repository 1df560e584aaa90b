"""What a search finds. Knows nothing of how."""

# q queries, k neighbors

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Found", "Neighbors"]


class Neighbors(NamedTuple):
    """What a search found, nearest first.

    ids: (q, k), paths as objects of str, or int64. distances: (q, k), int32 numbers of differing bits; after rescoring
    float32 cosine distances, 0..2. Where an approximate index found fewer than k: id None or -1, distance -1 or NaN.
    """

    ids: NDArray[Any]
    distances: NDArray[Any]


class Found(NamedTuple):
    """Neighbors by row number: an id may name several rows. rows: (q, k) int64, -1 where nothing was found."""

    rows: NDArray[np.int64]
    ids: NDArray[Any]
    distances: NDArray[Any]

    @property
    def neighbors(self) -> Neighbors:
        """Ids and distances alone."""
        return Neighbors(self.ids, self.distances)
