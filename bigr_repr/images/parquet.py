"""Parquet files of pictures: finds their columns and reads rows in order. Knows nothing of decoding.

Only the current batch of rows is held in memory, unless a whole file is requested.
"""

from __future__ import annotations

import io
import json
import os
import re
from bisect import bisect_right
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bigr_repr.images.find import escape_path, one_line, unlisted
from bigr_repr.images.formats import ImageError
from bigr_repr.images.member import Member, member_errors, require_file
from bigr_repr.system.object_store import ObjectPath, Place, readable
from bigr_repr.system.threads import read_ahead

PARQUET: Final = (".parquet", ".pq", ".parq")
_ROWS = 32  # rows of a Parquet file in memory at a time
_AHEAD = 4  # batches of that size, read ahead
_BUFFER = 4 << 20  # bytes read at a time
_SHOWN = 12  # column names shown in an error
_BOMB = (256 << 20, 200)  # a row group is not read if its pictures exceed these bytes and this compression ratio
_FEW = 100_000  # this many rows are listed whatever the size of the file
_CLASSES = 10_000_000
_TEXTS: Final = (
    pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary, pa.types.is_large_binary,
)  # fmt: skip
_WORDNET_ID = re.compile(r"^n\d{8}:")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Column names of a Parquet file. image: encoded bytes, plain or in structs {bytes, path}; label; caption."""

    image: str = "image"
    label: str = "label"
    caption: str = "caption"


USUAL_COLUMNS: Final = Columns()


def parquet_parts(folder: Place) -> list[str]:
    """The Parquet files below a folder, as written by Spark, in the order of their paths.

    Names that begin with a dot or an underscore are skipped. Raises PermissionError for a folder that cannot be listed.
    """
    found: list[str] = []
    if isinstance(folder, ObjectPath):
        for name, size in folder.members():
            if not name.startswith((".", "_", "/")):
                below = folder / name
                found += [str(below)] if size is not None else parquet_parts(below)
    else:
        for top, folders, names in os.walk(folder, onerror=_refuse):
            folders[:] = [name for name in folders if name[0] not in "._"]
            found += [str(Path(top, name)) for name in names if name[0] not in "._"]
    return sorted(file for file in found if file.lower().endswith(PARQUET))


def _refuse(error: OSError) -> None:
    if isinstance(error, PermissionError):
        raise unlisted(os.fsencode(error.filename)) from None
    if not isinstance(error, FileNotFoundError | NotADirectoryError):  # else it has vanished
        raise error


def open_parquet(file: str) -> pq.ParquetFile:
    """A Parquet file, local or in a store, opened for reading in pieces: only what is requested is held in memory."""
    return pq.ParquetFile(readable(file), pre_buffer=False, buffer_size=_BUFFER)


def class_names(metadata: Mapping[bytes, bytes] | None, label: str = "label") -> tuple[str, ...]:
    """Class names, indexed by the numbers in the label column; empty if the schema's metadata has none.

    They come from the key `classes`, separated by `|`, or by commas if there is no `|`, without leading WordNet ids
    ("n01443537:goldfish"); otherwise from the Hugging Face hub's ClassLabel feature.
    """
    metadata = metadata or {}
    if classes := metadata.get(b"classes", b"").decode():
        return tuple(_WORDNET_ID.sub("", name) for name in classes.split("|" if "|" in classes else ","))
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][label]["names"]
        return tuple(map(str, names))
    except (KeyError, TypeError, ValueError):
        return ()


def class_ids(metadata: Mapping[bytes, bytes] | None) -> tuple[str, ...]:
    """The WordNet ids in front of the class names; empty unless every name has one."""
    classes = (metadata or {}).get(b"classes", b"").decode()
    found = [_WORDNET_ID.match(name) for name in classes.split("|" if "|" in classes else ",")]
    return tuple(match[0][:-1] for match in found if match) if all(found) else ()


def parquet_members(file: str, labels: bool, columns: Columns) -> Iterator[Member]:
    """The rows of a Parquet file.  Raises ImageError for unsuitable columns, and what pyarrow raises."""
    with open_parquet(file) as parquet:
        image_column(parquet, file, columns)
        _require_rows(parquet, file)
        starts = _group_starts(parquet)
        if not labels or not _has_labels(parquet, file, columns):
            rows = range(parquet.metadata.num_rows)
            yield from (Member(str(row), row, None, None, starts.get(row)) for row in rows)
            return
        names = class_names(parquet.schema_arrow.metadata, columns.label)
        batches = parquet.iter_batches(4096, columns=[columns.label])
        values = (value for batch in batches for value in batch.column(0).to_pylist())
        for row, value in enumerate(values):
            known = isinstance(value, int) and 0 <= value < len(names)
            yield Member(str(row), row, None, names[value] if known else _label_text(value), starts.get(row))


def _group_starts(parquet: pq.ParquetFile) -> dict[int, int]:
    """{first row of a row group: its number of rows}."""
    sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.metadata.num_row_groups)]
    return dict(zip(accumulate(sizes[:-1], initial=0), sizes, strict=True)) if sizes else {}


def _require_rows(parquet: pq.ParquetFile, file: str) -> None:
    """Raises ImageError for more rows than the file has bytes: a footer can claim any number."""
    rows = parquet.metadata.num_rows
    if rows > _FEW:
        opened = readable(file)
        size = opened.stat().st_size if isinstance(opened, Path) else opened.seek(0, io.SEEK_END)
        if rows > size:
            said = f"states {rows:,} rows in {size:,} bytes, which cannot hold so many pictures"
            raise ImageError("corrupt", f"{escape_path(file)}: {said}")


def _label_text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return "" if value is None else str(value)


def image_column(parquet: pq.ParquetFile, file: str, columns: Columns) -> str:
    """The Parquet name of the column with encoded bytes. Raises ImageError if there is none, or more than one."""
    schema, name = parquet.schema_arrow, columns.image
    if schema.names.count(name) != 1:
        raise _no_column(schema.names, file, name, "the bytes of image files", "image_column")
    kind, column = schema.field(name).type, name
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind, column = kind.field("bytes").type, f"{name}.bytes"
    if not _holds_bytes(kind):
        raise ImageError(
            "unsupported", f"{escape_path(file)}: column {column} is {kind}; the bytes of image files are needed"
        )
    return column


def _has_labels(parquet: pq.ParquetFile, file: str, columns: Columns) -> bool:
    """Whether there is a label column.  Raises ImageError if it was named but is missing, or if there are several."""
    names, label = parquet.schema_arrow.names, columns.label
    if names.count(label) > 1 or (label not in names and label != USUAL_COLUMNS.label):
        raise _no_column(names, file, label, "labels", "label_column")
    return label in names


def _no_column(names: Sequence[str], file: str, name: str, what: str, option: str) -> ImageError:
    held = f"columns {', '.join([*names[:_SHOWN], '…'][: len(names)])}" if names else "no columns"
    if count := names.count(name):
        held = f"{count} columns {name}"
    said = one_line(f"has {held}; one column {name} with {what} is needed; name another one with {option}")
    return ImageError("unsupported", f"{escape_path(file)}: {said}")


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    checks = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(check(kind) for check in checks)


def picture_bytes(batch: pa.RecordBatch, columns: Columns = USUAL_COLUMNS) -> pa.Array:
    """The encoded bytes in a batch; as_py() converts each."""
    column = batch.column(columns.image)  # by name: a plain column may also be called `image.bytes`
    return column.field("bytes") if pa.types.is_struct(column.type) else column


def _batches(parquet: pq.ParquetFile, file: str, group: int, column: str, rows: int) -> Iterator[pa.RecordBatch]:
    """A column of a row group, in pieces.  Raises ImageError for one that is compressed more than pictures can be."""
    about = parquet.metadata.row_group(group)
    for chunk in map(about.column, range(about.num_columns)):
        packed, size = chunk.total_compressed_size, chunk.total_uncompressed_size
        if chunk.path_in_schema == column and size > _BOMB[0] and size > _BOMB[1] * packed:
            said = f"row group {group} expands from {packed:,} bytes to {size:,}, which pictures never do"
            raise ImageError("corrupt", f"{escape_path(file)}: {said}")
    yield from parquet.iter_batches(rows, row_groups=[group], columns=[column])


class _Stretch(NamedTuple):
    """Adjacent rows, from start up to end: their encoded pictures, or why they cannot be read."""

    start: int
    end: int
    content: pa.Array | ImageError


class ParquetRows:
    """The encoded pictures of a Parquet file, for a single reader, which closes it.

    Rows requested in ascending order are read once and ahead of need. Opening raises nothing: errors of the file are
    returned for its rows.
    """

    def __init__(self, file: str, columns: Columns = USUAL_COLUMNS) -> None:
        self.file, self._columns = file, columns
        self._held = _Stretch(0, 0, pa.array([], pa.binary()))
        self._following: Generator[_Stretch, None, None] | None = None
        self._end = 0  # the row group where it ends
        self._error: ImageError | None = None
        try:
            with member_errors(file):
                require_file(file)
                self._parquet = open_parquet(file)
                self._column = image_column(self._parquet, file, columns)
                groups = range(self._parquet.metadata.num_row_groups)
                sizes = (self._parquet.metadata.row_group(group).num_rows for group in groups)
                self._starts = list(accumulate(sizes, initial=0))
        except ImageError as error:
            self._error = error

    def read(self, row: int, last: int = 0) -> bytes | ImageError:
        """A row's bytes, or why there are none. last: the row up to which more will be requested, in order."""
        name = f"{escape_path(self.file)}#{row}"
        if self._error is None and row >= self._starts[-1]:
            return ImageError("missing", f"{name}: the file has {self._starts[-1]} rows")
        error = self._error
        if error is None:
            held = self._find(row, last)
            if not isinstance(held.content, ImageError):
                content: bytes | None = held.content[row - held.start].as_py()
                return content or ImageError("empty", f"{name}: the row holds no bytes")
            error = held.content
        return ImageError(error.kind, f"{name}: {error.message.removeprefix(f'{one_line(escape_path(self.file))}: ')}")

    def close(self) -> None:
        """Stop reading."""
        if self._following is not None:
            self._following.close()

    def _find(self, row: int, last: int) -> _Stretch:
        places = (row, max(0, self._held.end - 1), min(max(row, last), self._starts[-1] - 1))
        group, latest, end = (bisect_right(self._starts, place) - 1 for place in places)
        if self._following is None or row < self._held.start or group > latest + 1 or group >= self._end:
            self.close()
            self._held, self._end = _Stretch(self._starts[group], self._starts[group], None), end + 1
            self._following = read_ahead(self._stretches(range(group, self._end)), _AHEAD)
        while row >= self._held.end:
            self._held = next(self._following)
        return self._held

    def _stretches(self, groups: Iterable[int]) -> Iterator[_Stretch]:
        """All rows of row groups. Damage ends its row group; the next one follows."""
        for number in groups:
            start = self._starts[number]
            try:
                with member_errors(self.file):
                    for batch in _batches(self._parquet, self.file, number, self._column, _ROWS):
                        yield _Stretch(start, start + len(batch), picture_bytes(batch, self._columns))
                        start += len(batch)
            except ImageError as error:
                yield _Stretch(start, self._starts[number + 1], error)


class ImageTable(NamedTuple):
    """A Parquet file's pictures in memory. parts: encoded bytes, rows in order; as_py() converts each.

    labels: int64 (rows,), -1 where a row has none; None without such a column. class_names, class_ids: one per label,
    or empty.
    """

    parts: list[pa.Array]
    labels: NDArray[np.int64] | None
    class_names: tuple[str, ...]
    class_ids: tuple[str, ...]


def read_parquet(file: str, columns: Columns = USUAL_COLUMNS) -> ImageTable:
    """A whole Parquet file, read in pieces, so that columns may be of any size.  Raises ImageError."""
    with member_errors(file):
        require_file(file)
        with open_parquet(file) as parquet:
            column = image_column(parquet, file, columns)
            parts = [
                picture_bytes(batch, columns)
                for group in range(parquet.num_row_groups)  # pyarrow cannot join nested dictionaries of several
                for batch in _batches(parquet, file, group, column, _ROWS * 32)
            ]
            if not _has_labels(parquet, file, columns):
                return ImageTable(parts, None, (), ())
            labels = parquet.read(columns=[columns.label]).column(0)
            metadata = parquet.schema_arrow.metadata
        numbers, names = _numbered(labels, class_names(metadata, columns.label), file, columns)
    return ImageTable(parts, numbers, names, class_ids(metadata))


def _numbered(
    labels: pa.ChunkedArray, names: tuple[str, ...], file: str, columns: Columns
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels as class numbers, -1 for none."""
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    if any(check(labels.type) for check in _TEXTS):
        texts = [None if value is None else _label_text(value) for value in labels.to_pylist()]
        names = tuple(sorted({text for text in texts if text is not None}))
        numbers = {name: number for number, name in enumerate(names)}
        return np.array([-1 if text is None else numbers[text] for text in texts], np.int64), names
    said = ""
    if not (pa.types.is_integer(labels.type) or pa.types.is_boolean(labels.type)):
        said = f"is {labels.type}; labels are integers or strings"
    elif (greatest := pc.max(labels).as_py() or 0) >= _CLASSES:
        said = f"holds {greatest}; class numbers are below {_CLASSES:,}"
    if said:
        raise ImageError("unsupported", f"{escape_path(file)}: column {one_line(columns.label)} {said}")
    return np.maximum(labels.cast(pa.int64()).fill_null(-1).to_numpy(), -1), names
