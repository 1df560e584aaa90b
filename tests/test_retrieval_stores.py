"""Indexes in stores: LanceDB and milvus-lite for real, against the folder that was pushed."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from test_retrieval_files import PROVENANCE

from bigr_repr.codes import hamming
from bigr_repr.retrieval import HammingIndex, Region, fit_binarizer
from bigr_repr.retrieval.stores.base import StoreIndex
from bigr_repr.retrieval.stores.open import open_store, push

pytestmark = pytest.mark.filterwarnings("ignore")  # the back ends warn about each other's and their own internals


def made(rows: int = 400, seed: int = 0) -> HammingIndex:
    vectors = np.random.default_rng(seed).normal(size=(rows, 32)).astype(np.float32)
    binarizer = fit_binarizer("sign", vectors)
    index = HammingIndex.build(binarizer.encode(vectors), ids=[f"ä/{seed}-{i}.jpg" for i in range(rows)])
    index.binarizer, index.provenance = binarizer, PROVENANCE | {"of": "binarised features"}
    return index


@pytest.fixture(params=["lancedb", "milvus"])
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
    assert [len(ids) for _, ids, _ in opening._batches(index)] == [7] * 7 + [1]
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
    with pytest.raises(ValueError, match="holds only codes"):
        opened.rescored(np.zeros((1, 4), np.uint8), np.zeros((1, 32)), 3)
    with pytest.raises(ValueError, match="the index is empty"):
        push(HammingIndex.build(np.empty((0, 4), np.uint8)), place)


def test_lists_in_lancedb_find_themselves(tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    index = made(2000)
    opened = push(index, f"lancedb:{tmp_path}", kind="ivf")
    assert opened.header.lists == 89
    every = opened.search(index.rows.codes[:20], 5, effort=89)
    np.testing.assert_array_equal(every.distances, index.search(index.rows.codes[:20], 5).distances)
    assert (opened.search(index.rows.codes[:20], 1).distances == 0).all()


def test_a_server_that_is_not_there_and_places_that_are_none() -> None:
    pytest.importorskip("pymilvus")
    with pytest.raises(ConnectionError, match=r"milvus:http://127\.0\.0\.1:9: "):
        open_store("milvus:http://127.0.0.1:9")
    for place in ("faiss:x", "lancedb:", "folder"):
        with pytest.raises(ValueError, match="no store"):
            open_store(place)
    with pytest.raises(ValueError, match="name='a b'"):
        open_store("lancedb:x", "a b")
