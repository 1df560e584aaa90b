"""Work on a stream in threads: results in order, computed ahead of need, within bounds. Knows nothing of the work.

Threads, not processes: Pillow lets go of the interpreter's lock while it decodes and resizes. What a thread calls may
well be a process at work for it: see bigr_repr.images.isolated.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """A thread a core, 32 at most."""
    return min(cores(), 32)


def map_ahead(
    function: Callable[[_T], _R],
    items: Iterable[_T],
    *,
    workers: int | None = None,
    ahead: int = 64,
    stop: Callable[[], None] | None = None,
) -> Generator[_R, None, None]:
    """function(item) of every item, in order. What it raises is raised when its turn comes, and ends the stream.

    workers: threads; None: default_workers(). ahead: items read and results held at most, so that memory does not
    depend on the number of items. Closing the generator waits for the calls that are under way and starts no others;
    so does an error, Ctrl-C included. stop: called before that wait, to cut those calls short.
    Raises ValueError for workers or ahead below 1.
    """
    workers = default_workers() if workers is None else workers
    if workers < 1 or ahead < 1:
        raise ValueError(f"workers={workers} and ahead={ahead} must be at least 1")
    return _map_ahead(function, items, workers, max(ahead, workers), stop or (lambda: None))


def _map_ahead(
    function: Callable[[_T], _R], items: Iterable[_T], workers: int, ahead: int, stop: Callable[[], None]
) -> Generator[_R, None, None]:
    pending: deque[Future[_R]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="bigr-load")
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        stop()
        pool.shutdown(wait=True, cancel_futures=True)


def read_ahead(items: Iterable[_T], ahead: int) -> Generator[_T, None, None]:
    """The same items; a thread takes up to so many from the stream before they are asked for.

    What the stream raises is raised in its turn. Closing the generator waits for the item that is under way.
    """
    source, end = iter(items), object()
    pool = ThreadPoolExecutor(1, thread_name_prefix="bigr-read")
    try:
        pending = deque(pool.submit(next, source, end) for _ in range(ahead))
        while (item := pending.popleft().result()) is not end:
            pending.append(pool.submit(next, source, end))
            yield item  # type: ignore[misc]  # it is not end
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
