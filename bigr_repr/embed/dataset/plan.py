"""The list of inputs, written before the work begins and cut into units. Knows nothing of models or of what rows are.

The list is a Parquet file with one row group a unit: it is written as the inputs are found, a unit at a time, and any
unit is read without the others. Neighboring paths share their beginnings, which takes a byte or two of a path. What an
update adds is one more list, whose units follow; the lists before it stay as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from itertools import accumulate, islice
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from bigr_repr.images.find import Source, escape_path, unescape_path
from bigr_repr.system.files import HashedFile, replacing, sync_folder
from bigr_repr.system.object_store import Place, as_place, is_url, readable

RUN_FOLDER = "_run"  # in a data set's; readers of Parquet folders pass over names that begin with an underscore
_INPUTS, _DIGESTS, _CONTAINERS, _PLAN = "inputs", "digests", "containers", "plan.json"
_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("start", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("label", pa.string()),
    ]
)
_ENCODING = {
    "path": "DELTA_BYTE_ARRAY", "file": "DELTA_BYTE_ARRAY", "label": "DELTA_BYTE_ARRAY",
    "start": "DELTA_BINARY_PACKED", "size": "DELTA_BINARY_PACKED",
}  # fmt: skip


class Entry(NamedTuple):
    """One input. path: as recorded, escaped to be text; file: absolute, as the system names it, or a URL.

    start, size, label: which part of the file it is, and what the file says of it, as of bigr_repr.images.Source.
    """

    path: str
    file: str
    start: int | None = None
    size: int | None = None
    label: str | None = None


@dataclass(frozen=True)
class Plan:
    """Written lists of inputs. folder: where they are; lists: how many inputs each has, the first and what was added.

    unit_size: inputs of a unit; the last one of a list may have fewer. ids: what tells each list from others, its
    inputs and what is made of them: the same for the same; none in plans of earlier versions.
    """

    folder: Place
    lists: tuple[int, ...]
    unit_size: int
    provenance: dict[str, Any]
    ids: tuple[str, ...] = ()

    @property
    def inputs(self) -> int:
        """Number of inputs."""
        return sum(self.lists)

    @property
    def units(self) -> int:
        """Number of units."""
        return self._starts[-1]

    def size(self, unit: int) -> int:
        """Number of inputs of a unit."""
        number, group = self._at(unit)
        return min(self.unit_size, self.lists[number] - group * self.unit_size)

    def id_of(self, unit: int) -> str:
        """What a unit's record and shard name as the list that they are of; empty in plans of earlier versions."""
        number = self._at(unit)[0]
        return self.ids[number] if number < len(self.ids) else ""

    @property
    def stands(self) -> bool:
        """Whether the folder still holds this plan, and not one that another run made meanwhile."""
        now = open_plan(self.folder)
        return now is not None and now.ids[: len(self.ids)] == self.ids and now.lists[: len(self.lists)] == self.lists

    def entries(self, unit: int) -> list[Entry]:
        """The inputs of a unit, in order."""
        return _entries(self._file(_INPUTS, unit), self._at(unit)[1])

    def duplicates(self, unit: int) -> dict[int, str]:
        """Inputs of a unit that have the bytes of an earlier one: {place: path of that one}; none without dedup."""
        if not self.provenance.get("dedup"):
            return {}
        table = self._file(_DIGESTS, unit).read_row_group(self._at(unit)[1], columns=["same_as"])
        return {place: path for place, path in enumerate(table.column("same_as").to_pylist()) if path is not None}

    def digests(self, unit: int) -> list[bytes]:
        """SHA-256 of each input of a unit, or 32 zeros for one that could not be read; of a plan with dedup."""
        table = self._file(_DIGESTS, unit).read_row_group(self._at(unit)[1], columns=["sha256"])
        digests: list[bytes] = table.column("sha256").to_pylist()
        return digests

    def changed_container(self) -> str | None:
        """The first file holding several inputs that is no longer the one last listed, in words; None: none is."""
        stamps: dict[str, tuple[int, int]] = {}
        for number in range(len(self.lists)):
            place = self.folder / _named(_CONTAINERS, number)
            if place.exists():  # else it is a plan of an earlier version
                rows = pq.read_table(readable(place), partitioning=None).to_pylist()
                stamps |= {row["file"]: (row["size"], row["time"]) for row in rows}
        for file, then in stamps.items():
            if (now := _stamp(unescape_path(file))) != then:
                return f"{file} has changed since it was listed ({_stamp_words(then)}, now {_stamp_words(now)})"
        return None

    @cached_property
    def _starts(self) -> list[int]:
        """The first unit of every list, and the number of all units."""
        return list(accumulate((-(-count // self.unit_size) for count in self.lists), initial=0))

    def _at(self, unit: int) -> tuple[int, int]:
        """Number of the list that holds a unit, and the unit's number in it."""
        number = bisect_right(self._starts, unit) - 1
        return number, unit - self._starts[number]

    def _file(self, kind: str, unit: int) -> pq.ParquetFile:
        name = _named(kind, self._at(unit)[0])
        if name not in self._open:
            self._open[name] = pq.ParquetFile(readable(self.folder / name))
        return self._open[name]

    @cached_property
    def _open(self) -> dict[str, pq.ParquetFile]:
        return {}

    def difference(self, sources: Iterable[Source], on_listed: Callable[[int], None]) -> str | None:
        """Where a list of inputs departs from this one, in words; None: nowhere. For a plan of one list."""
        found, first = 0, None
        ours = (entry for unit in range(self.units) for entry in self.entries(unit))
        for new in map(as_entry, sources):
            old = next(ours, None)
            if first is None and old != new:
                first = f"input {found} was {_shown(old)}, is {_shown(new)}"
            found += 1
            if found % self.unit_size == 0:
                on_listed(found)
        if first is None and (gone := next(ours, None)) is not None:
            first = f"input {found} was {_shown(gone)}, is none"
        return first and f"inputs were {self.inputs}, are {found} ({first})"


def open_plan(folder: Place) -> Plan | None:
    """The plan in a folder; None if none was completed there. Raises ValueError for one of another format."""
    file = folder / _PLAN
    try:
        written = json.loads(file.read_text("utf-8"))
        if written["format"] != 2:
            raise ValueError(f"{file}: format {written['format']} is of another version; use that, or overwrite")
        ids = tuple(map(str, written.get("ids", ())))
        return Plan(folder, tuple(written["lists"]), written["unit_size"], written["provenance"], ids)
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: damaged ({error}); start again with overwrite") from error


class Listed(NamedTuple):
    """A list that list_inputs wrote. sha256: of its file."""

    inputs: int
    sha256: str


def list_inputs(folder: Place, sources: Iterable[Source], unit_size: int, on_listed: Callable[[int], None]) -> Listed:
    """Write the list of inputs beside that of any plan in the folder, for commit_plan."""
    found, stamps = 0, dict[str, tuple[int, int] | None]()
    entries = map(as_entry, sources)
    with (
        replacing(folder / _named(_INPUTS, None)) as file,
        closing(HashedFile(file)) as hashed,
        pq.ParquetWriter(
            hashed,
            _SCHEMA,
            compression="zstd",
            use_dictionary=False,
            column_encoding=_ENCODING,
            write_statistics=False,
        ) as writer,
    ):
        for unit in _units(entries, unit_size):
            paths, files, *parts = zip(*unit, strict=True)
            columns = [paths, map(escape_path, files), *parts]
            writer.write_table(pa.table(list(map(list, columns)), schema=_SCHEMA), row_group_size=unit_size)
            found += len(unit)
            stamps |= {
                file: _stamp(file) for file in {each.file for each in unit if each.start is not None} - {*stamps}
            }
            on_listed(found)
    _write_stamps(folder, {file: stamp for file, stamp in stamps.items() if stamp})
    return Listed(found, hashed.sha256)


def _write_stamps(folder: Place, stamps: Mapping[str, tuple[int, int]]) -> None:
    sizes, times = zip(*stamps.values(), strict=True) if stamps else ((), ())
    kinds = {"file": pa.string(), "size": pa.int64(), "time": pa.int64()}
    table = pa.table([[*map(escape_path, stamps)], [*sizes], [*times]], schema=pa.schema(kinds))
    with replacing(folder / _named(_CONTAINERS, None)) as file:
        pq.write_table(table, file)


def _stamp(file: str) -> tuple[int, int] | None:
    """Size of a file and when it was written; None if that cannot be known."""
    try:
        status = as_place(file).stat()
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def _stamp_words(stamp: tuple[int, int] | None) -> str:
    if stamp is None:
        return "missing"
    return f"{stamp[0]:,} bytes of {datetime.fromtimestamp(stamp[1] / 1e9):%Y-%m-%d %H:%M:%S}"


def commit_plan(folder: Place, listed: Listed, unit_size: int, provenance: dict[str, Any]) -> Plan:
    """Make the list that list_inputs wrote the plan. Any plan before it must have been revoked.

    So are the digests that list_digests wrote, if the provenance speaks of dedup.
    """
    return _commit(Plan(folder, (), unit_size, provenance), listed)


def extend_plan(plan: Plan, listed: Listed) -> Plan:
    """Add the list that list_inputs wrote to a plan."""
    return _commit(plan, listed)


def _commit(before: Plan, listed: Listed) -> Plan:
    number = len(before.lists)
    for kind in (_INPUTS, _CONTAINERS, *([_DIGESTS] if before.provenance.get("dedup") else [])):
        (before.folder / _named(kind, None)).replace(before.folder / _named(kind, number))
    told = json.dumps([listed, number, before.unit_size, before.provenance], sort_keys=True)
    ids = *before.ids, *[""] * (number - len(before.ids)), hashlib.sha256(told.encode()).hexdigest()[:32]
    plan = replace(before, lists=(*before.lists, listed.inputs), ids=ids)
    written = {"format": 2, "lists": plan.lists, "unit_size": plan.unit_size, "ids": ids, "provenance": plan.provenance}
    with replacing(plan.folder / _PLAN) as file:  # what it does not speak of is not there
        file.write(json.dumps(written, indent=1).encode())
    return plan


def revoke_plan(folder: Place) -> None:
    """Undo commit_plan."""
    (folder / _PLAN).unlink(missing_ok=True)
    sync_folder(folder)


def listed(folder: Place) -> Iterator[list[Entry]]:
    """The inputs that list_inputs wrote and that are not yet a plan's, a unit at a time."""
    file = pq.ParquetFile(readable(folder / _named(_INPUTS, None)))
    for group in range(file.num_row_groups):
        yield _entries(file, group)


def write_digests(folder: Place, units: Iterable[tuple[Sequence[bytes], Sequence[str | None]]]) -> None:
    """Write, beside the list that list_inputs wrote: of every unit the SHA-256s, and the paths of equal inputs."""
    schema = pa.schema([pa.field("sha256", pa.binary(32), nullable=False), pa.field("same_as", pa.string())])
    with replacing(folder / _named(_DIGESTS, None)) as file, pq.ParquetWriter(file, schema, use_dictionary=False) as to:
        for digests, same_as in units:
            columns = [pa.array(digests, pa.binary(32)), pa.array(same_as, pa.string())]
            to.write_table(pa.table(columns, schema=schema), row_group_size=len(digests))


def _named(kind: str, number: int | None) -> str:
    """A file's name. number: of the list; None: of none yet."""
    return f"{kind}.new.parquet" if number is None else f"{kind}-{number}.parquet" if number else f"{kind}.parquet"


def _entries(file: pq.ParquetFile, group: int) -> list[Entry]:
    columns = [column.to_pylist() for column in file.read_row_group(group).columns]
    return [Entry(path, unescape_path(name), *part) for path, name, *part in zip(*columns, strict=True)]


def as_entry(source: Source) -> Entry:
    """An input as plans hold it."""
    file = source.file if is_url(source.file) else os.path.abspath(source.file)  # noqa: PTH100 - keeps symbolic links
    return Entry(escape_path(source.path), file, source.start, source.size, source.label)


def _units(entries: Iterator[Entry], size: int) -> Iterator[list[Entry]]:
    while unit := list(islice(entries, size)):
        yield unit


def _shown(entry: Entry | None) -> str:
    if entry is None:
        return "none"
    return escape_path(entry.file) + ("" if entry.start is None else f" from {entry.start} on")
