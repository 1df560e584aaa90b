"""An index folder that may be replaced at any time: the newest whole state of it, and the one before.

Knows nothing of requests.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bigr_repr._typing import PathLike
from bigr_repr.retrieval.index.folder import MANIFEST
from bigr_repr.retrieval.index.hamming import HammingIndex

log = logging.getLogger(__name__)
_Stamp = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class IndexState:
    """One state of an index folder. version: the first digits of its manifest's SHA-256."""

    version: str
    index: HammingIndex


class LiveIndex:
    """An index folder, opened; a thread looks every `interval` seconds whether it changed, and opens it again.

    A request takes `current` once and works with that state to its end: the old files stay mapped while it does. A
    state that cannot be opened, or that check(index) refuses with ValueError, is logged, and the old one stays.
    reloaded(ok): called after each attempt.

    Raises what HammingIndex.load raises, and what check raises, for the first state.
    """

    def __init__(
        self,
        folder: PathLike,
        *,
        check: Callable[[HammingIndex], None] = lambda index: None,
        reloaded: Callable[[bool], None] = lambda ok: None,
        interval: float = 1.0,
    ) -> None:
        self.folder = Path(folder)
        self._check, self._reloaded, self._interval = check, reloaded, interval
        self._stamp = self._stat()
        self._states = [self._open()]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="index", daemon=True)
        self._thread.start()

    @property
    def current(self) -> IndexState:
        """The newest state."""
        return self._states[0]

    def state(self, version: str) -> IndexState | None:
        """The state of a version, if it is the newest or the one before."""
        return next((state for state in self._states if state.version == version), None)

    def close(self) -> None:
        """Stop watching."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self._interval):
            stamp = self._stat()
            if stamp is None or stamp == self._stamp:
                continue
            try:
                state = self._open()
            except (OSError, ValueError) as error:
                # Perhaps caught in the middle of a change: the stamp stays, so that the next look tries again.
                log.warning("the index changed and cannot be opened; the old one stays: %s", error)
                self._reloaded(False)
                continue
            self._stamp = stamp
            self._states = [state, self._states[0]]
            log.info("index %s: %d rows", state.version, len(state.index))
            self._reloaded(True)

    def _open(self) -> IndexState:
        manifest = self.folder / MANIFEST
        for _ in range(10):
            before = manifest.read_bytes() if manifest.is_file() else b""
            index = HammingIndex.load(self.folder)
            if manifest.read_bytes() == before:
                break
        self._check(index)
        return IndexState(version=hashlib.sha256(before).hexdigest()[:12], index=index)

    def _stat(self) -> _Stamp | None:
        try:
            found = (self.folder / MANIFEST).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size
