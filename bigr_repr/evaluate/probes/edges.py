"""Notes on chosen values at an end of their grid, beyond which there may be a better one. Knows no classifiers."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

__all__ = ["edge_of", "warn_of_edges"]

_log = logging.getLogger(__name__)


def edge_of(name: str, chosen: float, scores: Mapping[float, float], count: int) -> str | None:
    """A note if a value chosen from a grid of `count` is its smallest or largest, and better than its neighbor.

    scores: of the tried values, larger is better.
    """
    tried = sorted(scores)
    if count == 1 or chosen not in (tried[0], tried[-1]) or (chosen == tried[-1] and len(tried) < count):
        return None
    if scores[tried[1] if chosen == tried[0] else tried[-2]] == scores[chosen]:
        return None  # no better than within the grid
    return f"{name}={chosen:g} is the {'smallest' if chosen == tried[0] else 'largest'} of its grid of {count}"


def warn_of_edges(where: object, edges: Iterable[str | None]) -> None:
    """Log the notes on what was chosen for features, such as those of a layer; None stands for no note."""
    for edge in filter(None, edges):
        _log.warning("%s: %s; a better one may lie beyond: widen the grid", where, edge)
