"""HammingIndex: every kind against brute force, what must not change an answer, rescoring, regions, binarizers."""

from __future__ import annotations

import itertools
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest

from bigr_repr.codes import from_bytes, hamming, to_bytes
from bigr_repr.retrieval import (
    BINARIZERS,
    KINDS,
    HammingIndex,
    IndexSettings,
    Region,
    TokenLayout,
    fit_binarizer,
    recall_with_ties,
)
from bigr_repr.retrieval.codes.stacked import StackedRows
from bigr_repr.retrieval.index import gpu, reading_ids
from bigr_repr.retrieval.index import scan as scanning
from bigr_repr.retrieval.index.recall import check_recall
from bigr_repr.retrieval.index.scan import Scanned, scan

APPROXIMATE = [kind for kind in KINDS if kind != "flat"]


def random_codes(rows: int, n_bytes: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, n_bytes), np.uint8)


def clustered(rows: int, n_bytes: int = 16, seed: int = 0) -> np.ndarray:
    """Codes around 20 centers, an eighth of the bits flipped."""
    random = np.random.default_rng(seed)
    centers = random.integers(0, 256, (20, n_bytes), np.uint8)
    noise = [random.integers(0, 256, (rows, n_bytes), np.uint8) for _ in range(3)]
    return np.asarray(centers[random.integers(0, 20, rows)] ^ (noise[0] & noise[1] & noise[2]))


def brute(codes: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and distances by definition: all distances, sorted by distance and then by row."""
    distances = hamming(queries[:, None], codes)
    rows = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(distances, rows, axis=1)


# ---- exact search


@pytest.mark.parametrize("n_bytes", [1, 5, 8, 32, 192])
@pytest.mark.parametrize("queries", [1, 2, 70])
def test_flat_is_brute_force_with_ties_by_row(n_bytes: int, queries: int) -> None:
    codes, wanted = random_codes(500, n_bytes), random_codes(queries, n_bytes, seed=1)
    found = HammingIndex.build(codes).search_rows(wanted, 20)
    rows, distances = brute(codes, wanted, 20)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.distances, distances)


def test_blocks_and_shards_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, wanted = random_codes(1000, 2), random_codes(9, 2, seed=1)
    whole = scan(codes, wanted, 1000)
    monkeypatch.setattr(scanning, "rows_a_block", lambda codes, queries: 7)
    monkeypatch.setattr(scanning, "_ROWS_A_NEIGHBOR", 1)
    monkeypatch.setattr(scanning, "_SHARD", 1)
    monkeypatch.setattr(scanning, "_WAKING", 1)
    monkeypatch.setattr(scanning, "_QUERIES", 4)
    for k in (1, 3, 50):
        parts = scan(codes, wanted, k)
        np.testing.assert_array_equal(parts.rows, whole.rows[:, :k])
    monkeypatch.setattr(scanning, "cores", lambda: 7)
    np.testing.assert_array_equal(scan(codes, wanted[:1], 30).rows, whole.rows[:1, :30])


def test_the_block_is_measured_once_and_faiss_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    import faiss

    from bigr_repr.retrieval.index import blocks

    before = faiss.cvar.hamming_batch_size
    codes, wanted = random_codes(5000, 32), random_codes(8, 32, seed=1)
    monkeypatch.setattr(blocks, "_measured", {})
    usual = blocks.rows_a_block(codes, 8)
    assert usual == blocks.second_level_cache() // 2 // 32  # too little to do for a trial
    assert not blocks._measured
    monkeypatch.setattr(blocks, "_WORTH", 0)
    whole = scan(codes, wanted, 9)
    ((width, chosen),) = blocks._measured.items()
    assert width == 32
    assert chosen in (usual, usual // 2, usual * 2, before)
    monkeypatch.setattr(blocks, "_trial", lambda codes: pytest.fail("measured again"))
    np.testing.assert_array_equal(scan(codes, wanted, 9).rows, whole.rows)
    assert faiss.cvar.hamming_batch_size == before


@pytest.mark.parametrize("fast", [1, 9])
def test_one_query_takes_the_cores_that_a_trial_finds_faster(monkeypatch: pytest.MonkeyPatch, fast: int) -> None:
    codes, now, tried = random_codes(3000, 4), [0], []
    expected, run = scan(codes, codes[7:8], 9), scanning._scan_shards

    def slowly(codes: np.ndarray, queries: np.ndarray, k: int, parts: list[slice], count: int) -> np.ndarray:
        tried.append((len(codes), count))
        now[0] += 1 if count == fast else 3
        return run(codes, queries, k, parts, count)

    for name, value in {
        "_scan_shards": slowly, "_enough": {}, "_TRIAL": 4000, "_SMALL": 0, "_shard_count": lambda *_: 9,
        "time": SimpleNamespace(perf_counter=lambda: now[0]),
    }.items():  # fmt: skip
        monkeypatch.setattr(scanning, name, value)
    for _ in range(2):
        found = scan(codes, codes[7:8], 9)
        np.testing.assert_array_equal(found.rows, expected.rows)
        np.testing.assert_array_equal(found.distances, expected.distances)
    assert [count for rows, count in tried if rows == len(codes)] == [fast, fast]
    assert len(tried) == 2 * scanning._TURNS + 2  # one trial a process


@pytest.mark.parametrize("cores", [1, 2, 3, 16])
def test_one_part_is_cut_into_as_many_shards_for_every_core(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "cores", lambda: cores)
    counts = []
    for rows in (1000, 300_000, 1_000_000, 3_000_000):
        codes = np.broadcast_to(np.uint8(0), (rows, 32))
        counts += [scanning._shard_count(codes, queries, 1, 10) for queries in (1, 32)]
    assert counts[0] == counts[1] == 1  # too little to wake anyone for
    assert all(count % cores == 0 for count in counts[2:])
    assert max(counts) <= 4 * cores
    assert scanning._shard_count(codes, 1, 1, 3_000_000) in (1, cores)  # no more heaps to fill than must be


def test_a_thread_that_comes_late_leaves_its_work_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from bigr_repr.retrieval.index import workers

    pool, gate = ThreadPoolExecutor(1), threading.Event()
    busy = pool.submit(gate.wait)
    monkeypatch.setattr(workers, "_pool", lambda process: pool)
    monkeypatch.setattr(workers, "cores", lambda: 2)
    try:
        assert workers.on_all_cores(lambda a, b: a + b, [(i, 1) for i in range(20)]) == list(range(1, 21))
        assert not busy.done()
        with pytest.raises(ZeroDivisionError):
            workers.on_all_cores(lambda a: 1 // a, [(1,), (0,)])
    finally:
        gate.set()
        pool.shutdown()


def test_permuted_rows_give_the_same_ids_but_for_ties() -> None:
    codes, wanted = random_codes(300), random_codes(20, seed=1)
    order = np.random.default_rng(2).permutation(300)
    plain, mixed = HammingIndex.build(codes), HammingIndex.build(codes[order], ids=order)
    a, b = plain.search(wanted, 10), mixed.search(wanted, 10)
    np.testing.assert_array_equal(a.distances, b.distances)
    for ids, others, distances in zip(a.ids, b.ids, a.distances, strict=True):
        nearer = distances < distances[-1]
        assert set(ids[nearer]) == set(others[nearer])


@pytest.mark.parametrize("kind", KINDS)
def test_permuted_bits_or_a_mask_change_no_exhaustive_answer(kind: str) -> None:
    settings = IndexSettings(kind=kind, effort=0 if kind == "flat" else 64, tables=1, hash_bits=6, lists=None)
    codes, wanted = clustered(400), clustered(10, seed=1)
    bits = np.random.default_rng(3).permutation(128)
    mask = random_codes(1, 16, seed=4)
    answers = [
        HammingIndex.build(change(codes), kind=settings).search(change(wanted), 5)
        for change in (lambda c: c, lambda c: to_bytes(from_bytes(c, 128)[:, bits]), lambda c: c ^ mask)
    ]
    truth = brute(codes, wanted, 5)
    for found in answers:
        if kind == "flat":
            np.testing.assert_array_equal(found.ids, truth[0])
        if kind != "hnsw":  # all lists; as many flips as a key has bits: every bucket
            np.testing.assert_array_equal(found.distances, truth[1])
        assert recall_with_ties(found.distances, truth[1]) > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_an_exact_duplicate_is_found_at_distance_0(kind: str) -> None:
    codes = clustered(600)
    index = HammingIndex.build(codes, kind=kind)
    found = index.search(codes[::7], 1)
    assert (found.distances == 0).mean() > 0.97
    twice = HammingIndex.build(np.concatenate([codes, codes]), kind="flat").search(codes[:50], 2)
    assert (twice.distances == 0).all()
    np.testing.assert_array_equal(twice.ids[:, 1] - twice.ids[:, 0], 600)


def test_many_threads_search_at_once() -> None:
    codes, wanted = clustered(2000), clustered(40, seed=1)
    for kind in KINDS:
        index = HammingIndex.build(codes, kind=kind)
        expected = index.search(wanted, 5)
        with ThreadPoolExecutor(8) as pool:
            for found in pool.map(lambda _, index=index: index.search(wanted, 5), range(24)):
                np.testing.assert_array_equal(found.ids, expected.ids)


def test_what_a_gpu_cannot_do_is_searched_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from bigr_repr.retrieval.index import gpu, searcher

    asked: list[int] = []

    class Gpu:
        def __init__(self, codes: np.ndarray) -> None:
            self.codes = codes

        def search(self, queries: np.ndarray, k: int) -> object:
            asked.append(k)
            return scan(self.codes, queries, k)

    monkeypatch.setattr(gpu, "GpuFlat", Gpu)
    monkeypatch.setattr(searcher, "GpuFlat", Gpu)
    monkeypatch.setattr(gpu, "gpu_count", lambda: 1)
    monkeypatch.setattr(gpu, "_SMALL", 0)
    codes = clustered(3000)
    index = HammingIndex.build(codes).to("auto")
    for k in (5, 2048, 2049):
        np.testing.assert_array_equal(index.search(codes[:2], k).distances, brute(codes, codes[:2], k)[1])
    assert asked == [5, 2048]
    index.remove([0])
    assert index.search(codes[1], 1).ids[0, 0] == 1  # the copy on the GPU follows
    assert HammingIndex.build(codes[:50], kind="ivf").to("auto").search(codes[0], 1).ids.shape == (1, 1)
    index.to("cpu").search(codes[:2], 5)
    assert asked == [5, 2048, 1]
    with pytest.raises(ValueError, match="FAISS searches ivf on a CPU only"):
        HammingIndex.build(codes[:50], kind="ivf").to("cuda")


# ---- approximate kinds


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_the_self_check_measures_recall_and_chooses_the_effort(kind: str) -> None:
    codes = clustered(3000)
    index = HammingIndex.build(codes, kind=IndexSettings(kind=kind, target_recall=0.9))
    check = index.self_check
    assert check is not None
    assert index.effort == check.effort == list(check.curve)[-1]
    assert check.recall >= 0.9 or kind == "hash"
    assert all(recall < 0.9 for recall in list(check.curve.values())[:-1])
    wanted = codes[:200]
    measured = recall_with_ties(index.search(wanted, 10).distances, brute(codes, wanted, 10)[1])
    assert abs(measured - check.recall) < 0.08


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_what_an_approximate_index_gives_are_true_distances(kind: str) -> None:
    codes, wanted = clustered(1000), clustered(30, seed=1)
    found = HammingIndex.build(codes, kind=IndexSettings(kind=kind, effort=1)).search_rows(wanted, 400)
    held = found.rows >= 0
    expected = hamming(codes[np.where(held, found.rows, 0)], wanted[:, None])
    np.testing.assert_array_equal(found.distances[held], expected[held])
    assert (found.distances[~held] == -1).all()
    for rows in found.rows:
        assert len(set(rows[rows >= 0])) == (rows >= 0).sum()


def test_finding_only_itself_is_no_recall() -> None:
    codes = random_codes(300)

    def only_itself(queries: np.ndarray, k: int, effort: int) -> Scanned:
        found = scan(codes, queries, k)
        found.rows[:, 1:], found.distances[:, 1:] = -1, -1
        return found

    check = check_recall(codes, only_itself, [1, 2], IndexSettings(kind="hnsw"))
    assert (check.recall, check.found_itself, check.effort) == (0, 1, 2)


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_rare_codes_among_copies_of_one_are_found(kind: str) -> None:
    """97 % of the rows have one code. Each of the others has to find itself, and its like."""
    rare = clustered(300, 32, seed=1)
    codes = np.concatenate([np.broadcast_to(random_codes(1, 32), (9700, 32)), rare])
    codes = codes[np.random.default_rng(3).permutation(len(codes))]
    index = HammingIndex.build(codes, kind=kind)
    found = index.search(rare, 10)
    assert (found.distances[:, 0] == 0).all()
    truth = brute(codes, rare, 10)[1]
    assert recall_with_ties(found.distances, truth) > 0.94 or kind == "hash"
    assert index.self_check is not None
    assert index.self_check.queries == 200  # of the 301 codes, not of the rows
    assert abs(index.self_check.recall - recall_with_ties(found.distances[:, 1:], truth[:, 1:])) < 0.06
    common = index.search_rows(random_codes(1, 32), 20)
    np.testing.assert_array_equal(common.rows, brute(codes, random_codes(1, 32), 20)[0])  # copies, in their order


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_copies_come_and_go(kind: str, tmp_path: Path) -> None:
    codes = clustered(400)
    index = HammingIndex.build(codes[:200], ids=[str(i) for i in range(200)], kind=kind)
    assert index.approximate is not None
    index.add(np.concatenate([codes[:50], codes[50:60], codes[200:]]), [str(i) for i in range(200, 460)])
    assert index.approximate.distinct < 460 - 55
    index.remove([str(i) for i in range(50)])  # each of these has a copy that stays
    index.save(tmp_path / "i")
    for opened in (index, HammingIndex.load(tmp_path / "i")):
        assert (opened.search(codes[:50], 1).distances == 0).mean() > 0.97
        assert opened.search(codes[55], 2).ids.tolist() == [["55", "255"]]


def test_hashes_that_meet_are_not_taken_for_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    from bigr_repr.retrieval.index import distinct

    codes = random_codes(40, 3)[np.random.default_rng(0).integers(0, 40, 200)]
    whole = distinct.find_distinct(codes)
    np.testing.assert_array_equal(codes[whole.firsts][whole.of_row], codes)
    assert len(whole.firsts) == len(np.unique(codes, axis=0))
    monkeypatch.setattr(distinct, "hashes", lambda codes: codes[:, 0] % 4)
    for mine, other in zip(whole, distinct.find_distinct(codes), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_ivf_with_all_lists_is_exact() -> None:
    codes, wanted = clustered(1000), clustered(30, seed=1)
    index = HammingIndex.build(codes, kind=IndexSettings(kind="ivf", lists=12))
    np.testing.assert_array_equal(index.search(wanted, 10, effort=12).distances, brute(codes, wanted, 10)[1])


def test_recall_credits_ties() -> None:
    assert recall_with_ties([[1, 2, 2]], [[1, 2, 2]]) == 1
    assert recall_with_ties([[2, 2, 2]], [[1, 2, 2]]) == 1  # three of the rows that are no farther than the third
    assert recall_with_ties([[1, 3, -1]], [[1, 2, 2]]) == pytest.approx(1 / 3)


# ---- changing


@pytest.mark.parametrize("kind", KINDS)
def test_add_and_remove_equal_building_anew(kind: str) -> None:
    codes = clustered(500)
    names = [f"{i}.jpg" for i in range(500)]
    index = HammingIndex.build(codes[:400], ids=names[:400], kind=kind)
    index.add(codes[400:], names[400:])
    assert index.remove([names[3], names[450]]) == 2
    left = [i for i in range(500) if i not in (3, 450)]
    assert index.ids.to_pylist() == [names[i] for i in left]
    found, truth = index.search_rows(codes[:50], 5), brute(codes[left], codes[:50], 5)
    assert recall_with_ties(found.distances, truth[1]) > 0.85
    held = found.rows >= 0
    expected = hamming(codes[left][np.where(held, found.rows, 0)], codes[:50, None])
    np.testing.assert_array_equal(found.distances[held], expected[held])
    assert names[3] not in index.search(codes[3], 5).ids


def test_removing_everything_and_adding_again() -> None:
    for kind in KINDS:
        index = HammingIndex.build(clustered(50), ids=[str(i) for i in range(50)], kind=kind)
        index.remove([str(i) for i in range(50)])
        with pytest.raises(ValueError, match="the index is empty"):
            index.search(clustered(1), 1)
        assert index.self_check is None
        index.add(clustered(5), [str(i) for i in range(5)])  # fewer rows than there were lists
        assert index.search(clustered(5)[4], 1).ids[0, 0] == "4"
        assert kind == "flat" or (index.self_check is not None and index.self_check.queries == 5)


def test_a_change_that_fails_changes_nothing() -> None:
    index = HammingIndex.build(clustered(20), ids=[str(i) for i in range(20)])
    for codes, ids, message in (
        (clustered(2), ["20", "3"], "'3' is already in the index"),
        (clustered(2), ["20", "20"], "a duplicate"),
        (random_codes(2, 5), ["20", "21"], "5 bytes per code, the index's have 16"),
        (clustered(2), ["20"], "1 ids for 2 codes"),
    ):
        with pytest.raises(ValueError, match=message):
            index.add(codes, ids)
    with pytest.raises(ValueError, match="'77' is not in the index"):
        index.remove(["1", "77"])
    assert index.ids.to_pylist() == [str(i) for i in range(20)]


def test_vectors_that_overflow_are_not_added() -> None:
    index = HammingIndex.build(clustered(20), vectors=np.zeros((20, 4), np.float16))
    with pytest.raises(ValueError, match="vectors overflow float16"):
        index.add(clustered(1), [20], vectors=np.full((1, 4), 1e6, np.float32))
    assert len(index) == 20
    index.add(clustered(1), [20], vectors=np.full((1, 4), 6e4, np.float32))
    assert index.rows.vectors is not None
    assert index.rows.vectors.dtype == np.float16


def test_rows_of_one_id_are_told_apart() -> None:
    from bigr_repr.retrieval.codes.ids import id_array
    from bigr_repr.retrieval.codes.rows import IndexRows

    codes = random_codes(4)
    rows = IndexRows(ids=id_array(["a", "twin", "twin", "b"], 4), codes=codes)
    index = HammingIndex.of_rows(rows, 64, IndexSettings())
    found = index.find(codes[2], 1)
    assert (found.rows.tolist(), found.ids.tolist()) == ([[2]], [["twin"]])
    assert index.rows.places(["b", "twin", "none", "b"]).tolist() == [3, 1, -1, 3]
    assert index.remove(["twin"]) == 2


# ---- bad input


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [
        (random_codes(1, 7), 1, "7 bytes per code, the index's have 16"),
        (random_codes(1, 16).astype(np.int8), 1, "dtype int8; packed codes are uint8"),
        (random_codes(1, 16), 21, r"k=21 is outside 1\.\.20"),
        (random_codes(1, 16), 0, r"k=0 is outside 1\.\.20"),
        (np.zeros((2, 2, 16), np.uint8), 1, "have shape"),
    ],
)
def test_bad_queries_say_what_is_wrong(queries: np.ndarray, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HammingIndex.build(clustered(20)).search(queries, k)


def test_bad_builds_say_what_is_wrong() -> None:
    codes = clustered(20)
    for arguments, message in (
        ({"kind": "tree"}, "kind='tree' is unknown"),
        ({"ids": ["a"] * 20}, "a duplicate"),
        ({"ids": ["a", 1]}, "all strings or all whole numbers"),
        ({"n_bits": 100}, "n_bits=100 takes 13 bytes"),
        ({"n_bits": 125}, "bits set past n_bits=125"),
        ({"vectors": np.full((20, 3), np.nan)}, "20 of 20 rows are not finite"),
        ({"vectors": np.zeros((19, 3))}, "19 vectors for 20 codes"),
        ({"bits_per_token": 24}, "not make a square of tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            HammingIndex.build(codes | 1, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the index is empty"):
        HammingIndex.build(np.empty((0, 16), np.uint8)).search(codes[0], 1)
    with pytest.raises(ValueError, match="a flat index is exact"):
        HammingIndex.build(codes).search(codes[0], 1, effort=3)


# ---- rescoring


def test_rescoring_the_whole_index_is_float_search_and_reads_the_shortlist_alone() -> None:
    random = np.random.default_rng(0)
    vectors, wanted = random.normal(size=(200, 16)).astype(np.float32), random.normal(size=(7, 16))
    binarizer = fit_binarizer("sign", vectors)
    index = HammingIndex.build(binarizer.encode(vectors), vectors=vectors, n_bits=16)
    index.binarizer = binarizer
    cosine = (wanted / np.linalg.norm(wanted, axis=1, keepdims=True)) @ (
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    ).T
    found = index.search_vectors(wanted, 5, rescore=40)
    np.testing.assert_array_equal(found.ids, np.argsort(-cosine, axis=1)[:, :5])
    np.testing.assert_allclose(found.distances, 1 - np.take_along_axis(cosine, found.ids, 1), atol=1e-6)
    shortlist = index.search(binarizer.encode(wanted), 10).ids
    few = index.search_vectors(wanted, 5, rescore=2)
    for ids, listed in zip(few.ids, shortlist, strict=True):
        assert set(ids) <= set(listed)
    touched: list[np.ndarray] = []

    class Watched:
        shape, ndim = vectors.shape, 2

        def __getitem__(self, rows: np.ndarray) -> np.ndarray:
            touched.append(rows)
            return vectors[rows]

    object.__setattr__(index.rows, "vectors", Watched())
    index.search_vectors(wanted, 5, rescore=2)
    assert sorted(np.concatenate(touched)) == sorted(shortlist.ravel())


def test_rescoring_without_vectors_is_an_error() -> None:
    with pytest.raises(ValueError, match="no vectors for rescoring"):
        HammingIndex.build(clustered(20)).rescored(clustered(1), np.zeros((1, 4)), 2)
    with pytest.raises(ValueError, match="no binarizer"):
        HammingIndex.build(clustered(20)).search_vectors(np.zeros((1, 4)), 2)


# ---- regions


def test_a_region_compares_its_tokens_alone() -> None:
    codes, wanted = random_codes(300, 20), random_codes(4, 20, seed=1)  # 4 x 4 tokens of 10 bits, not byte-aligned
    index = HammingIndex.build(codes, bits_per_token=10)
    region = Region(x=1, y=2, w=2, h=2)
    grid = from_bytes(codes, 160).reshape(300, 4, 4, 10)[:, 2:4, 1:3].reshape(300, -1)
    own = from_bytes(wanted, 160).reshape(4, 4, 4, 10)[:, 2:4, 1:3].reshape(4, -1)
    distances = (own[:, None] != grid).sum(axis=2)
    found = index.search_region(wanted, region, 15)
    np.testing.assert_array_equal(found.ids, np.argsort(distances, axis=1, kind="stable")[:, :15])
    np.testing.assert_array_equal(found.distances, np.sort(distances, axis=1)[:, :15])
    outside = Region(x=0, y=0, w=4, h=4).mask(index.layout) & ~region.mask(index.layout)  # type: ignore[arg-type]
    changed = index.search_region(wanted ^ outside, region, 15)  # bits outside of the region do not count
    np.testing.assert_array_equal(changed.ids, found.ids)


def test_the_whole_picture_as_a_region_is_plain_search() -> None:
    codes, wanted = random_codes(300, 20), random_codes(4, 20, seed=1)
    index = HammingIndex.build(codes, bits_per_token=10)
    whole = index.search_region(wanted, Region(x=0, y=0, w=4, h=4), 9)
    np.testing.assert_array_equal(whole.ids, index.search(wanted, 9).ids)


def test_fractions_touch_tokens() -> None:
    layout = HammingIndex.build(random_codes(3, 20), bits_per_token=10).layout
    assert layout is not None
    assert Region.of_fractions(0.25, 0.5, 0.5, 0.5, layout) == Region(x=1, y=2, w=2, h=2)
    assert Region.of_fractions(0.3, 0.1, 0.25, 0.05, layout) == Region(x=1, y=0, w=2, h=1)
    assert Region.of_fractions(0.7, 0.7, 0.3, 0.3, layout) == Region(x=2, y=2, w=2, h=2)
    fine = TokenLayout(height=24, width=24, bits_per_token=1)
    for x, w in itertools.product(range(24), range(1, 25)):  # borders between tokens, that no binary fraction meets
        if x + w <= 24:
            assert Region.of_fractions(x / 24, 0, w / 24, 1, fine) == Region(x=x, y=0, w=w, h=24)
    for wrong in ((0.5, 0, 0.6, 1), (-0.1, 0, 1, 1), (0, 0, 0, 1), (float("nan"), 0, 1, 1)):
        with pytest.raises(ValueError, match="extends outside"):
            Region.of_fractions(*wrong, layout)
    with pytest.raises(ValueError, match="grid of 4 x 4 tokens"):
        Region(x=3, y=0, w=2, h=1).mask(layout)
    with pytest.raises(ValueError, match="no tokenizer codes"):
        HammingIndex.build(clustered(5)).search_region(clustered(1), Region(x=0, y=0, w=1, h=1), 1)


# ---- binarizers


@pytest.mark.parametrize("kind", BINARIZERS)
def test_a_binarizer_gives_the_same_bits_in_any_batch_and_after_a_file(kind: str) -> None:
    from bigr_repr.retrieval import Binarizer

    vectors = np.random.default_rng(0).normal(size=(300, 24)).astype(np.float32) + 3
    binarizer = fit_binarizer(kind, vectors, n_bits=24 if kind in ("sign", "median") else 16)
    codes = binarizer.encode(vectors)
    np.testing.assert_array_equal(np.concatenate([binarizer.encode(row[None]) for row in vectors]), codes)
    again = Binarizer.from_safetensors(binarizer.to_safetensors(), kind, "file")
    np.testing.assert_array_equal(again.encode(vectors), codes)
    margins = binarizer.margins(vectors)
    np.testing.assert_array_equal(margins > 0, from_bytes(codes, binarizer.n_bits))
    np.testing.assert_allclose(binarizer.scales, np.abs(margins).mean(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(again.scales, binarizer.scales)
    share = from_bytes(codes, binarizer.n_bits).mean(axis=0)
    assert (np.abs(share - 0.5) < 0.15).all()  # centered: every bit halves the data
    far = from_bytes(binarizer.encode(6 - vectors), binarizer.n_bits)  # mirrored at about the center
    assert (far != from_bytes(codes, binarizer.n_bits)).mean() > 0.9


def test_binarizers_are_what_faiss_computes() -> None:
    import faiss

    vectors = np.random.default_rng(1).normal(size=(500, 20)).astype(np.float32)
    fitted = faiss.ITQTransform(20, 8, True)
    fitted.itq.seed = 5
    centered = vectors - vectors.mean(axis=0)
    fitted.train(centered)
    ours = fit_binarizer("itq", vectors, n_bits=8, seed=5)
    np.testing.assert_array_equal(from_bytes(ours.encode(vectors), 8), fitted.apply(centered) > 0)


def test_bad_fits_say_what_is_wrong() -> None:
    vectors = np.random.default_rng(0).normal(size=(30, 24))
    for kind, n_bits, message in (
        ("sign", 12, "gives one bit per feature, 24"),
        ("pca", 25, r"must be in 1\.\.24"),
        ("itq", 20, "30 rows are too few to fit itq of 20 bits"),
        ("lsh", 8, "binarizer='lsh' is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_binarizer(kind, vectors, n_bits=n_bits)
    binarizer = fit_binarizer("sign", vectors)
    with pytest.raises(ValueError, match="23 features; this binarizer expects 24"):
        binarizer.encode(vectors[:, 1:])
    vectors[3, 4] = np.nan
    with pytest.raises(ValueError, match="the first is row 3"):
        binarizer.encode(vectors)


def test_the_cache_is_what_the_system_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bigr_repr.retrieval.index import blocks

    measure = blocks.second_level_cache.__wrapped__
    monkeypatch.setattr(blocks, "_CACHES", tmp_path)
    assert measure() == 1 << 20  # the system does not tell
    for number, level, size in ((0, "1\n", "48K\n"), (2, "2\n", "2048K\n"), (3, "3\n", "33792K\n")):
        folder = tmp_path / f"index{number}"
        folder.mkdir()
        (folder / "level").write_text(level)
        (folder / "size").write_text(size)
    assert measure() == 2 << 20
    (tmp_path / "index2" / "size").write_text("unknown")
    assert measure() == 1 << 20


def test_no_effort_is_an_effort() -> None:
    codes = random_codes(300, 8)
    index = HammingIndex.build(codes, kind="hash")
    assert index.search(codes[:5], 1, effort=0).ids[:, 0].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="effort=-1"):
        index.search(codes[:5], 1, effort=-1)


@pytest.mark.parametrize("kind", ["ivf", "hnsw", "hash"])
def test_no_queries_have_no_answers_of_the_usual_types(kind: str) -> None:
    index = HammingIndex.build(random_codes(300, 8), kind=kind)  # type: ignore[arg-type]
    found = index._searcher.approximate.search_distinct(np.empty((0, 8), np.uint8), 3, 1)
    assert (found.rows.dtype, found.distances.dtype) == (np.int64, np.int32)
    assert found.rows.shape == found.distances.shape == (0, 3)


def test_hash_tables_of_more_codes_than_are_sampled_find_every_code() -> None:
    codes = random_codes(5000, 8)
    index = HammingIndex.build(codes, kind="hash")
    assert index.search(codes[::500], 1).ids[:, 0].tolist() == list(range(0, 5000, 500))


def test_no_rows_of_several_arrays_are_no_rows() -> None:
    rows = StackedRows([np.arange(3), np.arange(2)])
    assert rows[2:2].tolist() == rows[5:9].tolist() == []
    assert rows[1:4].tolist() == [1, 2, 0]
    assert rows[3:5].tolist() == [0, 1]


def test_names_of_an_index_are_text() -> None:
    class Reader:
        @staticmethod
        def damaged(what: str) -> ValueError:
            return ValueError(f"ids: damaged, {what}")

    def names(text: bytes, *ends: int) -> list[str]:
        bounds = np.array([0, *ends], np.int64)
        return reading_ids._whole_names(Reader(), bounds, np.frombuffer(text, np.uint8)).to_pylist()  # type: ignore[arg-type]

    assert names(b"abc", 1, 3) == ["a", "bc"]
    with pytest.raises(ValueError, match="damaged, names that are not text"):
        names(b"a\xff\xfe", 1, 3)
    with pytest.raises(ValueError, match="damaged, names that overlap"):
        names(b"abc", 2, 1, 3)


def test_rows_that_faiss_makes_up_are_not_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    index = HammingIndex.build(random_codes(300, 8), kind="ivf")
    approximate = index._searcher.approximate
    monkeypatch.setattr(approximate, "_search", lambda *_: (np.zeros((1, 1), np.int32), np.array([[300]])))
    with pytest.raises(ValueError, match="refers to rows that it does not contain; build it again"):
        index.search(random_codes(1, 8), 1)


# ---- a GPU, by a double of FAISS's


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """FAISS as it is built for GPUs, which finds equally far rows in no order. gpus: how many; held: indexes there."""

    def to_gpu(resources: str, device: int, flat: Any) -> Any:
        assert (resources, device) == ("resources", 0)
        double.held.append(flat)

        def search(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
            distances, rows = flat.search(queries, k)
            return distances[:, ::-1], rows[:, ::-1]

        return SimpleNamespace(search=search)

    double = SimpleNamespace(
        gpus=1, held=[], get_num_gpus=lambda: double.gpus, StandardGpuResources=lambda: "resources",
        IndexBinaryFlat=faiss.IndexBinaryFlat, index_binary_cpu_to_gpu=to_gpu,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "faiss", double)
    return double


def test_a_gpu_answers_in_the_order_of_distances_and_rows(with_gpu: SimpleNamespace) -> None:
    codes = np.random.default_rng(0).integers(0, 4, (60, 2), np.uint8)
    found = gpu.GpuFlat(codes).search(codes[:5], 60)
    expected = np.unpackbits(codes[None] ^ codes[:5, None], axis=2).sum(axis=2)
    order = np.argsort(expected, axis=1, kind="stable")
    assert np.array_equal(found.rows, order)
    assert np.array_equal(found.distances, np.take_along_axis(expected, order, axis=1))
    assert with_gpu.held[0].ntotal == 60


def test_a_gpu_is_taken_where_it_is_worth_it(with_gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.zeros((20, 4), np.uint8)
    monkeypatch.setattr(gpu, "_SMALL", 79)
    assert gpu.gpu_count() == 1
    assert isinstance(gpu.on_device(codes, "auto", "flat"), gpu.GpuFlat)
    assert isinstance(gpu.on_device(codes[:2], "cuda", "flat"), gpu.GpuFlat)
    assert gpu.on_device(codes, "cpu", "flat") is None
    assert gpu.on_device(codes, "auto", "ivf") is None
    assert gpu.on_device(codes[:0], "cuda", "flat") is None
    monkeypatch.setattr(gpu, "_SMALL", 80)
    assert gpu.on_device(codes, "auto", "flat") is None
    wrong = ("cuda", "ivf", "FAISS searches ivf on a CPU only"), ("tpu", "flat", "choose auto, cpu or cuda")
    for device, kind, said in wrong:
        with pytest.raises(ValueError, match=said):
            gpu.on_device(codes, device, kind)
    with_gpu.gpus = 0
    assert gpu.on_device(np.zeros((99, 4), np.uint8), "auto", "flat") is None
    with pytest.raises(ValueError, match="FAISS sees no GPU here; use cpu"):
        gpu.on_device(codes, "cuda", "flat")
    monkeypatch.setitem(sys.modules, "faiss", SimpleNamespace())
    assert gpu.gpu_count() == 0
