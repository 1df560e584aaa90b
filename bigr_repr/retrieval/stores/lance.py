"""Codes in LanceDB: a table of binary vectors on a disk or an object store. Knows nothing of headers or queries."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bigr_repr.embed.dataset.schema import METADATA_KEY
from bigr_repr.retrieval.stores.base import CodeBatch, Header


class LanceStore:
    """See Store. where: a folder, or whatever else lancedb.connect takes."""

    def __init__(self, where: str, name: str) -> None:
        os.environ.setdefault("LANCEDB_LOG", "error")  # its warnings are addressed to programmers
        import lancedb

        self.place, self._name, self._local = f"lancedb:{where}", name, "://" not in where
        self._where = where
        self._connect: Any = partial(lancedb.connect, where)

    def write(self, header: Header, batches: Iterator[CodeBatch]) -> None:
        """One version of the table is committed after all rows: until then readers see the one before."""
        from lancedb.index import IvfFlat

        kind = pa.list_(pa.uint8(), -(-header.n_bits // 8))
        fields = [pa.field("row", pa.int64()), pa.field("id", pa.string()), pa.field("code", kind)]
        schema = pa.schema(fields, metadata={METADATA_KEY: header.to_json()})

        def records() -> Iterator[pa.RecordBatch]:
            for start, ids, codes in batches:
                flat = pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1)), type=kind)
                yield pa.record_batch([pa.array(np.arange(start, start + len(ids))), ids, flat], schema=schema)

        with self._reaching():
            reader = pa.RecordBatchReader.from_batches(schema, records())
            table = self._connect().create_table(self._name, data=reader, schema=schema, mode="overwrite")
            if header.lists is not None:
                table.create_index("code", config=IvfFlat(distance_type="hamming", num_partitions=header.lists))

    def read_header(self) -> str:
        """The header, which is in the table's schema."""
        metadata = self._table().schema.metadata or {}
        if METADATA_KEY not in metadata:
            raise ValueError(f"{self.place}: the table {self._name} was not pushed by this program")
        return str(metadata[METADATA_KEY].decode())

    def search(
        self, codes: NDArray[np.uint8], k: int, effort: int | None
    ) -> list[tuple[list[int], list[Any], list[int]]]:
        """Flat without effort, by so many lists with it."""
        table, found = self._table(), []
        with self._reaching():
            for code in codes:
                query = table.search(code, vector_column_name="code").distance_type("hamming")
                query = query.bypass_vector_index() if effort is None else query.nprobes(effort)
                hits = query.select(["row", "id", "_distance"]).limit(k).to_arrow()
                distances = [round(value) for value in hits.column("_distance").to_pylist()]
                found.append((hits.column("row").to_pylist(), hits.column("id").to_pylist(), distances))
        return found

    def _table(self) -> Any:
        nothing = f"{self.place}: no index called {self._name} here; push one with: bigr-repr index push"
        if self._local and not os.path.isdir(self._where):  # noqa: PTH112  (connecting would make the folder)
            raise FileNotFoundError(nothing)
        with self._reaching():
            try:
                return self._connect().open_table(self._name)
            except ValueError:
                raise FileNotFoundError(nothing) from None

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise ConnectionError(f"{self.place}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).split(", /", 1)[0].splitlines()[0][:300]
