"""HammingIndex to a folder and back: which parts there are, and how each is checked. Knows nothing of search."""

# n rows, D features

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bigr_repr._version import __version__
from bigr_repr.codes import code_bytes
from bigr_repr.retrieval.codes.binarizer import Binarizer
from bigr_repr.retrieval.codes.columns import kept_type
from bigr_repr.retrieval.codes.live import Gaps, stored_rows
from bigr_repr.retrieval.codes.provenance import parse_provenance
from bigr_repr.retrieval.codes.regions import TokenLayout
from bigr_repr.retrieval.codes.rows import IndexRows
from bigr_repr.retrieval.codes.source import DataSource
from bigr_repr.retrieval.index.distinct import Groups
from bigr_repr.retrieval.index.folder import BINARIZER, FolderReader, FolderWriter, read_folder, writing
from bigr_repr.retrieval.index.recall import SelfCheck
from bigr_repr.retrieval.index.settings import IndexSettings

if TYPE_CHECKING:
    from bigr_repr.retrieval.index.approximate import Approximate

_CHUNK: Final = 32 << 20  # bytes written at a time
_ROWS_A_BATCH: Final = 1 << 16  # of columns
_MOST_BITS: Final = 1 << 20
_MOST_ROWS: Final = 1 << 40
_VECTORS: Final = ("float16", "float32")


class Parts(NamedTuple):
    """What an index consists of: the rows, what searches them, and what they are."""

    rows: IndexRows
    n_bits: int
    settings: IndexSettings
    approximate: Approximate | None
    binarizer: Binarizer | None
    layout: TokenLayout | None
    provenance: Mapping[str, Any] | None
    self_check: SelfCheck | None
    source: DataSource | None = None


class RowWriter:
    """Appends rows to a folder's new state, chunk by chunk; memory holds one chunk.

    base: the state whose rows are before them, in the same files.
    """

    def __init__(self, writer: FolderWriter, base: FolderReader | None = None) -> None:
        self.count, self._writer, self._end = 0, writer, 0
        self._named: bool | None = None
        if base is not None:
            writer.extend(base)
            self.count, self._named = base.field("count", int), base.field("ids", str) == "names"
            self._end = base.entry("ids")["bytes"] if self._named else 0
        self._shapes: dict[str, tuple[np.dtype[Any], int]] = {}
        self._columns: pa.RecordBatchStreamWriter | None = None

    def append(self, rows: IndexRows) -> None:
        """Append rows of the same make as those before."""
        if self._named is None:
            self._named = not pa.types.is_integer(rows.ids.type)
            self._writer.append("ids", b"")
            if self._named:
                self._writer.append("offsets", np.zeros(1, np.int64))
        self._append_ids(rows.ids)
        for part in ("codes", "tokens", "vectors"):
            array = getattr(rows, part)
            if array is not None:
                self._shapes[part] = array.dtype, array.shape[1]
                step = max(1, _CHUNK // max(1, array[:1].nbytes))
                for start in range(0, max(1, len(array)), step):
                    self._writer.append(part, array[start : start + step])
        if rows.columns is not None:
            if self._columns is None:
                sink = pa.PythonFile(_PartFile(self._writer, "columns"), "w")
                self._columns = pa.ipc.new_stream(sink, rows.columns.schema)
            self._columns.write_table(rows.columns, _ROWS_A_BATCH)
        self.count += len(rows)

    def _append_ids(self, ids: pa.Array) -> None:
        if not self._named:
            self._writer.append("ids", ids.to_numpy(zero_copy_only=False))
            return
        for chunk in _slices(ids):
            _, offsets, text = chunk.buffers()
            bounds = np.frombuffer(offsets, np.int64, len(chunk) + 1, 8 * chunk.offset)
            if text is not None:
                self._writer.append("ids", memoryview(text)[bounds[0] : bounds[-1]])
            self._writer.append("offsets", bounds[1:] - bounds[0] + self._end)
            self._end += int(bounds[-1] - bounds[0])

    def mapped(self) -> IndexRows:
        """All rows so far, mapped from the files that were written; nothing can be appended any more."""
        self.finish()
        files = {part: self._writer.close_part(part) for part in self._writer.appended}

        def part(name: str) -> NDArray[Any] | None:
            if name not in files:
                return None
            dtype, width = self._shapes[name]
            return np.asarray(np.memmap(files[name], dtype, "r", shape=(self.count, width)))

        codes = part("codes")
        assert codes is not None
        ids = pa.memory_map(str(files["ids"])).read_buffer()
        if not self._named:
            names = pa.Array.from_buffers(pa.int64(), self.count, [None, ids])
        else:
            offsets = pa.memory_map(str(files["offsets"])).read_buffer()
            names = pa.LargeStringArray.from_buffers(self.count, offsets, ids)
        kept = None if "columns" not in files else pa.ipc.open_stream(pa.memory_map(str(files["columns"]))).read_all()
        return IndexRows(ids=names, codes=codes, tokens=part("tokens"), vectors=part("vectors"), columns=kept)

    def finish(self) -> None:
        """Write what ends the rows; none can be appended any more."""
        if self._columns is not None:
            self._columns.close()
            self._columns = None  # closing it again would begin the file anew

    def commit(self, index: Parts) -> None:
        """Write what is not rows, and make all of it the folder's state. index: of the rows appended."""
        writer = self._writer
        self.finish()
        if index.approximate is not None and index.approximate.write(writer.path("search")):
            writer.adopt("search")
            if index.approximate.groups is not None:
                writer.append("distinct", index.approximate.groups.of_row)
        if index.binarizer is not None:
            writer.append(BINARIZER, index.binarizer.to_safetensors())
        layout, binarizer, vectors = index.layout, index.binarizer, index.rows.vectors
        writer.commit(
            {
                "package_version": __version__,
                "count": self.count,
                "n_bits": index.n_bits,
                "ids": "names" if self._named else "numbers",
                "settings": index.settings.to_dict(),
                "layout": None if layout is None else [layout.height, layout.width, layout.bits_per_token],
                "vectors": None if vectors is None else {"dtype": vectors.dtype.name, "width": vectors.shape[1]},
                BINARIZER: None if binarizer is None else binarizer.kind,
                "origin": index.provenance,
                "dataset": None if index.source is None else index.source.to_dict(writer.folder),
                "self_check": None if index.self_check is None else index.self_check.to_dict(),
            }
        )


class _PartFile(io.RawIOBase):
    """A part of a folder's new state, as a file to write."""

    def __init__(self, writer: FolderWriter, part: str) -> None:
        self._writer, self._part = writer, part

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self._writer.append(self._part, view)
        return view.nbytes


def save(index: Parts, folder: Path) -> Path:
    """See HammingIndex.save."""
    with writing(folder) as writer:
        rows = RowWriter(writer)
        rows.append(index.rows)
        rows.commit(index)
    return folder


def load(folder: Path, *, memory_map: bool, max_bytes: int | None) -> Parts:
    """See HammingIndex.load."""
    return read_folder(folder, lambda reader: _load(reader, memory_map), max_bytes=max_bytes)


def _load(reader: FolderReader, memory_map: bool) -> Parts:
    n_bits, count = _whole(reader, "n_bits", 1, _MOST_BITS), _whole(reader, "count", 0, _MOST_ROWS)
    try:
        settings = IndexSettings.from_dict(reader.field("settings", dict))
        layout = _layout(reader.field("layout", list, optional=True))
        checked = reader.field("self_check", dict, optional=True)
        self_check = None if checked is None else SelfCheck.from_dict(checked)
        provenance = parse_provenance(reader.field("origin", dict, optional=True))
        source = read_source(reader, count)
    except (ValueError, TypeError) as error:
        raise reader.damaged(str(error)) from error
    rows = read_rows(reader, memory_map=memory_map)
    approximate = None
    if not settings.exact and count:
        from bigr_repr.retrieval.index.approximate import Approximate

        if settings.effort is None:
            raise reader.damaged("its settings lack an effort")
        if settings.kind == "hash":
            approximate = Approximate.build(settings, stored_rows(rows.codes)[0])
        else:
            covered = covered_rows(reader)
            groups = _groups(reader, covered)
            held = covered if groups is None else groups.count
            approximate = Approximate.read(settings, reader.path("search"), held, code_bytes(n_bits), groups)
    return Parts(
        rows, n_bits, settings, approximate, read_binarizer(reader, n_bits), layout, provenance, self_check, source
    )


def covered_rows(reader: FolderReader) -> int:
    """Stored rows that FAISS's file of an approximate index holds: those that were there when it was made."""
    count = _whole(reader, "count", 0, _MOST_ROWS)
    return count if reader.field("covered", int, optional=True) is None else _whole(reader, "covered", 1, count)


def read_rows(reader: FolderReader, *, memory_map: bool) -> IndexRows:
    """The rows of a folder."""
    n_bits, count = _whole(reader, "n_bits", 1, _MOST_BITS), _whole(reader, "count", 0, _MOST_ROWS)
    codes = reader.array("codes", "uint8", (count, code_bytes(n_bits)), memory_map=memory_map)
    tokens = vectors = None
    if "tokens" in reader:
        layout = _layout(reader.field("layout", list))
        assert layout is not None
        tokens = reader.array("tokens", "uint8", (count, code_bytes(layout.n_bits)), memory_map=memory_map)
    if (stored := reader.field("vectors", dict, optional=True)) is not None:
        dtype, width = stored.get("dtype"), stored.get("width")
        if dtype not in _VECTORS or not isinstance(width, int) or not 1 <= width <= _MOST_BITS:
            raise reader.damaged(f"vectors are {dtype!r:.20} and {width!r:.20} wide")
        vectors = reader.array("vectors", dtype, (count, width), memory_map=memory_map)
    rows = IndexRows(
        ids=_ids(reader, count), codes=codes, tokens=tokens, vectors=vectors, columns=_columns(reader, count)
    )
    gaps = read_gaps(reader)
    return rows if gaps is None else rows.without(gaps)


def read_gaps(reader: FolderReader) -> Gaps | None:
    """Which stored rows the index has dropped; None: none."""
    if "gone" not in reader:
        return None
    size = reader.entry("gone")["bytes"]
    gone = reader.array("gone", "int64", (size // 8,), memory_map=False)
    try:
        return Gaps(gone, _whole(reader, "count", 0, _MOST_ROWS))
    except ValueError as error:
        raise reader.damaged(str(error)) from error


def _ids(reader: FolderReader, count: int) -> pa.Array:
    """Ids, verified: a wrong one would be a wrong answer."""
    kind = reader.field("ids", str)
    if kind == "numbers":
        return pa.array(reader.array("ids", "int64", (count,), memory_map=False))
    if kind != "names":
        raise reader.damaged(f"ids are {kind!r:.20}")
    offsets = reader.array("offsets", "int64", (count + 1,), memory_map=False)
    size = int(offsets[-1])
    if offsets[0] != 0 or size < 0 or (np.diff(offsets) < 0).any():
        raise reader.damaged("names that overlap")
    text = reader.array("ids", "uint8", (size,), memory_map=False)
    names = pa.LargeStringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(text))
    try:
        names.validate(full=True)
    except pa.ArrowInvalid as error:
        raise reader.damaged(f"names that are no text: {error}") from error
    return names


def _columns(reader: FolderReader, count: int) -> pa.Table | None:
    """Kept columns, mapped, verified as ids are; None: there are none."""
    if "columns" not in reader:
        return None
    path, tables = reader.path("columns"), []
    try:
        with pa.memory_map(str(path)) as mapped:
            for size, _ in reader.pieces("columns"):
                tables.append(_piece(reader, mapped.read_buffer(size)))
        columns = pa.concat_tables(tables)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: damaged, no columns ({error}); build the index again") from error
    if len(columns) != count:
        raise reader.damaged(f"columns of {len(columns)} rows for {count} codes")
    return columns


def kept_names(reader: FolderReader) -> list[str]:
    """Names of the columns that a folder keeps, its content unverified."""
    if "columns" not in reader:
        return []
    with pa.memory_map(str(reader.folder / reader.entry("columns")["name"])) as mapped:
        return list(pa.ipc.open_stream(mapped).schema.names)


def _piece(reader: FolderReader, piece: pa.Buffer) -> pa.Table:
    with pa.ipc.open_stream(piece) as stream:
        kinds = [kept_type(field.name, field.type) for field in stream.schema]
        if len(set(stream.schema.names)) != len(kinds) or kinds != stream.schema.types:
            raise reader.damaged("columns of other types")
        columns = stream.read_all()
        columns.validate(full=True)
        return columns


def _groups(reader: FolderReader, count: int) -> Groups | None:
    """Which rows have equal codes, verified; None: none have."""
    if "distinct" not in reader:
        return None
    of_row = reader.array("distinct", "int64", (count,), memory_map=False)
    if of_row.min() < 0 or of_row.max() >= count:
        raise reader.damaged("rows of codes that there are not")
    return Groups(of_row)


def read_source(reader: FolderReader, count: int) -> DataSource | None:
    """The data sets of a folder with so many stored rows; None: it does not say."""
    recorded = reader.field("dataset", dict, optional=True)
    if recorded is None:
        return None
    source = DataSource.from_dict(recorded, reader.folder)
    if "gone" in reader:
        count -= reader.entry("gone")["bytes"] // 8
    if source.rows != count or min((part.held for part in source.parts), default=0) < 0:
        raise ValueError(f"a data set of {source.rows} rows for {count} codes")
    return source


def _layout(value: list[Any] | None) -> TokenLayout | None:
    if value is None:
        return None
    if len(value) != 3:
        raise ValueError(f"layout={value!r:.40} is not height, width and bits per token")
    return TokenLayout(height=value[0], width=value[1], bits_per_token=value[2])


def read_binarizer(reader: FolderReader, n_bits: int) -> Binarizer | None:
    """What made the codes of a folder, of so many bits, of features; None: they are of something else."""
    kind = reader.field(BINARIZER, str, optional=True)
    if kind is None:
        return None
    path = reader.path(BINARIZER)
    binarizer = Binarizer.from_safetensors(path.read_bytes(), kind, str(path))
    if binarizer.n_bits != n_bits:
        raise reader.damaged(f"a binarizer of {binarizer.n_bits} bits for codes of {n_bits}")
    return binarizer


def _whole(reader: FolderReader, name: str, low: int, high: int) -> int:
    value: int = reader.field(name, int)
    if not low <= value <= high:
        raise reader.damaged(f"{name} is {value}")
    return value


def _slices(ids: pa.Array) -> Iterator[pa.Array]:
    step = 1 << 18
    for start in range(0, len(ids), step):
        yield ids.slice(start, step)
