"""What to do for a unit: all of it, or only earlier failures. Independent of decoding and the network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from bigr_repr.embed.dataset.entry import Entry
from bigr_repr.embed.dataset.ledger import GONE, Ledger, UnitRecord
from bigr_repr.embed.dataset.plan import Plan
from bigr_repr.embed.inputs.changed import renewed, stamps_of, superseded_failures
from bigr_repr.images.find import escape_path


class UnitTask(NamedTuple):
    """Work on one unit. entries: what to embed; places: theirs in the unit; kept: places of rows already in its shard.

    again: whether these are retries. record: what stays of the unit's record: failures that are not retried, released,
    stamps, digests and labels.
    """

    unit: int
    entries: list[Entry]
    places: list[int]
    kept: list[int]
    again: bool
    record: UnitRecord


def make_task(plan: Plan, ledger: Ledger, unit: int) -> UnitTask:
    """The task for a unit: all inputs that are not duplicates, or those that failed and still exist."""
    entries, record = plan.entries(unit), ledger.sealed(unit)
    duplicates, released = plan.duplicates(unit), record.released if record else ()
    places = [place for place in range(len(entries)) if place not in duplicates or place in released]
    if record is None:
        gone = superseded_failures(plan, unit, entries)
        places = sorted(set(places) - plan.superseded(unit))
        begun = UnitRecord(0, 0, gone, stamps=stamps_of(entries))
        return UnitTask(unit, [entries[place] for place in places], places, [], False, begun)
    failed = {failure.place for failure in record.failures}
    left = tuple(failure for failure in record.failures if failure.error == GONE)
    again = sorted(failed - {failure.place for failure in left})
    kept = [place for place in places if place not in failed]
    stays = replace(record, failures=left, stamps=renewed(record.stamps, entries, again))
    return UnitTask(unit, [_labeled(entries[place], place, record.labels) for place in again], again, kept, True, stays)


def _labeled(entry: Entry, place: int, labels: Mapping[int, str | None]) -> Entry:
    return entry._replace(label=labels[place]) if place in labels else entry


def label(entry: Entry) -> str:
    """The label in the input's container, or the name of the file's folder, as text."""
    if entry.label is not None:
        return entry.label
    return escape_path(os.path.basename(os.path.dirname(entry.file)))  # noqa: PTH119, PTH120 - names need not be UTF-8
