"""Recall of an approximate index relative to exact search, crediting ties. Knows nothing of kinds or files.

Many codes have the same distance, so there is no unique list of ten: a neighbor counts if it is no farther than the
k-th of exact search.
"""

# n rows, q queries, k neighbors

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bigr_repr.retrieval.index.scan import Scanned, scan
from bigr_repr.retrieval.index.settings import IndexSettings

__all__ = ["SelfCheck", "recall_with_ties"]

_QUERIES: Final = 200
_NEIGHBORS: Final = 10


def recall_with_ties(found: ArrayLike, exact: ArrayLike) -> float:
    """Share of the k nearest that a search found, crediting ties: mean over queries, in [0, 1].

    found, exact: (q, k) distances of the distinct rows that a search gave (-1: none) and of an exact search, ascending.
    Raises ValueError for other shapes.
    """
    given, nearest = np.asarray(found), np.asarray(exact)
    if given.shape != nearest.shape or given.ndim != 2 or not given.size:
        raise ValueError(f"found has shape {given.shape} and exact {nearest.shape}; expected the same (q, k)")
    return float(((given >= 0) & (given <= nearest[:, -1:])).mean())


@dataclass(frozen=True, kw_only=True)
class SelfCheck:
    """An approximate index compared with exact search, with some of its distinct codes as queries.

    recall: of the k nearest other codes, crediting ties. found_itself: share of queries whose own code came first.
    curve: recall by effort, for the efforts that were tried. effort: the one chosen.
    """

    recall: float
    found_itself: float
    k: int
    queries: int
    effort: int
    curve: dict[int, float]

    def __str__(self) -> str:
        return (
            f"recall@{self.k} {self.recall:.3f} at effort {self.effort}, itself found {self.found_itself:.3f} "
            f"({self.queries} of its own codes as queries, ties credited)"
        )

    def tuned(self, settings: IndexSettings) -> IndexSettings:
        """Settings with the chosen effort."""
        return dataclasses.replace(settings, effort=self.effort)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {**dataclasses.asdict(self), "curve": {str(effort): value for effort, value in self.curve.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SelfCheck:
        """The inverse of to_dict.  Raises ValueError for anything else."""
        try:
            curve = {int(effort): float(value) for effort, value in data["curve"].items()}
            numbers = {name: float(data[name]) for name in ("recall", "found_itself")}
            counts = {name: int(data[name]) for name in ("k", "queries", "effort")}
            return cls(curve=curve, **numbers, **counts)  # type: ignore[arg-type]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"no self-check ({error})") from error


def check_recall(
    codes: NDArray[np.uint8],
    search: Callable[[NDArray[np.uint8], int, int], Scanned],
    efforts: Iterable[int],
    settings: IndexSettings,
    *,
    among: NDArray[np.int64] | None = None,
) -> SelfCheck:
    """Measure search(queries, k, effort) on a sample of codes (m, bytes), m >= 1, at the settings' effort.

    If unset: at each of `efforts` until the recall reaches settings.target_recall. among: rows to draw queries from;
    None: all, which should then be distinct.
    """
    drawn = np.arange(len(codes)) if among is None else among
    sample = np.random.default_rng(settings.seed).choice(drawn, min(_QUERIES, len(drawn)), replace=False)
    queries = np.ascontiguousarray(codes[np.sort(sample)])
    k = min(_NEIGHBORS, max(1, len(codes) - 1))
    reach = min(k + 1, len(codes))
    exact = scan(codes, queries, reach).distances
    curve: dict[int, float] = {}
    itself = 0.0
    for effort in efforts if settings.effort is None else [settings.effort]:
        found = search(queries, reach, effort).distances
        itself = float((found[:, 0] == 0).mean())
        # The nearest code is the query itself; the others are its neighbors.
        curve[effort] = recall_with_ties(found[:, -k:], exact[:, -k:])
        if settings.effort is None and curve[effort] >= settings.target_recall:
            break
    return SelfCheck(recall=curve[effort], found_itself=itself, k=k, queries=len(queries), effort=effort, curve=curve)
