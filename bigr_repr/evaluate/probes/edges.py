"""Notes on chosen values at an end of their grid, beyond which there may be a better one. Knows no classifiers."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["edge_of", "warn_of_edges"]

_log = logging.getLogger(__name__)


def edge_of(name: str, chosen: float, scores: Mapping[float, float], grid: Sequence[float]) -> str | None:
    """A note if a value chosen from a grid is its smallest or largest.

    scores: of the tried values, larger is better. grid: may name a value twice.
    """
    tried, count = sorted(scores), len(set(grid))
    if count == 1 or chosen not in (tried[0], tried[-1]) or (chosen == tried[-1] and len(tried) < count):
        return None
    end, neighbor = ("smallest", tried[1]) if chosen == tried[0] else ("largest", tried[-2])
    tie = f", and no better than {neighbor:g} beside it" if scores[neighbor] == scores[chosen] else ""
    return f"{name}={chosen:g} is the {end} of its grid of {count}{tie}"


def warn_of_edges(where: object, edges: Iterable[str | None]) -> None:
    """Log the notes on what was chosen for features, such as those of a layer; None stands for no note."""
    for edge in filter(None, edges):
        _log.warning("%s: %s; a better one may lie beyond: widen the grid", where, edge)
