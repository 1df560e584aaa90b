"""Processes that search shards, each with its share of the cores and of the shards. Knows no codes and no distances."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np

from bigr_repr.retrieval.index.shard_list import file_states
from bigr_repr.system.processes import end_with_parent
from bigr_repr.system.threads import cores

__all__ = ["Load", "ShardWorkers"]

log = logging.getLogger(__name__)

Load = Callable[[Path], Any]
_Pool = tuple[ProcessPoolExecutor, "Future[list[Any]]"]
_DIED: Final = (
    "a process that searches shards ended twice in a row (killed, or the machine has too little memory); use fewer "
    "processes (--processes)"
)


class ShardWorkers:
    """Processes that have opened their shards; one that dies is replaced.

    folders: of the shards. processes: number, at most that of the shards. load: opens a folder, in each process.
    Raises what load raises, and RuntimeError if a process dies while it starts.
    """

    def __init__(self, folders: Sequence[Path], processes: int, load: Load) -> None:
        self._folders, self._load, self._closed, self._outdated = list(folders), load, False, False
        self._runs = [run.tolist() for run in np.array_split(np.array([str(each) for each in folders]), processes)]
        self._opened = file_states(self._folders)
        self._lock = threading.Lock()
        self._pools = self._started(range(len(self._runs)))

    def search(self, search: Callable[..., Any], asked: tuple[Any, ...]) -> list[Any] | None:
        """[search(shard, *asked) for all shards], in order; a part is repeated once if its process dies.

        None: a process has died, and cannot be replaced because the shards on disk have changed since they were opened.
        Raises RuntimeError if the new process dies too, and after close.
        """
        if self._outdated:
            return None
        submitted = [self._submitted(pool, search, asked) for pool in list(self._pools)]
        found: list[Any] = []
        for number, (pool, answer) in enumerate(submitted):
            try:
                found += answer.result()
            except BrokenProcessPool:
                if (other := self._replaced(number, pool)) is None:
                    return None
                found += _outcome(self._submitted(other, search, asked)[1])
        return found

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            self._closed = True
            for pool in self._pools:
                pool.shutdown(cancel_futures=True)

    def _submitted(self, pool: ProcessPoolExecutor, search: Callable[..., Any], asked: tuple[Any, ...]) -> _Pool:
        try:
            return pool, pool.submit(_search_own, search, asked)
        except BrokenProcessPool as error:
            failed: Future[list[Any]] = Future()
            failed.set_exception(error)
            return pool, failed

    def _replaced(self, number: int, dead: ProcessPoolExecutor) -> ProcessPoolExecutor | None:
        """The process in place of a dead one; None if the shards have changed."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the index was closed while it was searched")
            if self._outdated:
                return None
            if self._pools[number] is not dead:  # another search has replaced it
                return self._pools[number]
            dead.shutdown(wait=False)
            pool = None if self._changed() else self._restarted(number)
            if pool is None:
                log.warning(
                    "a process that searches shards has ended, and the index has changed since it was opened: one "
                    "process searches the opened state"
                )
                self._outdated = True
                for each in self._pools:
                    each.shutdown(wait=False)
                return None
            log.warning("a process that searches shards has ended; another has taken its place")
            self._pools[number] = pool
            return pool

    def _restarted(self, number: int) -> ProcessPoolExecutor | None:
        """A new process with the opened state; None if the shards have changed meanwhile."""
        try:
            (pool,) = self._started([number])
        except (OSError, ValueError):
            if self._changed():
                return None
            raise
        if self._changed():
            pool.shutdown(wait=False)
            return None
        return pool

    def _changed(self) -> bool:
        return file_states(self._folders) != self._opened

    def _started(self, numbers: Sequence[int]) -> list[ProcessPoolExecutor]:
        """Processes that have opened their shards."""
        pools = [ProcessPoolExecutor(1, get_context("spawn"), initializer=end_with_parent) for _ in numbers]
        begun = [
            pool.submit(_begin, self._runs[number], number, len(self._runs), self._load)
            for pool, number in zip(pools, numbers, strict=True)
        ]
        try:
            for each in begun:
                _outcome(each)
        except BaseException:
            for pool in pools:
                pool.shutdown(wait=False, cancel_futures=True)
            raise
        return pools


def _outcome(answer: Future[Any]) -> Any:
    try:
        return answer.result()
    except BrokenProcessPool as error:
        raise RuntimeError(_DIED) from error


# ---- in the processes

_own: list[Any] = []


def _begin(folders: Sequence[str], number: int, processes: int, load: Load) -> None:
    """Open shards, and use only a share of the cores, so that processes do not compete."""
    if hasattr(os, "sched_setaffinity") and cores() >= processes:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[number::processes])
    _own[:] = [load(Path(folder)) for folder in folders]


def _search_own(search: Callable[..., Any], asked: tuple[Any, ...]) -> list[Any]:
    return [search(shard, *asked) for shard in _own]
