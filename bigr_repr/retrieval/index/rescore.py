"""Orders a shortlist by cosine distance: with stored vectors, or between a float query and stored bits.

Reads only the shortlist.
"""

# q queries, s shortlisted, k neighbors, D features, b bits

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bigr_repr.codes import from_bytes
from bigr_repr.retrieval.codes.binarizer import Binarizer, finite_rows

Order = Callable[[NDArray[np.int64], int], tuple[NDArray[np.int64], NDArray[np.float32]]]


def rescorer(
    stored: NDArray[Any] | None,
    codes: NDArray[np.uint8],
    binarizer: Binarizer | None,
    vectors: ArrayLike,
    rescore: int,
) -> Order:
    """A function that orders shortlists (q, s) for queries (q, D): by the index's vectors if any, else by its bits.

    Raises ValueError for an index with neither vectors nor a binarizer, vectors of a wrong width, or rescore below 1.
    """
    if stored is None and binarizer is None:
        raise ValueError("this index has no vectors for rescoring; build it with vectors")
    if rescore < 1:
        raise ValueError(f"rescore={rescore} must be at least 1: the multiple of k to consider")
    wanted = finite_rows("vectors", vectors)
    if stored is not None and wanted.shape[1] != stored.shape[1]:
        raise ValueError(f"vectors have {wanted.shape[1]} features, the index's have {stored.shape[1]}")

    def order(shortlist: NDArray[np.int64], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        if len(shortlist) != len(wanted):
            raise ValueError(f"{len(shortlist)} query codes but {len(wanted)} vectors; give one per code")
        if stored is not None:
            return by_cosine(stored, wanted, shortlist, k)
        assert binarizer is not None
        return asymmetric(binarizer, wanted, lambda rows: codes[rows], shortlist, k)

    return order


def by_cosine(
    stored: NDArray[Any], wanted: NDArray[Any], shortlist: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k best of each query's shortlist (q, s; -1: none) by cosine: rows, and distances 1 - cosine."""

    def cosines(query: NDArray[np.float64], rows: NDArray[np.int64]) -> NDArray[np.float64]:
        vectors = stored[rows].astype(np.float64)
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
        cosine: NDArray[np.float64] = (vectors @ query) / np.where(lengths > 0, lengths, 1)
        return cosine

    return _best(wanted.astype(np.float64), shortlist, k, cosines)


def asymmetric(
    binarizer: Binarizer, vectors: ArrayLike, codes: Callable[[NDArray[np.int64]], NDArray[np.uint8]],
    shortlist: NDArray[np.int64], k: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:  # fmt: skip
    """The k best of each query's shortlist (q, s; -1: none) by the queries' floats (q, D) and the rows' bits.

    A bit stands for a number: the rows' average distance above or below the bit's threshold. The distance is
    1 - cosine between the query and these numbers, 0..2. codes(rows): packed codes of some rows.
    """

    def cosines(margins: NDArray[np.float64], rows: NDArray[np.int64]) -> NDArray[np.float64]:
        (cosine,) = bit_cosine(binarizer, margins[None], codes(rows))
        return np.asarray(cosine)

    return _best(binarizer.margins(vectors), shortlist, k, cosines)


def _best(
    queries: NDArray[np.float64], shortlist: NDArray[np.int64], k: int,
    cosines: Callable[[NDArray[np.float64], NDArray[np.int64]], NDArray[np.float64]],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:  # fmt: skip
    """The k best of each query's shortlist (q, s; -1: none) by cosines(query, rows): rows, and distances."""
    rows = np.full((len(queries), k), -1, np.int64)
    distances = np.full((len(queries), k), np.nan, np.float32)
    for i, (query, listed) in enumerate(zip(queries, shortlist, strict=True)):
        some = np.sort(listed[listed >= 0])  # in file order
        cosine = cosines(query, some)
        best = np.argsort(-cosine, kind="stable")[:k]
        rows[i, : len(best)] = some[best]
        distances[i, : len(best)] = np.maximum(0, 1 - cosine[best])
    return rows, distances


def bit_cosine(binarizer: Binarizer, margins: NDArray[np.float64], codes: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Cosines (q, n) of the margins (q, b) of queries and what the bits of codes (n, bytes) stand for."""
    scales = np.ones(binarizer.n_bits) if binarizer.scales is None else binarizer.scales.astype(np.float64)
    stands_for = np.where(from_bytes(codes, binarizer.n_bits), scales, -scales)
    lengths = np.linalg.norm(margins, axis=1, keepdims=True) * np.linalg.norm(scales)
    return (margins @ stands_for.T) / np.where(lengths > 0, lengths, 1)
