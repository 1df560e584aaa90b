"""Ensures a single writer in an object store, which has no locks. Knows nothing of what is written.

Each run puts an object of its own, its flag, and then lists all flags. Stores show every put in all later listings, so
the later of two runs sees the other's flag, and they cannot both believe that they are alone. This needs only puts and
lists; not every store has conditional puts. A run renews its flag every few seconds; a flag that is no longer renewed
belongs to a run that has ended, and the next run takes over.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from typing import Any, Final
from uuid import uuid4

from bigr_repr.system.object_store import ObjectPath

log = logging.getLogger(__name__)

_BEAT: Final = 10.0  # seconds between heartbeats
_STALE: Final = 60.0  # seconds without one after which a run counts as ended
_LOOK: Final = 1.0  # seconds between checks of another run's flag
_TRIES: Final = 4
_ASKING, _HOLDING = "asking", "holding"


@dataclass(frozen=True)
class _Flag:
    """Another run's flag. written: by the store's clock, in seconds; 0.0: unknown."""

    place: ObjectPath
    content: dict[str, Any]
    written: float

    @property
    def state(self) -> str:
        return str(self.content.get("state", _HOLDING))

    @property
    def term(self) -> int:
        return int(self.content.get("term", 0))

    @property
    def ended(self) -> bool:
        """Whether its process is known to have ended, which can be told only on the same system."""
        process, system = self.content.get("process"), _system()
        if not isinstance(process, int) or not system or self.content.get("system") != system:
            return False
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False

    def __str__(self) -> str:
        told = self.content
        return f"process {told.get('process', '?')} on {told.get('host', '?')}, since {told.get('since', '?')}"


class Lease:
    """The exclusive right to write to a place while the block of `leased` runs."""

    def __init__(self, flags: ObjectPath, what: str) -> None:
        self._flags, self._what = flags, what
        self._name = f"{uuid4().hex}.json"
        self._content: dict[str, Any] = {
            "state": _ASKING, "term": 0, "process": os.getpid(), "host": socket.gethostname(), "system": _system(),
            "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC", "beat": 0,
        }  # fmt: skip
        self._lost: _Flag | None = None
        self._end = Event()

    def check(self) -> None:
        """Raises RuntimeError if another run has taken over because this one's heartbeat stopped."""
        if self._lost is not None:
            raise RuntimeError(
                f"{self._what}: another run has taken over ({self._lost}), because this one had no heartbeat for "
                f"{_STALE:.0f} s; finished units are kept"
            )

    def take(self) -> None:
        """Raises RuntimeError, naming the holder in one line, if another run holds the lease."""
        seen: dict[str, tuple[int, float]] = {}  # by name: its heartbeat, and when that was first seen
        while True:
            self._show()
            others = [flag for flag in self._others() if not self._over(flag, seen)]
            if not others:
                break
            for flag in others:
                beat, since = int(flag.content.get("beat", 0)), time.monotonic()
                before = seen.setdefault(flag.place.name, (beat, since))
                alive = beat != before[0] and flag.state == _HOLDING
                if alive or (flag.state == _ASKING and flag.place.name < self._name):
                    raise RuntimeError(
                        f"{self._what}: another run is writing it ({flag}); wait for it, or choose another output"
                    )
                if before[1] == since:
                    log.warning("%s: waiting for another run's heartbeat (%s)", self._what, flag)
            time.sleep(_LOOK)
        self._content["state"] = _HOLDING
        self._show()
        Thread(target=self._keep, name="bigr-lease", daemon=True).start()

    def release(self) -> None:
        """Release the lease."""
        self._end.set()
        with suppress(OSError):
            (self._flags / self._name).unlink(missing_ok=True)

    def _show(self) -> None:
        self._content["beat"] += 1
        with (self._flags / self._name).put() as file:
            file.write(json.dumps(self._content).encode())

    def _others(self) -> list[_Flag]:
        """The flags of other runs."""
        places = (place for place in self._flags.glob("*.json") if place.name != self._name)
        return [flag for flag in map(_read, places) if flag is not None]

    def _over(self, flag: _Flag, seen: dict[str, tuple[int, float]]) -> bool:
        """Whether another run has ended without removing its flag; if so, the flag is removed."""
        own = (self._flags / self._name).stat().st_mtime_ns / 1e9
        age = own - flag.written if own and flag.written else 0.0
        if flag.place.name in seen and seen[flag.place.name][0] == flag.content.get("beat"):
            age = max(age, time.monotonic() - seen[flag.place.name][1])
        if not flag.ended and age <= _STALE:
            return False
        log.info("%s: taking over from a run that has ended (%s)", self._what, flag)
        self._content["term"] = max(self._content["term"], flag.term + 1)
        flag.place.unlink(missing_ok=True)
        return True

    def _keep(self) -> None:
        """Renew the flag, and check whether another run has taken over."""
        while not self._end.wait(_BEAT) and self._lost is None:
            with suppress(OSError):  # the store does not answer: if that lasts, another run may take over
                later = [
                    flag for flag in self._others() if flag.state == _HOLDING and flag.term > self._content["term"]
                ]
                if later:
                    self._lost = later[0]
                elif not self._end.is_set():
                    self._show()
                    if self._end.is_set():
                        (self._flags / self._name).unlink(missing_ok=True)


def _read(place: ObjectPath) -> _Flag | None:
    """A flag; None if it has just been removed. If it changes during the read, it is read again."""
    for _ in range(_TRIES - 1):
        with suppress(OSError, ValueError):
            return _Flag(place, json.loads(place.read_text(encoding="utf-8")), place.stat().st_mtime_ns / 1e9)
        if not place.exists():
            return None
    return _Flag(place, json.loads(place.read_text(encoding="utf-8")), place.stat().st_mtime_ns / 1e9)


@contextmanager
def leased(flags: ObjectPath, what: str) -> Iterator[Lease]:
    """Lease a place in a store exclusively. flags: a folder there for the runs' flags; what: its name in errors.

    After a killed run, the place is free within a minute; on the same machine, at once.  Raises RuntimeError if
    another run holds it.
    """
    lease = Lease(flags, what)
    try:
        lease.take()
        yield lease
    finally:
        lease.release()


def _system() -> str:
    """Identifies this boot and container; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return boot + os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:
        return ""
