"""A job queue: jobs report progress, ask before they take long, and stop when no client is listening."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

WAITING: Final = 8  # jobs in the queue
KEPT: Final = 200  # finished jobs whose outcome is remembered
ABANDONED_SECONDS = 10.0  # a job without listeners stops after this time
LONG_SECONDS = 120.0  # longer jobs need confirmation
_SURE_SECONDS: Final = 2.0  # of work before the estimated duration is trusted
_ASK_SECONDS: Final = 300.0
_LOOK_SECONDS = 0.4  # minimum time between previews
_TOLD_SECONDS: Final = 0.5  # minimum time between progress updates
_LOOK_SHARE: Final = 0.1  # maximum share of the time spent on previews
THREAD: Final = "drawing"


class StopError(Exception):
    """The job must end because it was stopped or abandoned."""


class BusyError(Exception):
    """The queue is full."""


Look = Callable[[], Any]
Watch = Callable[[float, float, Look | None], None]  # done, total, and a preview, if any


@dataclass(eq=False)
class QueuedJob:
    """One job. state: waiting, running, asking, done, failed or stopped. version: increases with each change.

    seconds_left: None if not known yet. look: the latest preview. result, error: the outcome.
    """

    work: Callable[[Watch], Any]
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    state: str = "waiting"
    version: int = 0
    share: float = 0.0
    seconds_left: float | None = None
    look: Any = None
    result: Any = None
    error: Exception | None = None
    confirmed: threading.Event = field(default_factory=threading.Event)
    halted: threading.Event = field(default_factory=threading.Event)
    _listening: int = 0
    _heard: float = field(default_factory=time.monotonic)
    _begun: float = 0.0
    _looked: float = 0.0
    _told: float = 0.0
    _cost: float = 0.0

    @property
    def over(self) -> bool:
        """Whether it has ended, for whatever reason."""
        return self.state in ("done", "failed", "stopped")

    @property
    def abandoned(self) -> bool:
        """Whether nobody has listened for a while."""
        return not self._listening and time.monotonic() - self._heard > ABANDONED_SECONDS

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Context in which a client is listening."""
        self._listening += 1
        try:
            yield
        finally:
            self._listening -= 1
            self._heard = time.monotonic()

    def change(self, **values: Any) -> None:
        """Set attributes and notify listeners."""
        for name, value in values.items():
            setattr(self, name, value)
        self.version += 1

    def run(self) -> None:
        """Do the work."""
        self._begun = self._looked = time.monotonic()
        self.change(state="running")
        try:
            self.change(result=self.work(self._watch), share=1.0, seconds_left=0.0, state="done")
        except StopError:
            self.change(state="stopped", look=None)
        except Exception as error:
            self.change(error=error, state="failed", look=None)

    def _watch(self, done: float, total: float, look: Look | None) -> None:
        if self.halted.is_set() or self.abandoned:
            raise StopError
        now = time.monotonic()
        passed = now - self._begun
        self.share = done / total if total else 0.0
        self.seconds_left = passed / self.share - passed if self.share else None
        if passed > _SURE_SECONDS and (self.seconds_left or 0) > LONG_SECONDS and not self.confirmed.is_set():
            self._ask()
        if now - self._told >= _TOLD_SECONDS:  # even if previews are slow and therefore rare
            self.change()
            self._told = now
        if now - self._looked >= max(_LOOK_SECONDS, self._cost / _LOOK_SHARE):
            self.change(look=self.look if look is None else look())
            self._looked = time.monotonic()
            self._cost = self._looked - now

    def _ask(self) -> None:
        """Wait for confirmation that the job may take this long."""
        self.change(state="asking")
        began = time.monotonic()
        while not self.confirmed.wait(0.1):
            if self.halted.is_set() or self.abandoned or time.monotonic() - began > _ASK_SECONDS:
                raise StopError
        self._begun += time.monotonic() - began
        self.change(state="running")


class Desk:
    """The queue and its single worker thread."""

    def __init__(self) -> None:
        self._jobs: dict[str, QueuedJob] = {}
        self._waiting: deque[QueuedJob] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._current: QueuedJob | None = None
        self._thread = threading.Thread(target=self._work, name=THREAD, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[Watch], Any]) -> QueuedJob:
        """Queue a job. Raises BusyError if the queue is full."""
        job = QueuedJob(work)
        with self._changed:
            for left in [each for each in self._waiting if each.abandoned]:
                self._waiting.remove(left)
                left.change(state="stopped")
            if len(self._waiting) >= WAITING:
                raise BusyError(f"{len(self._waiting)} jobs are already waiting; try again when one is done")
            self._jobs[job.id] = job
            for old in [each for each in self._jobs.values() if each.over][:-KEPT]:
                del self._jobs[old.id]
            self._waiting.append(job)
            self._changed.notify()
        return job

    def __getitem__(self, id: str) -> QueuedJob:
        """Raises KeyError."""
        return self._jobs[id]

    def ahead(self, job: QueuedJob) -> int:
        """Number of jobs ahead of a waiting one."""
        with self._changed:
            before = self._waiting.index(job) if job in self._waiting else 0
            return before + (job in self._waiting and self._current is not None)

    def stop(self, job: QueuedJob) -> None:
        """Stop a job, whether waiting or running."""
        job.halted.set()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                job.change(state="stopped")

    def halt(self) -> None:
        """Ask all jobs to stop, and start no more."""
        with self._changed:
            self._ended = True
            for job in [*self._waiting, *([self._current] if self._current else [])]:
                job.halted.set()
            self._changed.notify()

    def close(self) -> None:
        """Stop all jobs and wait for them to end."""
        self.halt()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._waiting)
                if self._ended:
                    return
                job = self._current = self._waiting.popleft()
            if job.abandoned:
                job.change(state="stopped")
            else:
                job.run()
            with self._changed:
                self._current = None
