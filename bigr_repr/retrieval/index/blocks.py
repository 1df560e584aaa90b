"""How many codes FAISS compares with one query before it moves to the next. Knows nothing of searches or kinds.

Codes that stay in a core's cache while many queries are compared with them are read from memory once. FAISS uses blocks
of 65,536 whatever their length; half of the L2 cache is better on most processors, by an amount that varies.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["comparing", "rows_a_block", "second_level_cache"]

_CACHES: Final = Path("/sys/devices/system/cpu/cpu0/cache")
_USUAL: Final = 1 << 20  # bytes of L2 cache, if the system does not tell
_WHOLE: Final = 1 << 40  # rows: a single query reads everything once, so blocks would only cost time
_TRIAL: Final = 8 << 20  # bytes of codes in a trial
_TRIAL_QUERIES: Final = 8
_TURNS: Final = 3
_WORTH: Final = 256 << 20  # bytes of codes, times queries, from which a trial of a few milliseconds pays off
_GAIN: Final = 0.97  # a different block must take less than this share of the default's time


@cache
def second_level_cache() -> int:
    """Size of a core's L2 cache in bytes."""
    for folder in sorted(_CACHES.glob("index*")):
        try:
            if (folder / "level").read_text(encoding="utf-8").strip() == "2":
                size = re.fullmatch(r"(\d+)K", (folder / "size").read_text(encoding="utf-8").strip())
                return int(size[1]) << 10 if size else _USUAL
        except OSError:
            continue
    return _USUAL


@contextmanager
def comparing(rows: int) -> Iterator[None]:
    """Context in which FAISS compares a query with this many codes at a time.

    The setting is global. If another thread changes it, searches take a different time but give the same result.
    """
    import faiss

    before = _of_faiss()
    faiss.cvar.hamming_batch_size = rows
    try:
        yield
    finally:
        faiss.cvar.hamming_batch_size = before


def rows_a_block(codes: NDArray[np.uint8], queries: int) -> int:
    """The block size for comparing queries with codes (n, bytes), measured if there is much to do."""
    if queries == 1:
        return _WHOLE
    width = codes.shape[1]
    if codes.nbytes * queries < _WORTH and width not in _measured:
        return _usual(width)
    if width not in _measured:
        _measured[width] = _trial(np.ascontiguousarray(codes[: max(_TRIAL_QUERIES, _TRIAL // width)]))
    return _measured[width]


_measured: dict[int, int] = {}  # by bytes per code, once per process


def _usual(width: int) -> int:
    return max(1, second_level_cache() // 2 // width)


@cache
def _of_faiss() -> int:
    import faiss

    return int(faiss.cvar.hamming_batch_size)


def _trial(codes: NDArray[np.uint8]) -> int:
    """The fastest, in this thread's time, of half the cache, a quarter, all of it, and FAISS's default.

    FAISS's default is left out if codes are too long for any cache: the trial is too short to show that.
    """
    import faiss

    usual = _usual(codes.shape[1])
    own = _of_faiss()
    tried = [usual, max(1, usual // 2), 2 * usual, *([own] if own <= len(codes) // 2 else [])]
    least = dict.fromkeys(tried, np.inf)
    for _ in range(_TURNS):
        for rows in least:
            with comparing(rows):
                started = time.thread_time()
                faiss.knn_hamming(codes[:_TRIAL_QUERIES], codes, 1)
                least[rows] = min(least[rows], time.thread_time() - started)
    best = min(least, key=least.__getitem__)
    return best if least[best] < _GAIN * least[usual] else usual
