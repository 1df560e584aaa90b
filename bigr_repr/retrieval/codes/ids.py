"""Ids of rows: an Arrow array, or one in files, read only as needed. Knows nothing of other columns.

Arrow's compute functions are imported where they are called, because they take as long to load as Arrow itself.
"""

# n rows, m of them requested

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bigr_repr.retrieval.codes.dropped_rows import Gaps

IdValues: TypeAlias = Sequence[str] | Sequence[int] | NDArray[Any]  # or an Arrow array


class StoredIds:
    """n ids, large strings or int64, read and verified on demand.

    few(rows): the ids of rows (m,), as a list; whole(): all of them. Both raise ValueError for damage.
    """

    def __init__(
        self,
        type: pa.DataType,
        count: int,
        few: Callable[[NDArray[np.int64]], list[Any]],
        whole: Callable[[], pa.Array | pa.ChunkedArray],
    ) -> None:
        self.type, self._count, self._few, self._whole = type, count, few, whole

    def __len__(self) -> int:
        return self._count

    @cached_property
    def array(self) -> pa.Array | pa.ChunkedArray:
        """All ids."""
        return self._whole()

    def few(self, rows: NDArray[np.int64]) -> list[Any]:
        """The ids of some rows."""
        return taken_ids(self.array, rows) if "array" in self.__dict__ else self._few(rows)

    @classmethod
    def joined(cls, parts: Sequence[Ids]) -> StoredIds:
        """Concatenated ids, as a chunked array."""
        starts = np.array(list(accumulate(map(len, parts), initial=0)))

        def few(rows: NDArray[np.int64]) -> list[Any]:
            numbers, found = np.searchsorted(starts, rows, "right") - 1, [None] * len(rows)
            for number in np.unique(numbers).tolist():
                here = np.flatnonzero(numbers == number)
                for place, id in zip(here.tolist(), few_ids(parts[number], rows[here] - starts[number]), strict=True):
                    found[place] = id
            return found

        return cls(
            parts[0].type, int(starts[-1]), few,
            lambda: pa.chunked_array([chunk for part in parts for chunk in _chunks(all_ids(part))], parts[0].type),
        )  # fmt: skip


Ids: TypeAlias = pa.Array | pa.ChunkedArray | StoredIds


def all_ids(ids: Ids) -> pa.Array | pa.ChunkedArray:
    """All ids as an Arrow array."""
    return ids.array if isinstance(ids, StoredIds) else ids


def few_ids(ids: Ids, rows: NDArray[np.int64]) -> list[Any]:
    """The ids of some rows (m,)."""
    return ids.few(rows) if isinstance(ids, StoredIds) else taken_ids(ids, rows)


def without_gone(ids: Ids, gaps: Gaps) -> Ids:
    """The ids of rows that have not been dropped."""
    kept = partial(gaps.places, np.arange(len(gaps)))
    if not isinstance(ids, StoredIds):
        return ids.take(row_numbers(kept()))
    return StoredIds(
        ids.type, len(gaps), lambda rows: ids.few(gaps.places(rows)), lambda: ids.array.take(row_numbers(kept()))
    )


def taken_ids(ids: pa.Array | pa.ChunkedArray, rows: NDArray[np.int64]) -> list[Any]:
    """The ids of some rows (m,) from an array."""
    found: list[Any] = ids.take(row_numbers(rows)).to_pylist()  # to_numpy would load pandas
    return found


def id_array(ids: IdValues | None, count: int, *, distinct: bool = False) -> pa.Array:
    """Ids as an Arrow array of large strings or int64; None: 0, 1, …

    Raises ValueError for a wrong number or type, or for duplicates if ids must be distinct.
    """
    import pyarrow.compute as pc

    if ids is None:
        return pa.array(np.arange(count, dtype=np.int64))
    try:
        array = one_array(ids) if isinstance(ids, pa.Array | pa.ChunkedArray) else _texts(ids)
        array = pa.array(ids) if array is None else array
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError) as error:
        raise ValueError(f"ids must be all strings or all whole numbers ({error})") from error
    if pa.types.is_null(array.type) and not count:
        array = pa.array([], pa.large_string())
    if len(array) != count:
        raise ValueError(f"{len(array)} ids for {count} codes; give one per code")
    text = pa.types.is_string(array.type) or pa.types.is_large_string(array.type)
    if array.null_count or not (text or pa.types.is_integer(array.type)):
        raise ValueError(f"ids of type {array.type} must be all strings or all whole numbers")
    array = array.cast(pa.large_string() if text else pa.int64())
    if distinct and len(pc.unique(array)) != len(array):
        raise ValueError("ids contain a duplicate; every code needs a unique one")
    return array


def one_array(ids: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Ids without chunks."""
    return ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids


def _chunks(ids: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    return list(ids.chunks) if isinstance(ids, pa.ChunkedArray) else [ids]


def _texts(ids: IdValues) -> pa.Array | None:
    """A list of names as an array, without loading pandas as pa.array would; None for anything else or no names."""
    if not isinstance(ids, list | tuple) or not ids or not all(isinstance(id, str) for id in ids):
        return None
    encoded = [id.encode() for id in ids if isinstance(id, str)]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return pa.LargeStringArray.from_buffers(len(encoded), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)))


def row_numbers(values: NDArray[np.int64]) -> pa.Array:
    """Row numbers as an Arrow array."""
    return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(np.ascontiguousarray(values, np.int64))])
