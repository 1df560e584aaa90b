"""Progress of `bigr-repr embed`: a bar on a terminal, else a line per minute; as JSON; as metrics."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer

from bigr_repr_cli.embed.metrics import METRICS_START, metrics_text, parse_address, serving

_LINE: Final = 60.0  # seconds between lines
_METRICS: Final = 15.0  # seconds between updates of the metrics file
_RECENT: Final = 600.0  # seconds over which the rate is measured


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """How a run reports its progress."""

    log_json: Annotated[
        bool,
        typer.Option("--log-json", help="Report progress as one JSON line per minute on stderr, instead of a bar."),
    ] = False
    metrics: Annotated[
        Path | None,
        typer.Option(
            help="File to keep up to date with the run's counts in Prometheus' text format, for the node "
            r"exporter's textfile collector \[default: none]."
        ),
    ] = None
    metrics_port: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:]PORT",
            help="Port that serves the same counts to Prometheus, to this machine only (9464), or to others too "
            r"(0.0.0.0:9464) \[default: none].",
        ),
    ] = None


def check_metrics(file: Path | None, out: str, inputs: list[str]) -> None:
    """Check, before a run, that its metrics file can be written and replaces nothing but an earlier one.

    Raises BadParameter for any other file, OSError for one that cannot be written.
    """
    if file is None:
        return
    from bigr_repr.system.object_store import ObjectPath, as_place
    from bigr_repr.system.targets import check_target
    from bigr_repr_cli.search.targets import check_inputs

    folder, place = as_place(out), file.resolve()
    if not isinstance(folder, ObjectPath):
        folder = folder.resolve()
        if place.is_relative_to(folder) or folder.is_relative_to(place):
            _refuse(f"{file} is where the rows go, {out}; choose a file outside of it")
    check_target(file)
    if not file.exists():
        return
    if not file.is_file():
        _refuse(f"{file} is not a regular file; choose another name")
    with file.open("rb") as opened:
        start = opened.read(len(METRICS_START))
    if start not in (b"", METRICS_START):
        _refuse(f"{file} exists and holds no metrics of an earlier run; choose another name, or remove it")
    check_inputs({"--metrics": file} if not start else {}, inputs)


def _refuse(said: str) -> NoReturn:
    raise typer.BadParameter(said, param_hint="--metrics")


class Meter:
    """Counts over time: images done, the recent rate, and the time left."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()
        self.done, self.failures = 0, 0
        self.total: int | None = None

    def count(self, done: int, total: int | None, failures: int) -> None:
        """Record the current counts; those of the listing do not count toward the rate."""
        if (total is None) != (self.total is None):
            self._marks.clear()
        now = time.monotonic()
        if not self._marks or now - self._marks[-1][0] >= 1:
            self._marks.append((now, done))
        while now - self._marks[0][0] > _RECENT:
            self._marks.popleft()
        self.done, self.total, self.failures = done, total, failures

    @property
    def rate(self) -> float:
        """Images per second in the last few minutes; 0.0 if not known yet."""
        first, done = self._marks[0] if self._marks else (0.0, 0)
        seconds = time.monotonic() - first
        return (self.done - done) / seconds if self._marks and seconds > 1 else 0.0

    @property
    def left(self) -> float | None:
        """Seconds left at that rate; None if not known."""
        return (self.total - self.done) / self.rate if self.total is not None and self.rate else None

    def content(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "phase": "listing" if self.total is None else "embedding", "done": self.done, "total": self.total,
            "failures": self.failures, "images_per_second": round(self.rate, 2),
            "seconds_left": None if self.left is None else round(self.left),
        }  # fmt: skip

    def __str__(self) -> str:
        if self.total is None:
            return f"listing: {self.done:,} images so far"
        share = 100 * self.done / max(1, self.total)
        left = "" if self.left is None else f", about {in_time(self.left)} left"
        counts = f"{self.done:,} of {self.total:,} images ({share:.1f} %), {self.failures:,} failed"
        return f"embedding: {counts}, {self.rate:,.1f} images/s{left}"


class Watch:
    """Reports a run's counts: periodic lines on stderr, the metrics file, and the port."""

    def __init__(self, options: WatchOptions, lines: bool) -> None:
        self._options, self._lines, self.meter = options, lines, Meter()
        self._said = self._written = time.monotonic()

    def show(self, done: int, total: int | None, failures: int) -> None:
        """Record the counts, and report them if it is time to."""
        first = total is not None and self.meter.total is None
        self.meter.count(done, total, failures)
        now = time.monotonic()
        if self._lines and (now - self._said >= _LINE or (first and self._options.log_json)):
            self._said = now
            self.say()
        if now - self._written >= _METRICS or first:
            self._written = now
            self.write()

    def say(self, **more: Any) -> None:
        """Write a line of progress."""
        if self._options.log_json:
            line = json.dumps({"time": round(time.time(), 3), **self.meter.content(), **more})
        else:
            line = str(self.meter)
        typer.echo(line, err=True)

    @contextmanager
    def served(self) -> Iterator[None]:
        """While the block runs, serve the counts if a port was requested; report the port if it was chosen freely."""
        address = self._options.metrics_port
        if address is None:
            yield
            return
        with serving(address, lambda: metrics_text(self.meter)) as port:
            if not parse_address(address)[1]:
                told = json.dumps({"time": round(time.time(), 3), "metrics_port": port})
                typer.echo(told if self._options.log_json else f"metrics at port {port}, /metrics", err=True)
            yield

    def write(self, ended: bool = False) -> None:
        """Write the metrics file, if one was requested."""
        from bigr_repr.system.files import replacing

        if self._options.metrics is not None:
            with nullcontext() if ended else suppress(OSError), replacing(self._options.metrics) as file:
                file.write(metrics_text(self.meter).encode())


def in_time(seconds: float) -> str:
    """Format a duration, as in "3 h 12 min"."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
