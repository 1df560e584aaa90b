"""Repeats requests to a server that does not answer, up to the run's time limit for outages.

Knows nothing of what is requested. All threads of a process share an outage: it begins when a request to a server
that has answered before fails, and ends when one succeeds. Outside a run, nothing is repeated.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Final, TypeVar

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_FIRST, _LONGEST = 0.5, 30.0  # seconds between attempts: doubled each time, up to the longest
_ALONE: Final = 4  # attempts at one request while others succeed; after that, it is not the server's fault
_lock = Lock()
_seconds = 0.0  # maximum length of each outage


@dataclass
class _Server:
    """answers: so far; began: start of the current outage."""

    answers: int = 0
    began: float | None = None


_servers: dict[str, _Server] = {}


def set_retry_time(seconds: float) -> float:
    """Set how many seconds an outage may last in this process; returns the previous setting."""
    global _seconds
    with _lock:
        before, _seconds = _seconds, seconds
        for server in _servers.values():
            server.began = None
    return before


@contextmanager
def retrying_for(seconds: float) -> Iterator[None]:
    """Tolerate outages of up to so many seconds during the block."""
    before = set_retry_time(seconds)
    try:
        yield
    finally:
        set_retry_time(before)


def retried(call: Callable[[], _T], url: str) -> _T:
    """The result of call(), which is repeated while it raises ConnectionError. url: what it requests.

    Raises what call() raises; ConnectionError at once if the server has never answered, and once the time limit has
    passed or other requests have been answered in the meantime.
    """
    with _lock:
        server = _servers.setdefault("/".join(url.split("/", 3)[:3]), _Server())
    attempt, seen = 0, server.answers
    while True:
        try:
            result = call()
        except ConnectionError as error:
            attempt += 1
            with _lock:
                now = time.monotonic()
                if server.began is None and _seconds and server.answers:
                    server.began = now
                    log.warning("%s; trying again for at most %.0f s", error, _seconds)
                over = server.began is None or now - server.began > _seconds
                alone = server.answers - seen > attempt >= _ALONE
            if over or alone:
                raise
            pause = min(_LONGEST, _FIRST * 2 ** (attempt - 1))
            time.sleep(min(pause, _seconds) * random.uniform(0.5, 1.0))  # so that many clients do not retry at once
            continue
        with _lock:
            server.answers += 1
            if server.began is not None:
                log.warning("%s: answered again after %.0f s", url, time.monotonic() - server.began)
                server.began = None
        return result
