"""Groups equal codes: the distinct codes, and the rows that have each of them. Knows nothing of search or files.

A graph whose nodes are mostly copies of one code leads nowhere else, and a self-check on such rows measures only the
copies. So approximate indexes hold each code once, and rows are filled in afterwards.
"""

# n rows, m distinct codes, q queries, k neighbors

from __future__ import annotations

from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bigr_repr.retrieval.index.scan import Scanned

__all__ = ["Distinct", "Groups", "find_distinct", "hashes"]

_CHUNK: Final = 16 << 20  # bytes of codes hashed or compared at a time
_MIX: Final = np.uint64(0x9E3779B97F4A7C15)
_SHIFT: Final = np.uint64(29)


class Distinct(NamedTuple):
    """firsts: (m,) the first row of each code, ascending; of_row: (n,) each row's place in firsts."""

    firsts: NDArray[np.int64]
    of_row: NDArray[np.int64]


def find_distinct(codes: NDArray[np.uint8]) -> Distinct:
    """The distinct codes among codes (n, bytes), in the order of their first rows."""
    _, firsts, of_row = np.unique(hashes(codes), return_index=True, return_inverse=True)
    if not _all_equal(codes, firsts[of_row]):  # a hash collision
        whole = np.ascontiguousarray(codes).view(np.dtype((np.void, codes.shape[1]))).reshape(-1)
        _, firsts, of_row = np.unique(whole, return_index=True, return_inverse=True)
    order = np.argsort(firsts)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return Distinct(firsts[order], place[of_row])


def hashes(codes: NDArray[np.uint8], mask: NDArray[np.uint8] | None = None) -> NDArray[np.uint64]:
    """64-bit hashes of codes (n, bytes), or of only their bits in mask (bytes): uint64 (n,), equal for equal codes.

    NumPy sorts numbers ten times as fast as byte strings.
    """
    spare = -codes.shape[1] % 8
    found = np.zeros(len(codes), np.uint64)
    wanted = None if mask is None else np.pad(mask, (0, spare)).view(np.uint64)
    columns = range(-(-codes.shape[1] // 8)) if wanted is None else np.flatnonzero(wanted).tolist()
    step = max(1, _CHUNK // codes.shape[1])
    for start in range(0, len(codes), step):
        words = np.ascontiguousarray(np.pad(codes[start : start + step], ((0, 0), (0, spare)))).view(np.uint64)
        mixed = found[start : start + step]
        for column in columns:
            mixed ^= words[:, column] if wanted is None else words[:, column] & wanted[column]
            mixed *= _MIX
            mixed ^= mixed >> _SHIFT
    return found


def _all_equal(codes: NDArray[np.uint8], rows: NDArray[np.int64]) -> bool:
    step = max(1, _CHUNK // codes.shape[1])
    parts = (slice(start, start + step) for start in range(0, len(codes), step))
    return all(np.array_equal(codes[part], codes[rows[part]]) for part in parts)


class Groups:
    """Rows grouped by their distinct code. of_row: int64 (n,), the number of each row's code, 0..m-1."""

    def __init__(self, of_row: NDArray[np.int64]) -> None:
        self.of_row = of_row

    @property
    def count(self) -> int:
        """Distinct codes m."""
        return int(self.of_row.max()) + 1 if len(self.of_row) else 0

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows ordered by their code, and the start of each code's rows, (m + 1,)."""
        sizes = np.bincount(self.of_row, minlength=self.count)
        return np.argsort(self.of_row, kind="stable"), np.concatenate([[0], np.cumsum(sizes)])

    @property
    def firsts(self) -> NDArray[np.int64]:
        """The first row of each distinct code."""
        order, bounds = self._sorted
        return order[bounds[:-1]]

    def expand(self, found: Scanned, k: int) -> Scanned:
        """The k nearest rows, given the k nearest distinct codes by number; -1 if there are fewer."""
        order, bounds = self._sorted
        rows = np.full((len(found.rows), k), -1, np.int64)
        distances = np.full((len(found.rows), k), -1, np.int32)
        for i, (numbers, nearest) in enumerate(zip(found.rows, found.distances, strict=True)):
            held = numbers >= 0
            parts = [order[bounds[n] : min(bounds[n] + k, bounds[n + 1])] for n in numbers[held].tolist()]
            if not parts:
                continue
            listed = np.concatenate(parts)
            far = np.repeat(nearest[held], [len(part) for part in parts])
            best = np.lexsort((listed, far))[:k]
            rows[i, : len(best)], distances[i, : len(best)] = listed[best], far[best]
        return Scanned(rows, distances)
