"""Time limits for calls to stores: one that is not answered in time ends with one line. Knows nothing of what is asked.

A call that takes too long goes on in its thread, which does not keep the process from ending; its result is dropped.
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

ANSWER: Final = 60.0  # seconds that opening or searching may take
STEP: Final = 120.0  # seconds that a step of a push may take: a batch of rows, or a look at what is there
ROWS: Final = 1000  # rows a second at least that an index is made of: what is beyond that takes too long
_SPACE: Final = 1 << 20  # bytes free, below which a disk is taken to be full
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
    """What call() gives or raises. signs: of life, from the last of which the seconds count; None: from the start.

    place: the store's name in messages; local: its file or folder, if it is on this machine.
    Raises ConnectionError when the time is over.
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
        return "see whether the server runs and its disk is not full, or allow a longer timeout"
    folder = next((each for each in (Path(local), *Path(local).absolute().parents) if each.is_dir()), None)
    if folder is not None and shutil.disk_usage(folder).free < _SPACE:
        return f"its disk is full: {FULL_REMEDY}"
    return "see whether another process has it open, or allow a longer timeout"


class Timed:
    """An object whose methods are called as within() does."""

    def __init__(self, target: Any, seconds: float, place: str, local: str | None) -> None:
        self._target, self.seconds, self._place, self._local = target, seconds, place, local

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            return within(lambda: method(*arguments, **options), self.seconds, self._place, local=self._local)

        return timed

    def patient(self, seconds: float) -> Timed:
        """The same with other patience."""
        return Timed(self._target, seconds, self._place, self._local)
