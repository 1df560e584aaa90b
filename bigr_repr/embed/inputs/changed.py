"""Drops the rows of inputs that were changed or removed since they were embedded.

A unit's record holds a stamp of every input, made from its file's size and time before the file was read. An input
whose stamp differs loses its row and becomes a failure, which the run then retries.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bigr_repr.embed.dataset.entry import Entry, same_label
from bigr_repr.embed.dataset.ledger import CHANGED, GONE, Failure, Ledger, UnitRecord
from bigr_repr.embed.dataset.plan import Plan
from bigr_repr.embed.dataset.shards import read_shard
from bigr_repr.embed.inputs.suspects import suspects
from bigr_repr.embed.inputs.update import KnownInputs
from bigr_repr.system.object_store import is_url

__all__ = ["Reopened", "renewed", "reopen", "reopen_damaged", "reopen_doubles", "stamps_of", "superseded_failures"]

log = logging.getLogger(__name__)

_LENGTH = 16  # characters per stamp
_UNKNOWN = "-" * _LENGTH
_MESSAGES = {CHANGED: "the file has changed since it was embedded", GONE: "no longer among the inputs"}


class Reopened(NamedTuple):
    """changed: number of inputs to re-embed, here or as new ones; dropped: of those whose rows are removed for good."""

    changed: int
    dropped: int


class _Amendment(NamedTuple):
    """What to change in a unit's record. kinds: CHANGED or GONE, by place; labels: new ones, by place."""

    kinds: dict[int, str]
    labels: dict[int, str | None]


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


def reopen(plan: Plan, ledger: Ledger, schema: pa.Schema, known: KnownInputs, *, drop_gone: bool) -> Reopened:
    """Turn inputs that changed or reappeared into failures, and superseded ones, with drop_gone all missing ones.

    Their rows are dropped. schema: of shards. known: the plan's inputs, once compared with the present ones. With
    dedup, duplicates of inputs that changed or are gone get rows of their own; these are freed first, so that a run
    that is cut short loses none.
    """
    dedup = bool(plan.provenance.get("dedup"))
    touched, amendments, changed, dropped, found = set[str](), dict[int, _Amendment](), 0, 0, known.found()
    for unit, start, record in _records(plan, ledger):
        count, entries = plan.size(unit), plan.entries(unit)
        here, superseded = found[start : start + count], known.superseded(start, count)
        amendment = _Amendment({}, _relabeled(record, entries, here, known.labels, start))
        if record is not None:
            doubles = set(plan.duplicates(unit)) - set(record.released)
            amendment.kinds.update(_judged(record, entries, here, superseded, drop_gone))
            amendment.kinds.update(dict.fromkeys(amendment.labels.keys() - doubles, CHANGED))
        else:
            gone = np.flatnonzero(superseded | (~here & drop_gone)).tolist()
            amendment.kinds.update(dict.fromkeys(set(gone) - plan.superseded(unit), GONE))
        kinds = amendment.kinds
        changed += list(kinds.values()).count(CHANGED)
        dropped += list(kinds.values()).count(GONE)
        if dedup and any(amendment):
            touched |= {entries[place].path for place in amendment.kinds}
            amendments[unit] = amendment
        elif not dedup:
            _fail(plan, ledger, unit, schema, amendment)
    changed += _free(plan, ledger, schema, found, touched, amendments)
    for unit, amendment in amendments.items():
        _fail(plan, ledger, unit, schema, amendment)
    return Reopened(changed + known.anew, dropped)


def reopen_doubles(
    plan: Plan,
    ledger: Ledger,
    schema: pa.Schema,
    digests_now: Callable[[Iterable[tuple[int, int]]], Mapping[tuple[int, int], bytes]],
) -> None:
    """Turn duplicates into failures, to get rows of their own, whose originals are gone, were superseded, or were
    embedded with other bytes than theirs.

    In units that are not done, originals and duplicates are read again whose files may have changed after they were
    listed. digests_now: SHA-256 of the inputs at (unit, place). schema: of shards.
    """
    _free_orphans(plan, ledger, schema)
    embedded, suspected = _doubtful(plan, ledger)
    if not embedded and not suspected:
        return
    touched = set(embedded)
    names = touched.union(*(paths.values() for paths in suspected.values()))
    every = (path for unit in range(plan.units) for path in plan.duplicates(unit).values())
    originals, amendments = {path for path in every if path in names}, dict[int, _Amendment]()
    for unit, paths in suspected.items():
        planned, doubles = plan.digests(unit), plan.duplicates(unit)
        asked = {place: path for place, path in paths.items() if place in doubles or path in originals}
        now = digests_now((unit, place) for place in asked)
        differ = {place for (_, place), digest in now.items() if digest != planned[place]}
        touched |= {asked[place] for place in differ}
        if freed := differ & doubles.keys():
            amendments[unit] = _Amendment(dict.fromkeys(freed, CHANGED), {})
    equal = _equal(plan, embedded, digests_now)
    _free(plan, ledger, schema, None, touched & originals, amendments, equal)
    for unit, amendment in amendments.items():
        _fail(plan, ledger, unit, schema, amendment)


def _free_orphans(plan: Plan, ledger: Ledger, schema: pa.Schema) -> None:
    """Turn duplicates of superseded inputs into failures, where no record says so: it was lost after they were freed.

    A later input may have the path of such an original, but other bytes.
    """
    superseded, since = set[str](), dict[str, int]()
    for unit in range(plan.units) if plan.rewritten else ():
        if places := plan.superseded(unit):
            entries = plan.entries(unit)
            superseded |= {entries[place].path for place in places}
    if not superseded:
        return
    for unit in range(plan.units):
        places = plan.superseded(unit)
        for place, entry in enumerate(plan.entries(unit)):
            if entry.path in superseded and place not in places:
                since.setdefault(entry.path, unit)
    for unit, _, record in _records(plan, ledger):
        doubles = plan.duplicates(unit).items()
        orphans = {place for place, path in doubles if path in superseded and unit < since.get(path, plan.units)}
        freed = sorted(orphans - set(record.released if record else ()))
        _fail(plan, ledger, unit, schema, _Amendment(dict.fromkeys(freed, CHANGED), {}))


def _equal(
    plan: Plan,
    embedded: Mapping[str, bytes],
    digests_now: Callable[[Iterable[tuple[int, int]]], Mapping[tuple[int, int], bytes]],
) -> dict[int, set[int]]:
    """Duplicates, {unit: places}, that have the bytes with which their originals were embedded, though not listed."""
    found = {}
    for unit in range(plan.units):
        if asked := {place: path for place, path in plan.duplicates(unit).items() if embedded.get(path)}:
            now = digests_now((unit, place) for place in asked)
            found[unit] = {place for place, path in asked.items() if now[unit, place] == embedded[path]}
    return found


def _doubtful(plan: Plan, ledger: Ledger) -> tuple[dict[str, bytes], dict[int, dict[int, str]]]:
    """Inputs in done units that are gone, {path: b""}, or were embedded with other bytes than listed: their SHA-256.

    In units that are not done, those whose files may have changed since they were listed: {unit: {place: path}}.
    """
    embedded, suspected, gone = dict[str, bytes](), dict[int, dict[int, str]](), set[str]()
    for unit, _, record in _records(plan, ledger):
        if record is None:
            entries = plan.entries(unit)
            if places := suspects(plan, unit, entries, sorted(set(range(len(entries))) - plan.superseded(unit))):
                suspected[unit] = {place: entries[place].path for place in places}
            continue
        planned, now = plan.digests(unit) if record.digests else [], record.digests
        if differ := {place: digest for place in now if (digest := bytes.fromhex(now[place])) != planned[place]}:
            entries = plan.entries(unit)
            embedded |= {entries[place].path: digest for place, digest in differ.items()}
        gone |= {failure.path for failure in record.failures if failure.error == GONE}
    return dict.fromkeys(_not_replaced(plan, ledger, gone), b"") | embedded, suspected


def _not_replaced(plan: Plan, ledger: Ledger, gone: set[str]) -> set[str]:
    """Those of the paths of inputs that are gone which no other input has."""
    for unit, _, record in _records(plan, ledger) if gone else ():
        without = {failure.place for failure in record.failures if failure.error == GONE} if record else ()
        gone -= {entry.path for place, entry in enumerate(plan.entries(unit)) if place not in without}
    return gone


def _records(plan: Plan, ledger: Ledger) -> Iterator[tuple[int, int, UnitRecord | None]]:
    """Units, each with the number of its first input and its record."""
    start = 0
    for unit, record in enumerate(ledger.records(range(plan.units))):
        yield unit, start, record
        start += plan.size(unit)


def _free(
    plan: Plan,
    ledger: Ledger,
    schema: pa.Schema,
    found: NDArray[np.bool_] | None,
    touched: Collection[str],
    amendments: Mapping[int, _Amendment],
    equal: Mapping[int, Collection[int]] = MappingProxyType({}),
) -> int:
    """Turn duplicates of touched inputs into failures of their own; returns how many of them are to be embedded.

    found: which inputs still exist; None: unknown. equal: duplicates that stay what they are, {unit: places}.
    """
    count = 0
    if not touched:
        return count
    for unit, start, record in _records(plan, ledger):
        doubles = {place for place, path in plan.duplicates(unit).items() if path in touched}
        judged = amendments[unit].kinds if unit in amendments else {}
        freed = sorted(doubles - set(record.released if record else ()) - judged.keys() - set(equal.get(unit, ())))
        kinds = {place: CHANGED if found is None or found[start + place] else GONE for place in freed}
        count += list(kinds.values()).count(CHANGED)
        _fail(plan, ledger, unit, schema, _Amendment(kinds, {}))
    return count


def _relabeled(
    record: UnitRecord | None,
    entries: Sequence[Entry],
    here: NDArray[np.bool_],
    labels: Mapping[int, str | None] | None,
    start: int,
) -> dict[int, str | None]:
    """Present labels of a unit's inputs, by place, where they are not the recorded ones."""
    if labels is None:
        return {}
    before = record.labels if record else {}
    each = ((place, entry.label, labels.get(start + place, entry.label)) for place, entry in enumerate(entries))
    return {
        place: now for place, planned, now in each if here[place] and not same_label(before.get(place, planned), now)
    }


def _judged(
    record: UnitRecord,
    entries: Sequence[Entry],
    here: NDArray[np.bool_],
    superseded: NDArray[np.bool_],
    drop_gone: bool,
) -> dict[int, str]:
    """What happened to a unit's inputs, by place: CHANGED or GONE; unchanged ones are left out."""
    errors = {failure.place: failure.error for failure in record.failures}
    before, now = record.stamps, stamps_of(entries) if record.stamps or "missing" in errors.values() else ""
    kinds = {}
    for place in range(len(entries)):
        part, error = slice(_LENGTH * place, _LENGTH * (place + 1)), errors.get(place)
        differs = before[part] != now[part] and not {_UNKNOWN, ""} & {before[part], now[part]}
        unknown = before[part] == _UNKNOWN or (not before and error == "missing")
        appeared = error is not None and unknown and now[part] not in (_UNKNOWN, "")
        if here[place] and (differs or appeared or error == GONE):
            kinds[place] = CHANGED
        elif not here[place] and (drop_gone or superseded[place]) and error != GONE:
            kinds[place] = GONE
    return kinds


def _fail(plan: Plan, ledger: Ledger, unit: int, schema: pa.Schema, amendment: _Amendment) -> None:
    """Turn inputs into failures, and remove their rows from the unit's shard; note labels."""
    kinds = amendment.kinds
    if not kinds and not amendment.labels:
        return
    record = ledger.sealed(unit) or _begun(plan, ledger, unit, schema)
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
    released, everything = (*record.released, *sorted(doubles & kinds.keys())), tuple(sorted(failures))
    labels = {**record.labels, **amendment.labels}
    done = replace(record, rows=rows, size=size, sha256=sha256, failures=everything, released=released, labels=labels)
    ledger.seal(unit, done)


def _begun(plan: Plan, ledger: Ledger, unit: int, schema: pa.Schema) -> UnitRecord:
    """A record for a unit that is not done: it has no rows, and every run tries its inputs."""
    entries, doubles = plan.entries(unit), plan.duplicates(unit)
    size, sha256 = ledger.write(unit, schema.empty_table())
    gone = superseded_failures(plan, unit, entries)
    open_ones = set(range(len(entries))) - doubles.keys() - {failure.place for failure in gone}
    failures = [Failure(place, entries[place].path, CHANGED, "not embedded yet") for place in open_ones]
    return UnitRecord(0, size, tuple(sorted([*failures, *gone])), stamps=stamps_of(entries), sha256=sha256)


def superseded_failures(plan: Plan, unit: int, entries: Sequence[Entry]) -> tuple[Failure, ...]:
    """The lines of a unit's inputs that were superseded. entries: the unit's."""
    places = sorted(plan.superseded(unit))
    return tuple(Failure(place, entries[place].path, GONE, _MESSAGES[GONE]) for place in places)


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
