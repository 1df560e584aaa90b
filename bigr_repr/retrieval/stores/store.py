"""What every store of codes can do, and an index in one, searched as HammingIndex is. Knows no particular store.

A store keeps one table of row number, id and code per name, and a header that says what the codes are. Vectors and the
tokenizer's codes beside the search codes stay in the index folder: rescoring, regions and decoding are done there.
"""

# q queries, k neighbours

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NoReturn, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from bigr_repr.codes import code_bytes
from bigr_repr.retrieval.binariser import Binariser
from bigr_repr.retrieval.index import HammingIndex, Neighbors
from bigr_repr.retrieval.origin import checked_origin
from bigr_repr.retrieval.regions import Region, TokenLayout

_FORMAT: Final = 1
_CHUNK: Final = 4 << 20  # bytes of codes sent at a time
_CHUNK_ROWS: Final = 1 << 13  # sent at a time: with the longest ids less than a message to Milvus holds, 64 MB
KINDS: Final = ("flat", "ivf")
_SCHEMES: Final = ("lancedb", "milvus")

Batch = tuple[int, pa.Array, NDArray[np.uint8]]  # number of the first row, ids, codes


@dataclass(frozen=True, kw_only=True, eq=False)
class Header:
    """What the codes in a store are. kind: "flat" or "ivf", with so many lists."""

    n_bits: int
    count: int
    kind: str
    lists: int | None
    origin: Mapping[str, Any] | None
    binariser: Binariser | None

    def to_json(self) -> str:
        """The header as text."""
        binariser = self.binariser
        fitted = None
        if binariser is not None:
            fitted = [binariser.kind, base64.b64encode(binariser.to_safetensors()).decode()]
        record = {"format": _FORMAT, "n_bits": self.n_bits, "count": self.count, "kind": self.kind}
        return json.dumps(record | {"lists": self.lists, "origin": self.origin, "binariser": fitted})

    @classmethod
    def from_json(cls, text: str, name: str) -> Header:
        """The inverse of to_json.  Raises ValueError, which names the store, for anything else."""
        try:
            record = json.loads(text)
            if record["format"] != _FORMAT:
                raise ValueError(f"format {record['format']} is not {_FORMAT}")
            fitted = record["binariser"]
            binariser = None
            if fitted is not None:
                binariser = Binariser.from_safetensors(base64.b64decode(fitted[1]), fitted[0], name)
            numbers = {field: int(record[field]) for field in ("n_bits", "count")}
            return cls(
                **numbers, kind=str(record["kind"]), lists=record["lists"], origin=checked_origin(record["origin"]),
                binariser=binariser,
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"{name}: not an index that this program pushed ({error}); push it again") from error


class Store(Protocol):
    """A back end. place: its name in messages. Every method raises ConnectionError if the store cannot be reached."""

    place: str

    def write(self, header: Header, batches: Iterator[Batch]) -> None:
        """Replace the table; readers see the old one until all is written."""
        ...

    def read_header(self) -> str:
        """The header's text.  Raises FileNotFoundError if nothing was pushed here."""
        ...

    def search(
        self, codes: NDArray[np.uint8], k: int, effort: int | None
    ) -> list[tuple[list[int], list[Any], list[int]]]:
        """Row numbers, ids and distances for each of the codes (q, bytes), at most k, nearest first."""
        ...


class StoreIndex:
    """An index in a store, to be searched as a HammingIndex is, by bits.

    n_bits, binariser, origin: as HammingIndex's.
    """

    layout: ClassVar[TokenLayout | None] = None
    has_tokens: ClassVar[bool] = False

    def __init__(self, store: Store) -> None:
        self._store = store
        self.header = Header.from_json(store.read_header(), store.place)
        self.n_bits, self.origin, self.binariser = self.header.n_bits, self.header.origin, self.header.binariser

    def __len__(self) -> int:
        return self.header.count

    def search(self, queries: ArrayLike, k: int = 10, *, effort: int | None = None) -> Neighbors:
        """The k nearest codes to each of queries, packed codes uint8 (q, bytes) or one of them, (bytes).

        effort: lists to search, of kind "ivf"; None: an eighth of them. Equal distances come in the order of the rows,
        but which of the equally far ones come last within k is the store's choice.
        Raises ValueError for codes of another length or k outside 1..len(index), ConnectionError.
        """
        wanted = np.atleast_2d(np.asarray(queries))
        length = code_bytes(self.n_bits)
        if wanted.dtype != np.uint8 or wanted.ndim != 2 or wanted.shape[1] != length:
            raise ValueError(
                f"queries of shape {wanted.shape} and dtype {wanted.dtype} are not packed codes of {length} bytes, "
                f"which {self._store.place} holds; take both from the same model, layer and binariser"
            )
        if not 1 <= k <= len(self):
            raise ValueError(f"k={k} is outside 1..{len(self)}, the codes in {self._store.place}; ask for fewer")
        if effort is not None and (not self.header.lists or effort < 1):
            raise ValueError(
                f"effort={effort} must be a number of lists from 1; {self._store.place} is {self.header.kind}"
            )
        if effort is None and self.header.lists:
            effort = max(1, self.header.lists // 8)
        ids = np.full((len(wanted), k), None, object)
        distances = np.full((len(wanted), k), -1, np.int32)
        for i, (rows, names, bits) in enumerate(self._store.search(wanted, k, effort)):
            order = np.lexsort((rows, bits))
            ids[i, : len(order)] = np.array(names, object)[order]
            distances[i, : len(order)] = np.array(bits, np.int32)[order]
        return Neighbors(ids, distances)

    def rescored(
        self, queries: ArrayLike, vectors: ArrayLike, k: int = 10, *, rescore: int = 10, effort: int | None = None
    ) -> Neighbors:
        """Raises ValueError: vectors are not in the store."""
        raise ValueError(f"{self._store.place} holds only codes: rescore with the index folder that was pushed")

    def token_layout(self) -> NoReturn:
        """Raises ValueError: stores compare whole codes."""
        raise ValueError(f"{self._store.place} compares whole codes: search regions in the index folder")

    def search_region(self, queries: ArrayLike, region: Region, k: int = 10) -> NoReturn:
        """Raises ValueError: stores compare whole codes."""
        self.token_layout()


def is_store(place: str) -> bool:
    """Whether a place names a store, and not an index folder."""
    return place.split(":", 1)[0] in _SCHEMES


def open_store(place: str, name: str = "images") -> StoreIndex:
    """The index that was pushed to "lancedb:DIR" (any place that LanceDB takes, as s3://…) or "milvus:URI".

    Raises ValueError for another place, ImportError without the extra `stores`, FileNotFoundError if nothing was pushed
    there, ConnectionError for a server that does not answer.
    """
    return StoreIndex(_connect(place, name))


def push(index: HammingIndex, place: str, name: str = "images", *, kind: str = "flat") -> StoreIndex:
    """Copy an index's ids and codes to a store, and return the index there; what has the name there is replaced.

    kind: "flat" (exact), or "ivf", with twice the root of the rows as lists; milvus-lite has only "flat".
    Raises as open_store, and ValueError for an empty index.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown to stores; choose {' or '.join(KINDS)}")
    if not len(index):
        raise ValueError("the index is empty: nothing to push")
    store = _connect(place, name)
    lists = max(1, round(2 * len(index) ** 0.5)) if kind == "ivf" else None
    header = Header(
        n_bits=index.n_bits, count=len(index), kind=kind, lists=lists, origin=index.origin, binariser=index.binariser
    )
    store.write(header, _batches(index))
    return StoreIndex(store)


def _batches(index: HammingIndex) -> Iterator[Batch]:
    ids = index.ids.cast(pa.string())
    step = max(1, min(_CHUNK_ROWS, _CHUNK // index.rows.codes.shape[1]))
    for start in range(0, len(index), step):
        yield start, ids.slice(start, step), np.ascontiguousarray(index.rows.codes[start : start + step])


def _connect(place: str, name: str) -> Store:
    scheme, _, where = place.partition(":")
    if scheme not in _SCHEMES or not where:
        raise ValueError(f"{place!r} is no store; name lancedb:DIR or milvus:URI")
    if not (name.isascii() and name.isidentifier()):
        raise ValueError(f"name={name!r} must be letters, digits and underscores, a letter first")
    try:
        if scheme == "lancedb":
            from bigr_repr.retrieval.stores.lance import LanceStore

            return LanceStore(where, name)
        from bigr_repr.retrieval.stores.milvus import MilvusStore

        return MilvusStore(where, name)
    except ImportError as error:
        raise ImportError(
            f"{place}: {error.name or error} is not installed; pip install 'bigr-repr[stores]'"
        ) from error
