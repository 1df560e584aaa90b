"""Drops the rows of inputs that were changed or removed since they were embedded.

A unit's record holds a stamp of every input, made from its file's size and time before the file was read. An input
whose stamp differs loses its row and becomes a failure, which the run then retries.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bigr_repr.embed.dataset.entry import Entry
from bigr_repr.embed.dataset.ledger import CHANGED, GONE, Failure, Ledger, UnitRecord
from bigr_repr.embed.dataset.plan import Plan
from bigr_repr.embed.dataset.shards import read_shard
from bigr_repr.system.object_store import is_url

__all__ = ["Reopened", "renewed", "reopen", "reopen_damaged", "stamps_of"]

log = logging.getLogger(__name__)

_LENGTH = 16  # characters per stamp
_UNKNOWN = "-" * _LENGTH
_MESSAGES = {CHANGED: "the file has changed since it was embedded", GONE: "no longer among the inputs"}


class Reopened(NamedTuple):
    """changed: number of inputs to re-embed; dropped: number of removed rows of inputs that no longer exist."""

    changed: int
    dropped: int


def stamps_of(entries: Iterable[Entry]) -> str:
    """16 characters per input, which change if its file is rewritten; hyphens for objects and missing files."""
    known: dict[str, str] = {}
    return "".join(known.get(entry.file) or known.setdefault(entry.file, _stamp(entry.file)) for entry in entries)


def renewed(stamps: str, entries: Sequence[Entry], places: Sequence[int]) -> str:
    """A unit's stamps, updated for some of its inputs; empty if there were none."""
    if not stamps:
        return ""
    each = [stamps[_LENGTH * place : _LENGTH * (place + 1)] for place in range(len(entries))]
    for place in places:
        each[place] = stamps_of([entries[place]])
    return "".join(each)


def _stamp(file: str) -> str:
    if is_url(file):
        return _UNKNOWN
    try:
        status = os.stat(file)  # noqa: PTH116 - names need not be UTF-8
    except (OSError, ValueError):
        return _UNKNOWN
    return blake2b(f"{status.st_size} {status.st_mtime_ns}".encode(), digest_size=_LENGTH // 2).hexdigest()


def reopen(plan: Plan, ledger: Ledger, found: NDArray[np.bool_], *, drop_gone: bool) -> Reopened:
    """Turn inputs that changed or reappeared into failures, with drop_gone also missing ones; drop their rows.

    found: which of the plan's inputs still exist. With dedup, duplicates of such inputs get a row of their own.
    """
    touched, starts = set[str](), np.cumsum([0, *map(plan.size, range(plan.units))])
    changed = dropped = 0
    for unit, record in enumerate(ledger.records(range(plan.units))):
        if record is None:
            continue
        here, entries = found[starts[unit] : starts[unit + 1]], plan.entries(unit)
        kinds = _judged(record, entries, here, set(plan.duplicates(unit)) - set(record.released), drop_gone)
        touched |= {entries[place].path for place in kinds}
        changed += list(kinds.values()).count(CHANGED)
        dropped += list(kinds.values()).count(GONE)
        _fail(plan, ledger, unit, record, kinds)
    for unit in range(plan.units) if touched and plan.provenance.get("dedup") else ():
        record, here = ledger.sealed(unit), found[starts[unit] : starts[unit + 1]]
        if record is not None:
            doubles = {place for place, path in plan.duplicates(unit).items() if path in touched and here[place]}
            freed = sorted(doubles - set(record.released))
            changed += len(freed)
            _fail(plan, ledger, unit, record, dict.fromkeys(freed, CHANGED))
    return Reopened(changed, dropped)


def _judged(
    record: UnitRecord, entries: Sequence[Entry], here: NDArray[np.bool_], doubles: set[int], drop_gone: bool
) -> dict[int, str]:
    """What happened to a unit's inputs, by place: CHANGED or GONE; unchanged ones are left out."""
    before, now = record.stamps, stamps_of(entries) if record.stamps else ""
    errors = {failure.place: failure.error for failure in record.failures}
    kinds = {}
    for place in range(len(entries)):
        part = slice(_LENGTH * place, _LENGTH * (place + 1))
        differs = before[part] != now[part] and _UNKNOWN not in (before[part], now[part])
        if here[place] and (differs or errors.get(place) == GONE):
            kinds[place] = CHANGED
        elif not here[place] and drop_gone and place not in errors and place not in doubles:
            kinds[place] = GONE
    return kinds


def _fail(plan: Plan, ledger: Ledger, unit: int, record: UnitRecord, kinds: dict[int, str]) -> None:
    """Turn inputs into failures, and remove their rows from the unit's shard."""
    if not kinds:
        return
    doubles = set(plan.duplicates(unit)) - set(record.released)
    failed, entries = {failure.place for failure in record.failures}, plan.entries(unit)
    with_rows = [place for place in range(len(entries)) if place not in failed and place not in doubles]
    kept = [row for row, place in enumerate(with_rows) if place not in kinds]
    rows, size, sha256 = record.rows, record.size, record.sha256
    if len(kept) < len(with_rows):
        table = read_shard(ledger.shard(unit)).take(pa.array(kept, pa.int64())).combine_chunks()
        rows, (size, sha256) = table.num_rows, ledger.write(unit, table)
    failures = [failure for failure in record.failures if failure.place not in kinds]
    failures += [Failure(place, entries[place].path, kind, _MESSAGES[kind]) for place, kind in kinds.items()]
    released = (*record.released, *sorted(doubles & kinds.keys()))
    everything = tuple(sorted(failures))
    ledger.seal(unit, replace(record, rows=rows, size=size, sha256=sha256, failures=everything, released=released))


def reopen_damaged(plan: Plan, ledger: Ledger, schema: pa.Schema, *, only: Collection[int] | None = None) -> int:
    """Turn all inputs with a row in a damaged shard into failures, to be re-embedded; returns their number.

    Reads every shard, or those of the units in `only`. Duplicates that have rows of their own keep them. schema: of
    shards.  Raises OSError.
    """
    count = 0
    units = range(plan.units) if only is None else sorted(unit for unit in only if unit < plan.units)
    for unit, record in zip(units, ledger.records(units), strict=True):
        if record is None or ledger.intact(unit, record):
            continue
        entries, doubles = plan.entries(unit), set(plan.duplicates(unit)) - set(record.released)
        failed = {failure.place for failure in record.failures} | doubles
        lost = [place for place in range(len(entries)) if place not in failed]
        log.warning("%s is damaged; its %d images will be re-embedded", ledger.shard(unit), len(lost))
        size, sha256 = ledger.write(unit, schema.empty_table())
        failures = [Failure(place, entries[place].path, CHANGED, "its row was damaged") for place in lost]
        everything = tuple(sorted([*record.failures, *failures]))
        ledger.seal(unit, replace(record, rows=0, size=size, sha256=sha256, failures=everything))
        count += len(lost)
    return count
