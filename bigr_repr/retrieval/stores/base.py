"""What every store of codes can do, and an index in one, searched as HammingIndex is. Knows no particular store.

A store keeps one table of row number, id and code per name, and a header that says what the codes are. Vectors and the
tokenizer's codes beside the search codes stay in the index folder: regions, decoding and several codes as one query are
done there.
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
_SAME: Final = 64  # rows with one id, of which the first is looked for
_BINARIZER: Final = "binariser"  # in the header it keeps the spelling of the first version

# number of the first row, ids, codes, kept columns
CodeBatch = tuple[int, pa.Array, NDArray[np.uint8], pa.Table | None]


Hits = tuple[list[int], list[Any], list[int]]  # row numbers, ids and distances of one query, nearest first


@dataclass(frozen=True, kw_only=True, eq=False)
class Header:
    """What the codes in a store are.

    kind: "flat" or "ivf". lists: of kind "ivf". effort: lists to search, as measured when it was pushed; recall: the
    recall@10 measured at that effort; None for flat, and for what an older version pushed. columns: that were kept.
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
            raise ValueError(f"{name}: not an index that this program pushed ({error}); push it again") from error

    def same_codes(self, other: Header) -> bool:
        """Whether codes made for one can be compared with the other's."""
        ours, theirs = (header.binarizer and header.binarizer.to_safetensors() for header in (self, other))
        return (self.n_bits, self.provenance, ours) == (other.n_bits, other.provenance, theirs)


def _schema(text: str | None) -> pa.Schema | None:
    return None if text is None else pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


class StoreTable(Protocol):
    """One pushed state of an index, which stays what it is, or vanishes when another one is pushed.

    version: tells states apart. header: its text.
    """

    version: str
    header: str

    def search(self, codes: NDArray[np.uint8], k: int, effort: int | None, where: str | None = None) -> list[Hits]:
        """At most k hits for each of codes (q, bytes), of the rows that pass an expression in the store's own words.

        Raises ConnectionError if the table is gone or out of reach.
        """
        ...

    def read(self, rows: NDArray[np.int64]) -> tuple[list[str], NDArray[np.uint8]]:
        """Ids and packed codes (n, bytes) of rows, ascending numbers.  Raises ConnectionError as search does."""
        ...


Finish = Callable[[StoreTable, Header], Header]


class Store(Protocol):
    """A back end. place: its name in messages. Every method raises ConnectionError if the store cannot be reached."""

    place: str
    dialect: Dialect

    def check(self, header: Header, k: int = 1) -> None:
        """Raises ValueError for codes that the store cannot hold, or a k that it cannot answer."""
        ...

    def write(self, header: Header, batches: Iterator[CodeBatch], finish: Finish) -> None:
        """Replace the table, and remove what earlier pushes left; readers see the old one until all rows are written.

        finish(table, header): measures the new table, and returns the header with that.
        """
        ...

    def open(self) -> StoreTable:
        """The current table.  Raises FileNotFoundError if nothing was pushed here."""
        ...


class StoreIndex:
    """An index in a store, to be searched as a HammingIndex is, by bits.

    It answers from the state that it opened. When that is replaced and vanishes, it goes on with the new one if that
    holds codes of the same make; otherwise searches raise ValueError.

    n_bits, binarizer, provenance: as HammingIndex's.
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
        """The k nearest codes to each of queries, packed codes uint8 (q, bytes) or one of them, (bytes).

        effort: lists to search, of kind "ivf"; None: as many as the push measured to be enough. Equal distances come in
        the order of the rows, but which of the equally far ones come last within k is the store's choice.
        where, radius, offset: see Within; the store filters, which in kind "ivf" is as approximate as its search.
        Raises ValueError for codes of another length or k outside 1..len(index), ConnectionError.
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
        found = self._hits(self._checked(wanted, scope.depth), scope.depth, effort, expression)
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
        """Of the state that it answers from; another push has another one."""
        return self._table.version

    @property
    def column_names(self) -> dict[str, str]:
        """Columns that were pushed, to filter by, and what they hold, in a word."""
        return {field.name: type_name(field.type) for field in self.header.columns or ()}

    def read(self, rows: Sequence[int]) -> tuple[list[str], NDArray[np.uint8]]:
        """Ids and packed codes (n, bytes) of rows, ascending.  Raises ConnectionError."""
        return self._table.read(np.asarray(rows, np.int64))

    def codes_of(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Packed codes (n, bytes) of rows, in any order.  Raises ConnectionError."""
        if not len(rows):
            return np.empty((0, code_bytes(self.n_bits)), np.uint8)
        listed, places = np.unique(rows, return_inverse=True)
        return self._table.read(listed)[1][places]

    def names_of(self, rows: NDArray[np.int64]) -> list[str]:
        """Ids of rows, in any order.  Raises ConnectionError."""
        listed, places = np.unique(rows, return_inverse=True)
        names = self._table.read(listed)[0] if len(listed) else []
        return [names[place] for place in places.tolist()]

    def row_of(self, id: str) -> int:
        """The first row with an id; -1: there is none.  Raises ConnectionError."""
        any_code = np.zeros((1, code_bytes(self.n_bits)), np.uint8)
        found = self.find(any_code, min(len(self), _SAME), where=Filter(ids=(id,))).rows
        return int(min(found[found >= 0], default=-1))

    def _hits(self, codes: NDArray[np.uint8], k: int, effort: int | None, where: str | None) -> list[Hits]:
        try:
            found = self._table.search(codes, k, effort, where)
        except ConnectionError:
            if not self._reopened():
                raise
            self._checked(codes, k)
            found = self._table.search(codes, k, effort if self.header.lists else None, where)
        for i, (rows, _, _) in enumerate(found):
            if len(rows) < k and effort is not None:  # few codes in those lists: search all
                (found[i],) = self._table.search(codes[i : i + 1], k, self.header.lists, where)
        return found

    def _reopened(self) -> bool:
        """Whether another state has taken this one's place; it is then opened."""
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
                f"which {self._store.place} holds; take both from the same model, layer and binarizer"
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
            raise ValueError(f"{self._store.place} holds codes that no features were made into: leave rescore out")
        if rescore < 1:
            raise ValueError(f"rescore={rescore} must be at least 1: how many times k to look at")
        scope = Scope.of(len(self), k, None, within.get("radius"), within.get("offset", 0))
        most = min(len(self), rescore * scope.depth)
        listed = self.find(queries, most, effort=effort, where=within.get("where"))
        floats = np.atleast_2d(np.asarray(vectors))
        if len(floats) != len(listed.rows):
            raise ValueError(f"{len(listed.rows)} query codes but {len(floats)} vectors; give one per code")

        def codes_of(query: int, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
            return self._table.read(rows)[1]

        rows, distances = asymmetric(self.binarizer, floats, codes_of, listed.rows, scope.depth)
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

        A store keeps no vectors: it is the cosine with what the bits stand for: the mean of the numbers of rows with
        that bit. radius: a cosine distance.
        Raises ValueError for tokenizer bits, and for vectors of another width or number than the queries.
        """
        return self.find_rescored(queries, vectors, k, rescore=rescore, effort=effort, **within).neighbors

    def token_layout(self) -> NoReturn:
        """Raises ValueError: stores compare whole codes."""
        raise ValueError(f"{self._store.place} compares whole codes: search regions in the index folder")

    def find_region(self, queries: ArrayLike, region: Region, k: int = 10, **within: Unpack[Within]) -> NoReturn:
        """Raises ValueError: stores compare whole codes."""
        self.token_layout()

    search_region = find_region
