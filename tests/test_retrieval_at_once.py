"""Indexes that several processes use at once: what one has opened, what another changes, and what dies meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_retrieval_growth import write_part
from test_retrieval_shards import built_in_this_process

from bigr_repr.retrieval import HammingIndex, build_index, build_shards, merge_indexes, sharding, update_index
from bigr_repr.retrieval.index import hamming, shard_list
from bigr_repr.retrieval.index.shard_list import busy, is_sharded, write_list
from bigr_repr.retrieval.update import remove_images
from bigr_repr.system import files


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "_built_here", built_in_this_process)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for number in range(4):
        write_part(tmp_path / "data", number, 40)
    return tmp_path / "data"


def sharded(folder: Path, codes: np.ndarray) -> Path:
    """Two shards with the ids im0, im1, …"""
    half = len(codes) // 2
    for number, start in enumerate((0, half)):
        ids = [f"im{row}" for row in range(start, start + half)]
        HammingIndex.build(codes[start : start + half], ids=ids).save(folder / f"shard-0000{number}")
    write_list(folder, ["shard-00000", "shard-00001"])
    return folder


def workers(index: HammingIndex) -> list[int]:
    """The ids of the processes that search an index."""
    assert index.shards is not None
    assert index.shards._workers is not None
    return [pid for pool in index.shards._workers._pools for pid in pool._processes]


def test_processes_search_the_state_that_was_opened_and_are_replaced_when_they_die(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(0, 256, (2000, 32), np.uint8)
    folder, asked = sharded(tmp_path / "index", codes), codes[[60, 1500]]
    old = HammingIndex.load(folder, processes=2)
    os.kill(workers(old)[0], signal.SIGKILL)
    assert old.search(asked, 1).ids.tolist() == [["im60"], ["im1500"]]  # another process took its place
    assert all(Path(f"/proc/{pid}").exists() for pid in workers(old)) or sys.platform != "linux"
    assert remove_images(folder, [f"im{row}" for row in range(50)]) == (50, 1950)
    assert old.search(asked, 1).ids.tolist() == [["im60"], ["im1500"]]
    os.kill(workers(old)[0], signal.SIGKILL)
    for _ in range(2):  # a new process would open the new state
        found = old.find(codes[[10, 60]], 1)
        assert found.ids.tolist() == [["im10"], ["im60"]]
        assert found.distances.tolist() == [[0], [0]]
    new = HammingIndex.load(folder, processes=2)
    assert new.search(asked, 1).ids.tolist() == [["im60"], ["im1500"]]
    for each in (old, new):
        assert each.shards is not None
        each.shards.close()


def test_shards_are_changed_by_one_process_at_a_time(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    build_shards(data, out, 2, binarizer="bits")
    write_part(data, 4, 10)
    changes: tuple[Callable[[], Any], ...] = (
        lambda: remove_images(out, ["a/00/00000.jpg"]),
        lambda: update_index(out),
        lambda: build_shards(data, out, 3, binarizer="bits"),
        lambda: build_index(data, out, binarizer="bits"),
        lambda: merge_indexes([out], out),
    )
    for change in changes:
        with (
            files.locked(out, busy(out)),
            pytest.raises(RuntimeError, match="another process is writing this index; wait"),
        ):
            change()
        assert len(HammingIndex.load(out)) == 160
    assert remove_images(out, ["a/00/00000.jpg"]) == (1, 159)
    assert update_index(out).read == 10


def test_shards_that_have_just_become_one_index_are_not_changed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "index"
    build_index(data, out, binarizer="bits")
    monkeypatch.setattr("bigr_repr.retrieval.update.is_sharded", lambda folder: True)
    with pytest.raises(RuntimeError, match="another process has just replaced this index; repeat the command"):
        remove_images(out, ["a/00/00000.jpg"])


def test_an_index_that_is_replaced_while_it_is_opened_is_opened_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "index"
    build_index(data, out, binarizer="bits")
    looks: list[Path] = []

    def before_it_becomes_shards(folder: Path) -> bool:
        looks.append(folder)
        if len(looks) == 1:
            build_shards(data, tmp_path / "shards", 2, binarizer="bits")
            for path in (tmp_path / "shards").iterdir():
                path.rename(out / path.name)
            (out / "index.json").unlink()
            return False
        return is_sharded(folder)

    monkeypatch.setattr(hamming, "is_sharded", before_it_becomes_shards)
    index = HammingIndex.load(out)
    assert index.shards is not None
    assert len(index) == 160
    with pytest.raises(FileNotFoundError, match="no index here"):
        HammingIndex.load(tmp_path / "nothing")


@pytest.mark.parametrize("times", [1, 100])
def test_all_shards_that_are_opened_are_of_one_state(
    times: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, opened, load = tmp_path / "index", list[Path](), hamming.load_parts
    ids = build_shards(data, out, 2, binarizer="bits").ids.to_pylist()

    def loaded(folder: Path, **options: Any) -> Any:
        parts = load(folder, **options)
        opened.append(folder)
        if len(opened) % 2 and len(opened) < 2 * times:  # the first shard is open, the second not yet
            with monkeypatch.context() as patched:
                patched.setattr(hamming, "load_parts", load)
                remove_images(out, [ids[len(opened)], ids[-len(opened)]])
        return parts

    monkeypatch.setattr(hamming, "load_parts", loaded)
    index = HammingIndex.load(out)
    if times == 1:
        assert (len(index), len(opened)) == (158, 4)
    else:  # it changes every time; each shard by itself is of one state
        assert len(opened) == 2 * shard_list._TRIES
    np.testing.assert_array_equal(index.find(index.rows.codes, 1).distances, 0)


ENDS = {
    "search": "from bigr_repr.retrieval import HammingIndex\n"
    "index = HammingIndex.load(sys.argv[1], processes=2)\n"
    "pids = [pid for pool in index.shards._workers._pools for pid in pool._processes]",
    "build": "from bigr_repr.retrieval import sharding\n"
    "sharding._build = time.sleep\n"
    "threading.Thread(target=lambda: list(sharding._built_here([(600,)], 1)), daemon=True).start()\n"
    "while not (pids := [each.pid for each in multiprocessing.active_children()]): time.sleep(0.05)\n"
    "time.sleep(4)",
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("work", ENDS)
def test_processes_end_with_the_one_that_started_them(work: str, tmp_path: Path) -> None:
    sharded(tmp_path / "index", np.zeros((20, 8), np.uint8))
    script = "import multiprocessing, sys, threading, time\nif __name__ == '__main__':\n    " + ENDS[work].replace(
        "\n", "\n    "
    )
    file = tmp_path / "script.py"
    file.write_text(script + "\n    print(*pids, flush=True)\n    time.sleep(600)\n")
    with subprocess.Popen([sys.executable, file, tmp_path / "index"], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert pids
        assert _alive(pids) == pids
        parent.kill()
    until = time.monotonic() + 30
    while _alive(pids) and time.monotonic() < until:
        time.sleep(0.1)
    assert not _alive(pids)


def _alive(pids: list[int]) -> list[int]:
    def states() -> Iterator[int]:
        for pid in pids:
            try:
                if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                    yield pid
            except OSError:
                continue

    return list(states())
