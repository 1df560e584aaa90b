"""The progress of a data set, readable from any machine while it is written. Independent of how rows are computed.

Every few seconds, a run writes a small file next to the plan: who it is and how many images it has done. Sealed units
are counted from their records, whose names and times come from one listing.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from bigr_repr._typing import PathLike
from bigr_repr.embed.dataset.plan import RUN_FOLDER, open_plan
from bigr_repr.system.files import replacing
from bigr_repr.system.object_store import ObjectPath, Place, as_place
from bigr_repr.system.records import as_object, parsed

_NAME: Final = "status.json"
_EVERY: Final = 10.0  # seconds between updates
_RECENT: Final = 600.0  # seconds over which the rate is measured
_SILENT: Final = 60.0  # seconds of silence after which a run counts as ended


@dataclass(frozen=True, kw_only=True)
class EmbedStatus:
    """The progress of a data set.

    units, units_done: of the plan, and sealed. images: inputs of the plan; images_done: approximate number in sealed
    units. rate: recent images per second, 0.0 if unknown; seconds_left: None if unknown. running: whether a run was
    active in the last minute. told: what the run reports about itself: `host`, `process`, `engine`,
    `since`, `updated` (seconds since 1970), `done`, `total`, `failures`, and `units` by worker.
    """

    out: str
    units: int
    units_done: int
    images: int
    images_done: int
    rate: float
    seconds_left: float | None
    running: bool
    told: Mapping[str, Any]


class StatusFile:
    """A run's report about itself; short runs write none."""

    def __init__(self, folder: Place, engine: str) -> None:
        self._place, self._engine, self._began = folder / _NAME, engine, time.time()
        self._written, self._units, self._told = time.monotonic(), Counter[str](), False

    def tell(self, done: int, total: int | None, failures: int, *, by: str = "", ended: bool = False) -> None:
        """Write the progress periodically. by: the worker that just finished images.  Never raises."""
        if by:
            self._units[by] += 1
        if not (self._told if ended else time.monotonic() - self._written >= _EVERY):
            return
        self._written, self._told = time.monotonic(), True
        content = {
            "host": socket.gethostname(), "process": os.getpid(), "engine": self._engine, "since": self._began,
            "updated": time.time(), "ended": ended, "done": done, "total": total, "failures": failures,
            "units": dict(self._units),
        }  # fmt: skip
        with suppress(OSError), replacing(self._place) as file:  # a full disk is reported when rows are written
            file.write(json.dumps(content).encode())


def embed_status(out: PathLike) -> EmbedStatus:
    """The progress of a data set, finished or not.  Raises FileNotFoundError if there is no plan yet."""
    place = as_place(out)
    plan = open_plan(place / RUN_FOLDER)
    told = _told(place / RUN_FOLDER / _NAME)
    if plan is None:
        said = f"; a run on {told['host']} is listing inputs, {told['done']:,} so far" if told.get("host") else ""
        raise FileNotFoundError(f"{place}: no run has been planned here{said}; start one with: bigr-repr embed")
    written = sorted(seconds for name, seconds in _records(place / RUN_FOLDER / "units") if name < plan.units)
    share = len(written) / plan.units if plan.units else 1.0
    recent = [seconds for seconds in written if seconds >= written[-1] - _RECENT]
    span = recent[-1] - recent[0] if recent else 0.0
    rate = (len(recent) - 1) * plan.inputs / plan.units / span if span > 0 else 0.0
    left = plan.inputs * (1 - share)
    running = not told.get("ended", True) and time.time() - told.get("updated", 0.0) < _SILENT
    return EmbedStatus(
        out=str(place), units=plan.units, units_done=len(written), images=plan.inputs,
        images_done=round(plan.inputs * share), rate=rate, seconds_left=left / rate if rate else None if left else 0.0,
        running=running, told=told,
    )  # fmt: skip


def _told(place: Place) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        return as_object(parsed(place.read_bytes()))
    return {}


def _records(folder: Place) -> list[tuple[int, float]]:
    """Units with a record, and its time in seconds since 1970."""
    if isinstance(folder, ObjectPath):
        found = [(name, state.st_mtime_ns / 1e9) for name, state in folder.states()]
    elif folder.is_dir():
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.stat().st_mtime) for entry in entries if not entry.name.startswith(".")]
    else:
        found = []
    numbers = ((name.removesuffix(".json"), seconds) for name, seconds in found)
    return [(int(number), seconds) for number, seconds in numbers if number.isdecimal()]
