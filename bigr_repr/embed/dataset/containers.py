"""Files that hold several of a plan's inputs: their size and time when listed, and where their inputs are in the plan.

Independent of what is in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from bigr_repr.embed.dataset.damage import damage_named
from bigr_repr.embed.dataset.entry import Entry, as_entry
from bigr_repr.images.find import Source, escape_path, unescape_path
from bigr_repr.system.files import replacing
from bigr_repr.system.object_store import Place, as_place, is_url, readable
from bigr_repr.system.threads import map_ahead

Stamp = tuple[int, int]  # size in bytes and modification time in nanoseconds
_REQUESTS: Final = 32
_KINDS: Final = {name: pa.int64() for name in ("size", "time", "first", "count")}
_SCHEMA: Final = pa.schema({"file": pa.string(), **_KINDS})


class Container(NamedTuple):
    """A file. run: the number of its first input in the list and how many there are; None if they are not contiguous
    or not all known.
    """

    file: str
    stamp: Stamp
    run: tuple[int, int] | None


class ContainerList:
    """The container files of a list, collected while it is written."""

    def __init__(self) -> None:
        self._stamps: dict[str, Stamp | None] = {}
        self._runs: dict[str, tuple[int, int] | None] = {}
        self._before: dict[str, Stamp] = {}

    def watched(self, sources: Iterable[Source]) -> Iterator[Source]:
        """The sources, while the first stamp of each file is noted: note() may come long after the file was listed."""
        last = None
        for source in sources:
            if source.stamp is not None and source.file != last:
                self._before.setdefault(as_entry(source).file, source.stamp)
                last = source.file
            yield source

    def note(self, entries: Sequence[Entry], first: int) -> None:
        """Add the next entries; first: the number of the first of them."""
        for file, group in groupby(entries, lambda entry: entry.file):
            run, before = list(group), self._runs.get(file)
            held = any(entry.start is not None for entry in run)
            if held and file not in self._stamps:
                self._stamps[file] = self._before.get(file) or stamp_of(file)
                self._runs[file] = first, len(run)
            elif file in self._stamps:
                follows = before is not None and sum(before) == first
                self._runs[file] = (before[0], before[1] + len(run)) if before and follows else None
            if held and any(entry.start is None for entry in run):  # it was damaged
                self._runs[file] = None
            first += len(run)

    def write(self, place: Place) -> None:
        """Write the file that containers() reads.  Raises OSError."""
        rows = [
            {"file": escape_path(file), "size": stamp[0], "time": stamp[1]}
            | dict(zip(("first", "count"), self._runs[file] or (None, None), strict=True))
            for file, stamp in self._stamps.items()
            if stamp is not None
        ]
        with replacing(place) as file:
            pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), file, write_page_checksum=True)


def containers(place: Place) -> Iterator[Container]:
    """The files that a ContainerList wrote there; none in data sets of earlier versions."""
    if not place.exists():
        return
    with damage_named(place, remedy="start again with overwrite"):
        table = pq.read_table(readable(place), partitioning=None, page_checksum_verification=True)
    for row in table.to_pylist():
        run = None if row.get("first") is None else (row["first"], row["count"])
        yield Container(unescape_path(row["file"]), (row["size"], row["time"]), run)


def rewritten_files(stamps: Mapping[str, Stamp]) -> frozenset[str]:
    """The files whose stamp has changed, and which still exist."""
    now = zip(stamps.items(), map_ahead(stamp_of, stamps, workers=_REQUESTS), strict=True)
    return frozenset(file for (file, then), today in now if today and not same_stamp(file, then, today))


def changed_file(stamps: Mapping[str, Stamp]) -> str | None:
    """A description of the first file whose stamp has changed; None if none has."""
    now = map_ahead(stamp_of, stamps, workers=_REQUESTS)
    for (file, then), today in zip(stamps.items(), now, strict=True):
        if not same_stamp(file, then, today):
            close = _in_words(then) == _in_words(today)
            said = f"{_in_words(then, exact=close)}, now {_in_words(today, exact=close)}"
            return f"{escape_path(file)} has changed since it was listed ({said})"
    return None


def stamp_of(file: str) -> Stamp | None:
    """Size and modification time of a file, 0 if a store does not tell it; None if unknown."""
    try:
        status = as_place(file).stat()
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def same_stamp(file: str, then: Stamp, now: Stamp | None) -> bool:
    """Whether a file is still as its stamp says; of an object whose time is unknown, 0, only the size counts."""
    if now is not None and is_url(file) and 0 in (then[1], now[1]):
        return then[0] == now[0]
    return then == now


def _in_words(stamp: Stamp | None, *, exact: bool = False) -> str:
    """Size and time; exact: to the nanosecond."""
    if stamp is None:
        return "missing"
    seconds, rest = divmod(stamp[1], 10**9)
    return f"{stamp[0]:,} bytes of {datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}" + f".{rest:09d}" * exact
