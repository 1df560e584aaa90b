"""Appends rows to an index folder and drops some, in time proportional to the change. Knows no data sets.

Only the manifest of the index is read, and only the new rows, the numbers of dropped rows, and a manifest are written.
"""

# n rows

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bigr_repr._version import __version__
from bigr_repr.retrieval.codes.binarizer import Binarizer
from bigr_repr.retrieval.codes.dropped_rows import Gaps
from bigr_repr.retrieval.codes.provenance import parse_provenance
from bigr_repr.retrieval.codes.rows import IndexRows
from bigr_repr.retrieval.codes.source import DataSource
from bigr_repr.retrieval.index.folder import FolderReader
from bigr_repr.retrieval.index.folder_writer import FolderWriter
from bigr_repr.retrieval.index.reading import covered_rows, read_binarizer, read_gaps, read_source
from bigr_repr.retrieval.index.reading_ids import kept_names
from bigr_repr.retrieval.index.settings import IndexSettings
from bigr_repr.retrieval.index.storage import RowWriter, check_source

__all__ = ["FolderState", "grow"]

_GONE: Final = 8  # at most one row in this many may be dropped: searches skip them
_TAIL: Final = 10  # at most one row in this many may be new to an approximate index: searches compare with all of them
_FEW: Final = 1024  # new rows that are always allowed


@dataclass(frozen=True, kw_only=True)
class FolderState:
    """A folder's state from its manifest. gaps: in its stored rows. covered: rows in the approximate index.

    columns: names of kept columns; vectors: their dtype, None if there are none. asked: the settings that its build was
    given, if recorded; `settings` has those that the build chose.
    """

    settings: IndexSettings
    asked: IndexSettings | None
    provenance: dict[str, Any] | None
    source: DataSource | None
    binarizer: Binarizer | None
    gaps: Gaps
    covered: int
    columns: tuple[str, ...]
    vectors: str | None

    @classmethod
    def read(cls, reader: FolderReader) -> FolderState:
        """The state of a folder.  Raises ValueError for a damaged one."""
        stored = reader.field("count", int)
        vectors = reader.field("vectors", dict, optional=True)
        asked = reader.field("asked", dict, optional=True)
        return cls(
            settings=IndexSettings.from_dict(reader.field("settings", dict)),
            asked=None if asked is None else IndexSettings.from_dict(asked),
            provenance=parse_provenance(reader.field("origin", dict, optional=True)),
            source=read_source(reader, stored), binarizer=read_binarizer(reader, reader.field("n_bits", int)),
            gaps=read_gaps(reader) or Gaps(np.empty(0, np.int64), stored), covered=covered_rows(reader),
            columns=tuple(kept_names(reader)),
            vectors=None if vectors is None else vectors["dtype"],
        )  # fmt: skip

    def has_room(self, gone: int, new: int) -> bool:
        """Whether this many rows can be dropped and added without rewriting the index."""
        stored = self.gaps.stored + new
        left = stored - len(self.gaps.gone) - gone
        if not len(self.gaps) or not left or _GONE * (stored - left) > stored:
            return False
        return self.settings.kind in ("flat", "hash") or stored - self.covered <= max(_FEW, self.covered // _TAIL)


def grow(
    writer: FolderWriter,
    reader: FolderReader,
    gone: NDArray[np.int64],
    batches: Iterator[IndexRows],
    source: DataSource | None,
) -> None:
    """Append rows to the folder's state and drop some.

    gone: stored rows to drop, ascending. batches: compatible rows to append. source: of all rows together.
    """
    state = FolderState.read(reader)
    rows = RowWriter(writer, reader)
    for batch in batches:
        rows.append(batch)
    rows.finish()
    gaps = state.gaps.more(gone, rows.count)
    check_source(source, len(gaps))
    if len(gaps.gone):
        writer.append("gone", gaps.gone)
    manifest = {name: value for name, value in reader.manifest.items() if name not in ("files", "format", "sha256")}
    covered = {} if state.settings.kind in ("flat", "hash") else {"covered": state.covered}
    dataset = None if source is None else source.to_dict(reader.folder)
    writer.commit({**manifest, **covered, "package_version": __version__, "count": rows.count, "dataset": dataset})
