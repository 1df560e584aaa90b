"""How well codes retrieve images of the query's label, beside the floats they are made of. Knows no models or files.

The training side is the database, the test side the queries.
"""

# q queries, m database rows, D features

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bigr_repr.codes import hamming
from bigr_repr.evaluate.metrics.ranking import retrieval
from bigr_repr.retrieval.codes.binarizer import BINARIZERS, fit_binarizer, rows_needed

__all__ = ["Collection", "RetrievalRow", "label_retrieval"]

log = logging.getLogger(__name__)

DEPTH: Final = 1000
PRECISION_AT: Final = 100

Distances = Callable[[slice], NDArray[Any]]


class Collection(NamedTuple):
    """One side. vectors: (n, D) floats. tokens: the tokenizer's codes (n, bytes) uint8, or None. labels: (n,)."""

    vectors: NDArray[Any]
    tokens: NDArray[np.uint8] | None
    labels: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RetrievalRow:
    """One kind of code on one data set, in percent; equal distances in the mean over their orders.

    map_at_all, map_at_depth: mAP over the relevant in the database, at most `depth`; bounds: worst and best order of
    ties. map_at_depth_retrieved: over the relevant ones retrieved. share_of_float: of the float row's map_at_depth.
    """

    codes: str
    bits: int | None
    rescored: bool
    map_at_all: float
    map_at_all_bounds: tuple[float, float]
    map_at_depth: float
    map_at_depth_bounds: tuple[float, float]
    map_at_depth_retrieved: float
    precision: float
    share_of_float: float
    depth: int
    precision_at: int
    queries: int
    rows: int

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.codes}{'' if self.bits is None else f' {self.bits}'}{' + rescoring' if self.rescored else ''}"

    def record(self) -> dict[str, Any]:
        """Ready for JSON: numbers with three decimals."""
        text = json.dumps(dataclasses.asdict(self))
        plain: dict[str, Any] = json.loads(text, parse_float=lambda number: round(float(number), 3))
        return plain


def label_retrieval(
    base: Collection,
    queries: Collection,
    *,
    bits: Sequence[int] = (64, 128, 256),
    shortlist: int = 1000,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[RetrievalRow]:
    """Rows: float cosine first, then every binarizer of bigr_repr.retrieval and the tokenizer's bits, where both sides
    have them; codes also with rescoring: the `shortlist` nearest in the order of float cosine, all others behind them.

    bits: of the binarizers that have a choice; what reduces dimensions makes at most D, and is left out, with a
    warning, if the database is too small to fit it. seed: of what is random.
    on_progress(done, total): rows.
    Raises ValueError for bits or a shortlist below 1, and as fit_binarizer and `retrieval` do.
    """
    if shortlist < 1:
        raise ValueError(f"shortlist={shortlist} must be at least 1: how many rows are ordered by their floats")
    if not bits or min(bits) < 1:
        raise ValueError(f"bits={tuple(bits)}: give numbers of bits from 1")
    ways = list(_ways(base, queries, bits, seed))
    short = min(shortlist, len(base.labels))
    cosine = _cosine(queries.vectors, base.vectors)
    rows: list[RetrievalRow] = []
    total = 2 + 2 * len(ways)

    def add(codes: str, n_bits: int | None, distances: Distances, *, rescored: bool = False) -> None:
        on_progress(len(rows), total)
        rows.append(_row(codes, n_bits, distances, base, queries, rows[0] if rows else None, rescored=rescored))

    center = base.vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    add("float cosine", None, cosine)
    add("float cosine, centered", None, _cosine(queries.vectors - center, base.vectors - center))
    for codes, n_bits, encoded in ways:
        distances = partial(_hamming, *encoded())
        add(codes, n_bits, distances)
        add(codes, n_bits, partial(_rescored, distances, cosine, short), rescored=True)
    on_progress(total, total)
    return rows


CodePair = Callable[[], tuple[NDArray[np.uint8], NDArray[np.uint8]]]


def _ways(base: Collection, queries: Collection, bits: Sequence[int], seed: int) -> Iterator[tuple[str, int, CodePair]]:
    """(what codes are, their bits, what makes those of queries and database): every binarizer, then the tokenizer."""

    def made_binary(kind: str, n_bits: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        binarizer = fit_binarizer(kind, base.vectors, n_bits=n_bits, seed=seed)
        return binarizer.encode(queries.vectors), binarizer.encode(base.vectors)

    for kind, n_bits in _kinds(base.vectors.shape, bits):
        yield kind, n_bits, partial(made_binary, kind, n_bits)
    ours, theirs = queries.tokens, base.tokens
    if ours is not None and theirs is not None:
        both = ours, theirs
        yield "tokenizer bits", 8 * theirs.shape[1], lambda: both


def _kinds(shape: tuple[int, ...], bits: Sequence[int]) -> list[tuple[str, int]]:
    """Binarizers and their bits, for features (rows, width); logs what is left out for want of rows."""
    rows, width = shape
    found = []
    for kind in BINARIZERS:
        wanted = [width] if kind in ("sign", "median") else bits
        for n_bits in dict.fromkeys(n if kind == "rotation" else min(n, width) for n in wanted):
            if rows < rows_needed(kind, n_bits):
                log.warning("%s of %d bits is left out: %d rows are too few to fit it", kind, n_bits, rows)
            else:
                found.append((kind, n_bits))
    return found


def _row(
    codes: str, bits: int | None, distances: Distances, base: Collection, queries: Collection,
    floats: RetrievalRow | None, *, rescored: bool = False,
) -> RetrievalRow:  # fmt: skip
    count = len(base.labels)
    depth, k = min(DEPTH, count), min(PRECISION_AT, count)
    found = retrieval(distances, queries.labels, base.labels, depths=(None, depth), k=(k,))
    return RetrievalRow(
        codes=codes,
        bits=bits,
        rescored=rescored,
        map_at_all=found.map_at[None],
        map_at_all_bounds=found.map_bounds[None],
        map_at_depth=found.map_at[depth],
        map_at_depth_bounds=found.map_bounds[depth],
        map_at_depth_retrieved=found.map_at_retrieved[depth],
        precision=found.precision[k],
        share_of_float=100.0 if floats is None else 100 * found.map_at[depth] / floats.map_at_depth,
        depth=depth,
        precision_at=k,
        queries=found.queries,
        rows=found.rows,
    )


def _cosine(queries: NDArray[Any], base: NDArray[Any]) -> Distances:
    """1 - cosine, for a slice of the queries at a time."""
    left, right = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (queries, base))
    return lambda rows: 1 - left[rows] @ right.T


def _hamming(queries: NDArray[np.uint8], base: NDArray[np.uint8], rows: slice) -> NDArray[Any]:
    """Differing bits, for a slice of the queries."""
    return hamming(queries[rows, None], base)


def _rescored(bits: Distances, cosine: Distances, shortlist: int, rows: slice) -> NDArray[np.float64]:
    """Distances in whose order the shortlist by bits comes first, by cosine, and all others behind it, by bits."""
    far = bits(rows).astype(np.float64) + 10
    first = np.argsort(far, axis=1, kind="stable")[:, :shortlist]
    np.put_along_axis(far, first, np.take_along_axis(cosine(rows).astype(np.float64), first, axis=1), axis=1)
    return far
