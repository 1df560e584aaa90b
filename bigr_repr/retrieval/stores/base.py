"""The interface of stores of codes, and an index in one, searched like HammingIndex. Knows no particular store.

A store has one table of row number, id and code per name, and a header that describes the codes. Vectors and additional
tokenizer codes stay in the index folder, which regions, decoding and queries of several codes need.
"""

# q queries, k neighbors

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn, Protocol, Unpack

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from bigr_repr.codes import code_bytes
from bigr_repr.retrieval.codes.binarizer import Binarizer
from bigr_repr.retrieval.codes.columns import type_name
from bigr_repr.retrieval.codes.filters import Filter, as_filter
from bigr_repr.retrieval.codes.provenance import parse_provenance
from bigr_repr.retrieval.codes.regions import Region, TokenLayout
from bigr_repr.retrieval.index.neighbors import Found, Neighbors, Scope, Within
from bigr_repr.retrieval.index.rescore import asymmetric

if TYPE_CHECKING:
    from bigr_repr.retrieval.stores.native import Dialect

_FORMAT: Final = 1
_STATES: Final = 3  # tries to read the codes of the state that was searched
_SAME: Final = 64  # maximum number of rows with one id when looking for the first
_BINARIZER: Final = "binariser"  # in the header it keeps the spelling of the first version

# number of the first row, ids, codes, kept columns
CodeBatch = tuple[int, pa.Array, NDArray[np.uint8], pa.Table | None]


Hits = tuple[list[int], list[Any], list[int]]  # row numbers, ids and distances of one query, nearest first


@dataclass(frozen=True, kw_only=True, eq=False)
class Header:
    """Description of the codes in a store.

    kind: "flat" or "ivf". lists: for kind "ivf". effort: number of lists to search, measured during the push; recall:
    the recall@10 at that effort; None for flat, and for pushes of older versions. columns: kept ones.
    """

    n_bits: int
    count: int
    kind: str
    lists: int | None
    provenance: Mapping[str, Any] | None
    binarizer: Binarizer | None
    effort: int | None = None
    recall: float | None = None
    columns: pa.Schema | None = None

    def to_json(self) -> str:
        """The header as text."""
        binarizer = self.binarizer
        fitted = None
        if binarizer is not None:
            fitted = [binarizer.kind, base64.b64encode(binarizer.to_safetensors()).decode()]
        record = {"format": _FORMAT, "n_bits": self.n_bits, "count": self.count, "kind": self.kind}
        tuned: dict[str, Any] = {"effort": self.effort, "recall": self.recall}
        if self.columns is not None:
            tuned["columns"] = base64.b64encode(self.columns.serialize()).decode()
        return json.dumps(record | {"lists": self.lists, "origin": self.provenance, _BINARIZER: fitted} | tuned)

    @classmethod
    def from_json(cls, text: str, name: str) -> Header:
        """The inverse of to_json.  Raises ValueError, which names the store, for anything else."""
        try:
            record = json.loads(text)
            if record["format"] != _FORMAT:
                raise ValueError(f"format {record['format']} is not {_FORMAT}")
            fitted = record[_BINARIZER]
            binarizer = None
            if fitted is not None:
                binarizer = Binarizer.from_safetensors(base64.b64decode(fitted[1]), fitted[0], name)
            numbers = {field: int(record[field]) for field in ("n_bits", "count")}
            return cls(
                **numbers, kind=str(record["kind"]), lists=record["lists"], binarizer=binarizer,
                provenance=parse_provenance(record["origin"]), effort=record.get("effort"),
                recall=record.get("recall"), columns=_schema(record.get("columns")),
            )  # fmt: skip
        except (pa.ArrowException, KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"{name}: not an index pushed by bigr-repr ({error}); push it again") from error

    def same_codes(self, other: Header) -> bool:
        """Whether codes of the two can be compared."""
        ours, theirs = (header.binarizer and header.binarizer.to_safetensors() for header in (self, other))
        return (self.n_bits, self.provenance, ours) == (other.n_bits, other.provenance, theirs)


def _schema(text: str | None) -> pa.Schema | None:
    return None if text is None else pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


class StoreTable(Protocol):
    """One pushed state of an index; immutable, but it may disappear when another one is pushed.

    version: identifies the state. header: its text.
    """

    version: str
    header: str

    def search(self, codes: NDArray[np.uint8], k: int, effort: int | None, where: str | None = None) -> list[Hits]:
        """At most k hits for each of codes (q, bytes), among rows that match an expression in the store's syntax.

        Raises ConnectionError if the table is gone or unreachable.
        """
        ...

    def read(self, rows: NDArray[np.int64]) -> tuple[list[str], NDArray[np.uint8]]:
        """Ids and packed codes (n, bytes) of rows, ascending numbers.  Raises ConnectionError as search does."""
        ...


Finish = Callable[[StoreTable, Header], Header]


class Store(Protocol):
    """A backend. place: its name in messages. Every method raises ConnectionError if the store is unreachable."""

    place: str
    dialect: Dialect

    def check(self, header: Header, k: int = 1) -> None:
        """Raise ValueError for codes that the store cannot hold, or a k that it does not support."""
        ...

    def write(self, header: Header, batches: Iterator[CodeBatch], finish: Finish) -> None:
        """Replace the table, and remove what earlier pushes left; readers see the old one until all rows are written.

        finish(table, header): measures the new table, and returns the header with the result.
        """
        ...

    def open(self) -> StoreTable:
        """The current table.  Raises FileNotFoundError if nothing was pushed here."""
        ...


class StoreIndex:
    """An index in a store, searched by bits like a HammingIndex.

    It answers from the state that it opened. If that is replaced and disappears, it switches to the new one if its
    codes are compatible; otherwise searches raise ValueError.

    n_bits, binarizer, provenance: as in HammingIndex.
    """

    layout: ClassVar[TokenLayout | None] = None
    has_tokens: ClassVar[bool] = False

    def __init__(self, store: Store) -> None:
        self._store = store
        self._table = store.open()
        self.header = Header.from_json(self._table.header, store.place)
        self.n_bits, self.provenance, self.binarizer = self.header.n_bits, self.header.provenance, self.header.binarizer

    def __len__(self) -> int:
        return self.header.count

    def search(
        self, queries: ArrayLike, k: int = 10, *, effort: int | None = None, **within: Unpack[Within]
    ) -> Neighbors:
        """The k nearest codes to each query: packed codes, uint8 (q, bytes), or a single one, (bytes).

        effort: number of lists to search, for kind "ivf"; None: as many as the push found necessary. Ties are in row
        order, but the store chooses among ties at the k-th distance.
        where, radius, offset: see Within; the store filters, which for "ivf" is as approximate as its search.
        Raises ValueError for codes of a wrong length or k outside 1..len(index), ConnectionError.
        """
        return self.find(queries, k, effort=effort, **within).neighbors

    def find(self, queries: ArrayLike, k: int = 10, *, effort: int | None = None, **within: Unpack[Within]) -> Found:
        """search(), with row numbers too."""
        wanted = self._checked(queries, k)
        if effort is not None and (not self.header.lists or effort < 1):
            raise ValueError(
                f"effort={effort} must be a number of lists from 1; {self._store.place} is {self.header.kind}"
            )
        if effort is None and self.header.lists:
            effort = self.header.effort or max(1, self.header.lists // 8)
        scope = Scope.of(len(self), k, None, within.get("radius"), within.get("offset", 0))
        chosen = as_filter(within.get("where"))
        expression = None
        if chosen is not None:
            expression = self._store.dialect.expression(chosen, self.header.columns or pa.schema([]))
        wanted = self._checked(wanted, scope.depth)
        if chosen is not None and chosen.ids is not None and not len(chosen.ids):  # which no store can express
            found: list[Hits] = [([], [], []) for _ in wanted]
        else:
            found = self._hits(wanted, scope.depth, effort, expression)
        width = scope.depth if chosen is None else max((len(rows) for rows, _, _ in found), default=0)
        places = np.full((len(wanted), width), -1, np.int64)
        ids = np.full((len(wanted), width), None, object)
        distances = np.full((len(wanted), width), -1, np.int32)
        for i, (rows, names, bits) in enumerate(found):
            order = np.lexsort((rows, bits))
            places[i, : len(order)] = np.array(rows, np.int64)[order]
            ids[i, : len(order)] = np.array(names, object)[order]
            distances[i, : len(order)] = np.array(bits, np.int32)[order]
        return Found(places, ids, distances).cut(scope.radius, scope.offset)

    @property
    def version(self) -> str:
        """The version of the state that it answers from; changes with every push."""
        return self._table.version

    @property
    def column_names(self) -> dict[str, str]:
        """Pushed columns for filtering, with short type names."""
        return {field.name: type_name(field.type) for field in self.header.columns or ()}

    def read(self, rows: Sequence[int]) -> tuple[list[str], NDArray[np.uint8]]:
        """Ids and packed codes (n, bytes) of rows, ascending.  Raises ConnectionError."""
        return self._read(np.asarray(rows, np.int64))

    def codes_of(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Packed codes (n, bytes) of rows, in any order.  Raises ConnectionError."""
        if not len(rows):
            return np.empty((0, code_bytes(self.n_bits)), np.uint8)
        listed, places = np.unique(rows, return_inverse=True)
        return self._read(listed)[1][places]

    def names_of(self, rows: NDArray[np.int64]) -> list[str]:
        """Ids of rows, in any order.  Raises ConnectionError."""
        listed, places = np.unique(rows, return_inverse=True)
        names = self._read(listed)[0] if len(listed) else []
        return [names[place] for place in places.tolist()]

    def row_of(self, id: str) -> int:
        """The first row with an id; -1 if there is none.  Raises ConnectionError."""
        any_code = np.zeros((1, code_bytes(self.n_bits)), np.uint8)
        found = self.find(any_code, min(len(self), _SAME), where=Filter(ids=(id,))).rows
        return int(min(found[found >= 0], default=-1))

    def _read(self, rows: NDArray[np.int64]) -> tuple[list[str], NDArray[np.uint8]]:
        """Ids and codes of rows, ascending; of the state that has replaced this one if it is gone."""
        try:
            return self._table.read(rows)
        except ConnectionError:
            if not self._reopened():
                raise
            if len(rows) and rows[-1] >= len(self):
                raise ValueError(
                    f"row={rows[-1]} is outside 0..{len(self) - 1}: {self._store.place} was replaced; search it again"
                ) from None
            return self._table.read(rows)

    def _hits(self, codes: NDArray[np.uint8], k: int, effort: int | None, where: str | None) -> list[Hits]:
        try:
            found = self._table.search(codes, k, effort, where)
        except ConnectionError:
            if not self._reopened():
                raise
            self._checked(codes, k)
            found = self._table.search(codes, k, effort if self.header.lists else None, where)
        for i, (rows, _, _) in enumerate(found):
            if len(rows) < k and effort is not None:  # too few codes in those lists: search all
                (found[i],) = self._table.search(codes[i : i + 1], k, self.header.lists, where)
        return found

    def _reopened(self) -> bool:
        """Whether another state has replaced this one; it is then opened."""
        table = self._store.open()
        if table.version == self._table.version:
            return False
        header = Header.from_json(table.header, self._store.place)
        if not header.same_codes(self.header):
            raise ValueError(f"{self._store.place} was replaced by an index of other codes; open it again")
        self._table, self.header = table, header
        return True

    def _checked(self, queries: ArrayLike, k: int) -> NDArray[np.uint8]:
        wanted = np.atleast_2d(np.asarray(queries))
        length = code_bytes(self.n_bits)
        if wanted.dtype != np.uint8 or wanted.ndim != 2 or wanted.shape[1] != length:
            raise ValueError(
                f"queries of shape {wanted.shape} and dtype {wanted.dtype} are not packed codes of {length} bytes, "
                f"which {self._store.place} holds; use the same model, layer and binarizer for both"
            )
        if not 1 <= k <= len(self):
            raise ValueError(f"k={k} is outside 1..{len(self)}, the codes in {self._store.place}; ask for fewer")
        self._store.check(self.header, k)
        return wanted

    def find_rescored(
        self,
        queries: ArrayLike,
        vectors: ArrayLike,
        k: int = 10,
        *,
        rescore: int = 10,
        effort: int | None = None,
        **within: Unpack[Within],
    ) -> Found:
        """rescored(), with row numbers too."""
        if self.binarizer is None:
            raise ValueError(f"{self._store.place} holds codes that are not made from features: leave rescore out")
        if rescore < 1:
            raise ValueError(f"rescore={rescore} must be at least 1: the multiple of k to consider")
        scope = Scope.of(len(self), k, None, within.get("radius"), within.get("offset", 0))
        most = min(len(self), rescore * scope.depth)
        floats = np.atleast_2d(np.asarray(vectors))
        for _ in range(_STATES):
            listed = self.find(queries, most, effort=effort, where=within.get("where"))
            if len(floats) != len(listed.rows):
                raise ValueError(f"{len(listed.rows)} query codes but {len(floats)} vectors; give one per code")
            table = self._table
            rows, distances = asymmetric(self.binarizer, floats, self.codes_of, listed.rows, scope.depth)
            if self._table is table:  # otherwise another state has replaced it, with other row numbers
                break
        else:
            raise ConnectionError(f"{self._store.place} was replaced {_STATES} times during this search; try again")
        ids = np.full(rows.shape, None, object)
        for i, found in enumerate(rows):
            names = dict(zip(listed.rows[i].tolist(), listed.ids[i].tolist(), strict=True))
            ids[i] = [names[row] if row >= 0 else None for row in found.tolist()]
        return Found(rows, ids, distances).cut(scope.radius, scope.offset)

    def rescored(
        self,
        queries: ArrayLike,
        vectors: ArrayLike,
        k: int = 10,
        *,
        rescore: int = 10,
        effort: int | None = None,
        **within: Unpack[Within],
    ) -> Neighbors:
        """The k nearest by cosine to vectors (q, D), among the rescore * k nearest by Hamming distance to queries.

        Stores have no vectors: this is the cosine with what the bits stand for, the mean feature value of rows with
        that bit. radius: a cosine distance.
        Raises ValueError for tokenizer bits, and for vectors whose width or number does not match.
        """
        return self.find_rescored(queries, vectors, k, rescore=rescore, effort=effort, **within).neighbors

    def token_layout(self) -> NoReturn:
        """Raises ValueError: stores compare whole codes."""
        raise ValueError(f"{self._store.place} compares whole codes: search regions in the index folder")

    def find_region(self, queries: ArrayLike, region: Region, k: int = 10, **within: Unpack[Within]) -> NoReturn:
        """Raises ValueError: stores compare whole codes."""
        self.token_layout()

    search_region = find_region
