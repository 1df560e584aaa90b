"""Columns kept with the codes of an index for filtering: their types. Knows nothing of search or files."""

# n rows

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

KeptColumns: TypeAlias = "pa.Table | Mapping[str, Sequence[Any] | NDArray[Any]]"

OWN: Final = ("path", "id")  # names of the ids in expressions


class StoredColumns:
    """A table of kept columns, read and verified on demand.  whole() raises ValueError for damage."""

    def __init__(self, schema: pa.Schema, whole: Callable[[], pa.Table]) -> None:
        self.schema, self._whole = schema, whole

    @cached_property
    def table(self) -> pa.Table:
        """The whole table."""
        return self._whole()


def column_table(columns: KeptColumns | None, count: int) -> pa.Table | None:
    """Columns as a table of text, numbers, booleans, dates and times; None if there are none.

    Raises ValueError for columns of a wrong length or type, or with a name reserved for ids.
    """
    if columns is None or not len(columns if isinstance(columns, Mapping) else columns.schema):
        return None
    named = columns if isinstance(columns, Mapping) else dict(zip(columns.column_names, columns.columns, strict=True))
    arrays = {name: kept_array(name, values) for name, values in named.items()}
    for name, values in arrays.items():
        if len(values) != count:
            raise ValueError(f"column {name!r} has {len(values)} values for {count} codes; give one per code")
    return pa.table(arrays)


def kept_array(name: str, values: Any) -> pa.ChunkedArray:
    """The values of one column in the index's form.  Raises ValueError for a type that filters cannot compare."""
    try:
        array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
        return (array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])).cast(
            kept_type(name, array.type)
        )
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"column {name!r} cannot be kept: {error}") from error


def kept_type(name: str, kind: pa.DataType) -> pa.DataType:
    """The type in which a column is kept.  Raises ValueError for a type that filters cannot compare."""
    if name in OWN:
        raise ValueError(f"column {name!r}: this name is reserved for the ids; rename it")
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if (
        pa.types.is_null(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
    ):
        return pa.large_string()
    if pa.types.is_float16(kind):
        return pa.float32()
    if is_kept(kind):
        return kind
    raise ValueError(f"column {name!r} is of type {kind}; text, numbers, booleans, dates and times can be kept")


def is_kept(kind: pa.DataType) -> bool:
    """Whether this is a type in which columns are kept."""
    number = pa.types.is_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind)
    return bool(number or kind == pa.large_string() or pa.types.is_boolean(kind) or is_time(kind))


def is_time(kind: pa.DataType) -> bool:
    """Whether values are dates or times, which are written as text in expressions."""
    return bool(pa.types.is_date(kind) or pa.types.is_timestamp(kind))


def type_name(kind: pa.DataType) -> str:
    """A short name of a type."""
    if kind == pa.large_string():
        return "text"
    return "true or false" if pa.types.is_boolean(kind) else str(kind) if is_time(kind) else "number"


def plain_rows(kept: pa.Table | None, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
    """The columns of some rows, ready for JSON: dates and times as text, non-finite numbers as None."""
    if kept is None:
        return [{} for _ in rows]
    taken = kept.take(rows)
    timed = [field.with_type(pa.string()) if is_time(field.type) else field for field in taken.schema]
    return [
        {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()}
        for row in taken.cast(pa.schema(timed)).to_pylist()
    ]
