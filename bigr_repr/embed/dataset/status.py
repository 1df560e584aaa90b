"""The progress of a data set, asked from any machine while it is being written. Knows nothing of how rows are computed.

A run writes a small file beside the plan every few seconds: who it is, how many images it has done. What is sealed is
counted from the units' records, whose names and times one listing gives.
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

_NAME: Final = "status.json"
_EVERY: Final = 10.0  # seconds between two writings
_RECENT: Final = 600.0  # that the rate is measured over
_SILENT: Final = 60.0  # after which a run is taken to have ended


@dataclass(frozen=True, kw_only=True)
class EmbedStatus:
    """The progress of a data set.

    units, units_done: parts of the plan, and those that are sealed. images: inputs of the plan; images_done: of sealed
    units, about. rate: images per second lately, 0.0 if unknown; seconds_left: None if unknown. running: whether a run
    gave a sign of life in the last minute. told: what the run reports about itself: `host`, `process`, `engine`,
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
    """What a run reports about itself; short runs write nothing."""

    def __init__(self, folder: Place, engine: str) -> None:
        self._place, self._engine, self._began = folder / _NAME, engine, time.time()
        self._written, self._units, self._told = time.monotonic(), Counter[str](), False

    def tell(self, done: int, total: int | None, failures: int, *, by: str = "", ended: bool = False) -> None:
        """Write the progress now and then. by: who has just done images.  Raises nothing."""
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
        with suppress(OSError), replacing(self._place) as file:  # a full disk is said where rows are written
            file.write(json.dumps(content).encode())


def embed_status(out: PathLike) -> EmbedStatus:
    """The progress of a data set that is being written, or was.  Raises FileNotFoundError if there is no plan yet."""
    place = as_place(out)
    plan = open_plan(place / RUN_FOLDER)
    told = _told(place / RUN_FOLDER / _NAME)
    if plan is None:
        said = f"; a run on {told['host']} is listing inputs, {told['done']:,} so far" if told.get("host") else ""
        raise FileNotFoundError(f"{place}: nothing is planned here{said}; make it with: bigr-repr embed")
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
        content = json.loads(place.read_text("utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def _records(folder: Place) -> list[tuple[int, float]]:
    """Units that have a record, and when it was written, in seconds since 1970."""
    if isinstance(folder, ObjectPath):
        found = list(folder.written())
    elif folder.is_dir():
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.stat().st_mtime) for entry in entries if not entry.name.startswith(".")]
    else:
        found = []
    numbers = ((name.removesuffix(".json"), seconds) for name, seconds in found)
    return [(int(number), seconds) for number, seconds in numbers if number.isdecimal()]
