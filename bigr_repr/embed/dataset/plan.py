"""The list of inputs, written before work begins and cut into units. Independent of models and rows.

The list is a Parquet file with one row group per unit: it is written as inputs are found, unit by unit, and each unit
can be read without the others. Neighboring paths share prefixes, so each takes only a byte or two. An update adds
another list, whose units follow; earlier lists stay as they are.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bigr_repr.embed.dataset.containers import (
    Container,
    Stamp,
    changed_file,
    containers,
    rewritten_files,
)
from bigr_repr.embed.dataset.damage import damage_named
from bigr_repr.embed.dataset.entry import Entry, as_entry, same_label
from bigr_repr.embed.dataset.lists import CONTAINERS, DIGESTS, INPUTS, NO_MARK, Listed, entries_of, list_file
from bigr_repr.images.find import Source, escape_path, unescape_path
from bigr_repr.system.differences import differences
from bigr_repr.system.files import replacing, sync_folder
from bigr_repr.system.object_store import Place, readable
from bigr_repr.system.records import as_object, parsed, usable
from bigr_repr.system.sums import sealed, unsealed

_REMEDY = "start again with overwrite"
RUN_FOLDER = "_run"  # in the data set; readers of Parquet folders ignore names that begin with an underscore
_PLAN = "plan.json"


@dataclass(frozen=True)
class Plan:
    """Written lists of inputs. folder: where they are; lists: the number of inputs in each, including additions.

    unit_size: inputs per unit; the last unit of a list may have fewer. uneven: for each list, its number of units if
    they are not of that size, else None. continued: ranges of units, first and last, that begin in the row group in
    which the previous one ends. ids: identify each list by its inputs and their recipe, equal for equal lists; none in
    plans of earlier versions. rewritten: container files that were listed anew after a change, and the number of the
    list from which on their inputs count; those before it are superseded.
    """

    folder: Place
    lists: tuple[int, ...]
    unit_size: int
    provenance: dict[str, Any]
    ids: tuple[str, ...] = ()
    uneven: tuple[int | None, ...] = ()
    continued: tuple[tuple[int, int], ...] = ()
    rewritten: Mapping[str, int] = field(default_factory=dict)

    @property
    def inputs(self) -> int:
        """Number of inputs."""
        return sum(self.lists)

    @property
    def units(self) -> int:
        """Number of units."""
        return self._starts[-1]

    def size(self, unit: int) -> int:
        """Number of inputs in a unit."""
        number, group = self._at(unit)
        if self._units_of(number) is not None:
            return int(self._file(INPUTS, unit).metadata.row_group(group).num_rows)
        return min(self.unit_size, self.lists[number] - group * self.unit_size)

    def _units_of(self, number: int) -> int | None:
        return self.uneven[number] if number < len(self.uneven) else None

    def chains(self, units: Iterable[int]) -> Iterator[list[int]]:
        """Ascending units, grouped into chains that one engine should do in sequence."""
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
        """The id of a unit's list, as stored in its record and shard; empty in plans of earlier versions."""
        number = self._at(unit)[0]
        return self.ids[number] if number < len(self.ids) else ""

    @property
    def stands(self) -> bool:
        """Whether the folder still holds this plan, rather than one that another run has made since."""
        now = open_plan(self.folder)
        return now is not None and now.ids[: len(self.ids)] == self.ids and now.lists[: len(self.lists)] == self.lists

    def entries(self, unit: int) -> list[Entry]:
        """The inputs of a unit, in order."""
        return entries_of(self._rows(INPUTS, unit))

    def duplicates(self, unit: int) -> dict[int, str]:
        """Inputs of a unit that duplicate an earlier one: {place: path of that one}; empty without dedup."""
        if not self.provenance.get("dedup"):
            return {}
        same_as, superseded = self._rows(DIGESTS, unit, ["same_as"]).column("same_as"), self.superseded(unit)
        each = enumerate(same_as.to_pylist())
        return {place: path for place, path in each if path is not None and place not in superseded}

    def superseded(self, unit: int) -> frozenset[int]:
        """Places of a unit's inputs whose files were listed anew since: they must never be read there again."""
        number = self._at(unit)[0]
        if all(number >= since for since in self.rewritten.values()):
            return frozenset()
        return frozenset(
            place
            for place, entry in enumerate(self.entries(unit))
            if entry.file in self.rewritten and number < self.rewritten[entry.file]
        )

    def digests(self, unit: int) -> list[bytes]:
        """SHA-256 of each input of a unit, or 32 zero bytes if unreadable; only for plans with dedup."""
        table = self._rows(DIGESTS, unit, ["sha256"])
        digests: list[bytes] = table.column("sha256").to_pylist()
        return digests

    def marks(self, unit: int) -> list[bytes]:
        """The mark of each input's file when its digest was listed; NO_MARK in plans of earlier versions.

        See bigr_repr.embed.inputs.suspects. Only for plans with dedup.
        """
        if "mark" not in self._file(DIGESTS, unit).schema_arrow.names:
            return [NO_MARK] * self.size(unit)
        marks: list[bytes] = self._rows(DIGESTS, unit, ["mark"]).column("mark").to_pylist()
        return marks

    def changed_container(self) -> str | None:
        """A description of the first container file that has changed since it was listed; None if none has."""
        return changed_file(self._stamps())

    def rewritten_files(self) -> frozenset[str]:
        """The container files that have changed since they were last listed, and still exist."""
        return rewritten_files(self._stamps())

    def _stamps(self) -> dict[str, Stamp]:
        """The stamp of each container file when it was last listed."""
        return {each.file: each.stamp for _, each in self.containers()}

    @property
    def knows_containers(self) -> bool:
        """Whether the container files of all lists are recorded, as earlier versions did not."""
        return all((self.folder / list_file(CONTAINERS, number)).exists() for number in range(len(self.lists)))

    def containers(self) -> Iterator[tuple[int, Container]]:
        """Container files whose inputs count, each with the number of its list; none in plans of earlier versions."""
        for number in range(len(self.lists)):
            for each in containers(self.folder / list_file(CONTAINERS, number)):
                if number >= self.rewritten.get(each.file, 0):
                    yield number, each

    def stretch(self, number: int, first: int, count: int) -> Iterator[Entry]:
        """`count` inputs of a list, starting at number `first`."""
        sizes = self._sizes(number)
        group = bisect_right(sizes, first) - 1
        while count > 0:
            part = self.entries(self._starts[number] + group)[first - sizes[group] :][:count]
            yield from part
            first, count, group = first + len(part), count - len(part), group + 1

    def _sizes(self, number: int) -> list[int]:
        """Start positions of a list's units."""
        if number not in self._begin:
            metadata = self._list(INPUTS, number).metadata
            sizes = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
            self._begin[number] = list(accumulate(sizes, initial=0))
        return self._begin[number]

    @cached_property
    def _begin(self) -> dict[int, list[int]]:
        return {}

    @cached_property
    def _starts(self) -> list[int]:
        """The first unit of every list, and the total number of units."""
        each = ((self._units_of(number), count) for number, count in enumerate(self.lists))
        return list(accumulate((-(-count // self.unit_size) if own is None else own for own, count in each), initial=0))

    def _at(self, unit: int) -> tuple[int, int]:
        """Number of the list that holds a unit, and the unit's number in it."""
        number = bisect_right(self._starts, unit) - 1
        return number, unit - self._starts[number]

    def _file(self, kind: str, unit: int) -> pq.ParquetFile:
        return self._list(kind, self._at(unit)[0])

    def _list(self, kind: str, number: int) -> pq.ParquetFile:
        name = list_file(kind, number)
        if name not in self._open:
            with damage_named(self.folder / name, remedy=_REMEDY):
                self._open[name] = pq.ParquetFile(readable(self.folder / name), page_checksum_verification=True)
        return self._open[name]

    def _rows(self, kind: str, unit: int, columns: Sequence[str] | None = None) -> pa.Table:
        """A unit's rows of a list."""
        number, group = self._at(unit)
        with damage_named(self.folder / list_file(kind, number), remedy=_REMEDY):
            return self._list(kind, number).read_row_group(group, columns=columns)

    @cached_property
    def _open(self) -> dict[str, pq.ParquetFile]:
        return {}

    def difference(self, sources: Iterable[Source], on_listed: Callable[[int], None]) -> str | None:
        """A description of the first difference from a list of inputs; None if equal. For plans with one list."""
        found, first = 0, None
        ours = (entry for unit in range(self.units) for entry in self.entries(unit))
        for new in map(as_entry, sources):
            old = next(ours, None)
            if first is None and not _same(old, new):
                first = f"input {found} {self._change(old, new)}"
            found += 1
            if found % self.unit_size == 0:
                on_listed(found)
        if first is None and (gone := next(ours, None)) is not None:
            first = f"input {found} was {_shown(gone)}, is none"
        return first and f"inputs were {self.inputs}, are {found} ({first})"

    def _change(self, old: Entry | None, new: Entry) -> str:
        """How an input differs from that of the plan."""
        if old is None or old.file != new.file:
            return f"was {_shown(old)}, is {_shown(new)}"
        said = f"of {escape_path(new.file)}: {', '.join(differences(old._asdict(), new._asdict()))}"
        changed = changed_file({each.file: each.stamp for _, each in self.containers() if each.file == new.file})
        return f"{said}; {changed}" if changed else said


def open_plan(folder: Place) -> Plan | None:
    """The plan in a folder; None if none was completed there. Raises ValueError for an unknown format."""
    file = folder / _PLAN
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        return None
    with usable(str(file), _REMEDY):
        written = as_object(parsed(text))
        form = written["format"]
        if form in (2, 3, 4):
            written = unsealed(written)
            return Plan(
                folder, tuple(written["lists"]), written["unit_size"], dict(written["provenance"]),
                tuple(map(str, written.get("ids", ()))), tuple(written.get("uneven", ())),
                tuple((first, last) for first, last in written.get("continued", ())),
                {unescape_path(file): int(since) for file, since in written.get("rewritten", {}).items()},
            )  # fmt: skip
    raise ValueError(f"{file}: format {form} belongs to another version; use that version, or overwrite")


def commit_plan(folder: Place, listed: Listed, unit_size: int, provenance: dict[str, Any]) -> Plan:
    """Turn the list that list_inputs wrote into the plan. Any earlier plan must have been revoked.

    With dedup in the provenance, the digests that list_digests wrote become part of the plan.
    """
    return _commit(Plan(folder, (), unit_size, provenance), listed)


def extend_plan(plan: Plan, listed: Listed, rewritten: Iterable[str] = ()) -> Plan:
    """Add the list that list_inputs wrote to a plan. rewritten: files of which only inputs in this list still count."""
    since = {**plan.rewritten, **dict.fromkeys(rewritten, len(plan.lists))}
    return _commit(replace(plan, rewritten=since), listed)


def _commit(before: Plan, listed: Listed) -> Plan:
    number = len(before.lists)
    for kind in (INPUTS, CONTAINERS, *([DIGESTS] if before.provenance.get("dedup") else [])):
        (before.folder / list_file(kind, None)).replace(before.folder / list_file(kind, number))
    told = json.dumps([listed, number, before.unit_size, before.provenance], sort_keys=True)
    ids = *before.ids, *[""] * (number - len(before.ids)), hashlib.sha256(told.encode()).hexdigest()[:32]
    uneven = *before.uneven, *[None] * (number - len(before.uneven)), listed.uneven
    continued = *before.continued, *((before.units + first, before.units + last) for first, last in listed.continued)
    since = before.rewritten
    plan = replace(before, lists=(*before.lists, listed.inputs), ids=ids, uneven=uneven, continued=continued)
    written = {
        # earlier versions assume units of equal size, and that all inputs count
        "format": 4 if since else 2 if set(uneven) == {None} else 3,
        "lists": plan.lists, "unit_size": plan.unit_size, "ids": ids,
        **({} if set(uneven) == {None} else {"uneven": uneven}), **({"continued": continued} if continued else {}),
        **({"rewritten": dict(zip(map(escape_path, since), since.values(), strict=True))} if since else {}),
        "provenance": plan.provenance,
    }  # fmt: skip
    with replacing(plan.folder / _PLAN) as file:  # anything it does not mention does not exist
        file.write(json.dumps(sealed(written), indent=1).encode())
    return plan


def revoke_plan(folder: Place) -> None:
    """Undo commit_plan."""
    (folder / _PLAN).unlink(missing_ok=True)
    sync_folder(folder)


def _same(old: Entry | None, new: Entry) -> bool:
    return old is not None and old[:4] == new[:4] and same_label(old.label, new.label)


def _shown(entry: Entry | None) -> str:
    if entry is None:
        return "none"
    return escape_path(entry.file) + ("" if entry.start is None else f" from {entry.start} on")
