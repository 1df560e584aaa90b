"""Finds byte-identical inputs before work begins, so that each distinct image is embedded once.

Every input is read for its SHA-256, in threads. About 130 bytes per input are compared, in temporary files if there
are many: see bigr_repr.system.spilled. Ignores pixels: a re-encoded picture counts as a different image.

Duplicates of a failed image may differ from it when they are fetched again: see release_doubles.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bigr_repr.embed.dataset.entry import Entry
from bigr_repr.embed.dataset.ledger import GONE, Failure, Ledger
from bigr_repr.embed.dataset.lists import NO_MARK, listed, listed_count, write_digests
from bigr_repr.embed.dataset.plan import Plan
from bigr_repr.embed.dataset.schema import columns_of
from bigr_repr.embed.inputs.fetch import EncodedPicture, fetch, pictures_of_units
from bigr_repr.embed.inputs.suspects import mark_of, suspects
from bigr_repr.images.formats import ImageError
from bigr_repr.images.parquet import Columns
from bigr_repr.system.files import naming, replacing
from bigr_repr.system.object_store import Place, is_url
from bigr_repr.system.spilled import SpilledArray, sorted_by
from bigr_repr.system.threads import map_ahead

_UNREAD = bytes(32)
_REPORT = 1024  # inputs between progress reports


class Earlier(NamedTuple):
    """The plan that inputs are added to, with its records, from which reopen() has removed what is no longer true.

    found: which of its inputs still exist, in plan order.
    """

    plan: Plan
    ledger: Ledger
    found: NDArray[np.bool_]


def list_digests(
    folder: Place, before: Earlier | None, workers: int | None, on_listed: Callable[[int], None], columns: Columns
) -> None:
    """Write the digests of the inputs that list_inputs wrote, and which earlier input each one duplicates.

    before: what they will be added to, whose inputs come first. Unreadable inputs are not duplicates, nor are those
    equal to an earlier input that neither has a row nor will get one. columns: of Parquet files.
    """
    plan = before.plan if before else None
    earlier, new = plan.inputs if plan else 0, listed_count(folder)
    digests = SpilledArray(earlier + new, np.dtype([("sha256", "S32"), ("mark", f"S{len(NO_MARK)}")]))
    own = digests.values["sha256"]
    if before is not None:
        _fill(own, _digests_of(before, workers), digests.release)
    inputs = zip(_files(chain.from_iterable(listed(folder))), pictures_of_units(listed(folder), columns), strict=True)
    found = map_ahead(lambda each: _marked(*each[0], each[1]), inputs, workers=workers)
    _fill(digests.values[earlier:], found, digests.release, on_listed)
    first = _first_of_each(digests)
    paths = _Paths(first, plan, folder)

    def units() -> Iterator[tuple[list[bytes], list[str | None], list[bytes]]]:
        start = earlier
        for unit in listed(folder):
            numbers = range(start, start + len(unit))
            each, marks = (_whole(digests.values[name][start : start + len(unit)]) for name in ("sha256", "mark"))
            firsts = first.values[start : start + len(unit)].tolist()
            same_as = [None if at == number else paths.of(at) for number, at in zip(numbers, firsts, strict=True)]
            yield each, same_as, marks
            digests.release()
            first.release()
            start += len(unit)

    with closing(paths):
        write_digests(folder, units())


def _digests_of(before: Earlier, workers: int | None) -> Iterator[bytes]:
    """Digests of a plan's inputs as they were embedded or will be; of 32 zero bytes for those without a row."""
    start = 0
    for unit in range(before.plan.units):
        record, planned = before.ledger.sealed(unit), before.plan.digests(unit)
        digests, here = list(planned), before.found[start : start + len(planned)]
        doubles = set(before.plan.duplicates(unit)) - set(record.released if record else ())
        for place in doubles:
            digests[place] = _UNREAD
        for place, digest in record.digests.items() if record else ():
            digests[place] = bytes.fromhex(digest)
        failed = {failure.place for failure in record.failures} if record else set(range(len(digests)))
        failed -= doubles
        for place in failed:
            digests[place] = planned[place] if here[place] else _UNREAD
        again = _to_read(
            before.plan, unit, sorted(place for place in failed if here[place]), objects=record is not None
        )
        for (_, place), now in digests_now(before.plan, ((unit, place) for place in again), workers).items():
            digests[place] = now
        start += len(digests)
        yield from digests


def _to_read(plan: Plan, unit: int, places: Sequence[int], *, objects: bool) -> list[int]:
    """Those of a unit's inputs without a row that may have changed since they were listed. objects: include these."""
    if not places:
        return []
    entries = plan.entries(unit)
    own = [place for place in places if objects and is_url(entries[place].file)]
    return sorted([*own, *suspects(plan, unit, entries, places)])


def _whole(texts: NDArray[np.bytes_]) -> list[bytes]:
    """Strings with the trailing zeros that NumPy leaves out."""
    return [text.ljust(texts.itemsize, b"\0") for text in texts.tolist()]


def _fill(
    target: NDArray[Any],
    digests: Iterable[bytes | tuple[bytes, bytes]],
    release: Callable[[], None],
    report: Callable[[int], None] = lambda count: None,
) -> None:
    for count, digest in enumerate(digests):
        target[count] = digest
        if count % _REPORT == _REPORT - 1:
            release()
            report(count + 1)


class _Paths:
    """Recorded paths of the inputs that have duplicates, in a temporary file; 16 bytes of memory for each."""

    def __init__(self, first: SpilledArray, before: Plan | None, folder: Place) -> None:
        doubled = [chunk[chunk != np.arange(start, start + len(chunk))] for start, chunk in first.chunks()]
        self._numbers = np.unique(np.concatenate([np.empty(0, np.int64), *doubled]))
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._ends = np.zeros(len(self._numbers) + 1, np.int64)
        start, done = 0, 0
        for unit in chain(_units_of(before), listed(folder)):
            end = start + len(unit)
            for number in self._numbers[done : np.searchsorted(self._numbers, end)].tolist():
                text = unit[number - start].path.encode()
                with naming(Path(tempfile.gettempdir())):
                    self._file.write(text)
                self._ends[done + 1] = self._ends[done] + len(text)
                done += 1
            start = end
        self._file.flush()

    def of(self, number: int) -> str:
        """The path of an input that has duplicates."""
        at = int(np.searchsorted(self._numbers, number))
        start, end = self._ends[at : at + 2].tolist()
        self._file.seek(start)
        return self._file.read(end - start).decode()

    def close(self) -> None:
        """Remove the file."""
        self._file.close()


def _units_of(before: Plan | None) -> Iterator[list[Entry]]:
    """The inputs of a plan, unit by unit; none without one."""
    return iter(()) if before is None else map(before.entries, range(before.units))


def list_duplicates(plan: Plan, ledger: Ledger) -> int:
    """Write a line of JSON for each input that duplicates an earlier one; returns how many there are."""
    count = 0
    with replacing(ledger.duplicates_file) as lines:
        for unit, record in enumerate(ledger.records(range(plan.units))):
            duplicates = plan.duplicates(unit)
            for place in record.released if record else ():
                duplicates.pop(place, None)
            if duplicates:
                entries = plan.entries(unit)
                for place, original in duplicates.items():
                    line = {"path": entries[place].path, "same_as": original}
                    lines.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                count += len(duplicates)
    return count


def release_doubles(plan: Plan, ledger: Ledger) -> None:
    """Turn duplicates of failed images into failures, to be retried, if their bytes now differ.

    Each then gets a row of its own. Only failed images that still have duplicates, and those duplicates, are read.
    """
    failed = {
        failure.path: (unit, failure.place)
        for unit, record in enumerate(ledger.records(range(plan.units)))
        for failure in (record.failures if record else ())
        if failure.error != GONE
    }
    if not failed:
        return
    doubles = {unit: found for unit in range(plan.units) if (found := _doubles(plan, ledger, unit, failed))}
    originals = {path for found in doubles.values() for path in found.values()}
    now = digests_now(plan, sorted(failed[path] for path in originals))
    for unit, found in doubles.items():
        own = digests_now(plan, [(unit, place) for place in found])
        freed = [place for place, path in found.items() if own[unit, place] != now[failed[path]]]
        if freed:
            _release(plan, ledger, unit, {place: found[place] for place in freed})


def _doubles(plan: Plan, ledger: Ledger, unit: int, failed: Collection[str]) -> dict[int, str]:
    """Duplicates of failed images in a sealed unit that have no row of their own: {place: path of the failed one}."""
    record = ledger.sealed(unit)
    if record is None:
        return {}
    doubles = plan.duplicates(unit).items()
    return {place: path for place, path in doubles if path in failed and place not in record.released}


def digests_now(
    plan: Plan, places: Iterable[tuple[int, int]], workers: int | None = None
) -> dict[tuple[int, int], bytes]:
    """Digests of the inputs at (unit, place), read again in threads; places of one unit are contiguous."""
    asked = list(places)

    def units() -> Iterator[list[Entry]]:
        for unit, group in groupby(asked, itemgetter(0)):
            entries = plan.entries(unit)
            yield [entries[place] for _, place in group]

    found = map_ahead(_digest, pictures_of_units(units(), columns_of(plan.provenance)), workers=workers)
    return dict(zip(asked, found, strict=True))


def _release(plan: Plan, ledger: Ledger, unit: int, freed: Mapping[int, str]) -> None:
    """Turn duplicates in a sealed unit into failures. freed: {place: path of the failed one}."""
    record, entries = ledger.sealed(unit), plan.entries(unit)
    assert record is not None
    failures = [Failure(place, entries[place].path, "duplicate", f"{path} failed") for place, path in freed.items()]
    everything = tuple(sorted([*record.failures, *failures]))
    ledger.seal(unit, replace(record, failures=everything, released=(*record.released, *freed)))


def _first_of_each(digests: SpilledArray) -> SpilledArray:
    """For each digest, the number of the first equal one; for unread inputs, their own number."""
    records = SpilledArray(len(digests), np.dtype([("sha256", "S32"), ("number", np.int64)]))
    for start, chunk in digests.chunks():
        part = records.values[start : start + len(chunk)]
        part["sha256"], part["number"] = chunk["sha256"], np.arange(start, start + len(chunk))
        records.release()
    first, before, number = SpilledArray(len(digests), np.int64), b"", 0
    for _, chunk in sorted_by(records, "sha256").chunks():
        texts, numbers = np.ascontiguousarray(chunk["sha256"]), np.ascontiguousarray(chunk["number"])
        begins = np.ones(len(texts), bool)
        begins[1:] = texts[1:] != texts[:-1]
        begins[0] = texts[0] != before
        begins |= texts == b""  # NumPy's view of 32 zero bytes: not a duplicate
        at = np.maximum.accumulate(np.where(begins, np.arange(len(texts)), -1))
        firsts = np.where(at < 0, number, numbers[at])
        first.values[numbers] = firsts
        before, number = texts[-1], int(firsts[-1])
        first.release()
    return first


def _files(entries: Iterable[Entry]) -> Iterator[tuple[str, bytes | None]]:
    """The file of each input; with its mark, if it holds several inputs, which are read ahead of their turn."""
    held, mark = "", NO_MARK
    for entry in entries:
        if entry.start is not None and entry.file != held:
            held, mark = entry.file, mark_of(entry.file)
        yield entry.file, None if entry.start is None else mark


def _marked(file: str, mark: bytes | None, picture: EncodedPicture) -> tuple[bytes, bytes]:
    """An input's digest and its file's mark, which is taken first: a change during reading makes it differ."""
    mark = mark_of(file) if mark is None else mark
    digest = _digest(picture)
    return digest, NO_MARK if digest == _UNREAD else mark


def _digest(picture: EncodedPicture) -> bytes:
    try:
        source = fetch(picture)
        if isinstance(source, bytes):
            return hashlib.sha256(source).digest()
        if not Path(source).is_file():  # opening a pipe could block forever
            return _UNREAD
        with Path(source).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except (ImageError, OSError, ValueError):  # it will be listed among the failures, with the reason
        return _UNREAD
