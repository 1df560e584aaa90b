"""Clusters of rows linked by pairs, and which rows of a cluster to keep. Knows nothing of how pairs are found."""

# n rows, c rows of a cluster

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigr_repr.codes import hamming

__all__ = ["Cluster", "Kept", "components", "keep_first"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Cluster:
    """Linked rows. ids, rows: in index order; distances: of each from the first, int32."""

    ids: NDArray[Any]
    rows: NDArray[np.int64]
    distances: NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Kept:
    """Which of a cluster's c rows to keep.

    keep: bool (c,). like: int64 (c,), the place in the cluster of each row's nearest kept row; distances: from that,
    int32 (c,), at most the radius.
    """

    keep: NDArray[np.bool_]
    like: NDArray[np.int64]
    distances: NDArray[np.int32]


def components(count: int, pairs: Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> NDArray[np.int64]:
    """The smallest node that each of `count` nodes is connected with, int64 (count,), by pairs of linked nodes."""
    parent = np.arange(count)
    for a, b in pairs:
        _join(parent, a, b)
    return _roots(parent, np.arange(count))


def keep_first(codes: NDArray[np.uint8], radius: int, order: NDArray[np.int64], anyway: NDArray[np.bool_]) -> Kept:
    """In this order, keep each of a cluster's codes (c, bytes) that is farther than `radius` from all kept so far.

    So every code not kept is within the radius of a kept one, even in long chains.
    anyway: bool (c,), codes to keep in any case.
    """
    like = np.full(len(codes), -1, np.int64)
    distances = np.full(len(codes), np.iinfo(np.int32).max, np.int32)
    for place in order.tolist():
        if like[place] < 0 or anyway[place]:
            far = hamming(codes, codes[place])
            nearer = (far <= radius) & (far < distances)
            like[nearer], distances[nearer] = place, far[nearer]
            like[place], distances[place] = place, 0
    like[anyway], distances[anyway] = np.flatnonzero(anyway), 0
    return Kept(keep=like == np.arange(len(codes)), like=like, distances=distances)


def _roots(parent: NDArray[np.int64], nodes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The representatives of nodes, with path halving."""
    found = parent[nodes]
    while True:
        above = parent[found]
        if np.array_equal(above, found):
            return found
        parent[nodes] = above
        found = above


def _join(parent: NDArray[np.int64], a: NDArray[np.int64], b: NDArray[np.int64]) -> None:
    """Unite a[i] with b[i] for all i; the smaller representative becomes the parent."""
    while len(a):
        left, right = _roots(parent, a), _roots(parent, b)
        apart = left != right
        a, b, low, high = a[apart], b[apart], np.minimum(left, right)[apart], np.maximum(left, right)[apart]
        np.minimum.at(parent, high, low)
