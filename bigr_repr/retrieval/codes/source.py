"""Which data sets an index was built from, and how they have changed since. Knows nothing of search."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bigr_repr.embed.dataset.damage import PART
from bigr_repr.system.object_store import ObjectPath, Place, as_place, is_url

if TYPE_CHECKING:
    from bigr_repr.embed.dataset.read import EmbeddingSet

__all__ = ["DataFile", "DataSource", "Drift", "Listing", "full_path", "listing", "part_state"]

Listing: TypeAlias = dict[str, tuple[tuple[int, int | None], Place]]


class DataFile(NamedTuple):
    """A file of a data set. rows: that it had; held: those in the index. time: modification time, in ns, None if a
    store does not tell it, as in indexes of earlier versions. dataset: number of its data set.
    """

    name: str
    rows: int
    held: int
    size: int
    time: int | None
    dataset: int = 0

    def still(self, state: tuple[int, int | None]) -> bool:
        """Whether a file of this size and time is the same; times count where both are known."""
        size, time = state
        return self.size == size and (self.time == time or None in (self.time, time))


class Drift(NamedTuple):
    """How a data set differs from the state an index was built from.

    rows: that it has now; held: rows in the index from unchanged files; files: new, changed and missing ones;
    stale: rows in the index from files that are changed or missing.
    """

    rows: int
    held: int
    files: int
    stale: int


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """The data sets of an index. folders: their paths or URLs; parts: files, in the order of the index's rows."""

    folders: tuple[str, ...]
    parts: tuple[DataFile, ...]

    @classmethod
    def of(cls, data: EmbeddingSet, rows: Iterable[int]) -> DataSource:
        """The whole of an opened data set. rows: of each of its files."""
        folder = full_path(data.folder)
        states = {name: state for name, (state, _) in listing(folder).items()}
        parts = (
            DataFile(file.name, n, n, *(states.get(file.name) or part_state(file)))
            for file, n in zip(data.files, rows, strict=True)
        )
        return cls(folders=(folder,), parts=tuple(parts))

    @classmethod
    def joined(cls, sources: Sequence[DataSource]) -> DataSource:
        """The sources of concatenated rows. A data set that several have becomes one, unless they share its files."""
        folders: list[str] = []
        names: list[set[str]] = []
        parts: list[DataFile] = []
        for source in sources:
            numbers = []
            for number, folder in enumerate(source.folders):
                own = {part.name for part in source.parts if part.dataset == number}
                at = next(
                    (i for i, known in enumerate(folders) if known == folder and not own & names[i]), len(folders)
                )
                if at == len(folders):
                    folders.append(folder)
                    names.append(set())
                names[at] |= own
                numbers.append(at)
            parts += [part._replace(dataset=numbers[part.dataset]) for part in source.parts]
        return cls(folders=tuple(folders), parts=tuple(parts))

    @property
    def rows(self) -> int:
        """Number of rows in the index."""
        return sum(part.held for part in self.parts)

    @cached_property
    def starts(self) -> list[int]:
        """The first row of each part in the index, and the total number of rows."""
        return list(accumulate((part.held for part in self.parts), initial=0))

    def still(self, now: DataSource) -> bool:
        """Whether these are the same rows of the same files, in order; times count where both are known."""
        return (self.folders, len(self.parts)) == (now.folders, len(now.parts)) and all(
            mine.still((its.size, its.time)) and mine._replace(time=its.time) == its
            for mine, its in zip(self.parts, now.parts, strict=True)
        )

    def place_of(self, row: int) -> tuple[str, DataFile, int]:
        """The data set and part of a row of the index, and its place among the part's held rows."""
        number = int(np.searchsorted(self.starts, row, "right")) - 1
        part = self.parts[number]
        return self.folders[part.dataset], part, row - self.starts[number]

    def keeping(self, rows: NDArray[np.int64]) -> DataSource:
        """The source of an index that keeps only these rows, ascending."""
        held = np.diff(np.searchsorted(rows, self.starts)).tolist()
        parts = (part._replace(held=count) for part, count in zip(self.parts, held, strict=True))
        return DataSource(folders=self.folders, parts=tuple(parts))

    def files_of(self, dataset: int) -> dict[str, int]:
        """The numbers of a data set's parts, by name."""
        return {part.name: number for number, part in enumerate(self.parts) if part.dataset == dataset}

    def drift(self, dataset: int = 0, now: Listing | None = None) -> Drift | None:
        """How a data set has changed; None if it has not, or cannot be found. now: its listing, if known."""
        now = listing(self.folders[dataset]) if now is None else now
        if not now:
            return None
        known = {name: self.parts[number] for name, number in self.files_of(dataset).items()}
        same = {name for name, (state, _) in now.items() if name in known and known[name].still(state)}
        fresh = [(place, state[0]) for name, (state, place) in now.items() if name not in same]
        rows = sum(known[name].rows for name in same) + _rows(self.folders[dataset], fresh)
        held = sum(known[name].held for name in same)
        files_changed = len(fresh) + len(known.keys() - now.keys())
        stale = sum(part.held for name, part in known.items() if name not in same)
        return Drift(rows, held, files_changed, stale) if files_changed or held != rows else None

    def to_dict(self, index: Path) -> dict[str, Any]:
        """Plain data for the manifest of the index folder, to which a local data set's path is relative."""
        folders = [each if is_url(each) else os.path.relpath(each, index.absolute()) for each in self.folders]
        if len(folders) == 1:
            return {"folder": folders[0], "parts": [list(part[:5]) for part in self.parts]}
        return {"folders": folders, "parts": [list(part) for part in self.parts]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], index: Path) -> DataSource:
        """The inverse of to_dict.  Raises ValueError for anything else."""
        try:
            folders = [str(each) for each in data["folders"]] if "folders" in data else [str(data["folder"])]
            parts = [DataFile(str(name), *numbers) for name, *numbers in data["parts"]]
            if not all(isinstance(n, int) for part in parts for n in (*part[1:4], part.dataset)):
                raise ValueError("sizes that are no numbers")
            if not all(0 <= part.dataset < len(folders) for part in parts):
                raise ValueError("files of no data set")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no data set ({error})") from error
        joined = (each if is_url(each) else os.path.normpath(index.absolute() / each) for each in folders)
        return cls(folders=tuple(joined), parts=tuple(parts))


def listing(folder: str) -> Listing:
    """The files of a data set by name, in order, with their states and places; empty if it cannot be found.

    A store is queried once for all of them.
    """
    place, found = as_place(folder), dict[str, tuple[int, int | None]]()
    try:
        if isinstance(place, ObjectPath):
            found = {name: (state.st_size, state.st_mtime_ns or None) for name, state in place.states()}
        elif place.is_dir():
            with os.scandir(place) as entries:
                found = {entry.name: part_state(Path(entry.path)) for entry in entries if PART.fullmatch(entry.name)}
    except OSError:
        return {}
    names = sorted(filter(PART.fullmatch, found), key=lambda name: (len(name), name))
    return {name: (found[name], place / name) for name in names}


def full_path(folder: Place) -> str:
    """A URL as is, or an absolute path, without resolving links."""
    return str(folder) if is_url(str(folder)) else os.path.abspath(folder)  # noqa: PTH100


def part_state(file: Place) -> tuple[int, int | None]:
    """Size and modification time of a file; None for the time if a store does not tell it."""
    status = file.stat()
    return status.st_size, (status.st_mtime_ns or None) if isinstance(file, ObjectPath) else status.st_mtime_ns


def _rows(folder: str, files: Sequence[tuple[Place, int]]) -> int:
    """Number of rows in files of a data set, from its list of parts or, if unlisted, from the file itself."""
    if not files:
        return 0
    from bigr_repr.embed.dataset.parts import open_parts
    from bigr_repr.embed.dataset.plan import RUN_FOLDER

    rows = 0
    with suppress(OSError, ValueError):  # damaged or being written
        for part in open_parts(as_place(folder) / RUN_FOLDER, files):
            rows += part.rows
    return rows
