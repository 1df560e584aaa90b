"""Queries and hits of the server's index, a folder or a store. Knows nothing of requests."""

# q queries, k neighbors, D width

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bigr_repr.codes import code_bytes
from bigr_repr.images.find import escape_path
from bigr_repr.retrieval.codes.columns import plain_rows
from bigr_repr.retrieval.codes.provenance import BITS
from bigr_repr.retrieval.index.hamming import HammingIndex
from bigr_repr.retrieval.index.neighbors import Found
from bigr_repr.retrieval.request import AnyIndex, QueryCodes, SearchRequest, codes_are_tokens
from bigr_repr.retrieval.stores.base import StoreIndex
from bigr_repr.serve.encoder import EncoderOutput

_MOST_GROUPS: Final = 2048
_DEEPEST: Final = 1 << 13  # hits to group: every one may be compared with every group, and is part of the answer


@dataclass(frozen=True, kw_only=True, eq=False)
class Query:
    """A query in the form of the index's own rows. code: of the index, uint8 (bytes,). tokens: the tokenizer's code, or
    None. vector: float32 (D,), or None."""

    code: NDArray[np.uint8]
    tokens: NDArray[np.uint8] | None
    vector: NDArray[Any] | None


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


def query_of_row(index: AnyIndex, row: int) -> Query:
    """A row as a query, from its stored values."""
    if isinstance(index, StoreIndex):
        return Query(code=index.read([row])[1][0], tokens=None, vector=None)
    vectors = index.rows.vectors
    return Query(
        code=index.rows.codes[row], tokens=index.tokens[row] if index.has_tokens else None,
        vector=None if vectors is None else vectors[row],
    )  # fmt: skip


def query_of_code(index: AnyIndex, code: NDArray[np.uint8]) -> Query:
    """A code as a query: of the index's length; tokenizer codes also allow regions.  Raises ValueError."""
    length = code_bytes(index.n_bits)
    if code.shape != (length,):
        raise ValueError(f"the code has {code.size} bytes; this index's have {length}")
    return Query(code=code, tokens=code if codes_are_tokens(index) else None, vector=None)


def index_code(index: AnyIndex, encoded: EncoderOutput) -> NDArray[np.uint8]:
    """The code of an encoded picture for searching an index with recorded provenance: uint8 (bytes,)."""
    assert index.provenance is not None
    if index.provenance["of"] == BITS:
        return encoded.tokens
    assert index.binarizer is not None
    code: NDArray[np.uint8] = index.binarizer.encode(encoded.features[index.provenance["layer"]][None])[0]
    return code


def row_of(index: AnyIndex, id: str) -> int:
    """The first row with an id; -1 if there is none."""
    if isinstance(index, StoreIndex):
        return index.row_of(escape_path(id))
    try:
        return int(index.rows.places([escape_path(id)])[0])
    except ValueError:  # its ids are numbers
        return int(index.rows.places([int(id)])[0]) if id.isdecimal() and len(id) < 19 else -1


def id_of(index: AnyIndex, row: int) -> str:
    """The id of a row, as text."""
    return index.read([row])[0][0] if isinstance(index, StoreIndex) else str(index.ids[row].as_py())


def column_names(index: AnyIndex) -> dict[str, str]:
    """Columns for filters, and their types in one word."""
    return index.column_names if isinstance(index, StoreIndex) else index.rows.column_names


def search(index: AnyIndex, queries: Sequence[Query], request: SearchRequest) -> list[Hit]:
    """The rows nearest to a query, or to several combined. Of the nearest 8,192 hits, those to group are grouped.

    Raises ValueError for what the index does not have, or options out of range.
    """
    wanted = request.k + request.within.get("offset", 0)
    if request.group is not None and wanted > _MOST_GROUPS:
        asked = f"k={request.k} + offset={wanted - request.k}"
        raise ValueError(f"{asked} is more than {_MOST_GROUPS}, the most with group: ask for fewer")
    k = min(request.k, len(index))
    if not k:
        return []
    codes = QueryCodes(
        np.stack([query.code for query in queries]), _stacked([query.tokens for query in queries]),
        _stacked([query.vector for query in queries]),
    )  # fmt: skip
    found, members = replace(request, k=k, deepest=_DEEPEST).answer(index, codes)
    hits = _hits(index, found)
    if request.group is None:
        return hits
    return [replace(hit, members=_members(index, under)) for hit, under in zip(hits, members[0], strict=False)]


def _stacked(parts: Sequence[NDArray[Any] | None]) -> NDArray[Any] | None:
    """All parts as one array; None if one is unknown."""
    known = [part for part in parts if part is not None]
    return np.stack(known) if len(known) == len(parts) else None


def _members(index: AnyIndex, group: Sequence[tuple[int, float]]) -> list[Hit]:
    names = index.names_of(np.array([row for row, _ in group], np.int64))
    return [
        Hit(row=row, id=id, distance=distance, columns={}) for id, (row, distance) in zip(names, group, strict=True)
    ]


def _hits(index: AnyIndex, found: Found) -> list[Hit]:
    held = np.flatnonzero(found.rows[0] >= 0)
    rows, ids, distances = (part[0][held] for part in found)
    kept = plain_rows(index.rows.columns if isinstance(index, HammingIndex) else None, rows)
    return [
        Hit(row=int(row), id=id if isinstance(id, str) else int(id), distance=float(distance), columns=columns)
        for row, id, distance, columns in zip(rows, ids, distances, kept, strict=True)
    ]
