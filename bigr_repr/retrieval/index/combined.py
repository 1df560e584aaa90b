"""Several weighted codes as one query. Knows nothing of pictures."""

# n rows, q queries, k neighbors, D features

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bigr_repr.codes import hamming
from bigr_repr.retrieval.codes.binarizer import finite_rows
from bigr_repr.retrieval.codes.filters import as_filter
from bigr_repr.retrieval.codes.regions import Region
from bigr_repr.retrieval.codes.rows import packed
from bigr_repr.retrieval.index.hamming import HammingIndex
from bigr_repr.retrieval.index.neighbors import Found, Scope, Within
from bigr_repr.retrieval.index.rescore import by_cosine
from bigr_repr.retrieval.index.workers import on_all_cores

_BLOCK: Final = 1 << 15  # rows compared at a time


def find_together(
    index: HammingIndex,
    queries: ArrayLike,
    weights: Sequence[float],
    k: int = 10,
    *,
    region: Region | None = None,
    vectors: ArrayLike | None = None,
    rescore: int = 0,
    **within: Unpack[Within],
) -> Found:
    """The k rows nearest to several codes at once; exact, whatever the kind.

    queries: packed codes uint8 (q, bytes), tokenizer codes if region is given. weights: q numbers; a negative one
    favors rows far from its code. The distance of a row is the weighted mean of the number of bits in which it differs
    from each code, or agrees with it if the weight is negative: float64, 0..bits compared. rescore: reorder this many
    times k by the cosine distance from the weighted mean of vectors (q, D), normalized to length 1; 0: off.

    Raises ValueError unless weights are q finite numbers, at least one of them positive, and as HammingIndex.find does.
    """
    stored = index.rows.codes if region is None else index.tokens
    codes = packed(queries, stored.shape[1], "queries")
    shares = np.asarray(weights, np.float64)
    if shares.shape != (len(codes),) or not np.isfinite(shares).all() or not (shares > 0).any():
        raise ValueError(
            f"weights={list(weights)!r:.80} must be {len(codes)} finite numbers, one per picture, at least one above 0"
        )
    chosen = as_filter(within.get("where"))
    rows = None if chosen is None else index.rows.selected(chosen)
    scope = Scope.of(len(index), k, rows, within.get("radius"), within.get("offset", 0))
    shares /= np.abs(shares).sum()
    mask = None if region is None else region.mask(index.token_layout())
    listed = np.arange(len(index)) if scope.rows is None else scope.rows
    depth = min(len(listed), max(1, rescore) * scope.depth)
    scores = _scores(stored, listed, codes, shares, np.packbits(np.ones(index.n_bits, bool)) if mask is None else mask)
    best = _smallest(scores, depth)
    near, distances = listed[best][None], scores[best][None]
    if rescore:
        near, distances = _by_mean(index, vectors, shares, near, scope.depth)
    return Found(near, index.rows.named(near), distances).cut(scope.radius, scope.offset)


def _scores(
    stored: NDArray[np.uint8],
    rows: NDArray[np.int64],
    codes: NDArray[np.uint8],
    shares: NDArray[np.float64],
    mask: NDArray[np.uint8],
) -> NDArray[np.float64]:
    """The weighted mean distance of some rows from codes (q, bytes), by the bits set in mask (bytes)."""
    bits = int(np.unpackbits(mask).sum())

    def scored(some: NDArray[np.int64]) -> NDArray[np.float64]:
        block = np.take(stored, some, axis=0) & mask
        apart = [hamming(block, code & mask) for code in codes]
        far = [bits - each if share < 0 else each for each, share in zip(apart, shares, strict=True)]
        sums = np.abs(shares) @ np.array(far, np.float64).reshape(len(codes), len(some))
        return np.round(sums, 9)  # so that ties do not depend on the order of summation

    parts = [(rows[start : start + _BLOCK],) for start in range(0, len(rows), _BLOCK)]
    return np.concatenate([np.empty(0), *on_all_cores(scored, parts)])


def _smallest(scores: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Positions of the k smallest, ascending, ties by position."""
    if not k:
        return np.empty(0, np.int64)
    limit = np.partition(scores, k - 1)[k - 1]
    places = np.flatnonzero(scores <= limit)
    return places[np.argsort(scores[places], kind="stable")][:k]


def _by_mean(
    index: HammingIndex, vectors: ArrayLike | None, shares: NDArray[np.float64], near: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    if index.rows.vectors is None or vectors is None:
        raise ValueError("this index has no vectors for rescoring; build it with vectors")
    wanted = finite_rows("vectors", vectors).astype(np.float64)
    lengths = np.linalg.norm(wanted, axis=1, keepdims=True)
    mean = shares @ (wanted / np.where(lengths > 0, lengths, 1))
    return by_cosine(index.rows.vectors, mean[None], near, k)
