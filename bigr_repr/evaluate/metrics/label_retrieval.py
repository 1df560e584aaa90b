"""How well codes retrieve images with the query's label, compared with their floats. Knows no models or files.

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
from bigr_repr.evaluate.data.labeled import check_lengths, labeled
from bigr_repr.evaluate.metrics.rabitq import rabitq
from bigr_repr.evaluate.metrics.ranking import retrieval
from bigr_repr.retrieval.codes.binarizer import BINARIZERS, fit_binarizer, rows_needed
from bigr_repr.retrieval.index.rescore import bit_cosine

__all__ = ["Collection", "RetrievalRow", "label_retrieval"]

log = logging.getLogger(__name__)

DEPTH: Final = 1000
PRECISION_AT: Final = 100
RECALL_AT: Final = 10

_STEP: Final = 256  # queries at a time

Distances = Callable[[slice], NDArray[Any]]


class Collection(NamedTuple):
    """One side. vectors: (n, D) floats. tokens: the tokenizer's codes (n, bytes) uint8, or None. labels: (n,)."""

    vectors: NDArray[Any]
    tokens: NDArray[np.uint8] | None
    labels: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RetrievalRow:
    """One kind of code on one data set, in percent; averaged over the orders of equal distances.

    map_at_all, map_at_depth: mAP over the relevant rows in the database, at most `depth`; bounds: worst and best order
    of ties. map_at_depth_retrieved: over the relevant rows retrieved. share_of_float: of the float row's map_at_depth.
    recall_of_float: fraction of the nearest `recall_at` by float cosine among as many nearest by these codes.
    float_query: whether the query's floats, rather than bits, are compared with bits.
    """

    codes: str
    bits: int | None
    rescored: bool
    float_query: bool
    map_at_all: float
    map_at_all_bounds: tuple[float, float]
    map_at_depth: float
    map_at_depth_bounds: tuple[float, float]
    map_at_depth_retrieved: float
    precision: float
    share_of_float: float
    recall_of_float: float
    depth: int
    precision_at: int
    recall_at: int
    queries: int
    rows: int

    @property
    def name(self) -> str:
        """Display name."""
        bits = "" if self.bits is None else f" {self.bits}"
        return f"{self.codes}{bits}{', float query' * self.float_query}{' + rescoring' * self.rescored}"

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
    """Rows: float cosine first, then every binarizer of bigr_repr.retrieval and the tokenizer's bits, if both sides
    have them; codes also with rescoring: the `shortlist` nearest reordered by float cosine, all others after them.
    Binarizers are also measured with float queries; RaBitQ only with those.

    bits: of the binarizers that allow a choice; those that reduce dimensions yield at most D bits, and are left out,
    with a warning, if the database is too small to fit them. seed: of everything random.
    on_progress(done, total): rows.
    Raises ValueError for bits or a shortlist below 1, vectors that are not finite or too long, and as fit_binarizer
    and `retrieval` do.
    """
    _check(bits, shortlist)
    for name, side in (("database", base), ("query", queries)):
        check_lengths(labeled(name, side.vectors, side.labels))
    ways = list(_ways(base, queries, bits, seed))
    cosine = _cosine(queries.vectors, base.vectors)
    rows: list[RetrievalRow] = []
    total = 2 + sum(2 + way.by_floats for way in ways)
    truth = _nearest(cosine, len(queries.labels), min(RECALL_AT, len(base.labels)))

    def add(codes: str, n_bits: int | None, distances: Distances, **how: bool) -> None:
        on_progress(len(rows), total)
        rows.append(_row(codes, n_bits, distances, base, queries, truth, rows[0] if rows else None, **how))

    center = base.vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    add("float cosine", None, cosine)
    add("float cosine, centered", None, _cosine(queries.vectors - center, base.vectors - center))
    for way in ways:
        for distances, how in way.measures(cosine, min(shortlist, len(base.labels))):
            add(way.codes, way.n_bits, distances, **how)
    on_progress(total, total)
    return rows


def _check(bits: Sequence[int], shortlist: int) -> None:
    if shortlist < 1:
        raise ValueError(f"shortlist={shortlist} must be at least 1: the number of rows reordered by their floats")
    if not bits or min(bits) < 1:
        raise ValueError(f"bits={tuple(bits)}: numbers of bits start at 1")


class _Way(NamedTuple):
    """A kind of code. distances(): by bits, and by the query's floats or None. only_floats: the first use floats."""

    codes: str
    n_bits: int
    distances: Callable[[], tuple[Distances, Distances | None]]
    by_floats: bool = False
    only_floats: bool = False

    def measures(self, cosine: Distances, shortlist: int) -> Iterator[tuple[Distances, dict[str, bool]]]:
        """By bits, by the query's floats if that differs, and rescored by cosine."""
        first, by_floats = self.distances()
        yield first, {"float_query": self.only_floats}
        if by_floats is not None:
            yield by_floats, {"float_query": True}
        yield partial(_rescored, first, cosine, shortlist), {"float_query": self.only_floats, "rescored": True}


def _ways(base: Collection, queries: Collection, bits: Sequence[int], seed: int) -> Iterator[_Way]:
    """Every binarizer, RaBitQ, then the tokenizer."""

    def by_binarizer(kind: str, n_bits: int) -> tuple[Distances, Distances]:
        binarizer = fit_binarizer(kind, base.vectors, n_bits=n_bits, seed=seed)
        codes, margins = binarizer.encode(base.vectors), binarizer.margins(queries.vectors)
        by_bits = partial(_hamming, binarizer.encode(queries.vectors), codes)
        return by_bits, lambda rows: 1 - bit_cosine(binarizer, margins[rows], codes)

    def by_rabitq(n_bits: int) -> tuple[Distances, None]:
        return rabitq(queries.vectors, base.vectors, n_bits, seed=seed), None

    for kind, n_bits in _kinds(base.vectors.shape, bits):
        yield _Way(kind, n_bits, partial(by_binarizer, kind, n_bits), by_floats=True)
    rows, width = base.vectors.shape
    for n_bits in dict.fromkeys(bits):
        if n_bits >= width or rows >= rows_needed("pca", n_bits):
            yield _Way("rabitq", n_bits, partial(by_rabitq, n_bits), only_floats=True)
    ours, theirs = queries.tokens, base.tokens
    if ours is not None and theirs is not None:
        both = partial(_hamming, ours, theirs)
        yield _Way("tokenizer bits", 8 * theirs.shape[1], lambda: (both, None))


def _kinds(shape: tuple[int, ...], bits: Sequence[int]) -> list[tuple[str, int]]:
    """Binarizers and their bits, for features (rows, width); logs those left out for lack of rows."""
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
    truth: NDArray[np.int64], floats: RetrievalRow | None, *, float_query: bool = False, rescored: bool = False,
) -> RetrievalRow:  # fmt: skip
    count = len(base.labels)
    depth, k = min(DEPTH, count), min(PRECISION_AT, count)
    found = retrieval(distances, queries.labels, base.labels, depths=(None, depth), k=(k,))
    return RetrievalRow(
        codes=codes,
        bits=bits,
        rescored=rescored,
        float_query=float_query,
        map_at_all=found.map_at[None],
        map_at_all_bounds=found.map_bounds[None],
        map_at_depth=found.map_at[depth],
        map_at_depth_bounds=found.map_bounds[depth],
        map_at_depth_retrieved=found.map_at_retrieved[depth],
        precision=found.precision[k],
        share_of_float=100.0 if floats is None else 100 * found.map_at[depth] / floats.map_at_depth,
        recall_of_float=_recall(distances, truth),
        depth=depth,
        precision_at=k,
        recall_at=truth.shape[1],
        queries=found.queries,
        rows=found.rows,
    )


def _nearest(distances: Distances, count: int, k: int) -> NDArray[np.int64]:
    """The k nearest rows for each of `count` queries, (q, k)."""
    parts = (distances(slice(start, start + _STEP)) for start in range(0, count, _STEP))
    return np.concatenate([np.argpartition(part, k - 1, axis=1)[:, :k] for part in parts])


def _recall(distances: Distances, truth: NDArray[np.int64]) -> float:
    """Percentage of the rows in truth (q, k) among the k nearest, averaged over the orders of equal distances."""
    k, found = truth.shape[1], 0.0
    for start in range(0, len(truth), _STEP):
        all_rows = distances(slice(start, start + _STEP))
        last = np.partition(all_rows, k - 1, axis=1)[:, k - 1 : k]
        nearer, equal = (all_rows < last).sum(axis=1), (all_rows == last).sum(axis=1)
        wanted = np.take_along_axis(all_rows, truth[start : start + _STEP], axis=1)
        at_last = (wanted == last).sum(axis=1) * (k - nearer) / equal
        found += float(((wanted < last).sum(axis=1) + at_last).sum())
    return 100 * found / truth.size


def _cosine(queries: NDArray[Any], base: NDArray[Any]) -> Distances:
    """1 - cosine, for a slice of the queries at a time."""
    sides = (x.astype(np.float32) for x in (queries, base))  # float16's largest number is below many a norm
    left, right = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in sides)
    return lambda rows: 1 - left[rows] @ right.T


def _hamming(queries: NDArray[np.uint8], base: NDArray[np.uint8], rows: slice) -> NDArray[Any]:
    """Differing bits, for a slice of the queries."""
    return hamming(queries[rows, None], base)


def _rescored(bits: Distances, cosine: Distances, shortlist: int, rows: slice) -> NDArray[np.float64]:
    """Distances that put the shortlist by bits first, ordered by cosine, and all others after it, ordered by bits."""
    far = bits(rows).astype(np.float64) + 10
    first = np.argsort(far, axis=1, kind="stable")[:, :shortlist]
    np.put_along_axis(far, first, np.take_along_axis(cosine(rows).astype(np.float64), first, axis=1), axis=1)
    return far
