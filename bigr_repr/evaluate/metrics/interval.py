"""Confidence intervals of accuracies. Knows nothing of classifiers."""

# n test images, S seeds

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]

_DRAWS = 10_000
_LEVEL = 95.0


def bootstrap(hits: NDArray[np.floating] | NDArray[np.bool_], seed: int = 0) -> Interval:
    """95 % percentile interval, in percent, of the mean of `hits` (n,) in [0, 1], by resampling the images.

    hits: whether each image was classified correctly, or the fraction of seeds for which it was.
    """
    values, counts = np.unique(np.asarray(hits, np.float64), return_counts=True)
    # Drawing n images with replacement is equivalent to drawing the counts of the distinct values.
    draws = np.random.default_rng(seed).multinomial(len(hits), counts / len(hits), size=_DRAWS)
    low, high = np.percentile(100 * (draws @ values) / len(hits), [(100 - _LEVEL) / 2, (100 + _LEVEL) / 2])
    return float(low), float(high)


def over_seeds(accuracies: Sequence[float]) -> Interval | None:
    """95 % interval of the mean accuracy, in percent, by Student's t over seeds.

    None for fewer than two seeds, or if all gave the same result, which says nothing about chance.
    """
    from scipy.stats import t

    count = len(accuracies)
    if count < 2 or len(set(accuracies)) == 1:
        return None
    mean = float(np.mean(accuracies))
    half = float(t.ppf((100 + _LEVEL) / 200, count - 1) * np.std(accuracies, ddof=1) / np.sqrt(count))
    return max(0.0, mean - half), min(100.0, mean + half)
