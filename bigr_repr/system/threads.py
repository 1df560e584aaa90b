"""Threads that process a stream: results in order, computed a bounded number ahead. Knows nothing of the work.

Threads, not processes: Pillow releases the interpreter's lock while it decodes and resizes. A thread may itself use
a process: see bigr_repr.images.isolated.
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
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """One thread per core, at most 32."""
    return min(cores(), 32)


def map_ahead(
    function: Callable[[_T], _R],
    items: Iterable[_T],
    *,
    workers: int | None = None,
    ahead: int = 64,
    stop: Callable[[], None] | None = None,
) -> Generator[_R, None, None]:
    """function(item) of every item, in order. Its errors are raised in order, too, and end the stream.

    workers: threads; None: default_workers(). ahead: maximum number of items read and results held, so that memory
    does not depend on the number of items. Closing the generator waits for running calls and starts no others;
    so does an error, including Ctrl-C. stop: called before that wait, to cut those calls short.
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
    """The same items; a thread reads up to so many of them ahead.

    Errors of the stream are raised in order. Closing the generator waits for the item being read.
    """
    source, end = iter(items), object()
    pool = ThreadPoolExecutor(1, thread_name_prefix="bigr-read")
    try:
        pending = deque(pool.submit(next, source, end) for _ in range(ahead))
        while (item := pending.popleft().result()) is not end:
            pending.append(pool.submit(next, source, end))
            yield item  # type: ignore[misc]    # it is not the end marker
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
