"""Near-duplicates: groups of codes that lie close together. Knows no images, no files."""

# n rows

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bigr_repr.codes import hamming
from bigr_repr.retrieval.index.clusters import Cluster, Kept, components, keep_first
from bigr_repr.retrieval.index.distinct import find_distinct
from bigr_repr.retrieval.index.hamming import HammingIndex
from bigr_repr.retrieval.index.pairs import pairs_within

__all__ = ["Cluster", "Kept", "choose_kept", "find_near_duplicates"]


def find_near_duplicates(index: HammingIndex, radius: int, *, new: ArrayLike | None = None) -> list[Cluster]:
    """Clusters of at least two rows, each within `radius` differing bits of another in its cluster, largest first.

    new: row numbers: only these are compared, with each other and with all others, and only clusters that contain one
    are returned. None: all rows are compared.

    Exact for every kind of index. A small radius takes far less time than comparing all pairs: a million codes of 256
    bits at radius 8 take seconds. Links chain, so two rows of a cluster can be farther apart than radius.
    Raises ValueError for a radius outside 0..n_bits, or row numbers out of range.
    """
    if not 0 <= radius <= index.n_bits:
        raise ValueError(f"radius={radius} is outside 0..{index.n_bits}, the bits of a code")
    fresh = None if new is None else _flags(np.asarray(new, np.int64), len(index))
    if not len(index):
        return []
    codes = index.rows.codes
    firsts, of_row = find_distinct(codes)
    new_codes = None if fresh is None else np.bincount(of_row, fresh, len(firsts)) > 0
    pairs = pairs_within(np.ascontiguousarray(codes[firsts]), radius, new_codes) if radius else ()
    roots = components(len(firsts), pairs)[of_row]
    order = np.argsort(roots, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(roots[order])) + 1)
    clusters = [rows for rows in groups if len(rows) > 1 and (fresh is None or fresh[rows].any())]
    if not clusters:
        return []
    clusters.sort(key=lambda rows: (-len(rows), rows[0]))
    named = index.rows.named(np.concatenate(clusters))  # all at once, which is faster than one by one
    ids = np.split(named, np.cumsum([len(rows) for rows in clusters])[:-1])
    return [
        Cluster(ids=its, rows=rows, distances=hamming(codes[rows], codes[rows[0]]))
        for its, rows in zip(ids, clusters, strict=True)
    ]


def choose_kept(
    index: HammingIndex,
    cluster: Cluster,
    radius: int,
    *,
    rank: ArrayLike | None = None,
    new: ArrayLike | None = None,
) -> Kept:
    """Which rows of a cluster to keep so that every other one is within `radius` of a kept one.

    rank: a number per row of the cluster, higher is better; ties are in index order. new: row numbers; all other rows
    are kept. None: all rows are new.
    """
    ranks = np.zeros(len(cluster.rows)) if rank is None else np.asarray(rank, np.float64)
    old = np.zeros(len(ranks), np.bool_) if new is None else ~np.isin(cluster.rows, np.asarray(new, np.int64))
    order = np.lexsort((cluster.rows, -ranks, ~old))
    return keep_first(np.ascontiguousarray(index.rows.codes[cluster.rows]), radius, order, old)


def _flags(rows: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    if rows.size and not 0 <= int(rows.min()) <= int(rows.max()) < count:
        raise ValueError(f"new holds a row outside 0..{count - 1}, the rows of the index")
    flags = np.zeros(count, np.bool_)
    flags[rows] = True
    return flags
