"""Sorts any number of names of a folder in byte order, in memory or, above 32 MiB, in a temporary file.

Knows nothing of folders or of what the names are.
"""

from __future__ import annotations

import heapq
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice, pairwise
from pathlib import Path
from typing import BinaryIO, cast

from bigr_repr.system.files import naming

_RUN, _LONG_RUN = 1 << 14, 1 << 18  # names sorted at a time, in memory and on disk
_HELD = 32 << 20  # bytes of names held in memory
_PIECE = 1 << 13  # bytes of a run on disk read at a time


def sorted_names(names: Iterable[bytes]) -> Iterator[bytes]:
    """Names in byte order: sorted runs, joined by NUL (which no name contains), are merged as they are read.

    Above 32 MiB they are kept in a temporary file.
    """
    names, size = iter(names), 0
    runs: deque[bytes] = deque()
    while run := sorted(islice(names, _RUN)):
        runs.append(b"\0".join(run))
        size += len(runs[-1])
        if size > _HELD:
            return _sorted_on_disk(*_spilled(runs, names))
    return heapq.merge(*map(_split_run, runs))


def _spilled(runs: deque[bytes], names: Iterator[bytes]) -> tuple[BinaryIO, list[int]]:
    """A temporary file of sorted runs, with the remaining names appended as runs, and the runs' boundaries.

    Raises OSError, which names the folder for temporary files, if there is none or its disk is full.
    """
    place = Path(tempfile.gettempdir())
    with naming(place), ExitStack() as stack:
        file = cast(BinaryIO, stack.enter_context(tempfile.TemporaryFile(dir=place)))
        bounds = [0]
        while runs or (more := sorted(islice(names, _LONG_RUN))):
            run = runs.popleft() if runs else b"\0".join(more)
            file.write(run)
            bounds.append(bounds[-1] + len(run))
        file.flush()
        stack.pop_all()  # closed when everything has been read
    return file, bounds


def _sorted_on_disk(file: BinaryIO, bounds: list[int]) -> Iterator[bytes]:
    """The names of sorted runs in a file, merged."""
    with file:
        yield from heapq.merge(*(_read_run(file, start, end) for start, end in pairwise(bounds)))


def _read_run(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    """The names of a run in a file, read a piece at a time."""
    rest = b""
    while start < end:
        file.seek(start)
        piece = file.read(min(_PIECE, end - start))
        start += len(piece)
        *whole, rest = (rest + piece).split(b"\0")
        yield from whole
    yield rest


def _split_run(run: bytes) -> Iterator[bytes]:
    start = 0
    while (end := run.find(b"\0", start)) >= 0:
        yield run[start:end]
        start = end + 1
    yield run[start:]
