"""Indexes in stores: LanceDB and milvus-lite for real, against the folder that was pushed."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from test_retrieval_files import PROVENANCE

from bigr_repr.codes import hamming
from bigr_repr.retrieval import HammingIndex, IndexSettings, Region, fit_binarizer, recall_with_ties
from bigr_repr.retrieval.stores.base import StoreIndex
from bigr_repr.retrieval.stores.open import open_store, push

pytestmark = pytest.mark.filterwarnings("ignore")  # the back ends warn about each other's and their own internals


def made(rows: int = 400, seed: int = 0) -> HammingIndex:
    vectors = np.random.default_rng(seed).normal(size=(rows, 32)).astype(np.float32)
    binarizer = fit_binarizer("sign", vectors)
    index = HammingIndex.build(binarizer.encode(vectors), ids=[f"ä/{seed}-{i}.jpg" for i in range(rows)])
    index.binarizer, index.provenance = binarizer, PROVENANCE | {"of": "binarised features"}
    return index


@pytest.fixture(params=["lancedb", pytest.param("milvus", marks=pytest.mark.slow)])  # milvus-lite starts a server
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("lancedb" if request.param == "lancedb" else "milvus_lite")
    return f"{request.param}:{tmp_path / ('lance' if request.param == 'lancedb' else 'm.db')}"


def equal_but_for_ties(found: StoreIndex, index: HammingIndex, queries: np.ndarray, k: int) -> None:
    theirs, ours = found.search(queries, k), index.search(queries, k)
    np.testing.assert_array_equal(theirs.distances, ours.distances)
    codes = index.rows.codes
    for query, ids, distances in zip(queries, theirs.ids, theirs.distances, strict=True):
        assert len(set(ids)) == k
        np.testing.assert_array_equal(hamming(codes[index.rows.places(list(ids))], query), distances)


def test_a_store_answers_as_the_folder_does(place: str) -> None:
    index = made()
    pushed = push(index, place)
    queries = np.random.default_rng(5).integers(0, 256, (6, 4), np.uint8)
    for opened in (pushed, open_store(place)):
        equal_but_for_ties(opened, index, queries, 10)
        assert (len(opened), opened.n_bits, opened.provenance) == (400, 32, index.provenance)
        assert opened.binarizer is not None
        np.testing.assert_array_equal(opened.binarizer.encode(np.eye(32)), index.binarizer.encode(np.eye(32)))  # type: ignore[union-attr]


def test_rows_are_sent_in_parts(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from bigr_repr.retrieval.stores import open as opening

    monkeypatch.setattr(opening, "_CHUNK_ROWS", 7)
    index = made(50)
    assert [len(ids) for _, ids, _, _ in opening._batches(index)] == [7] * 7 + [1]
    equal_but_for_ties(push(index, place), index, index.rows.codes[:5], 50)


def test_pushing_again_replaces(place: str) -> None:
    push(made(), place)
    other = made(50, seed=1)
    opened = push(other, place)
    assert len(opened) == 50
    equal_but_for_ties(opened, other, other.rows.codes[:3], 20)
    push(made(30, seed=2), place, "second")  # beside it, under another name
    assert len(open_store(place)) == 50
    assert len(open_store(place, "second")) == 30


def test_an_open_index_goes_on_with_what_replaces_it(place: str) -> None:
    opened = push(made(), place)
    other = made(50, seed=1)
    other.binarizer = made().binarizer
    push(other, place)
    equal_but_for_ties(opened, other, other.rows.codes[:3], 5)
    assert len(opened) == 50
    with pytest.raises(ValueError, match=r"k=51 is outside 1\.\.50"):
        opened.search(other.rows.codes[:1], 51)
    push(made(60, seed=2), place)  # binarized otherwise
    with pytest.raises(ValueError, match="replaced by an index of other codes; open it again"):
        opened.search(other.rows.codes[:1], 5)


@pytest.mark.slow
def test_pushing_again_and_again_leaves_nothing_behind(place: str, tmp_path: Path) -> None:
    def size() -> int:
        return sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())

    push(made(), place)
    once = size()
    script = (
        "import os, sys, warnings; warnings.simplefilter('ignore'); sys.path.insert(0, 'tests')\n"
        "from test_retrieval_stores import made\n"
        "from bigr_repr.retrieval.stores import open as opening\n"
        "whole = opening._batches\n"
        "def torn(index):\n"
        "    yield from list(whole(index))\n"
        "    os._exit(9)\n"
        "opening._batches = torn\n"
        f"opening.push(made(), {place!r})"
    )
    if place.startswith("lancedb"):  # milvus-lite is one process's, and this one has it
        done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent.parent, check=False)
        assert done.returncode == 9
        for _ in range(3):
            push(made(), place)
        assert size() < 1.2 * once
        return
    store = push(made(), place)._store
    left = "images_0123456789ab"  # as a push that was killed leaves it
    store._make(left, 32, None)  # type: ignore[attr-defined]
    push(made(seed=3), place, "images_2")
    push(made(seed=4), place)
    names = sorted(store._client.list_collections())  # type: ignore[attr-defined]
    assert [name for name in names if name.endswith("header")] == ["images_2_header", "images_header"]
    assert len(names) == 4
    assert left not in names


def test_text_of_more_than_two_gigabytes_is_sent_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow's plain strings hold 2 GB. No memory is touched: the names are pages of zeros that are not there."""
    from bigr_repr.retrieval.codes.rows import IndexRows
    from bigr_repr.retrieval.stores import open as opening

    count, length = 2200, 1 << 20
    offsets = pa.py_buffer(np.arange(count + 1, dtype=np.int64) * length)
    names = pa.LargeStringArray.from_buffers(count, offsets, pa.py_buffer(np.zeros(count * length, np.uint8)))
    rows = IndexRows(ids=names, codes=np.zeros((count, 4), np.uint8))
    monkeypatch.setattr(opening, "_CHUNK_ROWS", 50)
    found = [len(ids) for _, ids, _, _ in opening._batches(HammingIndex.of_rows(rows, 32, IndexSettings()))]
    assert sum(found) == count


def test_a_push_that_fails_leaves_what_was_there(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from bigr_repr.retrieval.stores import open as opening

    index = made()
    push(index, place)
    whole = opening._batches

    def torn(index: HammingIndex) -> object:
        yield next(iter(whole(index)))
        raise OSError(5, "the disk is gone")

    monkeypatch.setattr(opening, "_batches", torn)
    with pytest.raises(Exception, match="disk is gone"):
        push(made(50, seed=1), place)
    equal_but_for_ties(open_store(place), index, index.rows.codes[:3], 5)


def test_bad_requests_say_what_is_wrong(place: str) -> None:
    with pytest.raises(FileNotFoundError, match="bigr-repr index push"):
        open_store(place)
    assert not Path(place.split(":", 1)[1]).exists()  # looking for an index makes none
    opened = push(made(), place)
    for queries, k, message in (
        (np.zeros((1, 5), np.uint8), 3, "packed codes of 4 bytes"),
        (np.zeros((1, 4), np.uint8), 401, r"k=401 is outside 1\.\.400"),
    ):
        with pytest.raises(ValueError, match=message):
            opened.search(queries, k)
    with pytest.raises(ValueError, match=r"effort=3 must be a number of lists from 1; .* is flat"):
        opened.search(np.zeros((1, 4), np.uint8), 3, effort=3)
    for ask in (
        opened.token_layout,
        lambda: opened.search_region(np.zeros((1, 4), np.uint8), Region(x=0, y=0, w=1, h=1)),
    ):
        with pytest.raises(ValueError, match="compares whole codes"):
            ask()
    with pytest.raises(ValueError, match="vectors have 5 features; this binarizer expects"):
        opened.rescored(np.zeros((1, 4), np.uint8), np.zeros((1, 5)), 3)
    with pytest.raises(ValueError, match="the index is empty"):
        push(HammingIndex.build(np.empty((0, 4), np.uint8)), place)


def test_lists_are_for_many_different_codes(tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    few = made(300)
    many = HammingIndex.build(np.concatenate([few.rows.codes] * 10), ids=[str(i) for i in range(3000)])
    opened = push(many, f"lancedb:{tmp_path}", kind="ivf")
    assert opened.header.kind == "flat"
    equal_but_for_ties(opened, many, few.rows.codes[:3], 40)


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> tuple[HammingIndex, StoreIndex, str]:
    """An index, what it was pushed to as lists, and where that is."""
    pytest.importorskip("lancedb")
    index, place = made(2000), f"lancedb:{tmp_path_factory.mktemp('lists')}"
    return index, push(index, place, kind="ivf"), place


@pytest.mark.slow
def test_lists_give_as_many_hits_as_are_asked_for_and_measured_recall(
    lists: tuple[HammingIndex, StoreIndex, str],
) -> None:
    index, opened, place = lists
    header = open_store(place).header
    assert (header.effort, header.recall) == (opened.header.effort, opened.header.recall)
    assert header.recall is not None
    assert header.recall >= 0.95
    queries = index.rows.codes[:50]
    found = opened.search(queries, 10).distances
    assert recall_with_ties(found, index.search(queries, 10).distances) >= 0.9
    np.testing.assert_array_equal(opened.search(queries[:2], 1500).distances, index.search(queries[:2], 1500).distances)


@pytest.mark.slow
def test_limits_of_milvus_are_said_before_the_work(tmp_path: Path) -> None:
    pytest.importorskip("milvus_lite")
    place = f"milvus:{tmp_path / 'm.db'}"
    with pytest.raises(ValueError, match="milvus-lite has only kind flat"):
        push(made(2000), place, kind="ivf")
    with pytest.raises(ValueError, match="at most 32,768 bits, not 40,000"):
        push(HammingIndex.build(np.zeros((2, 5000), np.uint8), ids=["a", "b"]), place)
    with pytest.raises(ValueError, match="ids of at most 4,096 bytes"):
        push(HammingIndex.build(np.zeros((1, 4), np.uint8), ids=["a" * 5000]), place)
    opened = push(HammingIndex.build(np.zeros((17_000, 4), np.uint8), ids=[str(i) for i in range(17_000)]), place)
    with pytest.raises(ValueError, match="at most 16,384"):
        opened.search(np.zeros((1, 4), np.uint8), 17_000)


@pytest.mark.slow
def test_a_second_process_at_milvus_lite_is_told_so(tmp_path: Path) -> None:
    pytest.importorskip("milvus_lite")
    place = f"milvus:{tmp_path / 'm.db'}"
    push(made(), place)
    command = [sys.executable, "-m", "bigr_repr_cli", "search", "x.png", "--index", place]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "another process has it open" in done.stderr


@pytest.mark.slow
def test_lists_in_lancedb_find_themselves(lists: tuple[HammingIndex, StoreIndex, str]) -> None:
    index, opened, _ = lists
    assert opened.header.lists == 89
    every = opened.search(index.rows.codes[:20], 5, effort=89)
    np.testing.assert_array_equal(every.distances, index.search(index.rows.codes[:20], 5).distances)
    assert (opened.search(index.rows.codes[:20], 1).distances == 0).all()


def test_a_server_that_is_not_there_and_places_that_are_none() -> None:
    pytest.importorskip("pymilvus")
    with pytest.raises(ConnectionError, match=r"milvus:http://127\.0\.0\.1:9: "):
        open_store("milvus:http://127.0.0.1:9")
    for place in ("faiss:x", "lancedb:", "folder"):
        with pytest.raises(ValueError, match="not a store"):
            open_store(place)
    with pytest.raises(ValueError, match="name='a b'"):
        open_store("lancedb:x", "a b")
