"""Progress on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

_QUIET_SECONDS = 60  # between lines without a terminal


@contextmanager
def _messages(console: Console) -> Iterator[None]:
    """Show the library's log messages during training on the console, above the bar if there is one."""
    logger, handler = logging.getLogger("bigr_repr.train"), logging.Handler(logging.INFO)
    handler.emit = lambda record: console.print(record.getMessage(), highlight=False, markup=False, soft_wrap=True)  # type: ignore[method-assign]
    before, level = logger.propagate, logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = before


@contextmanager
def training_progress(steps: int, name: str) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """Yields the `on_step(step, scalars)` callback of a trainer."""
    console = Console(stderr=True)

    def describe(scalars: dict[str, float]) -> str:
        return f"loss {scalars['loss']:.4f}  {scalars['images_per_second']:,.0f} images/s"

    if not console.is_terminal:
        with _messages(console):
            yield lambda step, scalars: console.print(f"step {step + 1}/{steps}  {describe(scalars)}", highlight=False)
        return
    columns = (TextColumn(name), BarColumn(), TaskProgressColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as progress, _messages(console):
        task = progress.add_task(name, total=steps, note="")
        yield lambda step, scalars: progress.update(task, completed=step + 1, note=describe(scalars))


class _Lines:
    """One line per minute for each counted task, even if a single count takes longer; for logs."""

    def __init__(self, console: Console, *begun: str) -> None:
        self._console, self._lock = console, threading.Lock()
        self._changed = self._last = time.monotonic()
        self._begun, self._said = dict.fromkeys(begun, self._last), dict[str, float]()
        self._latest: tuple[str, float, float] | None = None

    def tell(self, what: str, done: float, total: float) -> None:
        """Report progress, unless that was done less than a minute ago."""
        with self._lock:
            now = time.monotonic()
            begun = self._begun.setdefault(what, now)
            if (what, done, total) != self._latest:
                self._latest, self._changed = (what, done, total), now
            if done > 0 and now - self._said.setdefault(what, begun) >= _QUIET_SECONDS:
                left = (now - begun) * (total - done) / done / 60
                self._say(what, f"{what}: {done:,.0f} of {total:,.0f}, about {left:,.0f} min left", now)

    def beat(self) -> None:
        """Report what is running if nothing was reported for a minute."""
        with self._lock:
            now = time.monotonic()
            if self._latest is None or now - self._last < _QUIET_SECONDS:
                return
            what, done, total = self._latest
            minutes = int((now - self._changed) / 60)
            how_far, since = f"{done:,.0f} of {total:,.0f}", f", for {minutes:,} min now"
            if done >= total:
                how_far, since = "done", f", {minutes:,} min ago"
            self._say(what, f"{what}: {how_far}{since if minutes else ''}", now)

    def _say(self, what: str, text: str, now: float) -> None:
        self._said[what] = self._last = now
        self._console.print(text, highlight=False, markup=False)


@contextmanager
def _lines(console: Console, *begun: str) -> Iterator[_Lines]:
    """Progress lines, with a thread that prints at least one per minute."""
    lines, ended = _Lines(console, *begun), threading.Event()

    def watch() -> None:
        while not ended.wait(_QUIET_SECONDS / 4):
            lines.beat()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        ended.set()
        thread.join()


@contextmanager
def counting_progress(name: str) -> Iterator[Callable[[float, float], None]]:
    """Yields an `on_progress(done, total)` callback; fractions count. Without a terminal, a line per minute."""
    console = Console(stderr=True)
    if not console.is_terminal:
        with _lines(console, name) as lines:
            yield partial(lines.tell, name)
        return
    columns = (TextColumn(name), BarColumn(), TaskProgressColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def bench_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yields an `on_progress(what, done, total)` callback: one bar per task. Without a terminal, a line per minute."""
    console = Console(stderr=True)
    if not console.is_terminal:
        with _lines(console) as lines:
            yield lines.tell
        return
    name = TextColumn("{task.description}", markup=False)
    with Progress(name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console) as progress:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield show
