"""An index, folder or store, that may be replaced at any time: its newest complete state, and the previous one.

Knows nothing of requests.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Protocol

from bigr_repr._typing import PathLike
from bigr_repr.retrieval.index.hamming import HammingIndex
from bigr_repr.retrieval.index.shard_list import manifests
from bigr_repr.retrieval.request import AnyIndex
from bigr_repr.retrieval.stores.base import Store, StoreIndex
from bigr_repr.retrieval.stores.open import connect, is_store

log = logging.getLogger(__name__)
Check = Callable[[AnyIndex], None]
_PATIENCE: Final = 2.0  # seconds
_TRIES: Final = 10  # attempts to open a folder that changes


@dataclass(frozen=True, kw_only=True, eq=False)
class IndexState:
    """One state of an index. version: the first digits of a SHA-256 that identifies the state."""

    version: str
    index: AnyIndex


class Opener(Protocol):
    """The location of an index."""

    def stamp(self) -> Hashable | None:
        """A value that changes when the index is replaced; None: there is no index."""
        ...

    def open(self, check: Check) -> IndexState:
        """Its newest state.  Raises OSError, ValueError, and what check(index) raises."""
        ...


@dataclass(frozen=True)
class FolderOpener:
    """An index folder, sharded or not. processes: number that search shards; they end with the last use of a state."""

    folder: Path
    processes: int = 1

    def stamp(self) -> Hashable | None:
        """See Opener."""
        try:
            found = [manifest.stat() for manifest in manifests(self.folder)]
        except (OSError, ValueError):
            return None
        return tuple((each.st_mtime_ns, each.st_ino, each.st_size) for each in found)

    def open(self, check: Check) -> IndexState:
        """See Opener."""
        for left in reversed(range(_TRIES)):
            before = self._state()
            index = HammingIndex.load(self.folder)
            index.rows.check()  # damage is found here, not during a request
            check(index)
            if self.processes > 1:  # which start only for an index that can be served
                index = HammingIndex.load(self.folder, processes=self.processes)
            state = IndexState(version=hashlib.sha256(before).hexdigest()[:12], index=index)
            if self._state() == before or not left:
                break
            _end_processes(state)
        return state

    def _state(self) -> bytes:
        return b"".join(manifest.read_bytes() for manifest in manifests(self.folder) if manifest.is_file())


@dataclass(frozen=True)
class StoreOpener:
    """An index in a store, with a persistent connection."""

    place: str
    name: str

    @cached_property
    def _store(self) -> Store:
        return connect(self.place, self.name)

    def stamp(self) -> str | None:
        """See Opener."""
        try:
            return self._store.open().version
        except (OSError, ValueError):  # ValueError: its header is being written
            return None

    def open(self, check: Check) -> IndexState:
        """See Opener."""
        index = StoreIndex(self._store)
        check(index)
        return IndexState(version=hashlib.sha256(index.version.encode()).hexdigest()[:12], index=index)


def opener_of(index: PathLike, name: str, processes: int = 1) -> Opener:
    """The opener of an index folder, or of the index pushed to a store under a name."""
    return StoreOpener(str(index), name) if is_store(str(index)) else FolderOpener(Path(index), processes)


class LiveIndex:
    """An open index; a thread checks every `interval` seconds whether it has changed, and reopens it.

    A request takes `current` once and uses that state to its end: the old files stay mapped meanwhile. If a new state
    cannot be opened, or check(index) rejects it with ValueError, this is logged once, and the old one stays.
    reloaded(ok): called after each attempt.

    Raises, for the first state, what HammingIndex.load, open_store and check raise.
    """

    def __init__(
        self,
        opener: Opener,
        *,
        check: Check = lambda index: None,
        reloaded: Callable[[bool], None] = lambda ok: None,
        interval: float = 1.0,
    ) -> None:
        self._opener = opener
        self._check, self._reloaded, self._interval = check, reloaded, interval
        self._stamp = opener.stamp()
        self._states = [opener.open(check)]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="index", daemon=True)
        self._thread.start()

    @property
    def current(self) -> IndexState:
        """The newest state."""
        return self._states[0]

    def state(self, version: str) -> IndexState | None:
        """The state of a version, if it is the newest or the previous one."""
        return next((state for state in self._states if state.version == version), None)

    def close(self) -> None:
        """Stop watching, and end the processes that search. It waits only briefly for an index that is being opened."""
        self._ended.set()
        self._thread.join(_PATIENCE)
        for state in self._states:
            _end_processes(state)

    def _watch(self) -> None:
        told: tuple[Hashable | None, str] | None = None  # the last failure that was logged
        while not self._ended.wait(self._interval):
            stamp = None
            try:
                stamp = self._opener.stamp()
                if stamp is None or stamp == self._stamp:
                    told = None
                    continue
                state = self._opener.open(self._check)
            except Exception as error:  # whatever a store's client raises, watching continues
                # Possibly in the middle of a change: the stamp stays, so that the next check tries again.
                failure = (stamp, str(error))
                if failure != told:
                    log.warning("the index changed and cannot be opened; the old one stays: %s", error)
                told = failure
                self._reloaded(False)
                continue
            self._take(stamp, state)
            told = None

    def _take(self, stamp: Hashable, state: IndexState) -> None:
        self._stamp = stamp
        self._states = [state, self._states[0]]
        if self._ended.is_set():
            _end_processes(state)
        log.info("index %s: %d rows", state.version, len(state.index))
        self._reloaded(True)


def _end_processes(state: IndexState) -> None:
    if isinstance(state.index, HammingIndex) and state.index.shards is not None:
        state.index.shards.close()
