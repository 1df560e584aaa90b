"""Combines several weighted codes into one query, and groups near-duplicates among the hits.

Knows nothing of pictures.
"""

# n rows, q queries, k neighbors, D features

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol, Unpack

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

__all__ = ["Grouped", "find_together", "group_hits"]

_BLOCK: Final = 1 << 15  # rows compared at a time
_DEEPER: Final = 4  # factor by which to request more hits if grouping leaves too few


class Grouped(NamedTuple):
    """found: the first hit of each group. members: for each query and group, the others: row and distance."""

    found: Found
    members: list[list[list[tuple[int, float]]]]


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


class Coded(Protocol):
    """An index that provides its codes: a HammingIndex, or one in a store."""

    n_bits: int

    def __len__(self) -> int: ...

    def codes_of(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Packed codes (n, bytes) of rows."""
        ...


def group_hits(
    index: Coded, find: Callable[[int], Found], k: int, radius: int, *, offset: int = 0, deepest: int | None = None
) -> Grouped:
    """k groups of hits for each query: a hit within radius bits of a nearer one is listed under it.

    find(depth): that many hits, or all. offset: number of first groups to skip. deepest: only so many of the nearest
    hits are grouped, which bounds the time, (k + offset) * deepest comparisons per query; None: as many as k groups
    take. Raises ValueError for a radius outside 0..n_bits.
    """
    if not 0 <= radius <= index.n_bits:
        raise ValueError(f"group={radius} is outside 0..{index.n_bits}, the bits of a code")
    limit, wanted = len(index) if deepest is None else min(deepest, len(index)), k + offset
    depth = min(limit, wanted)
    while True:
        found = find(depth)
        groups = [_gathered(index, rows[rows >= 0], radius, wanted) for rows in found.rows]
        if depth >= limit or all(len(leaders) >= wanted or (rows < 0).any() or len(rows) < depth
                                      for (leaders, _), rows in zip(groups, found.rows, strict=True)):  # fmt: skip
            break
        depth = min(limit, _DEEPER * depth)
    width = max((len(leaders[offset:wanted]) for leaders, _ in groups), default=0)
    rows = np.full((len(groups), width), -1, np.int64)
    ids = np.full((len(groups), width), None if found.ids.dtype == object else -1, found.ids.dtype)
    distances = np.full(
        (len(groups), width), -1 if found.distances.dtype.kind == "i" else np.nan, found.distances.dtype
    )
    members = []
    for query, (leaders, of_leader) in enumerate(groups):
        shown = leaders[offset:wanted]
        rows[query, : len(shown)] = found.rows[query][shown]
        ids[query, : len(shown)] = found.ids[query][shown]
        distances[query, : len(shown)] = found.distances[query][shown]
        under = _members(of_leader)
        members.append(
            [
                [(int(found.rows[query][place]), float(found.distances[query][place])) for place in under.get(lead, ())]
                for lead in shown
            ]
        )
    return Grouped(Found(rows, ids, distances), members)


def _gathered(index: Coded, rows: NDArray[np.int64], radius: int, most: int) -> tuple[list[int], NDArray[np.int64]]:
    """Positions of the groups' first hits, at most `most`; and for each hit that of its group's first, -1 if none."""
    codes = index.codes_of(rows)
    of_leader = np.full(len(rows), -1, np.int64)
    leaders: list[int] = []
    left = np.arange(len(rows))  # those in no group, and their codes
    while len(left) and len(leaders) < most:
        close = hamming(codes, codes[0]) <= radius
        leaders.append(int(left[0]))
        of_leader[left[close]] = left[0]
        apart = slice(1, None) if close.sum() == 1 else ~close  # a copy only where something has left
        left, codes = left[apart], codes[apart]
    return leaders, of_leader


def _members(of_leader: NDArray[np.int64]) -> dict[int, list[int]]:
    """The positions of the other hits of each group, by its first."""
    found: dict[int, list[int]] = {}
    for place in np.flatnonzero((of_leader >= 0) & (of_leader != np.arange(len(of_leader)))).tolist():
        found.setdefault(int(of_leader[place]), []).append(place)
    return found
