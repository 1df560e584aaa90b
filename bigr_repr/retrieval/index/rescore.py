"""The order of a shortlist by cosine distance of stored vectors, of which only the shortlist is read."""

# q queries, s shortlisted, k neighbors, D features

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def by_cosine(
    stored: NDArray[Any], wanted: NDArray[Any], shortlist: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k best of each query's shortlist (q, s; -1: nothing) by cosine: rows, and distances 1 - cosine."""
    rows = np.full((len(wanted), k), -1, np.int64)
    distances = np.full((len(wanted), k), np.nan, np.float32)
    for i, (query, listed) in enumerate(zip(wanted.astype(np.float64), shortlist, strict=True)):
        some = np.sort(listed[listed >= 0])  # in the order of the file
        vectors = stored[some].astype(np.float64)
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
        cosine = (vectors @ query) / np.where(lengths > 0, lengths, 1)
        best = np.argsort(-cosine, kind="stable")[:k]
        rows[i, : len(best)] = some[best]
        distances[i, : len(best)] = np.maximum(0, 1 - cosine[best])
    return rows, distances
