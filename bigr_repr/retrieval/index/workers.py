"""Runs work on all cores in one thread pool for the whole process. Knows only that FAISS does the work.

Concurrent callers share the cores instead of competing for them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, Final, TypeVar

from bigr_repr.system.threads import cores

_QUERIES: Final = 64  # at a time
_T = TypeVar("_T")


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The scanning threads, one per core. process: a forked child needs its own threads."""
    import faiss

    return ThreadPoolExecutor(cores(), "bigr-scan", initializer=faiss.omp_set_num_threads, initargs=(1,))


@contextmanager
def omp_threads(count: int) -> Iterator[None]:
    """Context in which FAISS's parallel loops in this thread use this many threads."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def on_all_cores(work: Callable[..., _T], parts: Sequence[tuple[Any, ...]]) -> list[_T]:
    """[work(*part) for part in parts], in parallel.

    Every thread, including the caller's, takes the next part when it finishes one: it does not wait for another to
    wake, which takes as long as scanning a megabyte, and a busy core does not delay the rest.
    """
    found: dict[int, _T] = {}
    waiting = iter(enumerate(parts))  # advancing it is atomic in the interpreter: no two threads take the same part

    def some() -> None:
        for number, part in waiting:
            found[number] = work(*part)

    helpers = min(cores(), len(parts)) - 1
    others = [_pool(os.getpid()).submit(some) for _ in range(helpers)]
    try:
        with omp_threads(1):
            some()
    finally:
        for other in others:
            if not other.cancel():
                other.result()
    return [found[number] for number in range(len(parts))]


def query_parts(count: int) -> list[slice]:
    """Slices of `count` queries, about one per core, none longer than a search takes at a time."""
    size = max(1, min(_QUERIES, -(-count // cores())))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
