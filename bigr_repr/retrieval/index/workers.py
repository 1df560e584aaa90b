"""Work on all cores in one pool of threads for the whole process. Knows nothing of the work but that FAISS does it.

Several callers at once share the cores instead of fighting for them.
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
    """The threads that scan, a core each. process: a forked child needs threads of its own."""
    import faiss

    return ThreadPoolExecutor(cores(), "bigr-scan", initializer=faiss.omp_set_num_threads, initargs=(1,))


@contextmanager
def omp_threads(count: int) -> Iterator[None]:
    """Within it, FAISS's own parallel loops in this thread use this many threads."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def on_all_cores(work: Callable[..., _T], parts: Sequence[tuple[Any, ...]]) -> list[_T]:
    """[work(*part) for part in parts], at the same time.

    Every thread takes the next part when it is done with one, the caller's thread too: it does not wait for another one
    to wake, which takes as long as scanning a megabyte, and a core that is busy elsewhere holds nothing up.
    """
    found: dict[int, _T] = {}
    waiting = iter(enumerate(parts))  # one step of it is one step of the interpreter: no two threads take the same part

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
    """Slices of so many queries, about as many as there are cores, none longer than a search takes at a time."""
    size = max(1, min(_QUERIES, -(-count // cores())))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
