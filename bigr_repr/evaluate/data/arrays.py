"""Reads the arrays of .npy, .npz and Parquet files by name. Knows nothing of what they hold."""

# n rows, D numbers a row

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bigr_repr.system.damaged import named_if_damaged

__all__ = ["RAGGED", "Arrays", "read_arrays"]

RAGGED: Final = "has rows that are null or differ in length; give one vector of one length per row"
_OBJECTS: Final = "holds Python objects; save it as numbers, or as names with dtype=str"


class Arrays(NamedTuple):
    """What a file holds, by name; the array of an .npy file is called "". unusable: why others are left out."""

    found: dict[str, NDArray[Any]]
    unusable: dict[str, str]

    def words(self) -> str:
        """All of it, for messages."""
        found = [f"{name or 'array'} {array.dtype} {array.shape}" for name, array in self.found.items()]
        left_out = [f"{name or 'array'} {why}" for name, why in self.unusable.items()]
        return "; ".join(filter(None, [", ".join(found), *left_out]))


def read_arrays(file: Path) -> Arrays:
    """All arrays of an .npy, .npz or Parquet file, or of a folder of Parquet files.

    Columns of lists are (n, D), or (n, N, D) where fixed-size lists hold fixed-size lists; booleans are int64, a null
    among integers and booleans is -1, among floats NaN, among names "". Raises OSError, or ValueError naming the file.
    """
    if file.suffix == ".parquet" or file.is_dir():
        return _columns(file)
    if file.suffix not in (".npy", ".npz"):
        raise ValueError(f"{file}: features and labels are read from .npy, .npz, .parquet or a folder of Parquet files")
    if file.suffix == ".npz":
        return _zipped(file)
    with named_if_damaged(file):
        try:
            return Arrays({"": np.load(file, mmap_mode="r", allow_pickle=False)}, {})
        except ValueError as error:
            if "Python objects" not in str(error):
                raise
            return Arrays({}, {"": _OBJECTS})


def _zipped(file: Path) -> Arrays:
    held = Arrays({}, {})
    with named_if_damaged(file), np.load(file, allow_pickle=False) as arrays:
        for name in arrays.files:
            try:
                held.found[name] = arrays[name]
            except ValueError as error:
                if "allow_pickle" not in str(error):
                    raise
                held.unusable[name] = _OBJECTS
    return held


def _columns(file: Path) -> Arrays:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(file.rglob("*.parquet")) if file.is_dir() else [file]
    if not files:
        raise FileNotFoundError(f"{file}: no Parquet files here")
    tables = []
    for each in files:
        with named_if_damaged(each):
            tables.append(pq.read_table(each, partitioning=None, page_checksum_verification=True))
    try:
        table = pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise ValueError(f"{file}: its files differ in columns ({' '.join(str(error).split())[:200]})") from error
    held = Arrays({}, {})
    for name in table.column_names:
        try:
            held.found[name] = _column(table.column(name))
        except ValueError as error:
            held.unusable[name] = str(error)
    return held


def _column(column: Any) -> NDArray[Any]:
    """A column as an array. Raises ValueError that says what is wrong with it."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    column = column.combine_chunks()
    if _is_list(column.type):
        return _matrix(column)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8()).cast(pa.float64())  # NaN for null
    if pa.types.is_integer(column.type):
        try:
            numbers = column.cast(pa.int64())
        except pa.ArrowInvalid:
            raise ValueError(f"holds integers above {np.iinfo(np.int64).max}; use smaller ones, or names") from None
        return np.asarray(numbers.fill_null(-1).to_numpy(zero_copy_only=False))
    if pa.types.is_floating(column.type):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return np.array(column.fill_null("").to_pylist(), dtype=str)
    raise ValueError(f"is of type {column.type}, which is neither numbers nor names; convert it")


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _matrix(column: Any) -> NDArray[Any]:
    """A column of lists as (n, D) or (n, N, D). Raises ValueError unless all lists of a level have one length."""
    import pyarrow as pa
    import pyarrow.compute as pc

    fixed = pa.types.is_fixed_size_list(column.type) and pa.types.is_fixed_size_list(column.type.value_type)
    numbers, shape = column, [len(column)]
    while _is_list(numbers.type):
        lengths = pc.unique(pc.list_value_length(numbers)).to_pylist()
        if numbers.null_count or len(lengths) > 1:
            raise ValueError(RAGGED)
        shape.append(lengths[0] if lengths else 0)
        numbers = numbers.flatten()
    values = numbers.to_numpy(zero_copy_only=False)
    return np.asarray(values.reshape((*shape[:2], math.prod(shape[2:])) if fixed else (shape[0], math.prod(shape[1:]))))
