"""Work ahead of need: in order, within bounds, and over when the one who asked is."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from bigr_repr.system.threads import default_workers, map_ahead, read_ahead


@pytest.mark.parametrize("workers", [1, 4])
def test_results_come_in_order_however_long_each_takes(workers: int) -> None:
    def slow(number: int) -> int:
        time.sleep(0.002 * (number * 7 % 5))
        return number * 2

    assert list(map_ahead(slow, range(40), workers=workers, ahead=8)) == [number * 2 for number in range(40)]


def test_no_more_is_read_than_allowed() -> None:
    read: list[int] = []
    items = (read.append(number) for number in range(1000))
    for taken, _ in enumerate(map_ahead(lambda item: item, items, workers=2, ahead=10)):
        assert len(read) - taken <= 10
    assert len(read) == 1000


def test_an_error_comes_in_its_turn() -> None:
    stream = map_ahead(lambda number: 10 // number, [5, 2, 0, 1], workers=2)
    assert [next(stream), next(stream)] == [2, 5]
    with pytest.raises(ZeroDivisionError):
        next(stream)


def test_closing_ends_the_threads() -> None:
    before = threading.active_count()
    stream = map_ahead(lambda number: number, range(1000), workers=3, ahead=20)
    next(stream)
    assert threading.active_count() > before
    stream.close()
    assert threading.active_count() == before


def test_bounds_are_checked_at_once() -> None:
    assert default_workers() >= 1
    with pytest.raises(ValueError, match="workers=0"):
        map_ahead(str, [], workers=0)
    with pytest.raises(ValueError, match="ahead=0"):
        map_ahead(str, [], ahead=0)


def test_reading_ahead_gives_the_same_items_and_errors_in_their_turn() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(10):
            if number == 8:
                raise KeyError(number)
            taken.append(number)
            yield number

    stream = read_ahead(items(), 3)
    assert next(stream) == 0
    deadline = time.monotonic() + 60
    while len(taken) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert [next(stream) for _ in range(7)] == list(range(1, 8))
    with pytest.raises(KeyError):
        next(stream)
    assert list(read_ahead([], 3)) == []
    assert list(read_ahead(range(5), 3)) == list(range(5))
    rest = iter(range(100))
    closed = read_ahead(rest, 2)
    next(closed)
    closed.close()
    assert next(rest) <= 3
