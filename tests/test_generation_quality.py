"""Laws of Fréchet distance, precision and recall, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg

from bigr_repr.evaluate.metrics import generation
from bigr_repr.evaluate.metrics.generation import frechet_distance, generation_quality, precision_recall


def cloud(count: int, width: int = 6, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Correlated Gaussian features."""
    random = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(width, width))
    return random.normal(size=(count, width)) @ mix


def test_frechet_distance_is_the_formulas() -> None:
    x, y = cloud(80), 1.5 * cloud(60, seed=1) + 0.3
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    gap = x.mean(0) - y.mean(0)
    wanted = gap @ gap + np.trace(first + second - 2 * np.real(scipy.linalg.sqrtm(first @ second)))
    assert frechet_distance(x, y) == pytest.approx(wanted, rel=1e-9)
    assert frechet_distance(y, x) == pytest.approx(wanted, rel=1e-9)


def test_frechet_distance_is_zero_to_oneself_and_the_square_of_a_shift() -> None:
    x = cloud(50)
    assert frechet_distance(x, x[::-1]) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + np.array([3, 4, 0, 0, 0, 0])) == pytest.approx(25)
    few = cloud(4)  # fewer images than features
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_does_not_turn_with_the_axes() -> None:
    x, y = cloud(70), cloud(70, seed=1) + 1
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(6, 6)))[0]
    assert frechet_distance(x @ turn, y @ turn) == pytest.approx(frechet_distance(x, y))


def test_precision_and_recall_of_equal_sets_are_one_and_of_distant_ones_zero() -> None:
    x = cloud(40)
    assert precision_recall(x, x) == (1, 1)
    assert precision_recall(x, x + 1000) == (0, 0)


def test_a_part_of_the_real_images_is_precise_and_does_not_recall_all() -> None:
    x = np.concatenate([cloud(30), cloud(30, seed=1) + 1000])
    found = precision_recall(x, x[:30])
    assert found.precision == 1
    assert found.recall == pytest.approx(0.5)
    assert precision_recall(x[:30], x) == (0.5, 1)


def test_balls_reach_the_kth_nearest_other_image() -> None:
    real = np.array([[0.0], [1.0], [3.0]])
    for k, inside in [(1, [True, True, True, False]), (2, [True, True, True, True])]:
        for point, wanted in zip([-1.0, 2.0, 5.0, 5.5], inside, strict=True):
            generated = np.array([[point]] * 3)
            assert precision_recall(real, generated, k=k).precision == float(wanted)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = cloud(50), cloud(41, seed=1) + 0.5
    whole = precision_recall(x, y)
    monkeypatch.setattr(generation, "_MEMORY", 4 * 7 * 50)
    assert precision_recall(x, y) == whole


def test_results_say_what_they_are_of() -> None:
    x, y = cloud(40), cloud(30, seed=1)
    found = generation_quality(x, y, extractor="bigr-tiny, layer 12", k=5)
    assert found.frechet_distance == frechet_distance(x, y)
    assert (found.precision, found.recall) == precision_recall(x, y, k=5)
    assert (found.n_real, found.n_generated, found.n_features, found.k) == (40, 30, 6, 5)
    assert "bigr-tiny, layer 12" in found.protocol
    with pytest.raises(ValueError, match="extractor=''"):
        generation_quality(x, y, extractor=" ")


@pytest.mark.parametrize(
    ("real", "generated", "k", "says"),
    [
        (np.zeros((1, 3)), np.zeros((9, 3)), 1, "at least 2 images"),
        (np.zeros((9, 3)), np.zeros((9, 4)), 1, "3 columns and generated ones 4"),
        (np.zeros((9, 3)), np.full((9, 3), np.nan), 1, "generated features are not all finite"),
        (np.zeros(9), np.zeros((9, 3)), 1, "real features have shape"),
        (np.zeros((9, 3)), np.zeros((4, 3)), 4, r"k=4 is outside 1\.\.3"),
        (np.zeros((9, 3)), np.zeros((9, 3)), 0, "k=0"),
    ],
)
def test_what_cannot_be_compared_is_refused(real: Any, generated: Any, k: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        generation_quality(real, generated, extractor="test", k=k)
