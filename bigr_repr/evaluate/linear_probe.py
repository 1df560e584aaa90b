"""The linear probe: logistic regression on frozen features, its penalty chosen without the test set. Knows no images.

Our protocol for small data (the protocols of MAE, MAGE and DINOv2 train the head by SGD instead): features standardised
by the training set; C chosen by the accuracy on a held-out part of the training set; refitted on all of it.
"""

# n rows (images), D features, K classes

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bigr_repr.evaluate._labelled import Labelled, accuracy, labelled, same_width, shared_classes
from bigr_repr.evaluate.logistic import LogisticFit, LogisticRegression

__all__ = ["C_GRID", "LinearProbe", "linear_probe", "stratified_split"]

C_GRID: Final = tuple(float(f"{value:.2g}") for value in np.logspace(-6, 2, 17))
_HELD_OUT: Final = 0.2
_PATIENCE: Final = 2  # values of C worse than the best that are tried before the search ends
_BLOCK: Final = 1 << 22  # numbers standardised at a time

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """What a linear probe found. Accuracies are percentages; `held_out_top1` is the one that chose `C`.

    `top5` counts a hit among the five classes with the largest logits (all of them, if there are fewer).
    `held_out_top1` is None when C was given. `protocol` says in words how the numbers came about.
    """

    top1: float
    top5: float
    held_out_top1: float | None
    C: float
    n_train: int
    n_test: int
    n_features: int
    n_classes: int
    seed: int
    protocol: str


def linear_probe(
    train_features: ArrayLike,
    train_labels: ArrayLike,
    test_features: ArrayLike,
    test_labels: ArrayLike,
    *,
    grid: Sequence[float] = C_GRID,
    search_rows: int = 20_000,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> LinearProbe:
    """Train a logistic regression on frozen features and measure it on a test set that it has never seen.

    Features are (n, D) bool, integers or floats, labels whole numbers (n,). C is tried from the smallest of `grid`
    upward, each fit starting from the last, until both accuracy and likelihood of the held-out part
    have twice been worse than their best; of equally accurate values the smallest wins.
    Held out is a fifth of at most `search_rows` training images, drawn with `seed`, each class in proportion. With one
    value in `grid` there is no search. device: a GPU if there is one, unless given. Holds one standardised float32
    copy of the training features.

    Raises ValueError, in one line, for features and labels that cannot be compared (see `_labelled`), for a value of
    `grid` that is not positive, or for too few images to hold any out.
    """
    train, test = labelled("train", train_features, train_labels), labelled("test", test_features, test_labels)
    same_width(train, test)
    classes = shared_classes(train, test)
    values = sorted(set(grid))
    if not values or not values[0] > 0:
        raise ValueError(f"grid={tuple(grid)} must hold at least one C, each above 0")
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    chosen = _choose(train, classes, values, search_rows, seed, target) if len(values) > 1 else None
    C, start = (chosen.C, chosen.fit) if chosen else (values[0], None)  # noqa: N806
    scaling = _scaling(train.features)
    x = _standardise(train.features, scaling, target)
    fit = LogisticRegression(x, _class_indices(train.labels, classes, target), len(classes)).fit(C, start)
    ranked = classes[_ranked(fit, test.features, scaling, target)]
    return LinearProbe(
        top1=accuracy(ranked, test.labels, 1),
        top5=accuracy(ranked, test.labels, 5),
        held_out_top1=chosen.held_out_top1 if chosen else None,
        C=C,
        n_train=len(train),
        n_test=len(test),
        n_features=x.shape[1],
        n_classes=len(classes),
        seed=seed,
        protocol=_protocol(values, len(train), chosen.rows if chosen else 0, seed),
    )


def stratified_split(
    labels: NDArray[np.int64], share: float, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row numbers (kept, drawn), sorted: about `share` of the rows of each class are drawn, and never all of them."""
    order = generator.permutation(len(labels))
    drawn = np.zeros(len(labels), np.bool_)
    for name in np.unique(labels):
        rows = order[labels[order] == name]
        drawn[rows[: min(round(share * len(rows)), len(rows) - 1)]] = True
    return np.flatnonzero(~drawn), np.flatnonzero(drawn)


# ---- helpers


@dataclass(frozen=True)
class _Choice:
    """A value of C, its held-out accuracy and fit, and the number of rows that were searched on."""

    C: float
    held_out_top1: float
    fit: LogisticFit | None
    rows: int


def _choose(
    train: Labelled, classes: NDArray[np.int64], values: list[float], search_rows: int, seed: int, device: torch.device
) -> _Choice:
    generator = np.random.default_rng(seed)
    sample = np.arange(len(train))
    if len(train) > search_rows:
        _, sample = stratified_split(train.labels, search_rows / len(train), generator)
    kept, held = (sample[rows] for rows in stratified_split(train.labels[sample], _HELD_OUT, generator))
    if not len(held):
        remedy = "add images, or give one value of C as grid"
        raise ValueError(f"train: {len(train)} images of {len(classes)} classes are too few to hold any out; {remedy}")
    scaling = _scaling(train.features[kept])
    problem = LogisticRegression(
        _standardise(train.features[kept], scaling, device),
        _class_indices(train.labels[kept], classes, device),
        len(classes),
    )
    x, y = _standardise(train.features[held], scaling, device), _class_indices(train.labels[held], classes, device)
    best, fit, least, worse = _Choice(values[0], -1.0, None, len(sample)), None, math.inf, 0
    for C in values:  # noqa: N806
        fit = problem.fit(C, fit)
        logits = fit.logits(x)
        top1 = 100 * (logits.argmax(dim=1) == y).double().mean().item()
        loss = F.cross_entropy(logits, y).item()
        _log.info("C=%g: %.2f %%, loss %.4f, %d held out, %d passes", C, top1, loss, len(held), fit.passes)
        # Accuracy alone would stop too early: it wavers where the penalty leaves little but the intercept.
        worse = worse + 1 if top1 < best.held_out_top1 and loss > least else 0
        if top1 > best.held_out_top1:
            best = _Choice(C, top1, fit, len(sample))
        least = min(least, loss)
        if worse == _PATIENCE:
            break
    return best


def _scaling(features: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each column, accumulated in double precision; 1 for a constant column."""
    rows = max(1, _BLOCK // features.shape[1])
    blocks = [features[start : start + rows] for start in range(0, len(features), rows)]
    mean = sum(block.sum(axis=0, dtype=np.float64) for block in blocks) / len(features)
    variance = sum(np.square(block - mean).sum(axis=0) for block in blocks) / len(features)
    deviation = np.sqrt(variance)
    # A constant column can come out with the rounding error of its mean instead of 0.
    return mean, np.where(deviation > 1e-7 * np.abs(mean), deviation, 1.0)


def _standardise(
    features: NDArray[Any], scaling: tuple[NDArray[np.float64], NDArray[np.float64]], device: torch.device
) -> Tensor:
    mean, deviation = scaling
    x = torch.empty(features.shape, device=device)
    rows = max(1, _BLOCK // features.shape[1])
    for start in range(0, len(features), rows):
        block = (features[start : start + rows] - mean) / deviation
        x[start : start + rows] = torch.from_numpy(block.astype(np.float32))
    return x


def _class_indices(labels: NDArray[np.int64], classes: NDArray[np.int64], device: torch.device) -> Tensor:
    return torch.from_numpy(np.searchsorted(classes, labels)).to(device)


def _ranked(
    fit: LogisticFit,
    features: NDArray[Any],
    scaling: tuple[NDArray[np.float64], NDArray[np.float64]],
    device: torch.device,
) -> NDArray[np.int64]:
    """The five classes (indices) with the largest logits, best first: (n, min(5, K))."""
    rows = max(1, _BLOCK // max(features.shape[1], len(fit.bias)))
    blocks = []
    for start in range(0, len(features), rows):
        logits = fit.logits(_standardise(features[start : start + rows], scaling, device))
        blocks.append(logits.topk(min(5, logits.shape[1]), dim=1).indices.cpu().numpy())
    return np.concatenate(blocks)


def _protocol(values: list[float], n_train: int, rows: int, seed: int) -> str:
    base = "multinomial logistic regression on standardised features, L2 penalty, fitted to its optimum by L-BFGS"
    if len(values) == 1:
        return f"{base}; C={values[0]:g} given"
    drawn = "the training set" if rows == n_train else f"a sample of {rows} training images"
    search = f"C from {len(values)} values {values[0]:g}..{values[-1]:g} by accuracy on a held-out fifth of {drawn}"
    return f"{base}; {search} (stratified, seed {seed}); refitted on all {n_train} training images"
