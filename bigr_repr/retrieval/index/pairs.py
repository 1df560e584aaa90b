"""All pairs of codes within a radius, without comparing all pairs if that can be avoided. Knows no ids, no files.

Multi-index hashing (Norouzi, Punjani and Fleet, 2012) for pairs: the bits are split into radius + 1 parts, so two codes
that differ in at most `radius` bits agree in all bits of at least one part. One table per part, sorted by that part,
puts such pairs into the same bucket, and only pairs in a bucket are compared. Nothing is missed, whatever the codes; if
the buckets are so full that comparing all pairs is cheaper, all pairs are compared.
"""

# n rows, w bytes per code, p pairs

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bigr_repr.codes import hamming
from bigr_repr.retrieval.index.distinct import hashes
from bigr_repr.retrieval.index.workers import on_all_cores
from bigr_repr.system.threads import cores

__all__ = ["Pairs", "pairs_within"]

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]  # rows, (p,) each, the first below the second

_QUERIES: Final = 64  # queries that FAISS compares with all codes at a time
_FOUND: Final = 1 << 22  # maximum number of pairs found at a time
_FEW: Final = 64  # bucket size from which FAISS is faster than NumPy
_MANY: Final = 2048  # bucket size from which all cores share a bucket
_PIECE: Final = 32 << 20  # bytes of codes compared at a time
_SAMPLE: Final = 4096  # rows sampled for splitting the bits
_TRIED: Final = 4  # tables from which the total time is estimated


class _Buckets(NamedTuple):
    """rows: of all buckets with at least two rows, concatenated; sizes: of the buckets."""

    rows: NDArray[np.int64]
    sizes: NDArray[np.int64]


def pairs_within(codes: NDArray[np.uint8], radius: int, new: NDArray[np.bool_] | None = None) -> Iterator[Pairs]:
    """Every pair of rows of codes (n, w) at most `radius` bits apart, possibly repeated, in arrays of bounded length.

    new: bool (n,); only pairs with at least one of these rows. None: all pairs.
    """
    codes = np.ascontiguousarray(codes)
    if radius >= 8 * codes.shape[1]:  # all pairs are within the radius, and there are too few bits to split
        yield from _all_pairs(codes, radius, new)
        return
    masks = _masks(codes, radius)
    tried = [_buckets(codes, mask, new) for mask in masks[:_TRIED]]
    by_tables = sum(_nanoseconds(buckets, len(codes), codes.shape[1]) for buckets in tried) * len(masks) / len(tried)
    if by_tables >= _compared(codes.shape[1]) * len(codes) * (len(codes) / 2 if new is None else new.sum()):
        yield from _all_pairs(codes, radius, new)
        return
    for start in range(0, len(masks), cores()):
        some = [(codes, mask, new) for mask in masks[start : start + cores()]]
        for buckets in tried[start : start + cores()] if start < _TRIED else on_all_cores(_buckets, some):
            yield from _in_buckets(codes, buckets, radius, new)


def _masks(codes: NDArray[np.uint8], radius: int) -> NDArray[np.uint8]:
    """radius + 1 parts of the bits, (parts, w), with the most discriminative bits distributed evenly."""
    sample = codes[:: max(1, len(codes) // _SAMPLE)]
    imbalance = np.abs(np.unpackbits(sample, axis=1).mean(axis=0) - 0.5)
    bits = np.zeros((radius + 1, len(imbalance)), np.uint8)
    bits[np.arange(len(imbalance)) % (radius + 1), np.argsort(imbalance, kind="stable")] = 1
    return np.packbits(bits, axis=1)


def _buckets(codes: NDArray[np.uint8], mask: NDArray[np.uint8], new: NDArray[np.bool_] | None) -> _Buckets:
    """Rows that agree in the bits of a mask (or collide); buckets without a new row are left out."""
    keys = hashes(codes, mask)
    order = np.argsort(keys)
    bounds = np.flatnonzero(np.diff(keys[order], prepend=~keys[order[:1]]))
    sizes = np.diff(bounds, append=len(order))
    wanted = sizes > 1
    if new is not None:
        wanted &= np.add.reduceat(new[order].astype(np.int64), bounds) > 0
    return _Buckets(order[np.repeat(wanted, sizes)], sizes[wanted])


# ---- comparing


def _in_buckets(
    codes: NDArray[np.uint8], buckets: _Buckets, radius: int, new: NDArray[np.bool_] | None
) -> Iterator[Pairs]:
    many = buckets.sizes >= _MANY
    in_many = np.repeat(many, buckets.sizes)
    for rows in np.split(buckets.rows[in_many], np.cumsum(buckets.sizes[many]))[:-1]:
        for a, b in _all_pairs(codes[rows], radius, None if new is None else new[rows]):
            yield _ordered(rows[a], rows[b])
    pieces = _pieces(_Buckets(buckets.rows[~in_many], buckets.sizes[~many]), codes.shape[1])
    for group in range(0, len(pieces), 4 * cores()):
        tasks = [(codes, piece, radius, new) for piece in pieces[group : group + 4 * cores()]]
        yield from on_all_cores(_in_piece, tasks)


def _pieces(buckets: _Buckets, width: int) -> list[_Buckets]:
    """Split between buckets into pieces of about equal work."""
    work = np.cumsum(buckets.sizes * (buckets.sizes + 1) // 2)
    limits = np.arange(0, work[-1] if len(work) else 0, _PIECE // width)
    cuts = np.unique([*np.searchsorted(work, limits), len(work)])
    ends = np.concatenate([[0], np.cumsum(buckets.sizes)])
    return [_Buckets(buckets.rows[ends[a] : ends[b]], buckets.sizes[a:b]) for a, b in pairwise(cuts.tolist())]


def _in_piece(codes: NDArray[np.uint8], piece: _Buckets, radius: int, new: NDArray[np.bool_] | None) -> Pairs:
    """Pairs in large buckets by FAISS, one bucket at a time; in others by NumPy, all rows with their successors at
    once."""
    block = codes[piece.rows]
    ends = np.cumsum(piece.sizes)
    found: list[Pairs] = []
    for end, size in zip(ends[piece.sizes >= _FEW], piece.sizes[piece.sizes >= _FEW], strict=True):
        start = end - size
        a, b = _near(block[start:end], block[start:end], radius)
        found.append((a[b > a] + start, b[b > a] + start))
    last = np.repeat(np.where(piece.sizes < _FEW, ends, 0), piece.sizes)
    left, step = np.arange(len(block)), 1
    while len(left := left[left + step < last[left]]):
        near = left[hamming(block[left], block[left + step]) <= radius]
        found.append((near, near + step))
        step += 1
    first, second = (np.concatenate([np.empty(0, np.int64), *(pair[i] for pair in found)]) for i in (0, 1))
    first, second = piece.rows[first], piece.rows[second]
    if new is not None:
        wanted = new[first] | new[second]
        first, second = first[wanted], second[wanted]
    return _ordered(first, second)


def _all_pairs(codes: NDArray[np.uint8], radius: int, new: NDArray[np.bool_] | None) -> Iterator[Pairs]:
    """The same by comparing all pairs."""
    step = max(1, min(_QUERIES, _FOUND // max(1, len(codes))))
    rows = np.arange(len(codes)) if new is None else np.flatnonzero(new)
    tasks = [(codes, rows[start : start + step], radius, new) for start in range(0, len(rows), step)]
    for group in range(0, len(tasks), 4 * cores()):
        yield from on_all_cores(_with_all, tasks[group : group + 4 * cores()])


def _with_all(codes: NDArray[np.uint8], rows: NDArray[np.int64], radius: int, new: NDArray[np.bool_] | None) -> Pairs:
    """Pairs of some rows, ascending, with all later rows, and with earlier ones that are not new."""
    start = int(rows[0]) if new is None else 0
    place, found = _near(codes[rows], codes[start:], radius)
    first, second = rows[place], found + start
    wanted = second > first if new is None else (second > first) | ~new[second]
    return _ordered(first[wanted], second[wanted])


def _near(queries: NDArray[np.uint8], codes: NDArray[np.uint8], radius: int) -> Pairs:
    import faiss

    found = faiss.RangeSearchResult(len(queries))
    faiss.hamming_range_search(
        faiss.swig_ptr(queries), faiss.swig_ptr(codes), len(queries), len(codes), radius + 1, codes.shape[1], found
    )
    limits = faiss.rev_swig_ptr(found.lims, len(queries) + 1).astype(np.int64)
    total = int(limits[-1])
    second = faiss.rev_swig_ptr(found.labels, total).copy() if total else np.empty(0, np.int64)
    return np.repeat(np.arange(len(queries)), np.diff(limits)), second


def _ordered(first: NDArray[np.int64], second: NDArray[np.int64]) -> Pairs:
    return np.minimum(first, second), np.maximum(first, second)


# ---- cost model, in nanoseconds on one core: measured, and needed only to within a factor of two


def _compared(width: int) -> float:
    """One comparison by FAISS."""
    return 0.3 + 0.012 * width


def _nanoseconds(buckets: _Buckets, rows: int, width: int) -> float:
    """One table: hashing and sorting all rows, and comparing within buckets."""
    full = buckets.sizes >= _FEW
    pairs = buckets.sizes.astype(np.float64) ** 2 / 2
    by_faiss = pairs[full].sum() * 2 * _compared(width) + full.sum() * 20_000
    return float(rows * (100 + width) + by_faiss + pairs[~full].sum() * (20 + 0.2 * width))
