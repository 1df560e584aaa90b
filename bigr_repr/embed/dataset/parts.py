"""Lists the parts of a finished data set in one file, so that opening it takes one listing and two small objects.

A part whose size differs from the list is opened directly. Independent of rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from bigr_repr.embed.dataset.damage import PART, damage_named
from bigr_repr.embed.dataset.schema import PLAN_KEY
from bigr_repr.system.files import replacing
from bigr_repr.system.object_store import ObjectPath, Place, readable
from bigr_repr.system.threads import map_ahead

_NAME: Final = "parts.parquet"  # next to the plan
_SCHEMA: Final = pa.schema({"unit": pa.int64(), "rows": pa.int64(), "size": pa.int64(), "plan": pa.string()})
_OPENED: Final = 32  # parts opened at a time
_ROWS_KEY: Final = b"schema"


class DataPart(NamedTuple):
    """A file of a data set. plan: the id of its list of inputs; empty if it names none."""

    file: Place
    rows: int
    schema: pa.Schema
    plan: str


class ListedPart(NamedTuple):
    """A part in the list. size: of its file, in bytes."""

    rows: int
    size: int
    plan: str


def write_parts(run: Place, entries: Iterable[tuple[int, ListedPart]], schema: pa.Schema) -> None:
    """Write the list of parts, by unit. run: the folder of the plan; schema: of rows, with their provenance."""
    rows = [{"unit": unit, **entry._asdict()} for unit, entry in entries]
    own = _SCHEMA.with_metadata({_ROWS_KEY: schema.serialize().to_pybytes()})
    with replacing(run / _NAME) as file:
        pq.write_table(pa.Table.from_pylist(rows, own), file, compression="zstd", write_page_checksum=True)


def forget_parts(run: Place) -> None:
    """Remove the list, before parts are written."""
    (run / _NAME).unlink(missing_ok=True)


def find_parts(folder: Place) -> list[tuple[Place, int]]:
    """Files of a data set in the order of their units, each with its size."""
    found: Iterable[tuple[str, int | None]]
    if isinstance(folder, ObjectPath):
        found = folder.members()
    elif folder.is_dir():
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.stat().st_size) for entry in entries if entry.is_file()]
    else:
        found = []
    parts = [(name, size) for name, size in found if PART.fullmatch(name)]
    parts.sort(key=lambda part: (len(part[0]), part[0]))  # numbers have five or more digits
    return [(folder / name, size) for name, size in parts if size is not None]


def open_parts(run: Place, files: Sequence[tuple[Place, int]]) -> Iterator[DataPart]:
    """The part of each file, from the list or the file itself, in parallel.  Raises ValueError for a damaged one."""
    listed, schema = _listed(run)

    def opened(file: tuple[Place, int]) -> DataPart:
        place, size = file
        named = PART.fullmatch(place.name)
        entry = listed.get(int(named[1])) if named else None
        if schema is not None and entry is not None and entry.size == size:
            return DataPart(place, entry.rows, schema, entry.plan)
        with damage_named(place, run), pq.ParquetFile(readable(place)) as parquet:
            found, rows = parquet.schema_arrow, int(parquet.metadata.num_rows)
        return DataPart(place, rows, found, plan_named(found))

    return map_ahead(opened, files, workers=_OPENED)


def plan_named(schema: pa.Schema) -> str:
    """The id of the list of inputs in a part's schema; empty if there is none."""
    named: bytes = (schema.metadata or {}).get(PLAN_KEY, b"")
    return named.decode()


def _listed(run: Place) -> tuple[dict[int, ListedPart], pa.Schema | None]:
    """The list by unit, and the schema of all its parts; empty if there is no reliable list."""
    with suppress(OSError, ValueError, KeyError, TypeError):  # pyarrow raises any of these
        table = pq.read_table(readable(run / _NAME), partitioning=None, page_checksum_verification=True)
        schema = pa.ipc.read_schema(pa.py_buffer((table.schema.metadata or {})[_ROWS_KEY]))
        return {row["unit"]: ListedPart(row["rows"], row["size"], row["plan"]) for row in table.to_pylist()}, schema
    return {}, None
