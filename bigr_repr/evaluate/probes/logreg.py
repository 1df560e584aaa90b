"""The protocol "logreg": logistic regression to its optimum, with a penalty chosen on held-out data. Knows no images.

Our protocol for small data: features standardized by the training set; C chosen by the accuracy on a held-out part of
the training set; refitted on all of it.
"""

# n rows (images), D features, K classes

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from bigr_repr.datasets import stratified_split
from bigr_repr.evaluate.data.labeled import Labeled, class_indices
from bigr_repr.evaluate.data.stratified import stratified_sample
from bigr_repr.evaluate.probes.edges import edge_of
from bigr_repr.evaluate.probes.logistic_fit import LogisticFit, LogisticRegression
from bigr_repr.evaluate.probes.scaling import Scaling, scaling_of, standardize

HELD_OUT: Final = 0.2
_PATIENCE: Final = 2  # values of C worse than the best that are tried before the search ends
_SEARCH: Final = 1e-6  # tolerance of fits used only to choose C
_LOGITS: Final = 1 << 22  # numbers held at a time

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """A head for one seed: its top classes for the test images, (n, min(5, K)) as indices, and its settings.

    held_out_top1: the accuracy by which the settings were chosen; None if there was no choice. edge: a note if a chosen
    value is at an end of its grid, beyond which there may be a better one.
    """

    ranked: NDArray[np.int64]
    settings: dict[str, float]
    held_out_top1: float | None
    edge: str | None = None


def train_logreg(
    train: Labeled,
    test: NDArray[Any],
    classes: NDArray[np.int64],
    grid: Sequence[float],
    search_rows: int,
    seeds: Sequence[int],
    device: torch.device,
) -> list[Trained]:
    """A head for each seed, which determines the held-out part; seeds that choose the same C share the fit.

    C is tried from the smallest of `grid` upward, each fit starting from the last, until both accuracy and likelihood
    of the held-out part have twice been worse than their best; of equally accurate values the smallest wins. The
    held-out part is a stratified fifth of at most `search_rows` training images; it is empty for a single value in
    `grid` and one image per class.
    """
    values = sorted(set(grid))
    if not values or not values[0] > 0:
        raise ValueError(f"grid={tuple(grid)} must hold at least one C, each above 0")
    scaling = scaling_of(train.features)
    ranked: dict[float, NDArray[np.int64]] = {}
    trained = []
    problem: LogisticRegression | None = None
    for seed in seeds:
        choice = _choose(train, classes, values, search_rows, seed, device)
        if choice.C not in ranked:
            if problem is None:
                x = standardize(train.features, scaling, device)
                problem = LogisticRegression(x, class_indices(train.labels, classes, device), len(classes))
            ranked[choice.C] = _ranked(problem.fit(choice.C, choice.fit), test, scaling, device)
        edge = edge_of("C", choice.C, choice.scores, values) if choice.scores else None
        found = Trained(
            ranked=ranked[choice.C], settings={"C": choice.C}, held_out_top1=choice.held_out_top1, edge=edge
        )
        trained.append(found)
    return trained


def hold_out(
    train: Labeled, classes: NDArray[np.int64], rows: NDArray[np.int64], generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split row numbers of `train` into (kept, held out). Raises ValueError if that leaves none held out."""
    kept, held = (rows[part] for part in stratified_split(train.labels[rows], HELD_OUT, generator))
    if not len(held):
        remedy = "add images, or pass a single C or rate, which needs no choice"
        raise ValueError(
            f"{train.name}: {len(train)} images of {len(classes)} classes are too few to hold any out; {remedy}"
        )
    return kept, held


@dataclass(frozen=True)
class _Choice:
    """A value of C, with its held-out accuracy and fit if it was searched for, and the accuracies of all tried."""

    C: float
    held_out_top1: float | None = None
    fit: LogisticFit | None = None
    scores: Mapping[float, float] = field(default_factory=dict)


def _choose(
    train: Labeled, classes: NDArray[np.int64], values: list[float], search_rows: int, seed: int, device: torch.device
) -> _Choice:
    generator = np.random.default_rng(seed)
    sample = stratified_sample(train.labels, max(search_rows, len(classes)), generator)
    try:
        kept, held = hold_out(train, classes, sample, generator)
    except ValueError:
        if len(values) > 1:
            raise
        return _Choice(values[0])  # which is given, so that nothing has to be held out
    scaling = scaling_of(train.features[kept])
    problem = LogisticRegression(
        standardize(train.features[kept], scaling, device),
        class_indices(train.labels[kept], classes, device),
        len(classes),
    )
    x, y = standardize(train.features[held], scaling, device), class_indices(train.labels[held], classes, device)
    best, highest, fit, least, worse = _Choice(values[0]), -1.0, None, math.inf, 0
    scores: dict[float, float] = {}
    for C in values:  # noqa: N806
        fit = problem.fit(C, fit, tolerance=_SEARCH)
        logits = fit.logits(x)
        top1 = 100 * (logits.argmax(dim=1) == y).double().mean().item()
        loss, scores[C] = F.cross_entropy(logits, y).item(), top1
        _log.info("C=%g: %.2f %%, loss %.4f, %d held out, %d passes", C, top1, loss, len(held), fit.passes)
        # Accuracy alone would stop too early: it fluctuates where the penalty leaves little but the intercept.
        worse = worse + 1 if top1 < highest and loss > least else 0
        if top1 > highest:
            best, highest = _Choice(C, top1, fit, scores), top1
        least = min(least, loss)
        if worse == _PATIENCE:
            break
    return best


def _ranked(fit: LogisticFit, features: NDArray[Any], scaling: Scaling, device: torch.device) -> NDArray[np.int64]:
    """The five classes (indices) with the largest logits, best first: (n, min(5, K))."""
    rows = max(1, _LOGITS // max(features.shape[1], len(fit.bias)))
    blocks = []
    for start in range(0, len(features), rows):
        logits = fit.logits(standardize(features[start : start + rows], scaling, device))
        blocks.append(logits.topk(min(5, logits.shape[1]), dim=1).indices.cpu().numpy())
    return np.concatenate(blocks)
