"""Progress on stderr: a bar on a terminal, plain lines elsewhere. Knows nothing of what is being done."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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

_QUIET_SECONDS = 60  # between lines where there is no terminal


@contextmanager
def _messages(console: Console) -> Iterator[None]:
    """What the library logs while it trains, on the console, above a bar if there is one."""
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
    """Gives the `on_step(step, scalars)` callback of a trainer."""
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
    """A line a minute of what is counted, for those who read a file."""

    def __init__(self, console: Console, name: str) -> None:
        self._console, self._name = console, name
        self._started = self._said = time.monotonic()

    def tell(self, done: float, total: float) -> None:
        """Say how far it is, unless that was said less than a minute ago."""
        now = time.monotonic()
        if now - self._said >= _QUIET_SECONDS and done > 0:
            self._said, left = now, (now - self._started) * (total - done) / done / 60
            self._console.print(
                f"{self._name}: {done:,.0f} of {total:,.0f}, about {left:,.0f} min left", highlight=False
            )


@contextmanager
def counting_progress(name: str) -> Iterator[Callable[[float, float], None]]:
    """Gives an `on_progress(done, total)` callback, parts of one counting too. Without a terminal, a line a minute."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(console, name).tell
        return
    columns = (TextColumn(name), BarColumn(), TaskProgressColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def bench_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Gives an `on_progress(what, done, total)` callback: a bar for each thing. Without a terminal, a line a minute."""
    console = Console(stderr=True)
    if not console.is_terminal:
        lines: dict[str, _Lines] = {}
        yield lambda what, done, total: lines.setdefault(what, _Lines(console, what)).tell(done, total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield show
