"""The linear probe for several labels per image: a logistic regression per class, to its optimum. Knows no images."""

# n rows (images), D features, K classes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bigr_repr.evaluate.data.labeled import Labeled, labeled, same_width
from bigr_repr.evaluate.metrics.interval import Interval
from bigr_repr.evaluate.probes.edges import edge_of
from bigr_repr.evaluate.probes.scaling import scaling_of
from bigr_repr.system.devices import choose_device

__all__ = ["C_MULTI", "MultiLabelProbe", "mean_average_precision", "multi_label_probe"]

C_MULTI: Final = tuple(10.0**power for power in range(-5, 3))
_HELD_OUT: Final = 0.2
_RESAMPLES: Final = 100
_STEPS: Final = 500


@dataclass(frozen=True, kw_only=True)
class MultiLabelProbe:
    """Result of the probe. map: mean average precision, in percent, over the classes that occur in the test images.

    interval: 95 % of it, by resampling the test images. by_class: K, None for a class without test images. C: as
    chosen by `held_out_map` on a held-out fifth, which is None if C was given. edge: a note if C is at an end of its
    grid.
    """

    map: float
    interval: Interval
    by_class: tuple[float | None, ...]
    C: float
    held_out_map: float | None
    edge: str | None
    n_train: int
    n_test: int
    n_features: int
    protocol: str


def multi_label_probe(
    train_features: ArrayLike,
    train_labels: NDArray[np.int8],
    test_features: ArrayLike,
    test_labels: NDArray[np.int8],
    *,
    grid: Sequence[float] = C_MULTI,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> MultiLabelProbe:
    """One logistic regression per class on standardized features (n, D), labels (n, K) of 1, 0 and -1 (left out).

    C is scikit-learn's, one for all classes, from `grid`; a single one is used as given. seed: of the held-out part.
    Raises ValueError for rows or columns that do not fit, features that are not finite, a C that is not positive, or a
    class no training image has.
    """
    x, z = (np.asarray(side, np.float64) for side in (train_features, test_features))
    same_width(_checked("train", x, train_labels), _checked("test", z, test_labels))
    if not grid or min(grid) <= 0:
        raise ValueError(f"C={tuple(grid)} must be above 0")
    if len(lost := np.flatnonzero((train_labels == 1).sum(axis=0) == 0)):
        raise ValueError(f"class {lost[0]} has no training image; leave it out")
    place = choose_device(device)
    values = sorted(set(grid))
    tried = _search(x, train_labels, values, seed, place) if len(values) > 1 else {}
    chosen = max(tried, key=lambda each: tried[each], default=grid[0])
    held = tried.get(chosen)
    scores = _scores(x, train_labels, z, chosen, place)
    value, by_class = mean_average_precision(scores, test_labels)
    choice = f"C={chosen:g} given" if held is None else f"C from {len(grid)} values by mAP on a held-out fifth"
    return MultiLabelProbe(
        map=value, interval=_interval(scores, test_labels), by_class=by_class, C=chosen, held_out_map=held,
        edge=edge_of("C", chosen, tried, values) if tried else None,
        n_train=len(x), n_test=len(z), n_features=x.shape[1],
        protocol=f"a logistic regression a class on standardized features, L2 penalty, to its optimum by L-BFGS; "
        f"{choice}; fitted on all {len(x)} training images; mAP over classes, in percent",
    )  # fmt: skip


def _checked(name: str, features: NDArray[np.float64], labels: NDArray[np.int8]) -> Labeled:
    """The features, without labels. Raises ValueError for shapes that do not fit, or numbers out of range."""
    if features.ndim != 2 or len(features) != len(labels):
        shapes = f"{features.shape} and {labels.shape}"
        raise ValueError(f"{name} features and labels have shapes {shapes}; expected (n, D) and (n, K)")
    return labeled(name, features, np.zeros(len(features), np.int64))


def mean_average_precision(scores: NDArray[Any], labels: NDArray[np.int8]) -> tuple[float, tuple[float | None, ...]]:
    """Scores (n, K), labels (n, K) of 1, 0 and -1 (left out) -> the mean over classes that occur, in percent, and each.

    Raises ValueError if none occurs.
    """
    from sklearn.metrics import average_precision_score

    by_class: list[float | None] = []
    for column, truth in zip(scores.T, labels.T, strict=True):
        known = truth >= 0
        there = bool((truth[known] == 1).any())
        by_class.append(100 * float(average_precision_score(truth[known], column[known])) if there else None)
    found = [value for value in by_class if value is not None]
    if not found:
        raise ValueError("no test image has any of the classes")
    return float(np.mean(found)), tuple(by_class)


def _interval(scores: NDArray[Any], labels: NDArray[np.int8]) -> Interval:
    random = np.random.default_rng(0)
    found = []
    for _ in range(_RESAMPLES):
        rows = random.integers(len(labels), size=len(labels))
        if (labels[rows] == 1).any():
            found.append(mean_average_precision(scores[rows], labels[rows])[0])
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def _search(
    x: NDArray[np.float64], labels: NDArray[np.int8], grid: Sequence[float], seed: int, place: torch.device
) -> dict[float, float]:
    """The mAP of every C on a held-out fifth."""
    held = np.random.default_rng(seed).permutation(len(x)) < max(1, round(_HELD_OUT * len(x)))
    if not (labels[held] == 1).any() or not (~held).any():
        raise ValueError(f"{len(x)} training images are too few to hold any out; pass a single C")
    return {
        c: mean_average_precision(_scores(x[~held], labels[~held], x[held], c, place), labels[held])[0] for c in grid
    }


def _scores(
    x: NDArray[np.float64], labels: NDArray[np.int8], z: NDArray[np.float64], c: float, place: torch.device
) -> NDArray[np.float64]:
    """Logits (m, K) of z (m, D) by the classifiers fitted to x (n, D)."""
    mean, scale = scaling_of(x)
    inputs, targets = (torch.from_numpy(np.ascontiguousarray(part)).to(place) for part in ((x - mean) / scale, labels))
    weight, bias = _fit(inputs, targets, c)
    tests = torch.from_numpy((z - mean) / scale).to(place)
    return (tests @ weight + bias).cpu().numpy()


def _fit(x: Tensor, labels: Tensor, c: float) -> tuple[Tensor, Tensor]:
    """Weight (D, K) and free bias (K,): for each class, the optimum of scikit-learn's objective."""
    weight = x.new_zeros(x.shape[1], labels.shape[1], requires_grad=True)
    bias = x.new_zeros(labels.shape[1], requires_grad=True)
    known, there = (labels >= 0).to(x.dtype), (labels == 1).to(x.dtype)
    search = torch.optim.LBFGS(
        [weight, bias], max_iter=_STEPS, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        search.zero_grad()
        logits = x @ weight + bias
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, there, reduction="none")
        loss = (losses * known).sum() / len(x) + weight.square().sum() / (2 * c * len(x))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        search.step(objective)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
