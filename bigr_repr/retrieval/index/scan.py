"""Exact Hamming scans over packed codes, on all cores. Knows nothing of ids, files or kinds of index.

FAISS's kernels compute the distances and select the nearest. The work is split by queries and by rows into more pieces
than there are cores, which take one after another.
"""

# n rows (stored codes), q queries, k neighbors

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bigr_repr.codes import hamming
from bigr_repr.retrieval.codes.dropped_rows import Gaps, stored_rows
from bigr_repr.retrieval.codes.rows import flagged
from bigr_repr.retrieval.index.blocks import comparing, rows_a_block, second_level_cache
from bigr_repr.retrieval.index.workers import on_all_cores
from bigr_repr.system.threads import cores

_WAKING: Final = 2 << 20  # bytes of codes, times queries, below which waking a thread is not worthwhile
_SHARD: Final = 8 << 20  # bytes of codes; in smaller shards, refilling heaps takes more than 1 % of the time
_SHARDS_A_CORE: Final = 4  # so that other cores take over the share of one that is busy or wakes late
_ROWS_A_NEIGHBOR: Final = 2048  # in shorter shards, refilling heaps costs more than parallelism saves
_QUERIES: Final = 64  # queries at a time, which bounds memory
_GATHERED: Final = 1 << 20  # bytes of chosen codes copied at a time, so that they are still in the cache when read
_WIDE: Final = 0.3  # share of rows passing a filter from which a few queries are compared with all rows
_WIDE_ALONE: Final = 0.15  # the same for one query
_FEW: Final = 8  # number of queries up to which copying codes dominates
_PICKED: Final = 1 << 16  # distances held at a time, so that they are still in the cache when picked from
_FIRST_PICKED: Final = 1 << 12  # rows that give the first limit: picking without a limit is slower
_GONE: Final = 32  # extra rows to request, because some may be dropped
_PENDING: Final = 1 << 22  # candidates kept before they are merged
_NONE: Final = np.iinfo(np.int64).max  # sorting key for "no row"
_ROW_BITS: Final = 40  # a sorting key holds the row in its low bits, the distance above
_TRIAL: Final = 16 << 20  # bytes of codes in the single-core trial
_TURNS: Final = 7
_SMALL: Final = 64 << 20  # bytes of codes, times queries, that NumPy compares faster than FAISS loads


class Scanned(NamedTuple):
    """rows (q, k) int64 and distances (q, k) int32, by distance, ties by row; -1 where nothing was found."""

    rows: NDArray[np.int64]
    distances: NDArray[np.int32]


def scan(codes: NDArray[np.uint8], queries: NDArray[np.uint8], k: int) -> Scanned:
    """The k rows of codes (n, bytes) nearest to each of queries (q, bytes), k <= n; ties by row."""
    codes, gaps = stored_rows(codes)
    if gaps is not None:
        return without_gone(lambda most: scan(codes, queries, most), k, gaps)
    if "faiss" not in sys.modules and codes.nbytes * len(queries) <= _SMALL:
        return _split(_small_scan(codes, queries, k))
    parts = [slice(start, start + _QUERIES) for start in range(0, len(queries), _QUERIES)]
    count = _shard_count(codes, min(len(queries), _QUERIES), len(parts), k)
    if len(queries) == 1 and count > 1 and _one_core_is_enough(codes, queries, k):
        count = 1
    return _split(_scan_shards(codes, queries, k, parts, count))


def _scan_shards(
    codes: NDArray[np.uint8], queries: NDArray[np.uint8], k: int, parts: Sequence[slice], count: int
) -> NDArray[np.int64]:
    """Sorting keys (q, k), from each part of the queries with each of `count` shards of the rows."""
    shards, block = _shards(len(codes), count), rows_a_block(codes, len(queries))
    tasks = [(codes, queries[part], k, shard, block) for part in parts for shard in shards]
    keys = on_all_cores(_nearest_keys, tasks)
    step = len(shards)
    merged = [_smallest(keys[i : i + step], k) for i in range(0, len(keys), step)]
    return np.concatenate(merged) if merged else np.empty((0, k), np.int64)


def _one_core_is_enough(codes: NDArray[np.uint8], query: NDArray[np.uint8], k: int) -> bool:
    """Whether one core reads codes of this length as fast as all: a trial of a few milliseconds, once per process."""
    width = codes.shape[1]
    if width not in _enough and codes.nbytes >= _TRIAL:
        some, count = codes[: _TRIAL // width], _shard_count(codes, 1, 1, k)
        seconds: dict[int, list[float]] = {1: [], count: []}
        for _ in range(_TURNS):
            for shards, taken in seconds.items():
                started = time.perf_counter()
                _scan_shards(some, query, min(k, len(some)), [slice(1)], shards)
                taken.append(time.perf_counter() - started)
        _enough[width] = statistics.median(seconds[1]) <= statistics.median(seconds[count])
    return _enough.get(width, False)


_enough: dict[int, bool] = {}  # by bytes per code


def scan_among(
    codes: NDArray[np.uint8],
    queries: NDArray[np.uint8],
    k: int,
    rows: NDArray[np.int64],
    passing: Callable[[], NDArray[np.bool_]] | None = None,
) -> Scanned:
    """scan() of some rows, ascending, k <= their number.

    Gathering codes takes longer than comparing one query with them. So if many rows pass and queries are few, all rows
    are compared, and distances are picked instead of codes. passing(): whether each row is among them; None: computed
    when needed.
    """
    codes, gaps = stored_rows(codes)
    if gaps is not None:
        found = scan_among(codes, queries, k, gaps.places(rows))
        return Scanned(gaps.rows(found.rows), found.distances)
    if len(rows) * codes.shape[1] <= _GATHERED:
        near = scan(np.take(codes, rows, axis=0), queries, k)
        return Scanned(rows[near.rows], near.distances)
    wide = _WIDE_ALONE if len(queries) == 1 else _WIDE
    if len(rows) >= wide * len(codes) and len(queries) <= _FEW and codes.shape[1] % 8 == 0:
        flags = flagged(rows, len(codes)) if passing is None else passing()
        wanted = np.ascontiguousarray(queries)
        picked = [(codes, wanted, k, flags, shard) for shard in _shards(len(codes), cores())]
        return _split(_smallest(on_all_cores(_nearest_picked, picked), k))
    parts = [(codes, queries, k, rows[shard]) for shard in _shards(len(rows), cores())]
    return _split(_smallest(on_all_cores(_nearest_among, parts), k))


def _apart(
    queries: NDArray[np.uint8], codes: NDArray[np.uint8], out: NDArray[np.int32] | None = None
) -> NDArray[np.int32]:
    """Distances (q * n,) of codes (n, bytes), in whole words, from queries (q, bytes), in `out` if given."""
    import faiss

    size = len(queries) * len(codes)
    found = np.empty(size, np.int32) if out is None else out[:size]
    a, b, apart = (faiss.swig_ptr(array) for array in (queries, codes, found))
    faiss.hammings(a, b, len(queries), len(codes), codes.shape[1], apart)
    return found


def _nearest_picked(
    codes: NDArray[np.uint8], queries: NDArray[np.uint8], k: int, passing: NDArray[np.bool_], shard: slice
) -> NDArray[np.int64]:
    """Sorting keys (q, k) of a shard's nearest passing rows, picked from all distances; _NONE if there are fewer."""
    step = max(_PICKED // len(queries), _PICKED // 4)
    apart, flags = np.empty(len(queries) * step, np.int32), np.empty(step, np.bool_)
    found: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * len(queries)
    limits = [np.iinfo(np.int32).max] * len(queries)
    first = min(shard.start + _FIRST_PICKED, shard.stop)
    for start, stop in pairwise([shard.start, first, *range(first + step, shard.stop, step), shard.stop]):
        if start == stop:
            continue
        here = passing[start:stop]
        distances = _apart(queries, codes[start:stop], apart).reshape(len(queries), -1)
        for query, near in enumerate(distances):
            if len(found[query]) < k < len(near) and np.count_nonzero(here) > k:
                limits[query] = int(np.partition(near[here], k - 1)[k - 1]) + 1
            closer = np.less(near, limits[query], out=flags[: len(near)])
            closer &= here
            if closer.any():
                at = closer.nonzero()[0]  # rows ascend, so earlier ones at the same distance are already held
                keys = np.sort(np.concatenate([found[query], _keys(near[at], at, start)]))[:k]
                found[query] = keys
                if len(keys) == k:
                    limits[query] = int(keys[-1] >> _ROW_BITS)
    return np.array([np.pad(each, (0, k - len(each)), constant_values=_NONE) for each in found])


def _nearest_among(
    codes: NDArray[np.uint8], queries: NDArray[np.uint8], k: int, rows: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Sorting keys (q, <= k) of the nearest of some rows."""
    import faiss

    step = max(_GATHERED // codes.shape[1], _ROWS_A_NEIGHBOR * k // 8)
    found: list[NDArray[np.int64]] = []
    pending = 0
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        distances, places = faiss.knn_hamming(queries, np.take(codes, some, axis=0), min(k, len(some)))
        found.append(_keys(distances, some[places], 0))
        pending += found[-1].size
        if pending > _PENDING:
            found = [_smallest(found, k)]
            pending = found[0].size
    return _smallest(found, k)


def _small_scan(codes: NDArray[np.uint8], queries: NDArray[np.uint8], k: int) -> NDArray[np.int64]:
    """Sorting keys (q, k) by NumPy, which finishes before FAISS would be loaded."""
    rows = np.arange(len(codes))
    keys = [_keys(hamming(codes, query)[None], rows[None], 0) for query in queries]
    return np.concatenate([_smallest([key], k) for key in keys]) if keys else np.empty((0, k), np.int64)


def scan_masked(
    codes: NDArray[np.uint8],
    queries: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    k: int,
    rows: NDArray[np.int64] | None = None,
) -> Scanned:
    """scan() by only the bits set in mask (bytes); rows: as in scan_among, None: all."""
    import faiss

    codes, gaps = stored_rows(codes)
    if gaps is not None:
        if rows is None:
            return without_gone(lambda most: scan_masked(codes, queries, mask, most), k, gaps)
        found_rows, distances = scan_masked(codes, queries, mask, k, gaps.places(rows))
        return Scanned(gaps.rows(found_rows), distances)
    columns = np.flatnonzero(mask)
    kept = mask[columns]
    wanted = np.ascontiguousarray(queries[:, columns] & kept)

    def part(shard: slice) -> NDArray[np.int64]:
        found: list[NDArray[np.int64]] = []
        step = max(1, 8 * second_level_cache() // len(columns))
        for start in range(shard.start, shard.stop, step):
            stop = min(start + step, shard.stop)
            some = codes[start:stop] if rows is None else np.take(codes, rows[start:stop], axis=0)
            block = np.ascontiguousarray(some[:, columns]) & kept
            distances, places = faiss.knn_hamming(wanted, block, min(k, len(block)))
            placed = places + start if rows is None else rows[start:stop][places]
            found = [_smallest([*found, _keys(distances, placed, 0)], k)]
        return found[0]

    count = len(codes) if rows is None else len(rows)
    return _split(_smallest(on_all_cores(part, [(shard,) for shard in _shards(count, cores())]), k))


def without_gone(search: Callable[[int], Scanned], k: int, gaps: Gaps) -> Scanned:
    """The k nearest rows of the index, from search(k), which searches all stored rows including dropped ones.

    Requests a few more than k, and many more if the nearest rows were dropped. Unfilled places hold -1.
    """
    more = min(len(gaps.gone), _GONE)
    while True:
        found = search(min(k + more, gaps.stored))
        here = (found.rows >= 0) & ~gaps.lost(found.rows)
        if more == len(gaps.gone) or (here.sum(axis=1) >= k).all():
            break
        more = min(len(gaps.gone), 8 * more)
    first = np.argsort(~here, axis=1, kind="stable")[:, :k]
    rows, distances = (np.where(here, part, -1) for part in (gaps.rows(found.rows), found.distances))
    return Scanned(np.take_along_axis(rows, first, 1), np.take_along_axis(distances, first, 1))


def nearest_of(parts: Sequence[Scanned], k: int) -> Scanned:
    """The k nearest hits of several searches; ties by row, unfilled places last."""
    rows, distances = (np.concatenate([part[i] for part in parts], axis=1) for i in (0, 1))
    far = np.where(rows < 0, np.iinfo(np.int32).max, distances)
    order = np.lexsort((rows, far), axis=1)[:, :k]
    return Scanned(np.take_along_axis(rows, order, 1), np.take_along_axis(distances, order, 1))


def _shards(rows: int, count: int) -> list[slice]:
    bounds = np.linspace(0, rows, min(count, max(1, rows)) + 1).astype(int).tolist()
    return [slice(low, high) for low, high in pairwise(bounds)]


def _shard_count(codes: NDArray[np.uint8], queries: int, parts: int, k: int) -> int:
    """The number of shards to split the rows into, given the numbers of queries and their parts."""
    needed = min(1 if parts >= cores() else cores(), codes.nbytes * queries // _WAKING)
    wanted = min(-(-_SHARDS_A_CORE * cores() // max(1, parts)), codes.nbytes // _SHARD)
    count = max(1, needed, min(wanted, len(codes) // (_ROWS_A_NEIGHBOR * k)))
    return count if count == 1 or parts >= cores() else -(-count // cores()) * cores()  # the same number for every core


def _nearest_keys(
    codes: NDArray[np.uint8], queries: NDArray[np.uint8], k: int, rows: slice, block: int
) -> NDArray[np.int64]:
    """Sorting keys (q, <= k) of the nearest of some rows, compared in blocks."""
    import faiss

    some = codes[rows]
    with comparing(block):
        distances, places = faiss.knn_hamming(queries, some, min(k, len(some)))
    return _keys(distances, places, rows.start)


def _keys(distances: NDArray[np.int32], places: NDArray[np.int64], start: int) -> NDArray[np.int64]:
    return (distances.astype(np.int64) << _ROW_BITS) | (places + start)


def _smallest(keys: Sequence[NDArray[np.int64]], k: int) -> NDArray[np.int64]:
    joined = keys[0] if len(keys) == 1 else np.concatenate(keys, axis=1)
    if joined.shape[1] > k:
        joined = np.partition(joined, k - 1, axis=1)[:, :k]
    return np.sort(joined, axis=1)


def _split(keys: NDArray[np.int64]) -> Scanned:
    return Scanned(keys & ((1 << _ROW_BITS) - 1), (keys >> _ROW_BITS).astype(np.int32))
