"""An index brought up to date with its data set: new rows in, changed ones replaced, dropped ones out.

The binarizer stays, so that the codes of rows that stay are what they were. Knows nothing of images.
"""

# n rows (images)

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bigr_repr._typing import PathLike
from bigr_repr.retrieval.codes.dataset import DataCodes
from bigr_repr.retrieval.codes.provenance import require_same_provenance
from bigr_repr.retrieval.codes.rows import IndexRows
from bigr_repr.retrieval.codes.source import DataFile, DataSource, full_path, part_state
from bigr_repr.retrieval.index.folder import writing
from bigr_repr.retrieval.index.hamming import HammingIndex
from bigr_repr.retrieval.index.storage import RowWriter

__all__ = ["Updated", "update_index"]

_KEPT = 1 << 16  # rows copied at a time


@dataclass(frozen=True, kw_only=True)
class Updated:
    """What an update did. kept, read: rows that stay as they were, and rows read from the data set; dropped: the rest.

    files: of the data set that were read.
    """

    kept: int
    read: int
    dropped: int
    files: int


def update_index(index: PathLike, dataset: PathLike | None = None) -> Updated:
    """Bring an index folder up to date with its data set; only files that are new or changed are read.

    dataset: the folder or URL; None: the one that the index was built of. Rows that were removed from the index stay
    out until their file of the data set changes. Lists of ivf are edited, graphs and tables get what is new and are
    built anew when rows go. The index is replaced in one step, as build_index does.

    Raises ValueError for an index that does not say which data set it is of, and for a data set of another make.
    """
    old = HammingIndex.load(index)
    if old.source is None or old.provenance is None:
        raise ValueError(f"{index} does not say which data set it is of; build it again")
    binarizer = "bits" if old.binarizer is None else old.binarizer
    folder = old.source.folder if dataset is None else dataset
    keep = () if old.rows.columns is None else old.rows.columns.column_names
    data = DataCodes(folder, binarizer, layer=old.provenance["layer"], keep=keep)
    require_same_provenance(old.provenance, data.provenance)
    plan = list(_plan(old.source, data))
    rows_of = np.concatenate([rows for _, rows in plan])
    kept = int((rows_of >= 0).sum())
    files = sum(1 for part, rows in plan if part.held and rows[0] < 0)
    with writing(Path(index)) as writer:
        rows = RowWriter(writer)
        for batch in _rows(old, data, plan):
            rows.append(batch)
        mapped = rows.mapped()
        source = DataSource(folder=full_path(data.data.folder), parts=tuple(part for part, _ in plan))
        built = old.moved(mapped, rows_of, source)
        rows.commit(built.parts)
    return Updated(kept=kept, read=len(rows_of) - kept, dropped=len(old) - kept, files=files)


def _plan(old: DataSource, data: DataCodes) -> Iterator[tuple[DataFile, NDArray[np.int64]]]:
    """For each file of the data set: what to record of it, and the index's rows that stay, or -1 for rows to read."""
    known = {part.name: number for number, part in enumerate(old.parts)}
    for file, count in zip(data.data.files, data.data.rows_of_files, strict=True):
        part = DataFile(file.name, count, count, *part_state(file))
        number = known.get(file.name)
        if number is not None and old.parts[number]._replace(held=count) == part:
            start, end = old.starts[number : number + 2]
            yield part._replace(held=end - start), np.arange(start, end)
        else:
            yield part, np.full(count, -1, np.int64)


def _rows(old: HammingIndex, data: DataCodes, plan: list[tuple[DataFile, NDArray[np.int64]]]) -> Iterator[IndexRows]:
    vectors = None if old.rows.vectors is None else old.rows.vectors.dtype.name
    for number, (part, rows) in enumerate(plan):
        if part.held and rows[0] < 0:
            yield from data.only(number).batches(vectors)
        else:
            for start in range(0, len(rows), _KEPT):
                yield old.rows.between(rows[start], rows[min(start + _KEPT, len(rows)) - 1] + 1)
