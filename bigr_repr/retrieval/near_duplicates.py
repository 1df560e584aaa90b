"""Near-duplicates: groups of codes that lie close together. Knows no images, no files."""

# n rows

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigr_repr.codes import hamming
from bigr_repr.retrieval.index.distinct import find_distinct
from bigr_repr.retrieval.index.hamming import HammingIndex
from bigr_repr.retrieval.index.scan import pairs_within

__all__ = ["Cluster", "find_near_duplicates"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Cluster:
    """Rows that hang together. ids: in the order of the index; distances: of each from the first, int32."""

    ids: NDArray[Any]
    distances: NDArray[np.int32]


def find_near_duplicates(index: HammingIndex, radius: int) -> list[Cluster]:
    """Clusters of two rows or more, each at most `radius` differing bits from another of its cluster, largest first.

    Exact whatever the kind of the index; every pair is compared, so the time grows with the square of the rows, equal
    codes counting once. Links chain: two rows of a cluster can be farther apart than radius.
    Raises ValueError for a radius outside 0..n_bits.
    """
    if not 0 <= radius <= index.n_bits:
        raise ValueError(f"radius={radius} is outside 0..{index.n_bits}, the bits of a code")
    if not len(index):
        return []
    codes = index.rows.codes
    firsts, of_row = find_distinct(codes)
    parent = np.arange(len(firsts))
    if radius:
        for a, b in pairs_within(np.ascontiguousarray(codes[firsts]), radius):
            _join(parent, a, b)
    roots = _roots(parent, np.arange(len(parent)))[of_row]
    order = np.argsort(roots, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(roots[order])) + 1)
    clusters = [rows for rows in groups if len(rows) > 1]
    clusters.sort(key=lambda rows: (-len(rows), rows[0]))
    return [Cluster(ids=index.rows.named(rows), distances=hamming(codes[rows], codes[rows[0]])) for rows in clusters]


def _roots(parent: NDArray[np.int64], nodes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The representatives of nodes; paths to them are halved on the way."""
    found = parent[nodes]
    while True:
        above = parent[found]
        if np.array_equal(above, found):
            return found
        parent[nodes] = above
        found = above


def _join(parent: NDArray[np.int64], a: NDArray[np.int64], b: NDArray[np.int64]) -> None:
    """Unite a[i] with b[i], for all i: of two representatives, the larger goes below the smaller."""
    while len(a):
        left, right = _roots(parent, a), _roots(parent, b)
        apart = left != right
        a, b, low, high = a[apart], b[apart], np.minimum(left, right)[apart], np.maximum(left, right)[apart]
        np.minimum.at(parent, high, low)
