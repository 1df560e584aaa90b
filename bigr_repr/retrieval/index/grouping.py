"""Near-duplicates among the hits of a search, in groups. Knows nothing of pictures."""

# n rows, k neighbors

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from bigr_repr.codes import hamming
from bigr_repr.retrieval.index.neighbors import Found

__all__ = ["Grouped", "group_hits"]

_DEEPER: Final = 4  # factor by which to request more hits if grouping leaves too few


class Grouped(NamedTuple):
    """found: the first hit of each group. members: for each query and group, the others: row and distance."""

    found: Found
    members: list[list[list[tuple[int, float]]]]


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
