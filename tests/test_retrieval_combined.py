"""Several codes as one query, and hits gathered under those that they nearly repeat."""

from __future__ import annotations

import numpy as np
import pytest

from bigr_repr.codes import hamming
from bigr_repr.retrieval import KINDS, HammingIndex, Region, find_together
from bigr_repr.retrieval.index import combined
from bigr_repr.retrieval.index.grouping import group_hits


def codes_of(count: int, seed: int = 0, n_bytes: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, n_bytes), np.uint8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", [(1, 1, 1), (2, 1, 0.5), (1, 0.5, -0.7)])
def test_the_order_is_that_of_the_weighted_distances(
    kind: str, weights: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(combined, "_BLOCK", 37)
    codes, queries = codes_of(300), codes_of(3, 1)
    index = HammingIndex.build(codes, kind=kind, columns={"x": np.arange(300)})
    apart = hamming(queries[:, None], codes).astype(float)
    shares = np.array(weights) / np.abs(weights).sum()
    scores = sum(abs(w) * (each if w > 0 else 128 - each) for w, each in zip(shares, apart, strict=True))
    order = np.lexsort((np.arange(300), np.round(scores, 9)))
    found = find_together(index, queries, weights, 20, offset=2)
    np.testing.assert_allclose(found.distances[0], scores[order[2:22]])
    assert set(found.rows[0]) == set(order[2:22])
    some = find_together(index, queries, weights, 20, where="x >= 250")
    assert some.rows[0].tolist()[0] == next(row for row in order if row >= 250)


def test_one_code_is_plain_search_and_its_opposite_the_farthest() -> None:
    codes = codes_of(200)
    index = HammingIndex.build(codes)
    plain = index.find(codes[3], 200)
    np.testing.assert_array_equal(find_together(index, codes[3], [5.0], 200).rows, plain.rows)
    far = find_together(index, codes[[3, 3]], [1e-9, -1], 1)
    assert hamming(codes[3], codes[far.rows[0, 0]]) == plain.distances[0, -1]


def test_regions_and_rescoring_go_with_it() -> None:
    codes, vectors = codes_of(100), np.random.default_rng(1).standard_normal((100, 6)).astype(np.float32)
    index = HammingIndex.build(codes, bits_per_token=8, vectors=vectors)
    region = Region(x=1, y=0, w=1, h=2)
    one = find_together(index, codes[:1], [1], 9, region=region)
    np.testing.assert_array_equal(one.rows, index.find_region(codes[:1], region, 9).rows)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    best = find_together(index, codes[:2], [1, 3], 5, vectors=vectors[:2], rescore=1000)
    mean = (unit[0] + 3 * unit[1]) / 4
    assert best.rows[0].tolist() == np.argsort(-(unit @ mean), kind="stable")[:5].tolist()


@pytest.mark.parametrize("weights", [(1,), (1, float("nan")), (-1, -1), (0, 0)])
def test_weights_that_mean_nothing_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="must be 2 finite numbers, one per picture, at least one above 0"):
        find_together(HammingIndex.build(codes_of(9)), codes_of(2), weights, 3)


def test_near_duplicates_stand_under_the_nearest_of_them() -> None:
    base = codes_of(12)
    copies = np.repeat(base, 50, axis=0)
    copies[np.arange(600), np.random.default_rng(0).integers(0, 16, 600)] ^= 1  # each within 2 bits of its siblings
    index = HammingIndex.build(copies)
    grouped = group_hits(index, lambda depth: index.find(base[:2], depth), 5, 4)
    whole = index.find(base[:2], 600)
    for query in range(2):
        rows = grouped.found.rows[query]
        firsts = [whole.rows[query][(whole.rows[query] // 50) == each][0] for each in rows // 50]
        assert rows.tolist() == firsts
        assert len(set(rows // 50)) == 5
        for lead, members in zip(rows, grouped.members[query], strict=True):
            assert all(hamming(copies[lead], copies[row]) <= 4 for row, _ in members)
    later = group_hits(index, lambda depth: index.find(base[:2], depth), 3, 4, offset=2)
    np.testing.assert_array_equal(later.found.rows, grouped.found.rows[:, 2:5])
    assert group_hits(index, lambda depth: index.find(base[:1], depth), 50, 4).found.rows.shape == (1, 12)
    with pytest.raises(ValueError, match="group=129 is outside"):
        group_hits(index, lambda depth: index.find(base[:1], depth), 5, 129)
