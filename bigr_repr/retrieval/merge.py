"""Merges several indexes with comparable codes into one. Knows nothing of images."""

# n rows (images)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import pyarrow as pa

from bigr_repr._typing import PathLike
from bigr_repr.retrieval.codes.provenance import differing_fields
from bigr_repr.retrieval.codes.source import DataSource
from bigr_repr.retrieval.index.folder_writer import writing
from bigr_repr.retrieval.index.hamming import HammingIndex
from bigr_repr.retrieval.index.storage import RowWriter

__all__ = ["merge_indexes"]

_ROWS: Final = 1 << 16  # copied at a time


def merge_indexes(indexes: Sequence[PathLike], out: PathLike) -> HammingIndex:
    """Merge the rows of several index folders, in order, into one index; returns it opened, memory-mapped.

    An index of the first one's kind is rebuilt from all rows. An id that occurs in several indexes names several rows.
    The new index keeps all their data sets, if each knows its own. out: a folder, possibly one of the indexes; it is
    written atomically.

    Raises ValueError, naming the folder, for codes that cannot be compared and for incompatible rows, and, naming the
    file, for damage.
    """
    opened = [HammingIndex.load(folder) for folder in indexes]
    if not sum(map(len, opened)):
        raise ValueError("no rows to merge; name indexes that hold some")
    first = opened[0]
    for folder, other in zip(indexes[1:], opened[1:], strict=True):
        if found := _difference(first, other):
            raise ValueError(f"{folder} cannot be merged with {indexes[0]}: {found}")
    sources = [index.source for index in opened if index.source is not None]
    settings = replace(first.settings, lists=None, hash_bits=None, effort=None)
    with writing(Path(out)) as writer:
        rows = RowWriter(writer)
        for index in opened:
            index.rows.verify()
            for start in range(0, len(index), _ROWS):
                rows.append(index.rows.between(start, min(start + _ROWS, len(index))))
        built = HammingIndex.of_rows(
            rows.mapped(), first.n_bits, settings, binarizer=first.binarizer, layout=first.layout,
            provenance=first.provenance,
            source=DataSource.joined(sources) if len(sources) == len(opened) else None,
        )  # fmt: skip
        rows.commit(built.parts)
    return HammingIndex.load(out)


def _difference(one: HammingIndex, other: HammingIndex) -> str | None:
    """Why two indexes cannot be merged; None if they can."""
    if (one.provenance is None) != (other.provenance is None):
        return "only one of them records which model made its codes"
    if found := one.provenance and other.provenance and differing_fields(one.provenance, other.provenance):
        return f"their codes differ in {found}; build both from data sets of one model, with the same --codes"
    mine, theirs = (each.binarizer and each.binarizer.to_safetensors() for each in (one, other))
    if mine != theirs:
        return "their binarizers differ; build the second with: index build --like FIRST"
    for part in ("bits", "ids", "tokens", "vectors", "columns"):
        if (a := _made(one, part)) != (b := _made(other, part)):
            return f"{part} are {a} in the first, {b} in this one; build both with the same settings"
    return None


def _made(index: HammingIndex, part: str) -> str:
    """A short description of one part of the rows."""
    if part == "bits":
        return str(index.n_bits)
    if part == "ids":
        return "numbers" if pa.types.is_integer(index.rows.id_type) else "names"
    if part == "columns":
        return ", ".join(f"{name} ({kind})" for name, kind in index.rows.column_names.items()) or "none"
    array = getattr(index.rows, part)
    return "none" if array is None else f"{array.dtype} of width {array.shape[1]}"
