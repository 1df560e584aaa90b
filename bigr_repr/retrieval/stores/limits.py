"""Time limits for calls to stores: a call without a timely answer fails with a one-line error.

A call that takes too long continues in its thread, which does not keep the process alive; its result is dropped.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from pathlib import Path
from threading import Thread
from typing import Any, Final, TypeVar

from bigr_repr.system.files import FULL_REMEDY

ANSWER: Final = 60.0  # time limit for opening or searching, in seconds
STEP: Final = 120.0  # time limit for a step of a push, in seconds: writing a batch of rows, or listing
ROWS: Final = 1000  # minimum rows per second when building an index; slower counts as too long
_SPACE: Final = 1 << 20  # free bytes below which a disk counts as full
_T = TypeVar("_T")


class Signs:
    """The time of the last sign of life."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def note(self) -> None:
        """Note a sign of life."""
        self.last = time.monotonic()


def within(
    call: Callable[[], _T], seconds: float, place: str, *, local: str | None = None, signs: Signs | None = None
) -> _T:
    """The result of call(), or its error. signs: time counts from the last sign of life; None: from the start.

    place: the store's name in messages; local: its file or folder, if it is on this machine.
    Raises ConnectionError when the time is up.
    """
    done: Future[_T] = Future()

    def run() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    signs = signs or Signs()
    Thread(target=run, name="bigr-store", daemon=True).start()
    while not wait_for([done], max(0.0, signs.last + seconds - time.monotonic())).done:
        if time.monotonic() >= signs.last + seconds:
            raise ConnectionError(f"{place}: no answer for {seconds:.0f} s; {_remedy(local)}")
    return done.result()


def _remedy(local: str | None) -> str:
    if local is None:
        return "check that the server is running and its disk is not full, or allow a longer timeout"
    folder = next((each for each in (Path(local), *Path(local).absolute().parents) if each.is_dir()), None)
    if folder is not None and shutil.disk_usage(folder).free < _SPACE:
        return f"its disk is full: {FULL_REMEDY}"
    return "check whether another process has it open, or allow a longer timeout"


class Timed:
    """An object whose methods are called through within()."""

    def __init__(self, target: Any, seconds: float, place: str, local: str | None) -> None:
        self._target, self.seconds, self._place, self._local = target, seconds, place, local

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            return within(lambda: method(*arguments, **options), self.seconds, self._place, local=self._local)

        return timed

    def patient(self, seconds: float) -> Timed:
        """The same with a different time limit."""
        return Timed(self._target, seconds, self._place, self._local)
