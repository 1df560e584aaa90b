"""The rows of an index: ids, search codes, and what is stored with them. Knows nothing of search or files."""

# n rows

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache, reduce
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from bigr_repr.retrieval.codes.binarizer import finite_rows
from bigr_repr.retrieval.codes.columns import OWN, KeptColumns, StoredColumns, column_table, type_name
from bigr_repr.retrieval.codes.dropped_rows import Gaps, live_rows
from bigr_repr.retrieval.codes.filters import Filter
from bigr_repr.retrieval.codes.ids import (
    Ids,
    IdValues,
    StoredIds,
    all_ids,
    few_ids,
    id_array,
    one_array,
    row_numbers,
    taken_ids,
    without_gone,
)
from bigr_repr.retrieval.codes.stacked import stacked

_FILTERS: Final = 4  # number of filters whose rows are cached
_FEW: Final = 1 << 14  # up to this many ids are read individually


class IndexRows:
    """Parallel arrays of n rows, in memory or memory-mapped, possibly as live.LiveRows.

    ids: Arrow array of large strings (the paths of a data set) or int64; chunked for shards. codes: uint8 (n, bytes),
    the search codes. tokens: uint8 (n, bytes), the tokenizer's codes if those are not the search codes. vectors:
    float16 or float32 (n, D), for rescoring. columns: for filtering, a table of n rows of the types from
    columns.kept_type. Stored ids and columns are read and verified on demand: ValueError then names a damaged file.
    verify: verifies the files of memory-mapped codes, tokens and vectors; None: they are in memory.
    """

    def __init__(
        self,
        *,
        ids: Ids,
        codes: NDArray[np.uint8],
        tokens: NDArray[np.uint8] | None = None,
        vectors: NDArray[Any] | None = None,
        columns: pa.Table | StoredColumns | None = None,
        verify: Callable[[], None] | None = None,
    ) -> None:
        self._ids, self._columns, self._verify = ids, columns, verify
        self.codes, self.tokens, self.vectors = codes, tokens, vectors

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def ids(self) -> pa.Array | pa.ChunkedArray:
        """All ids."""
        return all_ids(self._ids)

    @property
    def id_type(self) -> pa.DataType:
        """Large strings or int64."""
        return self._ids.type

    @property
    def columns(self) -> pa.Table | None:
        """Kept columns; None if there are none."""
        return self._columns.table if isinstance(self._columns, StoredColumns) else self._columns

    @property
    def column_schema(self) -> pa.Schema | None:
        """Names and types of the kept columns."""
        return None if self._columns is None else self._columns.schema

    def check(self) -> None:
        """Read and verify stored ids and columns now.  Raises ValueError for damage."""
        _ = self.ids, self.columns

    def verify(self) -> None:
        """Read and verify everything, before it is copied to where its damage would have a valid checksum.

        Raises ValueError for damage, naming the file.
        """
        self.check()
        if self._verify is not None:
            self._verify()

    @classmethod
    def of_all(cls, parts: Sequence[IndexRows]) -> IndexRows:
        """Concatenated compatible rows, without copying."""
        codes = stacked([each.codes for each in parts])
        assert codes is not None
        schema, columns = parts[0].column_schema, None
        if schema is not None:
            columns = StoredColumns(schema, lambda: pa.concat_tables([each.columns for each in parts]))

        def verify() -> None:
            for each in parts:
                each.verify()

        return cls(
            ids=StoredIds.joined([each._ids for each in parts]), codes=codes,
            tokens=stacked([each.tokens for each in parts]), vectors=stacked([each.vectors for each in parts]),
            columns=columns, verify=verify,
        )  # fmt: skip

    def with_codes(self, codes: NDArray[np.uint8]) -> IndexRows:
        """The same rows with another array of the same codes."""
        return IndexRows(
            ids=self._ids, codes=codes, tokens=self.tokens, vectors=self.vectors, columns=self._columns,
            verify=self._verify,
        )  # fmt: skip

    def named(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Ids of an array of rows of any shape: object array of str, or int64; -1 becomes None or -1."""
        flat = rows.reshape(-1)
        missing = flat < 0
        values = self._named(np.where(missing, 0, flat)) if len(self) else []
        if pa.types.is_integer(self.id_type):
            return np.where(missing, -1, np.array(values, np.int64)).reshape(rows.shape)
        named = np.array(values, dtype=object)
        named[missing] = None
        return named.reshape(rows.shape)

    def _named(self, rows: NDArray[np.int64]) -> list[Any]:
        return few_ids(self._ids, rows) if len(rows) <= _FEW else taken_ids(self.ids, rows)

    def places(self, ids: IdValues) -> NDArray[np.int64]:
        """The first row with each of these ids, int64; -1 if there is none."""
        import pyarrow.compute as pc

        wanted = self._as_mine(ids)
        # A hash table of ten million ids would take seconds; one of the few requested ids takes none.
        rows = pc.indices_nonzero(pc.is_in(self.ids, value_set=wanted))
        firsts = pc.index_in(wanted, value_set=self.ids.take(rows)).to_pylist()
        listed = rows.to_pylist()
        return np.array([-1 if first is None else listed[first] for first in firsts], np.int64)

    @cached_property
    def selected(self) -> Callable[[Filter], NDArray[np.int64]]:
        """selected(filter): the rows that pass it, ascending. Cached for the last few filters."""
        return lru_cache(_FILTERS)(self._select)

    @cached_property
    def passing(self) -> Callable[[Filter], NDArray[np.bool_]]:
        """passing(filter): whether each row passes it, bool (n,); cached like selected()."""
        return lru_cache(_FILTERS)(lambda chosen: flagged(self.selected(chosen), len(self)))

    def _select(self, chosen: Filter) -> NDArray[np.int64]:
        import pyarrow.compute as pc

        passing = reduce(pc.and_kleene, self._masks(chosen))
        rows = np.asarray(pc.indices_nonzero(passing).to_numpy(), np.int64)
        rows.flags.writeable = False
        return rows

    def _masks(self, chosen: Filter) -> Iterator[pa.Array | pa.ChunkedArray]:
        """Which rows satisfy each of the filter's conditions: booleans, or null."""
        if chosen.match is not None:
            yield self._matching(chosen.match)
        if chosen.ids is not None:
            yield self._holding(chosen.ids)
        if chosen.where is not None:
            from bigr_repr.retrieval.codes.where import mask_of, parse_where

            try:
                yield mask_of(parse_where(chosen.where), self.column)
            except pa.ArrowException as error:
                raise ValueError(f"where={chosen.where!r:.80}: {error}") from error

    def column(self, name: str) -> pa.ChunkedArray:
        """The values of a kept column, or the ids as `path` or `id`.  Raises ValueError for an unknown name."""
        if name in OWN:
            return self.ids if isinstance(self.ids, pa.ChunkedArray) else pa.chunked_array([self.ids])
        held = [] if self.column_schema is None else self.column_schema.names
        if name not in held:
            kept = f"its columns are {', '.join(['path', *held])}"
            raise ValueError(f"column {name!r:.60} is not in this index: {kept}; keep more with: index build --keep")
        assert self.columns is not None
        return self.columns.column(name)

    @property
    def column_names(self) -> dict[str, str]:
        """Names of kept columns, with short type names."""
        return {field.name: type_name(field.type) for field in self.column_schema or ()}

    def _matching(self, pattern: str) -> pa.Array:
        import pyarrow.compute as pc

        if pa.types.is_integer(self.id_type):
            raise ValueError(f"ids are numbers in this index, which patterns such as {pattern!r} cannot match")
        parts = (".*" if letter == "*" else "." if letter == "?" else re.escape(letter) for letter in pattern)
        return pc.match_substring_regex(self.ids, rf"(?s)\A{''.join(parts)}\z")

    def _holding(self, ids: IdValues) -> pa.Array:
        import pyarrow.compute as pc

        return pc.is_in(self.ids, value_set=self._as_mine(ids))

    def holding(self, ids: IdValues) -> NDArray[np.bool_]:
        """Which rows have one of these ids: bool (n,)."""
        return np.asarray(self._holding(ids), np.bool_)

    def require(self, ids: IdValues) -> NDArray[np.int64]:
        """All rows with these ids, ascending.  Raises ValueError for an unknown id."""
        missing = self.places(ids) < 0
        if missing.any():
            raise ValueError(f"id {ids[int(missing.argmax())]!r} is not in the index")
        return np.flatnonzero(self.holding(ids))

    def _as_mine(self, ids: IdValues) -> pa.Array:
        """Ids in this index's type.  Raises ValueError for a different type, or one that no index can hold."""
        try:
            wanted = id_array(ids, len(ids))
        except (OverflowError, ValueError) as error:
            if (unheld := next(filter(_unheld, ids), None)) is None:
                raise
            raise ValueError(
                f"id {unheld!r:.80} cannot be in an index: ids are Unicode text, or whole numbers within 64 bits"
            ) from error
        if len(wanted) and pa.types.is_integer(wanted.type) != pa.types.is_integer(self.id_type):
            kinds = ("names", "numbers") if pa.types.is_integer(wanted.type) else ("numbers", "names")
            raise ValueError(f"ids are {kinds[0]} in this index, not {kinds[1]} such as {wanted[0].as_py()!r}")
        return wanted.cast(self.id_type)

    def taken(self, rows: NDArray[np.int64]) -> IndexRows:
        """Some rows, copied."""

        def part(array: NDArray[Any] | None) -> NDArray[Any] | None:
            return None if array is None else array.take(rows, axis=0)

        return IndexRows(
            ids=one_array(self.ids.take(rows)), codes=self.codes.take(rows, axis=0), tokens=part(self.tokens),
            vectors=part(self.vectors), columns=None if self.columns is None else self.columns.take(rows),
        )  # fmt: skip

    def picked(self, rows: NDArray[np.int64]) -> IndexRows:
        """Some rows, ascending; copied only if they are not contiguous."""
        neighbors = len(rows) and rows[-1] - rows[0] + 1 == len(rows)
        return self.between(int(rows[0]), int(rows[-1]) + 1) if neighbors else self.taken(rows)

    def without(self, gaps: Gaps) -> IndexRows:
        """The stored rows that are not dropped; ids and columns are copied on demand."""

        def kept() -> pa.Table:
            assert self.columns is not None
            return self.columns.take(row_numbers(gaps.places(np.arange(len(gaps)))))

        schema = self.column_schema
        columns = None if schema is None else StoredColumns(schema, kept)

        def part(array: NDArray[Any] | None) -> NDArray[Any] | None:
            return None if array is None else live_rows(array, gaps)

        return IndexRows(
            ids=without_gone(self._ids, gaps), codes=live_rows(self.codes, gaps), tokens=part(self.tokens),
            vectors=part(self.vectors), columns=columns, verify=self._verify,
        )  # fmt: skip

    def between(self, start: int, stop: int) -> IndexRows:
        """Contiguous rows, not copied."""

        def part(array: NDArray[Any] | None) -> NDArray[Any] | None:
            return None if array is None else array[start:stop]

        return IndexRows(
            ids=one_array(self.ids.slice(start, stop - start)), codes=self.codes[start:stop], tokens=part(self.tokens),
            vectors=part(self.vectors),
            columns=None if self.columns is None else self.columns.slice(start, stop - start),
        )  # fmt: skip

    def alike(
        self,
        codes: ArrayLike,
        ids: IdValues,
        tokens: ArrayLike | None,
        vectors: ArrayLike | None,
        columns: KeptColumns | None,
    ) -> IndexRows:
        """Rows to join with these.  Raises ValueError for arrays of a different type or length."""
        array = packed(codes, self.codes.shape[1], "codes")
        rows = IndexRows(
            ids=id_array(ids, len(array), distinct=True), codes=array,
            tokens=None if tokens is None else packed(tokens, None, "tokens"),
            vectors=None if vectors is None else finite_rows("vectors", vectors),
            columns=column_table(columns, len(array)),
        )  # fmt: skip
        if any(part is not None and len(part) != len(array) for part in (rows.tokens, rows.vectors)):
            raise ValueError(f"{len(array)} codes with a different number of tokens or vectors; give one per code")
        return rows

    def joined(self, more: IndexRows) -> IndexRows:
        """These rows followed by more compatible ones, copied.

        Raises ValueError for parts that one side lacks or that differ in width, or for an id that already exists.
        """
        import pyarrow.compute as pc

        if self.id_type != more.id_type:
            raise ValueError(f"ids of type {more.id_type} do not match this index's, {self.id_type}")
        known = pc.is_in(more.ids, value_set=self.ids).to_numpy(zero_copy_only=False)
        if known.any():
            raise ValueError(f"id {more.ids[int(known.argmax())].as_py()!r} is already in the index; remove it first")
        parts: dict[str, Any] = {"ids": pa.concat_arrays([self.ids, more.ids]), "columns": self._joined_columns(more)}
        for name in ("codes", "tokens", "vectors"):
            mine, other = getattr(self, name), getattr(more, name)
            if (mine is None) != (other is None):
                state = "has" if other is None else "has no"
                raise ValueError(f"this index {state} {name} with its codes; add compatible rows")
            if mine is not None and mine.shape[1] != other.shape[1]:
                raise ValueError(f"{name} of width {other.shape[1]} do not match this index's, {mine.shape[1]}")
            if mine is not None:
                with np.errstate(over="ignore"):
                    stored = other.astype(mine.dtype, copy=False)
                if stored.dtype.kind == "f" and not np.isfinite(stored).all():
                    raise ValueError(f"{name} overflow {mine.dtype}, this index's type; build it with float32")
                parts[name] = np.concatenate([mine, stored])
        return IndexRows(**parts)

    def _joined_columns(self, more: IndexRows) -> pa.Table | None:
        mine, other = (rows.column_schema or pa.schema([]) for rows in (self, more))
        if set(mine.names) != set(other.names):
            raise ValueError(f"this index has columns {_words(mine)}, not {_words(other)}; add compatible rows")
        if self.columns is None or more.columns is None:
            return None
        try:
            return pa.concat_tables([self.columns, more.columns.select(mine.names).cast(mine)])
        except pa.ArrowException as error:
            raise ValueError(f"columns {_words(other)} do not match this index's, {_words(mine)}: {error}") from error


def _unheld(id: Any) -> bool:
    """Whether no index can hold an id."""
    if isinstance(id, str):
        return any("\ud800" <= letter <= "\udfff" for letter in id)  # half a surrogate pair
    return isinstance(id, int) and not -(1 << 63) <= id < 1 << 63


def flagged(rows: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """Flags of `count` rows, True for the given ones: bool (count,)."""
    flags = np.zeros(count, np.bool_)
    flags[rows] = True
    return flags


def _words(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"


def packed(codes: ArrayLike, length: int | None, name: str) -> NDArray[np.uint8]:
    """Codes as a contiguous uint8 array (n, bytes).  Raises ValueError for a wrong type, shape or length."""
    array = np.asarray(codes)
    if array.dtype != np.uint8:
        raise ValueError(f"{name} have dtype {array.dtype}; packed codes are uint8 (see bigr_repr.codes.to_bytes)")
    if array.ndim == 1 and length is not None:
        array = array[None]
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"{name} have shape {array.shape}; expected packed codes (n, bytes)")
    if length is not None and array.shape[1] != length:
        raise ValueError(
            f"{name} have {array.shape[1]} bytes per code, the index's have {length}; use the same model, layer and "
            "binarizer for both"
        )
    return np.ascontiguousarray(array)
