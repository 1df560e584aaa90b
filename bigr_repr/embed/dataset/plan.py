"""The list of inputs, written before the work begins and cut into units. Knows nothing of models or of what rows are.

The list is a Parquet file with one row group a unit: it is written as the inputs are found, a unit at a time, and any
unit is read without the others. Neighboring paths share their beginnings, which takes a byte or two of a path. What an
update adds is one more list, whose units follow; the lists before it stay as they are.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from bigr_repr.embed.dataset.containers import Container, ContainerList, changed_file, containers
from bigr_repr.embed.dataset.cut import Cut
from bigr_repr.embed.dataset.damage import damage_named
from bigr_repr.embed.dataset.entry import Entry, as_entry
from bigr_repr.images.find import Source, escape_path, unescape_path
from bigr_repr.system.files import HashedFile, replacing, sync_folder
from bigr_repr.system.object_store import Place, readable
from bigr_repr.system.sums import sealed, unsealed

_REMEDY = "start again with overwrite"
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


@dataclass(frozen=True)
class Plan:
    """Written lists of inputs. folder: where they are; lists: how many inputs each has, the first and what was added.

    unit_size: inputs of a unit; the last one of a list may have fewer. uneven: for each list how many units it has,
    where they are not of that size; None where they are. continued: ranges of units, first and last, that begin within
    the row group that the one before ends in. ids: what tells each list from others, its
    inputs and what is made of them: the same for the same; none in plans of earlier versions.
    """

    folder: Place
    lists: tuple[int, ...]
    unit_size: int
    provenance: dict[str, Any]
    ids: tuple[str, ...] = ()
    uneven: tuple[int | None, ...] = ()
    continued: tuple[tuple[int, int], ...] = ()

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
        if self._units_of(number) is not None:
            return int(self._file(_INPUTS, unit).metadata.row_group(group).num_rows)
        return min(self.unit_size, self.lists[number] - group * self.unit_size)

    def _units_of(self, number: int) -> int | None:
        return self.uneven[number] if number < len(self.uneven) else None

    def chains(self, units: Iterable[int]) -> Iterator[list[int]]:
        """Ascending units, grouped into those that one engine should do one after the other."""
        chain: list[int] = []
        for unit in units:
            if chain and not (unit == chain[-1] + 1 and unit in self._continued):
                yield chain
                chain = []
            chain.append(unit)
        if chain:
            yield chain

    @cached_property
    def _continued(self) -> frozenset[int]:
        return frozenset(unit for first, last in self.continued for unit in range(first, last + 1))

    def id_of(self, unit: int) -> str:
        """The id of a unit's list, which its record and shard name; empty in plans of earlier versions."""
        number = self._at(unit)[0]
        return self.ids[number] if number < len(self.ids) else ""

    @property
    def stands(self) -> bool:
        """Whether the folder still holds this plan, and not one that another run made meanwhile."""
        now = open_plan(self.folder)
        return now is not None and now.ids[: len(self.ids)] == self.ids and now.lists[: len(self.lists)] == self.lists

    def entries(self, unit: int) -> list[Entry]:
        """The inputs of a unit, in order."""
        return _entries(self._rows(_INPUTS, unit))

    def duplicates(self, unit: int) -> dict[int, str]:
        """Inputs of a unit that have the bytes of an earlier one: {place: path of that one}; none without dedup."""
        if not self.provenance.get("dedup"):
            return {}
        table = self._rows(_DIGESTS, unit, ["same_as"])
        return {place: path for place, path in enumerate(table.column("same_as").to_pylist()) if path is not None}

    def digests(self, unit: int) -> list[bytes]:
        """SHA-256 of each input of a unit, or 32 zeros for one that could not be read; of a plan with dedup."""
        table = self._rows(_DIGESTS, unit, ["sha256"])
        digests: list[bytes] = table.column("sha256").to_pylist()
        return digests

    def changed_container(self) -> str | None:
        """The first file holding several inputs that is no longer the one last listed, in words; None: none is."""
        return changed_file({each.file: each.stamp for _, each in self.containers()})

    def containers(self) -> Iterator[tuple[int, Container]]:
        """Files that hold several inputs, each with the number of its list; none in plans of earlier versions."""
        for number in range(len(self.lists)):
            yield from ((number, each) for each in containers(self.folder / _named(_CONTAINERS, number)))

    def stretch(self, number: int, first: int, count: int) -> Iterator[Entry]:
        """`count` inputs of a list, from number `first` on."""
        sizes = self._sizes(number)
        group = bisect_right(sizes, first) - 1
        while count > 0:
            part = self.entries(self._starts[number] + group)[first - sizes[group] :][:count]
            yield from part
            first, count, group = first + len(part), count - len(part), group + 1

    def _sizes(self, number: int) -> list[int]:
        """Where the units of a list begin in it."""
        if number not in self._begin:
            metadata = self._list(_INPUTS, number).metadata
            sizes = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
            self._begin[number] = list(accumulate(sizes, initial=0))
        return self._begin[number]

    @cached_property
    def _begin(self) -> dict[int, list[int]]:
        return {}

    @cached_property
    def _starts(self) -> list[int]:
        """The first unit of every list, and the number of all units."""
        each = ((self._units_of(number), count) for number, count in enumerate(self.lists))
        return list(accumulate((-(-count // self.unit_size) if own is None else own for own, count in each), initial=0))

    def _at(self, unit: int) -> tuple[int, int]:
        """Number of the list that holds a unit, and the unit's number in it."""
        number = bisect_right(self._starts, unit) - 1
        return number, unit - self._starts[number]

    def _file(self, kind: str, unit: int) -> pq.ParquetFile:
        return self._list(kind, self._at(unit)[0])

    def _list(self, kind: str, number: int) -> pq.ParquetFile:
        name = _named(kind, number)
        if name not in self._open:
            with damage_named(self.folder / name, remedy=_REMEDY):
                self._open[name] = pq.ParquetFile(readable(self.folder / name), page_checksum_verification=True)
        return self._open[name]

    def _rows(self, kind: str, unit: int, columns: Sequence[str] | None = None) -> pa.Table:
        """What a list holds of a unit."""
        number, group = self._at(unit)
        with damage_named(self.folder / _named(kind, number), remedy=_REMEDY):
            return self._list(kind, number).read_row_group(group, columns=columns)

    @cached_property
    def _open(self) -> dict[str, pq.ParquetFile]:
        return {}

    def difference(self, sources: Iterable[Source], on_listed: Callable[[int], None]) -> str | None:
        """Where a list of inputs first differs from this one, in words; None: nowhere. For a plan of one list."""
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
        if written["format"] in (2, 3):
            written = unsealed(written)
            return Plan(
                folder, tuple(written["lists"]), written["unit_size"], written["provenance"],
                tuple(map(str, written.get("ids", ()))), tuple(written.get("uneven", ())),
                tuple((first, last) for first, last in written.get("continued", ())),
            )  # fmt: skip
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file}: damaged ({error}); {_REMEDY}") from error
    raise ValueError(f"{file}: format {written['format']} is of another version; use that, or overwrite")


class Listed(NamedTuple):
    """A list that list_inputs wrote. sha256: of its file; uneven, continued: as of Plan, of this list alone."""

    inputs: int
    sha256: str
    uneven: int | None
    continued: tuple[tuple[int, int], ...]


def list_inputs(folder: Place, sources: Iterable[Source], unit_size: int, on_listed: Callable[[int], None]) -> Listed:
    """Write the list of inputs beside that of any plan in the folder, for commit_plan."""
    found, held, cut = 0, ContainerList(), Cut(unit_size)
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
            write_page_checksum=True,
        ) as writer,
    ):
        for unit in cut.units(sources):
            paths, files, *parts = zip(*unit, strict=True)
            columns = [paths, map(escape_path, files), *parts]
            writer.write_table(pa.table(list(map(list, columns)), schema=_SCHEMA), row_group_size=len(unit))
            held.note(unit, found)
            found += len(unit)
            on_listed(found)
    held.write(folder / _named(_CONTAINERS, None))
    return Listed(found, hashed.sha256, cut.count if cut.uneven else None, tuple(cut.continued))


def commit_plan(folder: Place, listed: Listed, unit_size: int, provenance: dict[str, Any]) -> Plan:
    """Make the list that list_inputs wrote the plan. Any earlier plan must have been revoked.

    With dedup in the provenance, the digests that list_digests wrote become part of it.
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
    uneven = *before.uneven, *[None] * (number - len(before.uneven)), listed.uneven
    continued = *before.continued, *((before.units + first, before.units + last) for first, last in listed.continued)
    plan = replace(before, lists=(*before.lists, listed.inputs), ids=ids, uneven=uneven, continued=continued)
    written = {
        "format": 2 if set(uneven) == {None} else 3,  # earlier versions take the size of units for granted
        "lists": plan.lists, "unit_size": plan.unit_size, "ids": ids,
        **({} if set(uneven) == {None} else {"uneven": uneven}), **({"continued": continued} if continued else {}),
        "provenance": plan.provenance,
    }  # fmt: skip
    with replacing(plan.folder / _PLAN) as file:  # what it does not speak of is not there
        file.write(json.dumps(sealed(written), indent=1).encode())
    return plan


def revoke_plan(folder: Place) -> None:
    """Undo commit_plan."""
    (folder / _PLAN).unlink(missing_ok=True)
    sync_folder(folder)


def listed(folder: Place) -> Iterator[list[Entry]]:
    """The inputs that list_inputs wrote and that are not yet a plan's, a unit at a time."""
    file = pq.ParquetFile(readable(folder / _named(_INPUTS, None)))
    for group in range(file.num_row_groups):
        yield _entries(file.read_row_group(group))


def listed_count(folder: Place) -> int:
    """How many inputs list_inputs wrote that are not yet a plan's."""
    return int(pq.read_metadata(readable(folder / _named(_INPUTS, None))).num_rows)


def write_digests(folder: Place, units: Iterable[tuple[Sequence[bytes], Sequence[str | None]]]) -> None:
    """Write, beside the list that list_inputs wrote: of every unit the SHA-256s, and the paths of equal inputs."""
    schema = pa.schema([pa.field("sha256", pa.binary(32), nullable=False), pa.field("same_as", pa.string())])
    with replacing(folder / _named(_DIGESTS, None)) as file, _digest_writer(file, schema) as to:
        for digests, same_as in units:
            columns = [pa.array(digests, pa.binary(32)), pa.array(same_as, pa.string())]
            to.write_table(pa.table(columns, schema=schema), row_group_size=len(digests))


def _digest_writer(file: BinaryIO, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(file, schema, use_dictionary=False, write_page_checksum=True)


def _named(kind: str, number: int | None) -> str:
    """A file's name. number: of the list; None: of none yet."""
    return f"{kind}.new.parquet" if number is None else f"{kind}-{number}.parquet" if number else f"{kind}.parquet"


def _entries(table: pa.Table) -> list[Entry]:
    columns = [column.to_pylist() for column in table.columns]
    return [Entry(path, unescape_path(name), *part) for path, name, *part in zip(*columns, strict=True)]


def _shown(entry: Entry | None) -> str:
    if entry is None:
        return "none"
    return escape_path(entry.file) + ("" if entry.start is None else f" from {entry.start} on")
