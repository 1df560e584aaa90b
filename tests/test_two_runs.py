"""Two runs into one output: one does it, the other says so; nothing of one is taken for the other's."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Semaphore
from typing import Any

import pyarrow.parquet as pq
import pytest
from s3_server import BUCKET, s3_server
from tiny_model import write_pictures

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.embed import EmbedSummary, Progress, embed_images, read_embeddings
from bigr_repr.embed.dataset.schema import PLAN_KEY
from bigr_repr.system import lease
from bigr_repr.system.lease import leased
from bigr_repr.system.object_store import ObjectPath


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with s3_server() as environment:
        yield environment


@pytest.fixture
def store(server: dict[str, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ObjectPath:
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(lease, "_BEAT", 0.1)
    monkeypatch.setattr(lease, "_LOOK", 0.05)
    return ObjectPath(f"s3://{BUCKET}") / request.node.name


def run(inputs: Any, out: Any, model: Pretrained, **options: Any) -> EmbedSummary:
    usual = {"layers": [2], "unit_size": 3, "batch_size": 3, "decode_timeout": None}
    return embed_images(inputs, out, model=model, **{**usual, **options})


def flag(place: ObjectPath, **content: Any) -> None:
    with (place / "another.json").put() as file:
        file.write(json.dumps({"state": "holding", "beat": 1, "term": 4, **content}).encode())


# ---- leases


def test_of_many_that_ask_at_once_one_holds(store: ObjectPath) -> None:
    refused = Semaphore(0)

    def ask(number: int) -> bool:
        try:
            with leased(store, "out"):
                return all(refused.acquire(timeout=20) for _ in range(4))
        except RuntimeError as error:
            assert str(error).startswith("out: another run is writing it (process")  # noqa: PT017
            refused.release()
            return False

    with ThreadPoolExecutor(5) as pool:
        assert sum(pool.map(ask, range(5))) == 1
    assert not list(store.glob("*"))
    with leased(store, "out"):
        pass


@pytest.mark.slow
def test_a_run_that_gives_no_sign_of_life_is_taken_over_from(
    store: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_STALE", 0.5)
    flag(store)
    with leased(store, "out") as held:
        assert [place.name for place in store.glob("*")] != ["another.json"]
        flag(store, term=0)  # it wakes up: it has to see that it lost
        time.sleep(0.3)
        held.check()
        flag(store, term=9)
        deadline = time.monotonic() + 60
        while held._lost is None and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(RuntimeError, match="another run has taken over"):
            held.check()


def test_a_killed_run_of_this_machine_is_taken_over_from_at_once(
    store: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_STALE", 3600.0)  # of one on another machine
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    flag(store, process=ended.pid, system=lease._system())
    with leased(store, "out"):
        assert [place.name for place in store.glob("*")] != ["another.json"]
    assert not list(store.glob("*"))


# ---- runs


@pytest.mark.slow
def test_a_second_run_is_refused_and_the_first_is_not_disturbed(
    store: ObjectPath, pre: Pretrained, tmp_path: Path
) -> None:
    write_pictures(tmp_path / "a", 9)
    write_pictures(tmp_path / "b", 7, first=50)
    refused: list[str] = []

    def second(progress: Progress) -> None:
        if progress.total and progress.done == 3:
            for options in ({}, {"overwrite": True}):
                with pytest.raises(RuntimeError, match="another run is writing it") as caught:
                    run(tmp_path / "b", str(store), pre, **options)
                refused.append(str(caught.value))

    assert run(tmp_path / "a", str(store), pre, on_progress=second).rows == 9
    assert len(refused) == 2
    assert all(text.startswith(str(store)) and "\n" not in text for text in refused)
    assert read_embeddings(store).paths == [f"{number:05d}.png" for number in range(9)]
    assert run(tmp_path / "b", str(store), pre, overwrite=True).rows == 7


def test_rows_of_another_run_are_neither_counted_nor_read(pre: Pretrained, tmp_path: Path) -> None:
    """As of a worker that was believed lost, and writes what another run has begun anew."""
    write_pictures(tmp_path / "a", 9)
    write_pictures(tmp_path / "b", 9, first=50)
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    run(tmp_path / "a", mine, pre)
    whole = {file.name: file.read_bytes() for file in mine.glob("part-*")}
    run(tmp_path / "b", theirs, pre)
    names = [pq.read_schema(out / "part-00001.parquet").metadata[PLAN_KEY] for out in (mine, theirs)]
    assert names[0] != names[1]
    (mine / "part-00001.parquet").write_bytes((theirs / "part-00001.parquet").read_bytes())
    with pytest.raises(ValueError, match=r"part-00001\.parquet: rows of another run"):
        read_embeddings(mine)
    assert run(tmp_path / "a", mine, pre, verify=True).embedded == 3
    record = "_run/units/00001.json"
    (mine / "part-00001.parquet").write_bytes((theirs / "part-00001.parquet").read_bytes())
    (mine / record).write_bytes((theirs / record).read_bytes())
    assert run(tmp_path / "a", mine, pre).embedded == 3
    assert {file.name: file.read_bytes() for file in mine.glob("part-*")} == whole


def test_a_run_whose_list_was_replaced_writes_no_more(pre: Pretrained, tmp_path: Path) -> None:
    """As where a file system has no locks, or a paused machine comes back."""
    write_pictures(tmp_path / "a", 9)
    write_pictures(tmp_path / "b", 4, first=50)
    out = tmp_path / "out"
    run(tmp_path / "b", tmp_path / "other", pre)

    def replace(progress: Progress) -> None:
        if progress.total and progress.done == 3:
            (out / "_run" / "plan.json").write_bytes((tmp_path / "other" / "_run" / "plan.json").read_bytes())

    with pytest.raises(RuntimeError, match="another run has restarted this data set"):
        run(tmp_path / "a", out, pre, on_progress=replace)
    assert len(list(out.glob("part-*"))) <= 1


def test_lists_that_an_update_adds_have_names_of_their_own(pre: Pretrained, tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", 4)
    run(tmp_path / "a", tmp_path / "out", pre)
    first = (tmp_path / "out" / "part-00000.parquet").read_bytes()
    write_pictures(tmp_path / "a", 4, first=10)
    assert run(tmp_path / "a", tmp_path / "out", pre, update=True).rows == 8
    assert (tmp_path / "out" / "part-00000.parquet").read_bytes() == first
    names = [pq.read_schema(file).metadata[PLAN_KEY] for file in sorted((tmp_path / "out").glob("part-*"))]
    assert len(names) == 4
    assert (names[0] == names[1], names[1] == names[2], names[2] == names[3]) == (True, False, True)
    assert len(read_embeddings(tmp_path / "out").paths) == 8
