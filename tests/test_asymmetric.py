"""Float queries against stored bits: the order, folders, stores, and the command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bigr_repr.codes import from_bytes
from bigr_repr.retrieval import HammingIndex, fit_binarizer, push
from bigr_repr.retrieval.index.rescore import asymmetric


def test_a_float_query_orders_a_shortlist_by_what_its_bits_stand_for() -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(300, 12)).astype(np.float32) * np.arange(1, 13)
    wanted = random.normal(size=(5, 12)) * np.arange(1, 13)
    binarizer = fit_binarizer("itq", vectors, n_bits=12)
    codes = binarizer.encode(vectors)
    stands_for = np.where(from_bytes(codes, 12), binarizer.scales, -np.asarray(binarizer.scales))
    margins = binarizer.margins(wanted)
    cosine = margins @ stands_for.T
    cosine /= np.linalg.norm(margins, axis=1)[:, None] * np.linalg.norm(stands_for, axis=1)
    shortlist = np.stack([random.permutation(300)[:40] for _ in wanted])
    shortlist[2, 7:] = -1  # a search that found less
    rows, distances = asymmetric(binarizer, wanted, lambda listed: codes[listed], shortlist, 9)
    for i, listed in enumerate(shortlist):
        held = np.sort(listed[listed >= 0])
        expected = held[np.argsort(-cosine[i, held], kind="stable")][:9]
        assert rows[i].tolist() == [*expected, *[-1] * (9 - len(expected))]
        np.testing.assert_allclose(distances[i, : len(expected)], 1 - cosine[i, expected], atol=1e-6)
    assert np.isnan(distances[2, 7:]).all()


def features(rows: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    centers = np.random.default_rng(9).normal(size=(12, 24))
    return (centers[random.integers(0, 12, rows)] + random.normal(size=(rows, 24))).astype(np.float32)


def index_of(vectors: np.ndarray, *, keep: bool = False) -> HammingIndex:
    binarizer = fit_binarizer("itq", vectors, n_bits=24)
    ids = [f"{row}.jpg" for row in range(len(vectors))]
    index = HammingIndex.build(binarizer.encode(vectors), ids=ids, n_bits=24, vectors=vectors if keep else None)
    index.binarizer = binarizer
    return index


def test_an_index_without_vectors_finds_more_of_the_nearest_than_by_bits() -> None:
    vectors, wanted = features(2000), features(50, seed=1)
    centered, ours = vectors - vectors.mean(axis=0), wanted - vectors.mean(axis=0)
    cosine = ours @ centered.T / np.linalg.norm(centered, axis=1)
    nearest = [{f"{row}.jpg" for row in np.argsort(-line)[:10]} for line in cosine]
    index = index_of(vectors)

    def recall(ids: np.ndarray) -> float:
        return float(np.mean([len(nearest[i] & set(found)) / 10 for i, found in enumerate(ids)]))

    by_bits = recall(index.search_vectors(wanted, 10).ids)
    by_floats = recall(index.search_vectors(wanted, 10, rescore=20).ids)
    assert by_floats > 1.2 * by_bits
    with_vectors = index_of(vectors, keep=True)
    assert (
        recall(with_vectors.search_vectors(wanted, 10, rescore=20).ids) > by_floats
    )  # floats that are kept are better


def test_what_cannot_be_rescored_by_bits_says_why() -> None:
    index = index_of(features(300))
    codes = index.rows.codes[:2]
    with pytest.raises(ValueError, match="vectors have 3 features; this binarizer expects 24"):
        index.rescored(codes, np.zeros((2, 3)), 4)
    with pytest.raises(ValueError, match="2 query codes but 1 vectors"):
        index.rescored(codes, features(1), 4)
    with pytest.raises(ValueError, match="rescore=0 must be at least 1"):
        index.rescored(codes, features(2), 4, rescore=0)


@pytest.mark.slow
def test_codes_that_no_features_were_made_into_are_not_rescored(tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    opened = push(HammingIndex.build(np.zeros((9, 3), np.uint8)), f"lancedb:{tmp_path}")
    with pytest.raises(ValueError, match="codes that are not made from features"):
        opened.rescored(np.zeros((1, 3), np.uint8), np.zeros((1, 24)), 4)


@pytest.mark.slow
@pytest.mark.parametrize("store", ["lancedb", "milvus"])
def test_a_store_rescores_as_the_folder_does(store: str, tmp_path: Path) -> None:
    pytest.importorskip({"lancedb": "lancedb", "milvus": "milvus_lite"}[store])
    vectors, wanted = features(300), features(4, seed=1)
    index = index_of(vectors)
    opened = push(index, f"{store}:{tmp_path / 'index.db'}")
    assert index.binarizer is not None
    codes = index.binarizer.encode(wanted)
    here, there = (where.find_rescored(codes, wanted, 5, rescore=60) for where in (index, opened))  # of all rows
    np.testing.assert_array_equal(there.rows, here.rows)
    np.testing.assert_array_equal(there.ids, here.ids)
    np.testing.assert_allclose(there.distances, here.distances, atol=1e-6)
    near = opened.find_rescored(codes, wanted, 5, rescore=60, radius=float(here.distances[0, 2]), offset=1)
    assert near.ids[0].tolist() == [*here.ids[0, 1:3], None, None, None][: near.ids.shape[1]]
    with pytest.raises(ValueError, match="rescore=0"):
        opened.rescored(codes, wanted, 5, rescore=0)
