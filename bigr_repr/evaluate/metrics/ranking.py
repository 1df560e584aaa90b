"""Label retrieval that treats equal distances fairly. Knows nothing of images, models or indexes.

Hamming distances often tie, and any order among ties is arbitrary. So every metric here is the expectation over random
orders of the ties, and average precision also has bounds for the best and worst orders. The expected
average precision of tied ranks: McSherry and Najork, "Computing information retrieval performance measures efficiently
in the presence of tied scores", ECIR 2008, section 3.
"""

# q queries, m database rows, k neighbors

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["AveragePrecision", "Retrieval", "average_precision", "precision_at", "retrieval"]

_MEMORY: Final = 128 << 20  # bytes of distances at a time


class AveragePrecision(NamedTuple):
    """Per query (q,), float64 in [0, 1]: the expectation over random orders of ties, and the best and worst order.

    A query without any relevant row has NaN.
    """

    expected: NDArray[np.float64]
    best: NDArray[np.float64]
    worst: NDArray[np.float64]


def average_precision(
    distances: ArrayLike, relevant: ArrayLike, *, at: int | None = None, denominator: str = "relevant"
) -> AveragePrecision:
    """Average precision of ranking rows by distance: sum over relevant ranks r <= at of precision at r, over a count.

    distances: numbers (q, m), smaller is nearer. relevant: bool (q, m). at: ranks counted; None: all.
    denominator: "relevant": the relevant rows in the database, at most `at` of them, so that 1 can be reached;
    "retrieved": the relevant rows within `at` (as in most papers on hashing, which rewards finding few). With all
    ranks both are the same.

    Raises ValueError for other shapes, at < 1, or an unknown denominator.
    """
    d, hit = np.asarray(distances), np.asarray(relevant)
    if d.shape != hit.shape or d.ndim != 2 or hit.dtype != np.bool_ or 0 in d.shape:
        raise ValueError(f"distances {d.shape} and relevant {hit.shape}, {hit.dtype}; expected the same (q, m), bool")
    if denominator not in ("relevant", "retrieved"):
        raise ValueError(f"denominator={denominator!r} is unknown; choose relevant or retrieved")
    if at is not None and at < 1:
        raise ValueError(f"at={at} must be at least 1")
    depth = d.shape[1] if at is None else min(at, d.shape[1])
    scores = np.array([_of_one(*row, depth, denominator) for row in zip(d, hit, strict=True)])
    return AveragePrecision(*scores.T)


def _of_one(
    distances: NDArray[Any], relevant: NDArray[np.bool_], depth: int, denominator: str
) -> tuple[float, float, float]:
    total = int(relevant.sum())
    if not total:
        return np.nan, np.nan, np.nan
    order = np.argsort(distances, kind="stable")
    sorted_distances, hits = distances[order], relevant[order]
    starts = np.flatnonzero(np.concatenate([[True], sorted_distances[1:] != sorted_distances[:-1]]))
    sizes = np.diff(np.concatenate([starts, [len(hits)]]))
    of_group = np.repeat(np.arange(len(starts)), sizes)[:depth]
    inside = np.add.reduceat(hits, starts, dtype=np.int64)  # relevant rows of each group of ties
    before = np.cumsum(inside) - inside
    size, count, earlier = sizes[of_group], inside[of_group], before[of_group]
    place = np.arange(depth) - starts[of_group] + 1  # 1, 2, … within the group
    rank = np.arange(1, depth + 1)
    # At place i of a group of n rows, r of them relevant: relevant with probability r / n; given that, the i - 1 places
    # before it hold (i - 1) (r - 1) / (n - 1) relevant rows on average.
    among = (place - 1) * np.where(size > 1, (count - 1) / np.maximum(size - 1, 1), 0.0)
    expected = count / size * (earlier + among + 1) / rank
    best = np.where(place <= count, (earlier + place) / rank, 0.0)
    late = place - (size - count)
    worst = np.where(late > 0, (earlier + late) / rank, 0.0)
    terms = np.stack([expected, best, worst])
    if denominator == "retrieved":
        cut = int(starts[of_group[-1]])  # ranks before the last group, not all of which may be retrieved
        sums = terms[:, :cut].sum(axis=1)
        return _over_retrieved(sums, int(earlier[-1]), rank[cut:], int(size[-1]), int(count[-1]))
    e, b, w = (float(value) for value in terms.sum(axis=1) / min(total, depth))
    return e, max(b, e), min(w, e)


def _over_retrieved(
    sums: NDArray[np.float64], earlier: int, rank: NDArray[np.int64], size: int, relevant: int
) -> tuple[float, float, float]:
    """Expected, best and worst average precision over the relevant rows retrieved.

    Their number differs between the orders of the last group of ties, if rank `depth` cuts it: c of its relevant rows
    are within, and c is hypergeometric.

    sums: of the three over the ranks before that group, which hold `earlier` relevant rows. rank: (p,), those of the
    group's rows retrieved. size, relevant: the group's rows, and the relevant ones of them.
    """
    from scipy.stats import hypergeom

    p = len(rank)
    c = np.arange(max(0, p - (size - relevant)), min(p, relevant) + 1)
    place = np.arange(1, p + 1)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / rank)])
    # Sums over c relevant rows in random order, in front, and behind. Behind, the j-th of them has rank m + j, with
    # m = the last rank - c: the sum of (earlier + j) / (m + j) is c - (m - earlier) times the sum of 1 / (m + j).
    pairs = (c - 1) / max(p - 1, 1) * ((place - 1) / rank).sum()
    mixed = c / p * ((earlier + 1) * harmonic[-1] + pairs)
    front = np.concatenate([[0.0], np.cumsum((earlier + place) / rank)])[c]
    behind = c - (rank[-1] - c - earlier) * (harmonic[-1] - harmonic[p - c])
    means = (sums[:, None] + np.stack([mixed, front, behind])) / np.maximum(earlier + c, 1)
    expected = float((hypergeom.pmf(c, size, relevant, p) * means[0]).sum())
    return expected, max(float(means[1].max()), expected), min(float(means[2].min()), expected)


def precision_at(distances: ArrayLike, relevant: ArrayLike, k: int) -> NDArray[np.float64]:
    """Expected fraction of relevant rows among the k nearest, ties in random order: (q,).

    Arguments as in average_precision.  Raises ValueError for k outside 1..m.
    """
    d, hit = np.asarray(distances), np.asarray(relevant)
    if d.shape != hit.shape or d.ndim != 2:
        raise ValueError(f"distances have shape {d.shape} and relevant {hit.shape}; expected the same (q, m)")
    if not 1 <= k <= d.shape[1]:
        raise ValueError(f"k={k} is outside 1..{d.shape[1]}, the rows of the database")
    edge = np.partition(d, k - 1, axis=1)[:, k - 1 : k]
    nearer, tied = d < edge, d == edge
    places = k - nearer.sum(axis=1)
    share = places / tied.sum(axis=1)
    found: NDArray[np.float64] = ((hit & nearer).sum(axis=1) + share * (hit & tied).sum(axis=1)) / k
    return found


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Means over queries, in percent.

    map_at: {depth: mAP}, depth None: all ranks; denominator: the relevant rows in the database, at most `depth`.
    map_at_retrieved: the same over the relevant rows retrieved. map_bounds: {depth: (worst, best)} of map_at.
    precision: {k: precision@k}.
    """

    map_at: dict[int | None, float]
    map_at_retrieved: dict[int | None, float]
    map_bounds: dict[int | None, tuple[float, float]]
    precision: dict[int, float]
    queries: int
    rows: int


def retrieval(
    distances: Any,
    query_labels: ArrayLike,
    base_labels: ArrayLike,
    *,
    depths: Sequence[int | None] = (None, 1000),
    k: Sequence[int] = (100,),
) -> Retrieval:
    """Retrieval of rows with the query's label, ranked by distance.

    distances: numbers (q, m), or a function that returns those for a slice of the queries, so that memory is bounded.
    Labels: integers (q,) and (m,).  Raises ValueError for labels that do not fit, or if no query has a relevant
    row.
    """
    queries, base = np.asarray(query_labels), np.asarray(base_labels)
    if queries.ndim != 1 or base.ndim != 1 or not len(queries) or not len(base):
        raise ValueError(f"labels have shapes {queries.shape} and {base.shape}; expected (q,) and (m,), not empty")
    step = max(1, _MEMORY // (16 * len(base)))
    columns: dict[tuple[str, int | None], list[NDArray[np.float64]]] = {}
    for start in range(0, len(queries), step):
        rows = slice(start, min(start + step, len(queries)))
        block = np.asarray(distances(rows) if callable(distances) else distances[rows])
        if block.shape != (rows.stop - start, len(base)):
            raise ValueError(f"distances have shape {block.shape}; expected {(rows.stop - start, len(base))}")
        for key, values in _of_block(block, queries[rows, None] == base, depths, k).items():
            columns.setdefault(key, []).append(values)
    if np.isnan(np.concatenate(columns["expected", depths[0]])).all():
        raise ValueError("no query has a row with its label in the database; use the same classes for both")

    def mean(name: str, depth: int | None) -> float:
        return float(100 * np.nanmean(np.concatenate(columns[name, depth])))

    return Retrieval(
        map_at={depth: mean("expected", depth) for depth in depths},
        map_at_retrieved={depth: mean("retrieved", depth) for depth in depths},
        map_bounds={depth: (mean("worst", depth), mean("best", depth)) for depth in depths},
        precision={number: mean("precision", number) for number in k},
        queries=len(queries),
        rows=len(base),
    )


def _of_block(
    distances: NDArray[Any], hit: NDArray[np.bool_], depths: Sequence[int | None], k: Sequence[int]
) -> dict[tuple[str, int | None], NDArray[np.float64]]:
    """{(measure, depth or k): (q,)} of some queries."""
    columns: dict[tuple[str, int | None], NDArray[np.float64]] = {}
    for depth in depths:
        found = average_precision(distances, hit, at=depth)
        columns |= {(name, depth): values for name, values in found._asdict().items()}
        again = found if depth is None else average_precision(distances, hit, at=depth, denominator="retrieved")
        columns["retrieved", depth] = again.expected
    return columns | {("precision", number): precision_at(distances, hit, number) for number in k}
