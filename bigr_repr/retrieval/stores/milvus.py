"""Codes in Milvus, a server or the embedded milvus-lite: BINARY_VECTOR by HAMMING. Knows nothing of queries.

Two collections per name: the rows, under a new name for every push, and NAME_header, which is written last and says
which rows are current.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bigr_repr.codes import code_bytes
from bigr_repr.retrieval.stores.base import CodeBatch, Finish, Header, Hits
from bigr_repr.retrieval.stores.limits import ANSWER, ROWS, Timed, within
from bigr_repr.retrieval.stores.native import MILVUS, pushed_columns

_TEXT: Final = 60_000  # bytes of the header per row; Milvus allows 65 535
_PARTS: Final = 2_000  # maximum number of header rows to read
_LONGEST_ID: Final = 4096
_MOST_HITS: Final = 16_384
_MOST_BITS: Final = 262_144  # limit of a binary vector
_LITE_BITS: Final = 32_768
_SECONDS: Final = 20  # time to wait for a server
_NO_PINGS: Final = {"grpc.keepalive_time_ms": 2**31 - 1}  # milvus-lite ends the connection of a client that pings it
_REFUSED, _PAUSE = "Fail connecting to server", 0.2  # pymilvus' words, and seconds until it is asked again


class _MilvusTable:
    """See StoreTable: a collection of rows."""

    def __init__(self, store: MilvusStore, rows: str, header: str) -> None:
        self._store, self.version, self.header = store, rows, header

    def search(self, codes: NDArray[np.uint8], k: int, effort: int | None, where: str | None = None) -> list[Hits]:
        """See StoreTable."""
        return self._store.search(self.version, codes, k, effort, where)

    def read(self, rows: NDArray[np.int64]) -> tuple[list[str], NDArray[np.uint8]]:
        """See StoreTable."""
        return self._store.read(self.version, rows)


class MilvusStore:
    """See Store. where: a server's address, or a file ending in .db for milvus-lite. The environment variable
    MILVUS_TOKEN holds the server's token or user:password. seconds: time limit for an answer."""

    dialect = MILVUS

    def __init__(self, where: str, name: str, seconds: float = ANSWER) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # milvus-lite warns about its own imports
            from pymilvus import DataType

        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # errors are raised; logging them too is redundant
        self.place, self._where, self._name, self._types = f"milvus:{where}", where, name, DataType
        self._lite, self._seconds = where.endswith(".db"), seconds

    @cached_property
    def _client(self) -> Any:
        """Connects when first needed, because milvus-lite creates a missing file."""
        logged = logging.root.manager.disable
        logging.disable(logging.CRITICAL)  # milvus-lite also logs the error
        try:
            with warnings.catch_warnings(), self._reaching():
                warnings.simplefilter("ignore")
                local = self._where if self._lite else None
                client = within(self._connected, self._seconds, self.place, local=local)
                return Timed(client, self._seconds, self.place, local)
        except RuntimeError as error:  # from milvus-lite, about the file's name
            raise ValueError(
                f"{self.place}: use a file name of at most 35 of a-z, 0-9, '.', '_', '-' ({error})"
            ) from error
        finally:
            logging.disable(logged)

    def _connected(self) -> Any:
        """A client. The server that milvus-lite starts for a file may refuse calls until it listens."""
        from pymilvus import MilvusClient, MilvusException

        token, until = os.environ.get("MILVUS_TOKEN", ""), time.monotonic() + _SECONDS
        options: dict[str, Any] = {"grpc_options": _NO_PINGS} if self._lite else {}
        while True:
            try:
                return MilvusClient(self._where, token=token, timeout=_SECONDS, **options)
            except MilvusException as error:
                if not self._lite or _REFUSED not in str(error.message) or time.monotonic() >= until:
                    raise
                time.sleep(_PAUSE)

    def check(self, header: Header, k: int = 1) -> None:
        """Raise ValueError for what Milvus, or milvus-lite, cannot do."""
        most = _LITE_BITS if self._lite else _MOST_BITS
        if header.n_bits > most:
            raise ValueError(f"{self.place} holds codes of at most {most:,} bits, not {header.n_bits:,}; use lancedb")
        if header.kind != "flat" and self._lite:
            raise ValueError(f"{self.place}: milvus-lite has only kind flat; choose that, a server, or lancedb")
        if k > _MOST_HITS:
            raise ValueError(f"k={k}: {self.place} finds at most {_MOST_HITS:,}; ask for fewer, or search the folder")

    def write(self, header: Header, batches: Iterator[CodeBatch], finish: Finish) -> None:
        """Writes the rows as a new collection, then the header that names it; then removes earlier collections."""
        rows = f"{self._name}_{secrets.token_hex(6)}"
        try:
            with self._reaching():
                self._make(rows, 8 * code_bytes(header.n_bits), header.lists, header.columns)
                for start, ids, codes, columns in batches:
                    kept = pushed_columns(columns, self.place, nulls=False)
                    more = [{}] * len(codes) if kept is None else kept.to_pylist()
                    records = self._records(start, ids.to_pylist(), codes)
                    self._client.insert(rows, [record | also for record, also in zip(records, more, strict=True)])
                self._client.patient(self._seconds + header.count / ROWS).load_collection(rows)
                self._write_header(rows, finish(_MilvusTable(self, rows, header.to_json()), header).to_json())
        except BaseException:
            with suppress(Exception):  # otherwise the next push removes it
                self._client.patient(_SECONDS).drop_collection(rows)
            raise
        with self._reaching():
            for other in self._client.list_collections():
                if re.fullmatch(rf"{self._name}_[0-9a-f]{{12}}", other) and other != rows:
                    self._client.drop_collection(other)

    def _records(self, start: int, names: list[str], codes: NDArray[np.uint8]) -> Iterator[dict[str, Any]]:
        for row, (name, code) in enumerate(zip(names, codes, strict=True), start):
            if len(name.encode()) > _LONGEST_ID:
                raise ValueError(
                    f"{self.place} holds ids of at most {_LONGEST_ID:,} bytes; use lancedb for {name[:60]}…"
                )
            yield {"row": row, "name": name, "code": code.tobytes()}

    def open(self) -> _MilvusTable:
        """The collection that the header names."""
        rows, header = self._parts()
        return _MilvusTable(self, rows, header)

    def search(self, rows: str, codes: NDArray[np.uint8], k: int, effort: int | None, where: str | None) -> list[Hits]:
        """Every search names HAMMING, because Milvus's default for binary vectors is a different metric."""
        params: dict[str, Any] = {"metric_type": "HAMMING", "params": {} if effort is None else {"nprobe": effort}}
        with self._reaching():
            answers = self._client.search(
                rows, data=[code.tobytes() for code in codes], limit=k, anns_field="code",
                search_params=params, output_fields=["row", "name"], filter=where or "",
            )  # fmt: skip
        found: list[Hits] = []
        for hits in answers:
            entities = [hit["entity"] for hit in hits]
            places, names = [entity["row"] for entity in entities], [entity["name"] for entity in entities]
            found.append((places, names, [round(hit["distance"]) for hit in hits]))
        return found

    def read(self, collection: str, rows: NDArray[np.int64]) -> tuple[list[str], NDArray[np.uint8]]:
        """By their primary keys."""
        with self._reaching():
            found = self._client.get(collection, ids=rows.tolist(), output_fields=["row", "name", "code"])
        by_row = {int(entity["row"]): (str(entity["name"]), _packed(entity["code"])) for entity in found}
        listed = [by_row[row] for row in rows.tolist()]
        return [name for name, _ in listed], np.stack([code for _, code in listed])

    @property
    def _header(self) -> str:
        return f"{self._name}_header"

    def _has(self, collection: str) -> bool:
        with self._reaching():
            return bool(self._client.has_collection(collection))

    def _make(self, collection: str, bits: int, lists: int | None, columns: pa.Schema | None = None) -> None:
        schema = self._client.create_schema(auto_id=False)
        schema.add_field("row", self._types.INT64, is_primary=True)
        schema.add_field("name", self._types.VARCHAR, max_length=_LONGEST_ID if collection != self._header else 65_535)
        schema.add_field("code", self._types.BINARY_VECTOR, dim=bits)
        kept = None if columns is None else pushed_columns(columns.empty_table(), self.place, nulls=False)
        for field in kept.schema if kept is not None else ():
            longest = {"max_length": 65_535} if pa.types.is_string(field.type) else {}
            schema.add_field(field.name, self._field(field.type), **longest)
        index = self._client.prepare_index_params()
        kind, params = ("BIN_FLAT", {}) if lists is None else ("BIN_IVF_FLAT", {"nlist": min(lists, 65_536)})
        index.add_index("code", index_type=kind, metric_type="HAMMING", params=params)
        self._client.create_collection(collection, schema=schema, index_params=index)

    def _field(self, kind: pa.DataType) -> Any:
        """Milvus's type for a kept column."""
        if pa.types.is_string(kind):
            return self._types.VARCHAR
        if pa.types.is_boolean(kind):
            return self._types.BOOL
        return self._types.INT64 if pa.types.is_integer(kind) else self._types.DOUBLE

    def _write_header(self, rows: str, text: str) -> None:
        """Row 0 names the rows' collection; the others hold the text. Every collection must have a vector."""
        if not self._client.has_collection(self._header):
            self._make(self._header, 8, None)
        parts = [text[start : start + _TEXT] for start in range(0, len(text), _TEXT)]
        values = [f"{rows} {len(parts)}", *parts]
        self._client.upsert(
            self._header, [{"row": i, "name": value, "code": b"\0"} for i, value in reversed(list(enumerate(values)))]
        )
        self._client.flush(self._header)
        self._client.load_collection(self._header)

    def _parts(self) -> tuple[str, str]:
        """The collection of the rows, and the header's text."""
        lacking = self._lite and not Path(self._where).exists()
        if lacking or not self._has(self._header):
            raise FileNotFoundError(
                f"{self.place}: no index called {self._name} here; push one with: bigr-repr index push"
            )
        with self._reaching():
            self._client.load_collection(self._header)
            found = self._client.query(
                self._header, filter="row >= 0", output_fields=["row", "name"], limit=_PARTS,
                consistency_level="Strong",
            )  # fmt: skip
        values = {int(part["row"]): str(part["name"]) for part in found}
        try:
            rows, count = values[0].split()
            return rows, "".join(values[i] for i in range(1, 1 + int(count)))
        except (KeyError, ValueError) as error:
            raise ValueError(f"{self.place}: the header of {self._name} is incomplete; push the index again") from error

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        from pymilvus import MilvusException

        try:
            yield
        except MilvusException as error:
            said = " ".join(str(error.message or error).split())
            if "Open local milvus failed" in said:
                said = "another process has it open, and milvus-lite serves only one; end that process, or use a server"
            raise ConnectionError(f"{self.place}: {said}") from error


def _packed(code: bytes | list[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(code if isinstance(code, bytes) else code[0], np.uint8)
