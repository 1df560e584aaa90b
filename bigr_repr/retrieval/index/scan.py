"""Exact Hamming scans over packed codes, on all cores. Knows nothing of ids, files or kinds of index.

The distances come from FAISS's kernels, a row block at a time: short enough to stay in the cache while many queries
pass over it. A single query is spread over the cores by rows, many queries by query, in one pool of threads for the
whole process, so that several callers at once share the cores instead of fighting for them.
"""

# n rows (stored codes), q queries, k neighbors

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from bigr_repr.codes import hamming
from bigr_repr.system.threads import cores

_BLOCK: Final = 1 << 20  # bytes of codes that a scan of several queries takes at a time; half an ordinary L2 cache
_ROWS_A_NEIGHBOR: Final = 2048  # smaller blocks spend more on filling heaps anew than the cache saves
_QUERIES: Final = 64  # at a time, which bounds what is held while blocks are merged
_GATHERED: Final = 64 << 20  # bytes of chosen codes copied at a time
_PENDING: Final = 1 << 22  # candidates kept before they are merged
_ROW_BITS: Final = 40  # of a sorting key: distance above, row below
_SMALL: Final = 64 << 20  # bytes of codes, times queries, that NumPy compares in less time than FAISS takes to load
_T = TypeVar("_T")


class Scanned(NamedTuple):
    """rows (q, k) int64 and distances (q, k) int32, by distance, equal distances by row; -1 where nothing was found."""

    rows: NDArray[np.int64]
    distances: NDArray[np.int32]


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads that scan, a core each. process: a forked child needs threads of its own."""
    import faiss

    return ThreadPoolExecutor(cores(), "bigr-scan", initializer=faiss.omp_set_num_threads, initargs=(1,))


@contextmanager
def omp_threads(count: int) -> Iterator[None]:
    """While it lasts, FAISS's own parallel loops in this thread use so many threads."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def on_all_cores(work: Callable[..., _T], parts: Sequence[tuple[Any, ...]]) -> list[_T]:
    """[work(*part) for part in parts], at the same time; the first in the caller's thread.

    Waking a thread takes as long as scanning a megabyte, so the caller does not wait for it: it begins.
    """
    if not parts:
        return []
    others = [_pool(os.getpid()).submit(work, *part) for part in parts[1:]]
    with omp_threads(1):
        first = work(*parts[0])
    return [first, *(other.result() for other in others)]


def query_parts(count: int) -> list[slice]:
    """Slices of so many queries, about as many as there are cores, none longer than a scan takes at a time."""
    size = max(1, min(_QUERIES, -(-count // cores())))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def scan(codes: NDArray[np.uint8], queries: NDArray[np.uint8], k: int) -> Scanned:
    """The k rows of codes (n, bytes) nearest to each of queries (q, bytes), k <= n; ties by row."""
    if "faiss" not in sys.modules and codes.nbytes * len(queries) <= _SMALL:
        return _split(_small_scan(codes, queries, k))
    shards = _shards(len(codes), 1 if len(queries) >= cores() else cores())
    parts = query_parts(len(queries))
    tasks = [(codes, queries[part], k, shard) for part in parts for shard in shards]
    keys = on_all_cores(_nearest_keys, tasks)
    step = len(shards)
    merged = [_smallest(keys[i : i + step], k) for i in range(0, len(keys), step)]
    return _split(np.concatenate(merged)) if merged else _split(np.empty((0, k), np.int64))


def scan_among(codes: NDArray[np.uint8], queries: NDArray[np.uint8], k: int, rows: NDArray[np.int64]) -> Scanned:
    """scan() of some rows, ascending, k <= their number; they are copied, a part at a time."""
    found: list[NDArray[np.int64]] = []
    step = max(1, _GATHERED // codes.shape[1])
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        near = scan(np.ascontiguousarray(codes[part]), queries, min(k, len(part)))
        found = [_smallest([*found, _keys(near.distances, part[near.rows], 0)], k)]
    return _split(found[0])


def _small_scan(codes: NDArray[np.uint8], queries: NDArray[np.uint8], k: int) -> NDArray[np.int64]:
    """Sorting keys (q, k) by NumPy: done before FAISS would be loaded."""
    rows = np.arange(len(codes))
    keys = [_keys(hamming(codes, query)[None], rows[None], 0) for query in queries]
    return np.concatenate([_smallest([key], k) for key in keys]) if keys else np.empty((0, k), np.int64)


def scan_masked(codes: NDArray[np.uint8], queries: NDArray[np.uint8], mask: NDArray[np.uint8], k: int) -> Scanned:
    """scan() only by the bits that are set in mask (bytes)."""
    import faiss

    columns = np.flatnonzero(mask)
    kept = mask[columns]
    wanted = np.ascontiguousarray(queries[:, columns] & kept)

    def part(rows: slice) -> NDArray[np.int64]:
        found: list[NDArray[np.int64]] = []
        step = max(1, 8 * _BLOCK // len(columns))
        for start in range(rows.start, rows.stop, step):
            block = np.ascontiguousarray(codes[start : min(start + step, rows.stop)][:, columns]) & kept
            distances, places = faiss.knn_hamming(wanted, block, min(k, len(block)))
            found = [_smallest([*found, _keys(distances, places, start)], k)]
        return found[0]

    return _split(_smallest(on_all_cores(part, [(shard,) for shard in _shards(len(codes), cores())]), k))


def pairs_within(codes: NDArray[np.uint8], radius: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Every pair (first, second), first < second, of rows at most radius apart, in arrays of bounded length."""
    step = max(1, min(_QUERIES, (1 << 22) // max(1, len(codes))))
    starts = range(0, len(codes), step)
    width = 4 * cores()
    for group in range(0, len(starts), width):
        yield from on_all_cores(_pairs, [(codes, start, step, radius) for start in starts[group : group + width]])


def _pairs(codes: NDArray[np.uint8], start: int, step: int, radius: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    import faiss

    queries, later = codes[start : start + step], codes[start:]
    found = faiss.RangeSearchResult(len(queries))
    faiss.hamming_range_search(
        faiss.swig_ptr(queries), faiss.swig_ptr(later), len(queries), len(later), radius + 1, codes.shape[1], found
    )
    limits = faiss.rev_swig_ptr(found.lims, len(queries) + 1).copy()
    total = int(limits[-1])
    second = faiss.rev_swig_ptr(found.labels, total).copy() if total else np.empty(0, np.int64)
    first = np.repeat(np.arange(len(queries)), np.diff(limits).astype(np.int64))
    keep = second > first
    return first[keep] + start, second[keep] + start


def _shards(rows: int, count: int) -> list[slice]:
    bounds = np.linspace(0, rows, min(count, max(1, rows)) + 1).astype(int).tolist()
    return [slice(low, high) for low, high in pairwise(bounds)]


def _nearest_keys(codes: NDArray[np.uint8], queries: NDArray[np.uint8], k: int, rows: slice) -> NDArray[np.int64]:
    """Sorting keys (q, <= k) of the nearest of some rows."""
    import faiss

    step = max(_BLOCK // codes.shape[1], _ROWS_A_NEIGHBOR * k) if len(queries) > 1 else rows.stop - rows.start
    found: list[NDArray[np.int64]] = []
    pending = 0
    for start in range(rows.start, rows.stop, max(1, step)):
        block = codes[start : min(start + step, rows.stop)]
        distances, places = faiss.knn_hamming(queries, block, min(k, len(block)))
        found.append(_keys(distances, places, start))
        pending += found[-1].size
        if pending > _PENDING:
            found = [_smallest(found, k)]
            pending = found[0].size
    return _smallest(found, k)


def _keys(distances: NDArray[np.int32], places: NDArray[np.int64], start: int) -> NDArray[np.int64]:
    return (distances.astype(np.int64) << _ROW_BITS) | (places + start)


def _smallest(keys: Sequence[NDArray[np.int64]], k: int) -> NDArray[np.int64]:
    joined = keys[0] if len(keys) == 1 else np.concatenate(keys, axis=1)
    if joined.shape[1] > k:
        joined = np.partition(joined, k - 1, axis=1)[:, :k]
    return np.sort(joined, axis=1)


def _split(keys: NDArray[np.int64]) -> Scanned:
    return Scanned(keys & ((1 << _ROW_BITS) - 1), (keys >> _ROW_BITS).astype(np.int32))
