"""Inputs of the same bytes, found before the work begins, so that each distinct image is embedded once.

Every input is read for its SHA-256, in threads; some 150 bytes of memory per input, and the paths of those that have
doubles. Knows nothing of pixels: the same picture encoded anew is another image here.

Doubles of an image that failed may be fetched again, and be doubles no more: see release_doubles.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path

import numpy as np

from bigr_repr.embed.dataset.entry import Entry
from bigr_repr.embed.dataset.ledger import Failure, Ledger
from bigr_repr.embed.dataset.plan import Plan, listed, write_digests
from bigr_repr.embed.dataset.schema import columns_of
from bigr_repr.embed.inputs.fetch import EncodedPicture, fetch, pictures, pictures_of_units
from bigr_repr.images.formats import ImageError
from bigr_repr.images.parquet import Columns
from bigr_repr.system.files import replacing
from bigr_repr.system.object_store import Place
from bigr_repr.system.threads import map_ahead

_UNREAD = bytes(32)


def list_digests(
    folder: Place, before: Plan | None, workers: int | None, on_listed: Callable[[int], None], columns: Columns
) -> None:
    """Write the digests of the inputs that list_inputs wrote, and of which earlier input each is a double.

    before: the plan that they will be added to, whose inputs are earlier. What cannot be read is nobody's double.
    columns: of Parquet files.
    """
    old = range(before.units) if before else range(0)
    digests = bytearray().join(chain.from_iterable(before.digests(unit) for unit in old) if before else ())
    earlier = len(digests) // 32
    for digest in map_ahead(_digest, pictures_of_units(listed(folder), columns), workers=workers):
        digests += digest
        count = len(digests) // 32 - earlier
        if count % 1024 == 0:
            on_listed(count)
    first = _first_of_each(np.frombuffer(digests, "S32"))
    originals = np.unique(first[first != np.arange(len(first))])

    def entries() -> Iterator[Entry]:
        if before:
            yield from chain.from_iterable(map(before.entries, old))
        yield from chain.from_iterable(listed(folder))

    wanted = iter([*originals.tolist(), -1])
    following, paths = next(wanted), {}
    for number, entry in enumerate(entries()):
        if number == following:
            paths[number], following = entry.path, next(wanted)

    def units() -> Iterator[tuple[list[bytes], list[str | None]]]:
        start = earlier
        for unit in listed(folder):
            numbers = range(start, start + len(unit))
            own = [bytes(digests[32 * number : 32 * number + 32]) for number in numbers]
            yield own, [None if first[number] == number else paths[int(first[number])] for number in numbers]
            start += len(unit)

    write_digests(folder, units())


def list_duplicates(plan: Plan, ledger: Ledger) -> int:
    """Write a line of JSON for each input that is the double of an earlier one; returns how many there are."""
    count = 0
    with replacing(ledger.duplicates_file) as lines:
        for unit, record in enumerate(ledger.records(plan.units)):
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
    """Make failures of the doubles of failed images that are no longer the same bytes, to be tried again.

    Each then gets a row of its own. Only failed images that still have doubles are read for it, and those doubles.
    """
    failed = {
        failure.path: (unit, failure.place)
        for unit, record in enumerate(ledger.records(plan.units))
        for failure in (record.failures if record else ())
    }
    if not failed:
        return
    doubles = {unit: found for unit in range(plan.units) if (found := _doubles(plan, ledger, unit, failed))}
    originals = {path for found in doubles.values() for path in found.values()}
    now = _digests_now(plan, sorted(failed[path] for path in originals))
    for unit, found in doubles.items():
        own = _digests_now(plan, [(unit, place) for place in found])
        freed = [place for place, path in found.items() if own[unit, place] != now[failed[path]]]
        if freed:
            _release(plan, ledger, unit, {place: found[place] for place in freed})


def _doubles(plan: Plan, ledger: Ledger, unit: int, failed: Collection[str]) -> dict[int, str]:
    """Doubles of failed images in a sealed unit that have no row of their own: {place: path of the failed one}."""
    record = ledger.sealed(unit)
    if record is None:
        return {}
    doubles = plan.duplicates(unit).items()
    return {place: path for place, path in doubles if path in failed and place not in record.released}


def _digests_now(plan: Plan, places: Iterable[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
    """Digests of the inputs at (unit, place), read anew; places of one unit follow each other."""
    found: dict[tuple[int, int], bytes] = {}
    for unit, group in groupby(places, itemgetter(0)):
        entries, own = plan.entries(unit), [place for _, place in group]
        digests = map(_digest, pictures((entries[place] for place in own), columns_of(plan.provenance)))
        found |= {(unit, place): digest for place, digest in zip(own, digests, strict=True)}
    return found


def _release(plan: Plan, ledger: Ledger, unit: int, freed: Mapping[int, str]) -> None:
    """Make failures of doubles in a sealed unit. freed: {place: path of the failed one}."""
    record, entries = ledger.sealed(unit), plan.entries(unit)
    assert record is not None
    failures = [Failure(place, entries[place].path, "duplicate", f"{path} failed") for place, path in freed.items()]
    everything = tuple(sorted([*record.failures, *failures]))
    ledger.seal(unit, replace(record, failures=everything, released=(*record.released, *freed)))


def _first_of_each(digests: np.ndarray[tuple[int], np.dtype[np.bytes_]]) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """For each the number of the first one that equals it; its own for what was not read."""
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    numbers = first[inverse]
    unread = np.flatnonzero(digests == b"")  # as NumPy sees 32 zeros
    numbers[unread] = unread
    return numbers


def _digest(picture: EncodedPicture) -> bytes:
    try:
        source = fetch(picture)
        if isinstance(source, bytes):
            return hashlib.sha256(source).digest()
        if not Path(source).is_file():  # opening a pipe could wait for ever
            return _UNREAD
        with Path(source).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except (ImageError, OSError, ValueError):  # it will be among the failures, with the reason
        return _UNREAD
