"""The queue in front of the network: order, size, errors, ends."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from bigr_repr.serve.batching import Batcher, QueueFullError
from bigr_repr.serve.settings import Limits


def test_results_come_to_whom_they_belong_in_batches_of_the_limit() -> None:
    sizes: list[int] = []

    def run(items: list[int]) -> list[int]:
        sizes.append(len(items))
        return [2 * item for item in items]

    batcher = Batcher(run, batch=8, wait_seconds=0.05, waiting=100, name="test")
    futures = batcher.submit(range(50))
    assert [future.result(10) for future in futures] == [2 * item for item in range(50)]
    assert sizes == [8, 8, 8, 8, 8, 8, 2]
    batcher.close()
    assert not batcher.alive


def test_one_bad_item_fails_alone() -> None:
    def run(items: list[int]) -> list[float]:
        return [1 / item for item in items]

    batcher = Batcher(run, batch=8, wait_seconds=0.05, waiting=100, name="test")
    good, bad, last = batcher.submit([1, 0, 2])
    assert (good.result(10), last.result(10)) == (1.0, 0.5)
    with pytest.raises(ZeroDivisionError):
        bad.result(10)
    batcher.close()


def test_a_full_queue_takes_none_of_what_does_not_fit_and_what_nobody_waits_for_is_not_done() -> None:
    begin, seen = threading.Event(), []

    def run(items: list[int]) -> list[int]:
        begin.wait(10)
        seen.extend(items)
        return items

    batcher = Batcher(run, batch=1, wait_seconds=0, waiting=3, name="test")
    first = batcher.submit([0])[0]
    while len(batcher):  # until it is being worked on
        threading.Event().wait(0.001)
    _, dropped, _ = batcher.submit([1, 2, 3])
    with pytest.raises(QueueFullError):
        batcher.submit([4])
    assert dropped.cancel()
    begin.set()
    assert first.result(10) == 0
    batcher.close()
    assert seen == [0, 1, 3]
    with pytest.raises(RuntimeError, match="shutting down"):
        batcher.submit([5])


def test_a_batch_begins_as_soon_as_the_network_is_free_and_the_next_one_gathers_meanwhile() -> None:
    begun, go_on, sizes = threading.Event(), threading.Event(), list[int]()

    def run(items: list[int]) -> list[int]:
        sizes.append(len(items))
        begun.set()
        go_on.wait(10)
        return items

    batcher = Batcher(run, batch=8, wait_seconds=Limits().wait_seconds, waiting=100, name="test")
    first = batcher.submit([0])
    assert begun.wait(10)  # nothing else has come
    others = [future for item in (1, 2, 3) for future in batcher.submit([item])]
    go_on.set()
    assert [future.result(10) for future in [*first, *others]] == [0, 1, 2, 3]
    assert sizes == [1, 3]
    batcher.close()


def test_what_is_still_coming_is_queued_when_it_comes_and_fails_with_what_fails_before() -> None:
    batcher = Batcher(lambda items: [2 * item for item in items], batch=8, wait_seconds=0, waiting=1, name="test")
    coming: list[Future[int]] = [Future() for _ in range(4)]
    results = [batcher.submit_later(each, lambda number: 10 // number) for each in coming]
    coming[0].set_result(5)
    assert results[0].result(10) == 4
    coming[1].set_exception(OSError("unreadable"))
    with pytest.raises(OSError, match="unreadable"):
        results[1].result(10)
    coming[2].set_result(0)
    with pytest.raises(ZeroDivisionError):
        results[2].result(10)
    results[3].cancel()
    assert coming[3].cancelled()  # nobody decodes what nobody waits for
    batcher.close()
    late: Future[int] = Future()
    refused = batcher.submit_later(late, lambda number: number)
    late.set_result(1)
    with pytest.raises(RuntimeError, match="shutting down"):
        refused.result(10)
