"""The list of inputs, written before the work begins and cut into units. Knows nothing of models or of what rows are.

The list is a Parquet file with one row group a unit: it is written as the inputs are found, a unit at a time, and any
unit is read without the others. Neighbouring paths share their beginnings, which takes a byte or two of a path.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from bigr_repr._durable import replacing, sync_folder
from bigr_repr._objects import Place, is_url, readable
from bigr_repr.images import Source, escape_path, unescape_path

RUN_FOLDER = "_run"  # in a data set's; readers of Parquet folders pass over names that begin with an underscore
_INPUTS, _LISTED, _PLAN = "inputs.parquet", "inputs.new.parquet", "plan.json"
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
    """A written list of inputs. folder: where it is; inputs: how many; unit_size: of all units but the last."""

    folder: Place
    inputs: int
    unit_size: int
    provenance: dict[str, Any]

    @property
    def units(self) -> int:
        """Number of units."""
        return -(-self.inputs // self.unit_size)

    def entries(self, unit: int) -> list[Entry]:
        """The inputs of a unit, in order."""
        table = self._file.read_row_group(unit)
        columns = [column.to_pylist() for column in table.columns]
        return [Entry(path, unescape_path(file), *part) for path, file, *part in zip(*columns, strict=True)]

    @cached_property
    def _file(self) -> pq.ParquetFile:
        return pq.ParquetFile(readable(self.folder / _INPUTS))

    def difference(self, sources: Iterable[Source], on_listed: Callable[[int], None]) -> str | None:
        """Where a list of inputs departs from this one, in words; None: nowhere."""
        found, first = 0, None
        ours = (entry for unit in range(self.units) for entry in self.entries(unit))
        for new in map(_entry, sources):
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
        return Plan(folder, written["inputs"], written["unit_size"], written["provenance"])
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: damaged ({error}); start again with overwrite") from error


def list_inputs(folder: Place, sources: Iterable[Source], unit_size: int, on_listed: Callable[[int], None]) -> int:
    """Write the list of inputs beside that of any plan in the folder, for commit_plan; return how many there are."""
    found = 0
    entries = map(_entry, sources)
    with (
        replacing(folder / _LISTED) as file,
        pq.ParquetWriter(
            file,
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
            on_listed(found)
    return found


def commit_plan(folder: Place, inputs: int, unit_size: int, provenance: dict[str, Any]) -> Plan:
    """Make the list that list_inputs wrote the plan. Any plan before it must have been revoked."""
    (folder / _LISTED).replace(folder / _INPUTS)
    plan = {"format": 2, "inputs": inputs, "unit_size": unit_size, "provenance": provenance}
    with replacing(folder / _PLAN) as file:
        file.write(json.dumps(plan, indent=1).encode())
    return Plan(folder, inputs, unit_size, provenance)


def revoke_plan(folder: Place) -> None:
    """Undo commit_plan."""
    (folder / _PLAN).unlink(missing_ok=True)
    sync_folder(folder)


def _entry(source: Source) -> Entry:
    file = source.file if is_url(source.file) else os.path.abspath(source.file)  # noqa: PTH100 - keeps symbolic links
    return Entry(escape_path(source.path), file, source.start, source.size, source.label)


def _units(entries: Iterator[Entry], size: int) -> Iterator[list[Entry]]:
    while unit := list(islice(entries, size)):
        yield unit


def _shown(entry: Entry | None) -> str:
    if entry is None:
        return "none"
    return escape_path(entry.file) + ("" if entry.start is None else f" from {entry.start} on")
