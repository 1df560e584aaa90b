"""Which data set an index was built of, and what has become of it since. Knows nothing of search."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bigr_repr.embed.dataset.read import EmbeddingSet
from bigr_repr.system.object_store import Place, as_place, is_url, readable

__all__ = ["DataFile", "DataSource", "Drift", "full_path", "part_state"]


class DataFile(NamedTuple):
    """A file of a data set. rows: that it had; held: of those, in the index. time: of its last change, in ns."""

    name: str
    rows: int
    held: int
    size: int
    time: int | None


class Drift(NamedTuple):
    """How a data set differs from what an index was built of.

    rows: that it has now; held: that the index has of the files that are as they were; files: new, changed and gone.
    """

    rows: int
    held: int
    files: int


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """The data set of an index. folder: its path or URL; parts: in the order of the index's rows."""

    folder: str
    parts: tuple[DataFile, ...]

    @classmethod
    def of(cls, data: EmbeddingSet, rows: Iterable[int]) -> DataSource:
        """All of an opened data set. rows: of each of its files."""
        parts = [DataFile(file.name, n, n, *part_state(file)) for file, n in zip(data.files, rows, strict=True)]
        return cls(folder=full_path(data.folder), parts=tuple(parts))

    @property
    def rows(self) -> int:
        """Rows of the index."""
        return sum(part.held for part in self.parts)

    @cached_property
    def starts(self) -> list[int]:
        """The first row of each part in the index, and the number of all rows."""
        return list(accumulate((part.held for part in self.parts), initial=0))

    def place_of(self, row: int) -> tuple[DataFile, int]:
        """The part that a row of the index is of, and its place there among those held."""
        number = int(np.searchsorted(self.starts, row, "right")) - 1
        return self.parts[number], row - self.starts[number]

    def keeping(self, rows: NDArray[np.int64]) -> DataSource:
        """Of an index that keeps only these of its rows, ascending."""
        held = np.diff(np.searchsorted(rows, self.starts)).tolist()
        parts = (part._replace(held=count) for part, count in zip(self.parts, held, strict=True))
        return DataSource(folder=self.folder, parts=tuple(parts))

    def drift(self) -> Drift | None:
        """How the data set has changed; None: not at all, or it is not at hand."""
        try:
            files: list[Place] = list(as_place(self.folder).glob("part-*.parquet"))
            now = {file.name: (part_state(file), file) for file in files}
        except OSError:
            return None
        if not now:
            return None
        known = {part.name: part for part in self.parts}
        same = {name for name, (state, _) in now.items() if name in known and known[name][3:] == state}
        rows = sum(known[name].rows for name in same) + sum(_rows(now[name][1]) for name in now.keys() - same)
        held = sum(known[name].held for name in same)
        files_changed = len(now.keys() - same) + len(known.keys() - now.keys())
        return Drift(rows, held, files_changed) if files_changed or held != rows else None

    def to_dict(self, index: Path) -> dict[str, Any]:
        """Plain data for the manifest of the index folder, to which a local data set's path is relative."""
        folder = self.folder if is_url(self.folder) else os.path.relpath(self.folder, index.absolute())
        return {"folder": folder, "parts": [list(part) for part in self.parts]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], index: Path) -> DataSource:
        """The inverse of to_dict.  Raises ValueError for anything else."""
        try:
            folder = str(data["folder"])
            parts = [DataFile(str(name), *numbers) for name, *numbers in data["parts"]]
            if not all(isinstance(n, int) for _, *numbers, _ in parts for n in numbers):
                raise ValueError("sizes that are no numbers")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no data set ({error})") from error
        joined = folder if is_url(folder) else os.path.normpath(index.absolute() / folder)
        return cls(folder=joined, parts=tuple(parts))


def full_path(folder: Place) -> str:
    """A URL as it is, or an absolute path; links stay."""
    return str(folder) if is_url(str(folder)) else os.path.abspath(folder)  # noqa: PTH100


def part_state(file: Place) -> tuple[int, int | None]:
    """Size and time of the last change of a file; stores give no time."""
    status = file.stat()
    return status.st_size, getattr(status, "st_mtime_ns", None)


def _rows(file: Place) -> int:
    try:
        with pq.ParquetFile(readable(file)) as parquet:
            return int(parquet.metadata.num_rows)
    except (OSError, ValueError):
        return 0
