"""Near-duplicates: all pairs by definition, what is new against what was there, and what to keep."""

from __future__ import annotations

import numpy as np
import pytest

from bigr_repr.codes import hamming, to_bytes
from bigr_repr.retrieval import HammingIndex, find_near_duplicates
from bigr_repr.retrieval.index import pairs as pairing
from bigr_repr.retrieval.index.pairs import pairs_within
from bigr_repr.retrieval.near_duplicates import choose_kept


def near_codes(rows: int, n_bytes: int, seed: int = 0) -> np.ndarray:
    """Random codes, chains of near ones, and bits that are nearly always off, in random order; some codes are equal."""
    random = np.random.default_rng(seed)
    bits = random.random((rows, 8 * n_bytes)) < np.where(random.random(8 * n_bytes) < 0.3, 0.02, 0.5)
    for row in range(1, rows):
        if random.random() < 0.6:
            bits[row] = bits[random.integers(0, row)]
            bits[row, random.integers(0, 8 * n_bytes, random.integers(0, 6))] ^= True
    bits[-1] = ~bits[0]  # as far apart as can be
    return to_bytes(bits)


def brute_pairs(codes: np.ndarray, radius: int) -> np.ndarray:
    return np.argwhere(np.triu(hamming(codes[:, None], codes) <= radius, 1))


def found_pairs(codes: np.ndarray, radius: int, new: np.ndarray | None = None) -> np.ndarray:
    found = [np.stack(pair, axis=1) for pair in pairs_within(codes, radius, new)]
    return np.unique(np.concatenate([np.empty((0, 2), np.int64), *found]), axis=0)


# ---- pairs


@pytest.mark.parametrize("cost", [0.0, 1e9])  # of comparing all pairs: it is always, or never, done
@pytest.mark.parametrize(("n_bytes", "radius"), [(1, 1), (3, 0), (8, 3), (8, 7), (20, 12), (32, 8), (5, 40)])
def test_all_pairs_within_the_radius_and_no_others(
    n_bytes: int, radius: int, cost: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = near_codes(250, n_bytes)
    expected = brute_pairs(codes, radius)
    monkeypatch.setattr(pairing, "_compared", lambda width: cost)
    if cost:
        monkeypatch.setattr(pairing, "_nanoseconds", lambda *sizes: 0.0)
    np.testing.assert_array_equal(found_pairs(codes, radius), expected)
    for name, value in (("_FEW", 2), ("_MANY", 5), ("_PIECE", 40), ("_QUERIES", 3)):  # all ways through a bucket
        monkeypatch.setattr(pairing, name, value)
        np.testing.assert_array_equal(found_pairs(codes, radius), expected)
    new = np.random.default_rng(1).random(len(codes)) < 0.1
    np.testing.assert_array_equal(found_pairs(codes, radius, new), expected[new[expected].any(axis=1)])


@pytest.mark.parametrize(("n_bytes", "radius"), [(1, 0), (1, 7), (2, 9), (32, 8), (7, 19)])
def test_two_codes_within_the_radius_agree_in_a_part(n_bytes: int, radius: int) -> None:
    """The proof: radius + 1 parts that share no bit cannot all be hit by `radius` differing bits."""
    masks = pairing._masks(near_codes(50, n_bytes), radius)
    parts = np.unpackbits(masks, axis=1).astype(int)
    assert (parts.sum(axis=0) == 1).all()  # every bit is in one part
    assert (parts.sum(axis=1) > 0).all()
    assert len(parts) == radius + 1


def test_few_of_all_pairs_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.random.default_rng(0).integers(0, 256, (30_000, 32), np.uint8)
    codes[-100:] = codes[:100] ^ np.uint8(1)  # 32 bits apart
    codes[-100:, 6:] = codes[:100, 6:]  # 6 bits apart
    compared = []
    real = pairing.hamming
    monkeypatch.setattr(pairing, "hamming", lambda a, b: compared.append(len(a)) or real(a, b))
    monkeypatch.setattr(pairing, "_all_pairs", lambda *arguments: pytest.fail("all pairs were compared"))
    found = found_pairs(codes, 8)
    np.testing.assert_array_equal(found, [[row, 29_900 + row] for row in range(100)])
    assert sum(compared) < 30_000  # of 450 million


def test_where_buckets_are_full_all_pairs_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.random.default_rng(0).integers(0, 256, (3000, 8), np.uint8)
    monkeypatch.setattr(pairing, "_in_buckets", lambda *arguments: pytest.fail("tables were made"))
    np.testing.assert_array_equal(found_pairs(codes, 20), brute_pairs(codes, 20))


# ---- clusters


def test_clusters_are_the_connected_components() -> None:
    codes = np.random.default_rng(0).integers(0, 256, (120, 2), np.uint8)
    distances = hamming(codes[:, None], codes)
    truth = brute_pairs(codes, 2)
    component = np.arange(120)
    for _ in range(120):
        for a, b in truth:
            component[a] = component[b] = min(component[a], component[b])
    expected = sorted(tuple(np.flatnonzero(component == c)) for c in set(component) if (component == c).sum() > 1)
    clusters = find_near_duplicates(HammingIndex.build(codes), 2)
    assert sorted(tuple(cluster.ids) for cluster in clusters) == expected
    for cluster in clusters:
        np.testing.assert_array_equal(cluster.distances, distances[cluster.ids[0], cluster.ids])


def test_radius_0_finds_equal_codes_however_many() -> None:
    codes = np.repeat(np.random.default_rng(0).integers(0, 256, (3, 32), np.uint8), 5000, axis=0)
    clusters = find_near_duplicates(HammingIndex.build(codes), 0)
    assert [len(cluster.ids) for cluster in clusters] == [5000] * 3
    with pytest.raises(ValueError, match=r"radius=300 is outside 0\.\.256"):
        find_near_duplicates(HammingIndex.build(codes), 300)


def test_only_clusters_with_something_new_and_no_links_among_the_old() -> None:
    codes = to_bytes(np.arange(16) < np.array([0, 1, 2, 3, 9, 9, 13, 13, 16])[:, None])
    index = HammingIndex.build(codes)
    whole = [cluster.rows.tolist() for cluster in find_near_duplicates(index, 1)]
    assert whole == [[0, 1, 2, 3], [4, 5], [6, 7]]
    fresh = [cluster.rows.tolist() for cluster in find_near_duplicates(index, 1, new=[3, 5])]
    assert fresh == [[2, 3], [4, 5]]  # 0 and 1 hang together with 2, but are old, as it is
    assert find_near_duplicates(index, 1, new=[]) == []
    with pytest.raises(ValueError, match=r"outside 0\.\.8"):
        find_near_duplicates(index, 1, new=[9])


def test_what_is_not_kept_has_a_kept_one_within_the_radius() -> None:
    codes = near_codes(400, 6)
    index = HammingIndex.build(codes)
    for cluster in find_near_duplicates(index, 3):
        held = codes[cluster.rows]
        distances = hamming(held[:, None], held)
        chosen = choose_kept(index, cluster, 3)
        kept = np.flatnonzero(chosen.keep)
        assert kept[0] == 0  # the first of the index, unless told otherwise
        np.testing.assert_array_equal(chosen.distances, distances[np.arange(len(held)), chosen.like])
        np.testing.assert_array_equal(chosen.distances, distances[:, kept].min(axis=1))
        assert (chosen.distances <= 3).all()
        assert chosen.keep[chosen.like].all()
        assert (distances[np.ix_(kept, kept)] + 99 * np.eye(len(kept)) > 3).all()  # no two kept ones are alike


def test_the_better_one_is_kept_and_all_old_ones() -> None:
    index = HammingIndex.build(np.zeros((4, 2), np.uint8))
    (cluster,) = find_near_duplicates(index, 0)
    assert choose_kept(index, cluster, 0, rank=[1, 5, 9, 9]).keep.tolist() == [False, False, True, False]
    chosen = choose_kept(index, cluster, 0, rank=[1, 5, 9, 9], new=[2, 3])
    assert chosen.keep.tolist() == [True, True, False, False]
    assert chosen.distances.tolist() == [0, 0, 0, 0]
