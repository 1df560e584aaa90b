"""Queries and hits of the server's index, a folder or a store. Knows nothing of requests."""

# q queries, k neighbors, D width

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bigr_repr.codes import code_bytes
from bigr_repr.images.find import escape_path
from bigr_repr.retrieval.codes.columns import plain_rows
from bigr_repr.retrieval.codes.filters import Filter
from bigr_repr.retrieval.codes.provenance import BITS
from bigr_repr.retrieval.codes.regions import Region
from bigr_repr.retrieval.index.hamming import HammingIndex
from bigr_repr.retrieval.index.neighbors import Found, Within
from bigr_repr.retrieval.stores.base import StoreIndex
from bigr_repr.serve.encoder import EncoderOutput

_MOST_GROUPS: Final = 2048
_DEEPEST: Final = 1 << 13  # hits to group: every one may be compared with every group, and is part of the answer

ServedIndex: TypeAlias = HammingIndex | StoreIndex


@dataclass(frozen=True, kw_only=True, eq=False)
class Query:
    """A query in the form of the index's own rows. code: of the index, uint8 (bytes,). tokens: the tokenizer's code, or
    None. vector: float32 (D,), or None."""

    code: NDArray[np.uint8]
    tokens: NDArray[np.uint8] | None
    vector: NDArray[Any] | None


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """k: maximum number of hits. where, radius, offset: as in index.neighbors.Within. region: x, y, w, h in fractions
    of
    the side: compare only inside. rescore: find this many times k by bits, then the k nearest by vectors; 0: off.
    effort: of an approximate index. group: of the nearest 8,192 hits, those within so many bits of a nearer one are
    grouped under it; then k + offset is at most 2048.
    weights: one per query, to combine several; a negative one prefers rows far from its query."""

    k: int = 10
    where: Filter | None = None
    radius: float | None = None
    offset: int = 0
    region: tuple[float, float, float, float] | None = None
    rescore: int = 0
    effort: int | None = None
    group: int | None = None
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.region is not None and self.rescore:
            raise ValueError("a region is compared only by bits: leave rescore out")
        if self.group is not None and self.k + self.offset > _MOST_GROUPS:
            raise ValueError(
                f"k={self.k} + offset={self.offset} is more than {_MOST_GROUPS}, the most with group: ask for fewer"
            )


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A row that was found. distance: differing bits, or the cosine distance after rescoring. columns: as stored.

    members: hits grouped under this one, without columns.
    """

    row: int
    id: str | int
    distance: float
    columns: dict[str, Any]
    members: list[Hit] = field(default_factory=list)


def query_of_row(index: ServedIndex, row: int) -> Query:
    """A row as a query, from its stored values."""
    if isinstance(index, StoreIndex):
        return Query(code=index.read([row])[1][0], tokens=None, vector=None)
    vectors = index.rows.vectors
    return Query(
        code=index.rows.codes[row], tokens=index.tokens[row] if index.has_tokens else None,
        vector=None if vectors is None else vectors[row],
    )  # fmt: skip


def query_of_code(index: ServedIndex, code: NDArray[np.uint8]) -> Query:
    """A code as a query: of the index's length; tokenizer codes also allow regions.  Raises ValueError."""
    length = code_bytes(index.n_bits)
    if code.shape != (length,):
        raise ValueError(f"the code has {code.size} bytes; this index's have {length}")
    return Query(code=code, tokens=code if codes_are_tokens(index) else None, vector=None)


def codes_are_tokens(index: ServedIndex) -> bool:
    """Whether the searched codes are the tokenizer's, so that they can be decoded."""
    return isinstance(index, HammingIndex) and index.has_tokens and index.rows.tokens is None


def index_code(index: ServedIndex, encoded: EncoderOutput) -> NDArray[np.uint8]:
    """The code of an encoded picture for searching an index with recorded provenance: uint8 (bytes,)."""
    assert index.provenance is not None
    if index.provenance["of"] == BITS:
        return encoded.tokens
    assert index.binarizer is not None
    code: NDArray[np.uint8] = index.binarizer.encode(encoded.features[index.provenance["layer"]][None])[0]
    return code


def row_of(index: ServedIndex, id: str) -> int:
    """The first row with an id; -1 if there is none."""
    if isinstance(index, StoreIndex):
        return index.row_of(escape_path(id))
    try:
        return int(index.rows.places([escape_path(id)])[0])
    except ValueError:  # its ids are numbers
        return int(index.rows.places([int(id)])[0]) if id.isdecimal() and len(id) < 19 else -1


def id_of(index: ServedIndex, row: int) -> str:
    """The id of a row, as text."""
    return index.read([row])[0][0] if isinstance(index, StoreIndex) else str(index.ids[row].as_py())


def column_names(index: ServedIndex) -> dict[str, str]:
    """Columns for filters, and their types in one word."""
    return index.column_names if isinstance(index, StoreIndex) else index.rows.column_names


def search(index: ServedIndex, queries: Sequence[Query], options: SearchOptions) -> list[Hit]:
    """The rows nearest to a query, or to several combined.

    Raises ValueError for what the index does not have, or options out of range.
    """
    k = min(options.k, len(index))
    if not k:
        return []
    within: Within = {"where": options.where, "radius": options.radius, "offset": options.offset}
    if options.group is None:
        return _hits(index, _found(index, queries, options, within, k))
    from bigr_repr.retrieval.index.grouping import group_hits

    find = partial(_found, index, queries, options, {**within, "offset": 0})
    found, members = group_hits(index, find, k, options.group, offset=options.offset, deepest=_DEEPEST)
    grouped = []
    for hit, under in zip(_hits(index, found), members[0], strict=False):
        names = index.names_of(np.array([row for row, _ in under], np.int64))
        held = [
            Hit(row=row, id=id, distance=distance, columns={}) for id, (row, distance) in zip(names, under, strict=True)
        ]
        grouped.append(replace(hit, members=held))
    return grouped


def _found(index: ServedIndex, queries: Sequence[Query], options: SearchOptions, within: Within, k: int) -> Found:
    codes = np.stack([query.code for query in queries])
    region = None if options.region is None else Region.of_fractions(*options.region, index.token_layout())
    if region is not None:
        if any(query.tokens is None for query in queries):
            raise ValueError("a region needs the query's tokenizer code: search by picture or id")
        codes = np.stack([query.tokens for query in queries if query.tokens is not None])
    vectors = _vectors(queries) if options.rescore else None
    if options.weights is not None:
        return _together(index, codes, vectors, region, options, within, k)
    if region is not None:
        return index.find_region(codes, region, k, **within)
    if vectors is not None:
        return index.find_rescored(codes, vectors, k, rescore=options.rescore, effort=options.effort, **within)
    return index.find(codes, k, effort=options.effort, **within)


def _vectors(queries: Sequence[Query]) -> NDArray[Any]:
    if any(query.vector is None for query in queries):
        raise ValueError("rescoring needs the query's vector: search by picture or id in an index with vectors")
    return np.stack([query.vector for query in queries if query.vector is not None])


def _together(
    index: ServedIndex,
    codes: NDArray[np.uint8],
    vectors: NDArray[Any] | None,
    region: Region | None,
    options: SearchOptions,
    within: Within,
    k: int,
) -> Found:
    if isinstance(index, StoreIndex):
        raise ValueError("a store compares one code at a time: search for several in the index folder")
    if options.effort is not None:
        raise ValueError("several pictures as one query are compared with all rows: leave effort out")
    from bigr_repr.retrieval.index.combined import find_together

    assert options.weights is not None
    return find_together(
        index, codes, options.weights, k, region=region, vectors=vectors, rescore=options.rescore, **within
    )


def _hits(index: ServedIndex, found: Found) -> list[Hit]:
    held = np.flatnonzero(found.rows[0] >= 0)
    rows, ids, distances = (part[0][held] for part in found)
    kept = plain_rows(index.rows.columns if isinstance(index, HammingIndex) else None, rows)
    return [
        Hit(row=int(row), id=id if isinstance(id, str) else int(id), distance=float(distance), columns=columns)
        for row, id, distance, columns in zip(rows, ids, distances, kept, strict=True)
    ]
