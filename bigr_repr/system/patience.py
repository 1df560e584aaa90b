"""Requests that fail because a server does not answer are made again, for as long as a run has patience.

Knows nothing of what is asked for. An outage is one for all threads of a process: it begins with the first request that
fails, and ends with one that does not. Outside a run nothing is asked twice.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Final, TypeVar

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_FIRST, _LONGEST = 0.5, 30.0  # seconds between attempts: twice as long each time, up to the longest
_ALONE: Final = 4  # attempts at one request while others succeed: then it is not the server
_lock = Lock()
_seconds = 0.0  # that outages may last, one at a time
_began: float | None = None  # the outage that lasts
_successes = 0


def set_patience(seconds: float) -> float:
    """Say for how many seconds outages are to be borne in this process; returns what was said before."""
    global _seconds, _began
    with _lock:
        before, _seconds, _began = _seconds, seconds, None
    return before


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """While the block runs, outages of so many seconds are borne."""
    before = set_patience(seconds)
    try:
        yield
    finally:
        set_patience(before)


def patiently(call: Callable[[], _T], what: str) -> _T:
    """What call() gives. While it raises ConnectionError it is called again. what: for the log.

    Raises what it raises, ConnectionError when patience is at its end or when others are answered meanwhile.
    """
    global _began, _successes  # noqa: PLW0603
    attempt, seen = 0, _successes
    while True:
        try:
            result = call()
        except ConnectionError as error:
            attempt += 1
            with _lock:
                now = time.monotonic()
                if _began is None and _seconds:
                    _began = now
                    log.warning("%s; trying again for at most %.0f s", error, _seconds)
                over = _began is None or now - _began > _seconds
                alone = _successes - seen > attempt >= _ALONE
            if over or alone:
                raise
            pause = min(_LONGEST, _FIRST * 2 ** (attempt - 1))
            time.sleep(min(pause, _seconds) * random.uniform(0.5, 1.0))  # so that many do not come back at once
            continue
        with _lock:
            _successes += 1
            if _began is not None:
                log.warning("%s: answered again after %.0f s", what, time.monotonic() - _began)
                _began = None
        return result
