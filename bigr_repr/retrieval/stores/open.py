"""Opening a store by its name, and pushing an index to one. Knows all stores, and nothing of how they work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import pyarrow as pa

from bigr_repr.retrieval.index.hamming import HammingIndex
from bigr_repr.retrieval.stores.base import CodeBatch, Header, Store, StoreIndex

KINDS: Final = ("flat", "ivf")
_CHUNK: Final = 4 << 20  # bytes of codes sent at a time
_CHUNK_ROWS: Final = 1 << 13  # sent at a time: with the longest ids less than a message to Milvus holds, 64 MB
_SCHEMES: Final = ("lancedb", "milvus")


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
        n_bits=index.n_bits,
        count=len(index),
        kind=kind,
        lists=lists,
        provenance=index.provenance,
        binarizer=index.binarizer,
    )
    store.write(header, _batches(index))
    return StoreIndex(store)


def _batches(index: HammingIndex) -> Iterator[CodeBatch]:
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
