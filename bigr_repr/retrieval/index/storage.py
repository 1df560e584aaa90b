"""Writes an index's rows and other parts to a folder. Knows nothing of search."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bigr_repr._version import __version__
from bigr_repr.retrieval.codes.rows import IndexRows
from bigr_repr.retrieval.codes.source import DataSource
from bigr_repr.retrieval.index.folder import BINARIZER, FolderReader
from bigr_repr.retrieval.index.folder_writer import FolderWriter, writing
from bigr_repr.retrieval.index.parts import Parts
from bigr_repr.retrieval.index.settings import IndexSettings

_CHUNK: Final = 32 << 20  # bytes written at a time
_ROWS_A_BATCH: Final = 1 << 16  # of columns


class RowWriter:
    """Appends rows to a folder's new state, chunk by chunk; memory holds one chunk.

    base: the existing state, to whose files they are appended.
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
        """Append rows that are compatible with the earlier ones."""
        if self._named is None:
            self._named = not pa.types.is_integer(rows.id_type)
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
        for chunk in _slices(ids):
            if not self._named:
                self._writer.append("ids", chunk.to_numpy(zero_copy_only=False))
                continue
            _, offsets, text = chunk.buffers()
            bounds = np.frombuffer(offsets, np.int64, len(chunk) + 1, 8 * chunk.offset)
            if text is not None:
                self._writer.append("ids", memoryview(text)[bounds[0] : bounds[-1]])
            self._writer.append("offsets", bounds[1:] - bounds[0] + self._end)
            self._end += int(bounds[-1] - bounds[0])

    def mapped(self) -> IndexRows:
        """All rows so far, memory-mapped from the files; nothing more can be appended."""
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
        """Write whatever completes the rows; nothing more can be appended."""
        if self._columns is not None:
            self._columns.close()
            self._columns = None  # closing it again would start the file over

    def commit(self, index: Parts, asked: IndexSettings | None = None) -> None:
        """Write everything except the rows, and make it the folder's state. index: of the appended rows. asked: the
        settings asked for, of which the build chose some.

        Raises ValueError if its data sets are not of as many rows: one changed while it was read.
        """
        writer = self._writer
        self.finish()
        check_source(index.source, self.count)
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
                **({} if asked is None else {"asked": asked.to_dict()}),
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


def check_source(source: DataSource | None, rows: int) -> None:
    """Raise ValueError unless the data sets have this many rows: files of one were replaced while they were read."""
    if source is not None and source.rows != rows:
        raise ValueError(
            f"{', '.join(source.folders)} changed while it was read: {rows} rows instead of {source.rows}; repeat the "
            "command when nothing writes it"
        )


def save_parts(index: Parts, folder: Path) -> Path:
    """See HammingIndex.save."""
    index.rows.verify()
    with writing(folder) as writer:
        rows = RowWriter(writer)
        rows.append(index.rows)
        rows.commit(index)
    return folder


def _slices(ids: pa.Array) -> Iterator[pa.Array]:
    step = 1 << 15
    for start in range(0, len(ids), step):
        yield ids.slice(start, step)
