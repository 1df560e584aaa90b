"""Codes in LanceDB: a table of binary vectors on a disk or an object store. Knows nothing of headers or queries."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bigr_repr.codes import code_bytes
from bigr_repr.embed.dataset.schema import METADATA_KEY
from bigr_repr.retrieval.stores.base import CodeBatch, Finish, Header, Hits
from bigr_repr.retrieval.stores.limits import ANSWER, ROWS, Signs, within
from bigr_repr.retrieval.stores.native import LANCE, pushed_columns


class _LanceTable:
    """See StoreTable: an opened LanceDB table stays at its version."""

    def __init__(self, store: LanceStore, table: Any, header: str) -> None:
        self._store, self._table, self.header = store, table, header
        self.version = f"{table.version} {header}"

    def search(self, codes: NDArray[np.uint8], k: int, effort: int | None, where: str | None = None) -> list[Hits]:
        """See StoreTable."""
        return self._store.search(self._table, codes, k, effort, where)

    def read(self, rows: NDArray[np.int64]) -> tuple[list[str], NDArray[np.uint8]]:
        """See StoreTable."""
        return self._store.read(self._table, rows)


class LanceStore:
    """See Store. where: a folder, or anything else lancedb.connect takes. seconds: time limit for an answer."""

    dialect = LANCE

    def __init__(self, where: str, name: str, seconds: float = ANSWER) -> None:
        os.environ.setdefault("LANCEDB_LOG", "error")  # its warnings are for developers
        import lancedb

        self.place, self._name, self._local = f"lancedb:{where}", name, "://" not in where
        self._where, self._seconds = where, seconds
        self._connect: Any = partial(lancedb.connect, where)

    def check(self, header: Header, k: int = 1) -> None:
        """LanceDB has no limits to check."""

    def write(self, header: Header, batches: Iterator[CodeBatch], finish: Finish) -> None:
        """Commits one version of the table after all rows: until then readers see the previous one."""
        from lancedb.index import IvfFlat

        kind = pa.list_(pa.uint8(), code_bytes(header.n_bits))
        fields = [pa.field("row", pa.int64()), pa.field("id", pa.string()), pa.field("code", kind)]
        kept = pushed_columns(None if header.columns is None else header.columns.empty_table(), self.place, nulls=True)
        fields += [] if kept is None else kept.schema
        schema = pa.schema(fields, metadata={METADATA_KEY: header.to_json()})

        signs = Signs()

        def records() -> Iterator[pa.RecordBatch]:
            for start, ids, codes, columns in batches:
                signs.note()
                more = pushed_columns(columns, self.place, nulls=True)
                held = [] if more is None else [column.combine_chunks() for column in more.columns]
                flat = pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1)), type=kind)
                yield pa.record_batch([pa.array(np.arange(start, start + len(ids))), ids, flat, *held], schema=schema)

        with self._reaching():
            reader = pa.RecordBatchReader.from_batches(schema, records())
            database, more = self._timed(self._connect), header.count / ROWS
            table = self._timed(
                lambda: database.create_table(self._name, data=reader, schema=schema, mode="overwrite"), signs=signs
            )
            if header.lists is not None:
                config = IvfFlat(distance_type="hamming", num_partitions=header.lists)
                self._timed(lambda: table.create_index("code", config=config), more)
            tuned = finish(_LanceTable(self, table, header.to_json()), header)
            if tuned is not header:  # stored in a field's metadata: the schema's cannot be changed
                text = json.dumps({"effort": tuned.effort, "recall": tuned.recall})
                self._timed(lambda: table.replace_field_metadata("code", {METADATA_KEY.decode(): text}))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about readers of old versions failing: ours reopen the new one
                self._timed(lambda: table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True), more)

    def open(self) -> _LanceTable:
        """The current version of the table; its schema holds the header."""
        nothing = f"{self.place}: no index called {self._name} here; push one with: bigr-repr index push"
        if self._local and not os.path.isdir(self._where):  # noqa: PTH112  (connecting would make the folder)
            raise FileNotFoundError(nothing)
        with self._reaching():
            try:
                table = self._timed(lambda: self._connect().open_table(self._name))
            except ValueError:
                raise FileNotFoundError(nothing) from None
            metadata, measured = table.schema.metadata or {}, table.schema.field("code").metadata or {}
        if METADATA_KEY not in metadata:
            raise ValueError(f"{self.place}: the table {self._name} was not pushed by bigr-repr")
        header = json.loads(metadata[METADATA_KEY]) | json.loads(measured.get(METADATA_KEY, b"{}"))
        return _LanceTable(self, table, json.dumps(header))

    def search(self, table: Any, codes: NDArray[np.uint8], k: int, effort: int | None, where: str | None) -> list[Hits]:
        """Exact without effort; with it, searches that many lists."""
        found: list[Hits] = []
        with self._reaching():
            for code in codes:
                query = table.search(code, vector_column_name="code").distance_type("hamming")
                query = query.bypass_vector_index() if effort is None else query.nprobes(effort)
                if where is not None:
                    query = query.where(where, prefilter=True)
                hits = self._timed(query.select(["row", "id", "_distance"]).limit(k).to_arrow)
                distances = [round(value) for value in hits.column("_distance").to_pylist()]
                found.append((hits.column("row").to_pylist(), hits.column("id").to_pylist(), distances))
        return found

    def read(self, table: Any, rows: NDArray[np.int64]) -> tuple[list[str], NDArray[np.uint8]]:
        """Rows are stored in writing order, which is that of their numbers."""
        with self._reaching():
            found = self._timed(table.take_offsets(rows.tolist()).select(["row", "id", "code"]).to_arrow)
        codes = found.column("code").combine_chunks().values.to_numpy().reshape(len(found), -1)
        order = np.searchsorted(rows, found.column("row").to_numpy()).argsort()
        return found.column("id").take(order).to_pylist(), codes[order]

    def _timed(self, call: Callable[[], Any], more: float = 0.0, signs: Signs | None = None) -> Any:
        """The result of call(). more: seconds in addition to the usual limit."""
        local = self._where if self._local else None
        return within(call, self._seconds + more, self.place, local=local, signs=signs)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise ConnectionError(f"{self.place}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).split(", /", 1)[0].splitlines()[0][:300]
