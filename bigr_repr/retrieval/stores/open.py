"""Opens a store by its name, and pushes an index to one. Knows all stores, but not how they work."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bigr_repr.retrieval.codes.ids import id_array
from bigr_repr.retrieval.index.distinct import find_distinct
from bigr_repr.retrieval.index.hamming import HammingIndex
from bigr_repr.retrieval.index.recall import check_recall
from bigr_repr.retrieval.index.scan import Scanned
from bigr_repr.retrieval.index.settings import IndexSettings
from bigr_repr.retrieval.stores.base import CodeBatch, Header, Store, StoreIndex, StoreTable
from bigr_repr.retrieval.stores.limits import ANSWER, STEP

log = logging.getLogger(__name__)

KINDS: Final = ("flat", "ivf")
_CHUNK: Final = 4 << 20  # bytes of codes sent at a time
_CHUNK_ROWS: Final = 1 << 13  # rows sent at a time: even with the longest ids below Milvus's message limit of 64 MB
_FEW: Final = 1000  # distinct codes below which lists save nothing
_SCHEMES: Final = ("lancedb", "milvus")


def is_store(place: str) -> bool:
    """Whether a place names a store rather than an index folder."""
    return place.split(":", 1)[0] in _SCHEMES


def open_store(place: str, name: str = "images") -> StoreIndex:
    """Open the index that was pushed to "lancedb:DIR" (or any other LanceDB location, such as s3://…) or "milvus:URI".

    Raises ValueError for any other place, ImportError without the extra `stores`, FileNotFoundError if nothing was
    pushed there, ConnectionError if the store does not answer within a minute.
    """
    return StoreIndex(connect(place, name))


def push(
    index: HammingIndex, place: str, name: str = "images", *, kind: str = "flat", timeout: float = STEP
) -> StoreIndex:
    """Copy an index's ids and codes to a store, replacing any of the same name, and return the index there.

    kind: "flat" (exact), or "ivf", whose number of lists to search is chosen by measuring recall; with fewer than a
    thousand distinct codes it becomes flat. milvus-lite has only "flat". timeout: time limit in seconds for a step,
    such as writing a few thousand rows; for building an index, one more second per thousand rows.
    Raises as open_store, and ValueError for an empty index or codes that the store cannot hold.
    """
    if not 0 < timeout < float("inf"):
        raise ValueError(f"timeout={timeout:g} must be a number of seconds above 0")
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown to stores; choose {' or '.join(KINDS)}")
    if not len(index):
        raise ValueError("the index is empty: nothing to push")
    store = connect(place, name, timeout)
    distinct = find_distinct(index.rows.codes).firsts if kind == "ivf" else np.empty(0, np.int64)
    if kind == "ivf" and len(distinct) < _FEW:
        log.info("only %d distinct codes: %s is flat", len(distinct), place)
        kind = "flat"
    lists = round(2 * len(distinct) ** 0.5) if kind == "ivf" else None
    header = Header(
        n_bits=index.n_bits, count=len(index), kind=kind, lists=lists, provenance=index.provenance,
        binarizer=index.binarizer, columns=index.rows.column_schema,
    )  # fmt: skip
    store.check(header)
    index.rows.verify()
    store.write(header, _batches(index), partial(_tuned, index, distinct))
    return StoreIndex(store)


def _tuned(index: HammingIndex, distinct: NDArray[np.int64], table: StoreTable, header: Header) -> Header:
    """The header with the smallest number of lists whose recall reaches the target."""
    if header.lists is None:
        return header

    def search(queries: NDArray[np.uint8], k: int, effort: int) -> Scanned:
        found = np.full((2, len(queries), k), -1, np.int64)
        for i, (rows, _, bits) in enumerate(table.search(queries, k, effort)):
            found[:, i, : len(rows)] = rows, bits
        return Scanned(found[0], np.sort(found[1].astype(np.int32), axis=1))

    efforts = [*(1 << i for i in range(22) if 1 << i < header.lists), header.lists]
    check = check_recall(index.rows.codes, search, efforts, IndexSettings(kind="ivf"), among=distinct)
    log.info("%s", check)
    return replace(header, effort=check.effort, recall=check.recall)


def _batches(index: HammingIndex) -> Iterator[CodeBatch]:
    step = max(1, min(_CHUNK_ROWS, _CHUNK // index.rows.codes.shape[1]))
    for start in range(0, len(index), step):
        # Copied, because a slice still refers to all text, which may exceed the 2 GB of plain strings.
        rows = pa.array(np.arange(start, min(start + step, len(index))))
        ids = id_array(index.ids.take(rows), len(rows)).cast(pa.string())
        kept = None if index.rows.columns is None else index.rows.columns.slice(start, step)
        yield start, ids, np.ascontiguousarray(index.rows.codes[start : start + step]), kept


def connect(place: str, name: str = "images", seconds: float = ANSWER) -> Store:
    """The store at a place, even if nothing was pushed there.  Raises as open_store, except FileNotFoundError."""
    scheme, _, where = place.partition(":")
    if scheme not in _SCHEMES or not where:
        raise ValueError(f"{place!r} is not a store; use lancedb:DIR or milvus:URI")
    if not (name.isascii() and name.isidentifier()):
        raise ValueError(f"name={name!r} must be letters, digits and underscores, starting with a letter")
    try:
        if scheme == "lancedb":
            from bigr_repr.retrieval.stores.lance import LanceStore

            return LanceStore(where, name, seconds)
        from bigr_repr.retrieval.stores.milvus import MilvusStore

        return MilvusStore(where, name, seconds)
    except ImportError as error:
        raise ImportError(
            f"{place}: {error.name or error} is not installed; pip install 'bigr-repr[stores]'"
        ) from error
