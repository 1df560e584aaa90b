"""Calls to stores end, whatever the store does: in time, or with one line."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bigr_repr.retrieval import HammingIndex
from bigr_repr.retrieval.stores import limits
from bigr_repr.retrieval.stores.limits import Signs, Timed, within
from bigr_repr.retrieval.stores.open import push


def test_what_a_call_gives_or_raises_is_passed_on() -> None:
    assert within(lambda: 5, 1.0, "here") == 5
    with pytest.raises(TimeoutError, match="its own"):
        within(lambda: (_ for _ in ()).throw(TimeoutError("its own")), 1.0, "here")


def test_a_call_that_hangs_is_one_line() -> None:
    never = threading.Event()
    with pytest.raises(ConnectionError, match=r"milvus:x: no answer for 0 s; check that the server is running"):
        within(never.wait, 0.05, "milvus:x")
    client = Timed(SimpleNamespace(search=never.wait, add=lambda a, b=1: a + b), 0.05, "milvus:x", None)
    assert client.add(2, b=5) == 7
    with pytest.raises(ConnectionError, match="no answer"):
        client.search()
    assert client.patient(9.0).seconds == 9.0
    never.set()


def test_signs_of_life_give_more_time() -> None:
    signs, done = Signs(), threading.Event()

    def work() -> str:
        for _ in range(8):
            done.wait(0.05)
            signs.note()
        return "done"

    assert within(work, 10.0, "lancedb:x", signs=signs) == "done"


def test_a_full_disk_is_told_as_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits.shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    with pytest.raises(ConnectionError, match=r"its disk is full: free some space"):
        within(threading.Event().wait, 0.02, "milvus:m.db", local=str(tmp_path / "m.db"))


def test_a_push_to_a_store_that_hangs_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lancedb = pytest.importorskip("lancedb")
    never = threading.Event()

    class Hanging:
        def create_table(self, *arguments: Any, **options: Any) -> None:
            never.wait()

    monkeypatch.setattr(lancedb, "connect", lambda where: Hanging())
    index = HammingIndex.build(np.random.default_rng(0).integers(0, 256, (30, 4), np.uint8))
    started = time.monotonic()
    with pytest.raises(ConnectionError, match=r"lancedb:.*: no answer for 0 s"):
        push(index, f"lancedb:{tmp_path / 'store'}", timeout=0.1)
    assert time.monotonic() - started < 30
    with pytest.raises(ValueError, match="timeout=0 must be a number of seconds above 0"):
        push(index, f"lancedb:{tmp_path / 'store'}", timeout=0.0)
    never.set()
