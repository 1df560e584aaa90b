"""Retrieval metrics: against definitions by enumeration, hand-made ties, and bounds."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest

from bigr_repr.evaluate.metrics.ranking import average_precision, precision_at, retrieval


def ap(ranked: list[bool], depth: int, denominator: str) -> float:
    """Average precision of one order, by definition."""
    hits = [rank for rank in range(1, depth + 1) if ranked[rank - 1]]
    count = min(sum(ranked), depth) if denominator == "relevant" else len(hits)
    return sum(sum(ranked[:rank]) / rank for rank in hits) / count if count else 0.0


def orders(distances: list[int], relevant: list[bool]) -> list[list[bool]]:
    """The relevance of every order that sorting by distance allows."""
    rows = range(len(distances))
    return [
        [relevant[i] for i in order]
        for order in permutations(rows)
        if all(distances[a] <= distances[b] for a, b in pairwise(order))
    ]


CASES = [
    ([0, 1, 1, 1, 2, 2], [True, False, True, False, True, False]),
    ([1, 1, 1, 1, 1, 1], [True, True, False, False, False, False]),
    ([0, 0, 1, 1, 2, 2], [False, True, True, True, False, False]),
    ([5, 4, 3, 2, 1, 0], [True, False, True, False, True, False]),
    ([0, 1, 2, 3, 3, 3], [True, False, False, True, True, False]),  # retrieving fewer can raise the retrieved form
]


@pytest.mark.parametrize(("distances", "relevant"), CASES)
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 6])
def test_average_precision_is_the_mean_over_all_orders_of_ties(
    distances: list[int], relevant: list[bool], depth: int
) -> None:
    values = [ap(order, depth, "relevant") for order in orders(distances, relevant)]
    found = average_precision([distances], [relevant], at=depth)
    assert found.expected[0] == pytest.approx(np.mean(values))
    assert found.best[0] == pytest.approx(max(values))
    assert found.worst[0] == pytest.approx(min(values))


@pytest.mark.parametrize(("distances", "relevant"), CASES)
def test_the_other_denominator_is_the_relevant_retrieved(distances: list[int], relevant: list[bool]) -> None:
    for depth in range(1, 7):
        values = [ap(order, depth, "retrieved") for order in orders(distances, relevant)]
        found = average_precision([distances], [relevant], at=depth, denominator="retrieved")
        assert found.expected[0] == pytest.approx(np.mean(values))
        assert found.best[0] == pytest.approx(max(values))
        assert found.worst[0] == pytest.approx(min(values))


def test_a_published_formula_on_one_group_of_ties() -> None:
    """All n rows tied, r relevant: sum of ((i - 1)(r - 1)/(n - 1) + 1) / i over i, by n (McSherry and Najork, 2008)."""
    n, r = 9, 4
    expected = sum(((i - 1) * (r - 1) / (n - 1) + 1) / i for i in range(1, n + 1)) / n
    found = average_precision([[3] * n], [[True] * r + [False] * (n - r)])
    assert found.expected[0] == pytest.approx(expected)


def test_without_ties_it_is_what_scikit_learn_says() -> None:
    from sklearn.metrics import average_precision_score

    random = np.random.default_rng(0)
    distances, relevant = random.permutation(200).reshape(1, 200), random.random((1, 200)) < 0.2
    found = average_precision(distances, relevant)
    assert found.expected[0] == pytest.approx(average_precision_score(relevant[0], -distances[0]))
    assert found.best == found.expected == found.worst


def test_a_query_without_relevant_rows_counts_nowhere() -> None:
    found = average_precision([[1, 2], [1, 2]], [[False, False], [False, True]])
    assert np.isnan(found.expected[0])
    result = retrieval(np.array([[1, 2], [1, 2]]), [7, 1], [0, 1], depths=[None], k=[1])
    assert result.map_at[None] == pytest.approx(50.0)
    with pytest.raises(ValueError, match="no query has a row with its label"):
        retrieval(np.array([[1, 2]]), [7], [0, 1], k=[1])


@pytest.mark.parametrize(("distances", "relevant"), CASES)
def test_precision_is_the_mean_over_all_orders_of_ties(distances: list[int], relevant: list[bool]) -> None:
    for k in range(1, 7):
        values = [sum(order[:k]) / k for order in orders(distances, relevant)]
        assert precision_at([distances], [relevant], k)[0] == pytest.approx(np.mean(values))


def test_means_are_the_same_whatever_the_blocks_and_the_order_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from bigr_repr.evaluate.metrics import ranking as module

    random = np.random.default_rng(1)
    distances, queries, base = random.integers(0, 20, (30, 80)), random.integers(0, 4, 30), random.integers(0, 4, 80)
    whole = retrieval(distances, queries, base, depths=[None, 10], k=[5])
    order = random.permutation(80)
    mixed = retrieval(distances[:, order], queries, base[order], depths=[None, 10], k=[5])
    monkeypatch.setattr(module, "_MEMORY", 16 * 80 * 7)
    blocks = retrieval(lambda rows: distances[rows], queries, base, depths=[None, 10], k=[5])
    for depth in (None, 10):
        assert whole.map_at[depth] == pytest.approx(mixed.map_at[depth])
        assert whole.map_at[depth] == pytest.approx(blocks.map_at[depth])
        low, high = whole.map_bounds[depth]
        assert low < whole.map_at[depth] < high
    assert whole.precision[5] == pytest.approx(mixed.precision[5])


def test_bad_input_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="expected the same"):
        average_precision([[1, 2]], [[True]])
    with pytest.raises(ValueError, match="at=0"):
        average_precision([[1]], [[True]], at=0)
    with pytest.raises(ValueError, match="denominator='all'"):
        average_precision([[1]], [[True]], denominator="all")
    with pytest.raises(ValueError, match=r"k=3 is outside 1\.\.2"):
        precision_at([[1, 2]], [[True, False]], 3)
