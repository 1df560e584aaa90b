"""What to do for a unit: all of it, or only earlier failures. Independent of decoding and the network."""

from __future__ import annotations

import os
from typing import NamedTuple

from bigr_repr.embed.dataset.entry import Entry
from bigr_repr.embed.dataset.ledger import GONE, Failure, Ledger
from bigr_repr.embed.dataset.plan import Plan
from bigr_repr.embed.inputs.changed import renewed, stamps_of
from bigr_repr.images.find import escape_path


class UnitTask(NamedTuple):
    """Work on one unit. entries: what to embed; places: theirs in the unit; kept: places of rows already in its shard.

    released, stamps: as in UnitRecord. again: whether these are retries. left: failures that stay.
    """

    unit: int
    entries: list[Entry]
    places: list[int]
    kept: list[int]
    released: tuple[int, ...]
    again: bool
    stamps: str
    left: tuple[Failure, ...] = ()


def make_task(plan: Plan, ledger: Ledger, unit: int) -> UnitTask:
    """The task for a unit: all inputs that are not duplicates, or those that failed and still exist."""
    entries, record = plan.entries(unit), ledger.sealed(unit)
    duplicates, released = plan.duplicates(unit), record.released if record else ()
    places = [place for place in range(len(entries)) if place not in duplicates or place in released]
    if record is None:
        return UnitTask(unit, [entries[place] for place in places], places, [], released, False, stamps_of(entries))
    failed = {failure.place for failure in record.failures}
    left = tuple(failure for failure in record.failures if failure.error == GONE)
    again = sorted(failed - {failure.place for failure in left})
    kept = [place for place in places if place not in failed]
    stamps = renewed(record.stamps, entries, again)
    return UnitTask(unit, [entries[place] for place in again], again, kept, released, True, stamps, left)


def label(entry: Entry) -> str:
    """The label in the input's container, or the name of the file's folder, as text."""
    if entry.label is not None:
        return entry.label
    return escape_path(os.path.basename(os.path.dirname(entry.file)))  # noqa: PTH119, PTH120 - names need not be UTF-8
