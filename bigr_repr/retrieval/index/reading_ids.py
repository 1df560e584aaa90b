"""Reads ids and kept columns from an index folder, verified and on demand. Knows nothing of codes."""

# n rows

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bigr_repr.retrieval.codes.columns import StoredColumns, kept_type
from bigr_repr.retrieval.codes.ids import Ids, StoredIds
from bigr_repr.retrieval.index.folder import FolderReader

_STEP: Final = 1 << 20  # offsets checked at a time


def stored_ids(reader: FolderReader, count: int, *, memory_map: bool) -> Ids:
    """The ids of n rows, memory-mapped because there may be billions. Whatever is read is verified.

    memory_map: False: all are verified now.
    """
    kind = reader.field("ids", str)
    if kind not in ("names", "numbers"):
        raise reader.damaged(f"ids are {kind!r:.20}")
    ids = (_names if kind == "names" else _numbers)(reader, count)
    return ids if memory_map else ids.array


def _numbers(reader: FolderReader, count: int) -> StoredIds:
    numbers = reader.mapped("ids", "int64", count)

    def few(rows: NDArray[np.int64]) -> list[int]:
        numbers.check(8 * rows, 8 * rows + 7)
        return list(map(int, numbers.array[rows]))

    def whole() -> pa.Array:
        numbers.check_all()
        return pa.array(numbers.array)

    return StoredIds(pa.int64(), count, few, whole)


def _names(reader: FolderReader, count: int) -> StoredIds:
    size = int(reader.entry("ids")["bytes"]) if "ids" in reader else 0
    text, offsets = reader.mapped("ids", "uint8", size), reader.mapped("offsets", "int64", count + 1)

    def few(rows: NDArray[np.int64]) -> list[str]:
        offsets.check(8 * rows, 8 * rows + 15)
        starts, ends = offsets.array[rows], offsets.array[rows + 1]
        if ((starts < 0) | (ends < starts) | (ends > size)).any():
            raise reader.damaged("names that overlap")
        held = ends > starts
        text.check(starts[held], ends[held] - 1)
        try:
            pairs = zip(starts.tolist(), ends.tolist(), strict=True)
            return [text.array[start:end].tobytes().decode() for start, end in pairs]
        except UnicodeDecodeError as error:
            raise reader.damaged(f"names that are not text: {error}") from error

    def whole() -> pa.Array:
        offsets.check_all()
        text.check_all()
        return _whole_names(reader, offsets.array, text.array)

    return StoredIds(pa.large_string(), count, few, whole)


def _whole_names(reader: FolderReader, bounds: NDArray[np.int64], text: NDArray[np.uint8]) -> pa.Array:
    if bounds[0] != 0 or bounds[-1] != len(text) or any((np.diff(part) < 0).any() for part in _stretches(bounds)):
        raise reader.damaged("names that overlap")
    names = pa.LargeStringArray.from_buffers(len(bounds) - 1, pa.py_buffer(bounds), pa.py_buffer(text))
    try:
        names.validate(full=True)
    except pa.ArrowInvalid as error:
        raise reader.damaged(f"names that are not text: {error}") from error
    return names


def _stretches(values: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Stretches of an array, each starting with the last value of the previous one."""
    return (values[start : start + _STEP + 1] for start in range(0, len(values), _STEP))


def stored_columns(reader: FolderReader, count: int, *, memory_map: bool) -> pa.Table | StoredColumns | None:
    """The kept columns of n rows, memory-mapped and verified like ids; None if there are none."""
    if "columns" not in reader:
        return None
    stored = reader.mapped("columns", "uint8", int(reader.entry("columns")["bytes"]))
    sizes = [size for size, _ in reader.pieces("columns")]

    def whole() -> pa.Table:
        stored.check_all()
        buffer, ends = pa.py_buffer(stored.array), np.cumsum(sizes).tolist()
        with _columns_named(reader):
            pieces = [_piece(reader, buffer.slice(end - size, size)) for end, size in zip(ends, sizes, strict=True)]
            columns = pa.concat_tables(pieces)
        if len(columns) != count:
            raise reader.damaged(f"columns of {len(columns)} rows for {count} codes")
        return columns

    with _columns_named(reader), pa.ipc.open_stream(pa.py_buffer(stored.array[: sizes[0]])) as stream:
        columns = StoredColumns(_checked(reader, stream.schema), whole)
    return columns if memory_map else columns.table


def kept_names(reader: FolderReader) -> list[str]:
    """Names of a folder's kept columns, without verifying its content."""
    columns = stored_columns(reader, 0, memory_map=True)
    return [] if columns is None else list(columns.schema.names)


@contextmanager
def _columns_named(reader: FolderReader) -> Iterator[None]:
    """Add the file's name to errors from reading columns."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        path = reader.folder / reader.entry("columns")["name"]
        raise ValueError(f"{path}: damaged, no columns ({error}); build the index again") from error


def _checked(reader: FolderReader, schema: pa.Schema) -> pa.Schema:
    kinds = [kept_type(field.name, field.type) for field in schema]
    if len(set(schema.names)) != len(kinds) or kinds != schema.types:
        raise reader.damaged("columns of other types")
    return schema


def _piece(reader: FolderReader, piece: pa.Buffer) -> pa.Table:
    with pa.ipc.open_stream(piece) as stream:
        _checked(reader, stream.schema)
        columns = stream.read_all()
        columns.validate(full=True)
        return columns
