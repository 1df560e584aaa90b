"""Tells which files may have other bytes than when their digests were listed, without reading them.

A file's mark changes if it is written, touched, renamed, replaced (also by an older file, as `cp -p` and `mv` do), or
if its folder is. Files that changed less than two seconds before they were listed have no mark, since the clocks of
some file systems are that coarse: another change could leave the mark as it was.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from bigr_repr.embed.dataset.entry import Entry
from bigr_repr.embed.dataset.lists import NO_MARK
from bigr_repr.embed.dataset.plan import Plan
from bigr_repr.system.object_store import is_url

__all__ = ["mark_of", "suspects"]

_SETTLED_NS = 2 * 10**9


def mark_of(file: str) -> bytes:
    """8 bytes, which differ once a file may hold other bytes; NO_MARK if that cannot be told, as for objects."""
    status = None if is_url(file) else _status(file)
    if status is None or max(status.st_mtime_ns, status.st_ctime_ns) > time.time_ns() - _SETTLED_NS:
        return NO_MARK
    return _mark(status)


def suspects(plan: Plan, unit: int, entries: Sequence[Entry], places: Iterable[int]) -> list[int]:
    """Those of a unit's inputs whose bytes may not be those of the plan's digests; never objects.

    entries: the unit's; places: those that are asked for.
    """
    marks, known = plan.marks(unit), dict[str, bytes]()
    found = []
    for place in places:
        file, mark = entries[place].file, marks[place]
        if is_url(file):
            continue
        if mark != NO_MARK and file not in known:
            status = _status(file)
            known[file] = NO_MARK if status is None else _mark(status)
        if mark == NO_MARK or mark != known[file]:
            found.append(place)
    return found


def _status(file: str) -> os.stat_result | None:
    try:
        return os.stat(file)  # noqa: PTH116 - names need not be UTF-8
    except (OSError, ValueError):
        return None


def _mark(status: os.stat_result) -> bytes:
    told = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
    return blake2b(told.encode(), digest_size=len(NO_MARK)).digest()
