"""Reads an index from a folder: which parts it has, and how each is verified. Knows nothing of search."""

# n rows, D features

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from bigr_repr.codes import code_bytes
from bigr_repr.retrieval.codes.binarizer import Binarizer
from bigr_repr.retrieval.codes.dropped_rows import Gaps, stored_rows
from bigr_repr.retrieval.codes.provenance import parse_provenance
from bigr_repr.retrieval.codes.regions import TokenLayout
from bigr_repr.retrieval.codes.rows import IndexRows
from bigr_repr.retrieval.codes.source import DataSource
from bigr_repr.retrieval.index.distinct import Groups
from bigr_repr.retrieval.index.folder import BINARIZER, FolderReader, MappedPart, read_folder
from bigr_repr.retrieval.index.parts import Parts
from bigr_repr.retrieval.index.reading_ids import stored_columns, stored_ids
from bigr_repr.retrieval.index.recall import SelfCheck
from bigr_repr.retrieval.index.settings import IndexSettings

_MOST_BITS: Final = 1 << 20
_MOST_ROWS: Final = 1 << 40
_VECTORS: Final = ("float16", "float32")


def load_parts(folder: Path, *, memory_map: bool, max_bytes: int | None) -> Parts:
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
    """Number of stored rows in an approximate index's FAISS file: those that existed when it was built."""
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
        ids=stored_ids(reader, count, memory_map=memory_map),
        codes=codes,
        tokens=tokens,
        vectors=vectors,
        columns=stored_columns(reader, count, memory_map=memory_map),
        verify=partial(_verify, reader, {"codes": codes, "tokens": tokens, "vectors": vectors}) if memory_map else None,
    )
    gaps = read_gaps(reader)
    return rows if gaps is None else rows.without(gaps)


def _verify(reader: FolderReader, arrays: dict[str, NDArray[Any] | None]) -> None:
    """Raise ValueError, naming the file, unless memory-mapped arrays are what was written."""
    for part, array in arrays.items():
        if array is not None:
            path = reader.folder / str(reader.entry(part)["name"])
            MappedPart(array.reshape(-1), reader.pieces(part), path).check_all()


def read_gaps(reader: FolderReader) -> Gaps | None:
    """Which stored rows the index has dropped; None if none."""
    if "gone" not in reader:
        return None
    size = reader.entry("gone")["bytes"]
    gone = reader.array("gone", "int64", (size // 8,), memory_map=False)
    try:
        return Gaps(gone, _whole(reader, "count", 0, _MOST_ROWS))
    except ValueError as error:
        raise reader.damaged(str(error)) from error


def _groups(reader: FolderReader, count: int) -> Groups | None:
    """Which rows have equal codes, verified; None if none have."""
    if "distinct" not in reader:
        return None
    of_row = reader.array("distinct", "int64", (count,), memory_map=False)
    if of_row.min() < 0 or of_row.max() >= count:
        raise reader.damaged("numbers of codes that do not exist")
    return Groups(of_row)


def read_source(reader: FolderReader, count: int) -> DataSource | None:
    """The data sets of a folder with this many stored rows; None if unknown."""
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
    """The binarizer of a folder's codes; None if they are not made from features."""
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
