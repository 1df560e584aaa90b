"""Collects single items from many callers into batches for a few threads. Knows nothing of what they are."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")


class QueueFullError(RuntimeError):
    """The queue has no room for what was submitted; try again later."""


class ClosedError(RuntimeError):
    """Nothing more is accepted."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down, or another index was opened; try again")


class Batcher(Generic[T, R]):
    """A queue, and threads that call run(items) with up to `batch` items at a time: one result per item, in order.

    A batch starts as soon as run is free and its first item has waited wait_seconds for others; meanwhile, the next one
    fills up.
    waiting: capacity of the queue. threads: how many run at a time; they do not keep the process from ending. If run
    raises, every item of the batch is tried alone, so that only the faulty item fails.
    """

    def __init__(
        self,
        run: Callable[[list[T]], Sequence[R]],
        *,
        batch: int,
        wait_seconds: float,
        waiting: int,
        name: str,
        threads: int = 1,
        observe: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self._run, self._batch, self._wait, self._waiting = run, batch, wait_seconds, waiting
        self._observe = observe
        self._queue: deque[tuple[T, Future[R], float]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def alive(self) -> bool:
        """Whether items are being processed."""
        return not self._closed and all(thread.is_alive() for thread in self._threads)

    def submit(self, items: Sequence[T]) -> list[Future[R]]:
        """Queue items, all or none.  Raises QueueFullError without room for all, ClosedError once closed."""
        futures: list[Future[R]] = [Future() for _ in items]
        self._enqueue(items, futures)
        return futures

    def submit_later(self, coming: Future[S], item_of: Callable[[S], T]) -> Future[R]:
        """Queue item_of(result of `coming`) in the thread that completes it, so that no other thread has to wake up.

        If `coming` fails, so does the returned future; cancelling the latter cancels `coming`.
        """
        result: Future[R] = Future()

        def came(done: Future[S]) -> None:
            if done.cancelled():
                result.cancel()
                return
            try:
                self._enqueue([item_of(done.result())], [result])
            except Exception as error:
                if result.set_running_or_notify_cancel():
                    result.set_exception(error)

        result.add_done_callback(lambda done: coming.cancel() if done.cancelled() else None)
        coming.add_done_callback(came)
        return result

    def _enqueue(self, items: Sequence[T], futures: Sequence[Future[R]]) -> None:
        with self._changed:
            if self._closed:
                raise ClosedError
            if len(self._queue) + len(items) > self._waiting:
                raise QueueFullError(f"{len(self._queue)} items are waiting; the queue holds {self._waiting}")
            now = time.monotonic()
            self._queue.extend((item, future, now) for item, future in zip(items, futures, strict=True))
            self._changed.notify_all()

    def close(self, *, finish: bool = True) -> None:
        """Accept nothing more, finish queued items, and end the threads.

        finish: False cancels queued items instead, and does not wait for those being worked on.
        """
        with self._changed:
            self._closed = True
            dropped = [] if finish else [future for _, future, _ in self._queue]
            if not finish:
                self._queue.clear()
            self._changed.notify_all()
        for future in dropped:
            future.cancel()
        for thread in self._threads if finish else ():
            thread.join()

    def _work(self) -> None:
        while self._process(self._next()):  # a method of its own, so that a waiting thread holds no items
            pass

    def _process(self, taken: list[tuple[T, Future[R]]]) -> bool:
        """Work on a batch; False for none."""
        if not taken:
            return False
        started = time.monotonic()
        try:
            _deliver(taken, self._run([item for item, _ in taken]))
        except Exception as error:
            if len(taken) == 1:
                taken[0][1].set_exception(error)
            else:
                for item, future in taken:
                    self._alone(item, future)
        self._observe(len(taken), time.monotonic() - started)
        return True

    def _alone(self, item: T, future: Future[R]) -> None:
        try:
            _deliver([(item, future)], self._run([item]))
        except Exception as error:
            future.set_exception(error)

    def _next(self) -> list[tuple[T, Future[R]]]:
        """The next batch of items that are still awaited; empty once closed and done."""
        with self._changed:
            while True:
                while not self._queue and not self._closed:
                    self._changed.wait()
                if not self._queue:
                    return []
                until = self._queue[0][2] + self._wait
                while len(self._queue) < self._batch and not self._closed and (left := until - time.monotonic()) > 0:
                    self._changed.wait(left)
                taken: list[tuple[T, Future[R]]] = []
                while self._queue and len(taken) < self._batch:
                    item, future, _ = self._queue.popleft()
                    if future.set_running_or_notify_cancel():
                        taken.append((item, future))
                if taken:
                    return taken


def _deliver(taken: list[tuple[T, Future[R]]], results: Sequence[R]) -> None:
    if len(results) != len(taken):
        raise RuntimeError(f"{len(results)} results for {len(taken)} items")
    for (_, future), result in zip(taken, results, strict=True):
        future.set_result(result)
