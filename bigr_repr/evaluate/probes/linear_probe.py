"""The linear probe: a linear classifier on frozen features, tuned without the test set. Knows no images.

Protocols: "logreg", ours for small data, and those of MAE, MAGE and DINOv2 (see `protocols`).
"""

# n rows (images), D features, K classes, S seeds

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from bigr_repr.evaluate.data.labeled import Labeled, accuracy, labeled, same_width, shared_classes
from bigr_repr.evaluate.metrics.interval import Interval, bootstrap, over_seeds
from bigr_repr.evaluate.probes.edges import warn_of_edges
from bigr_repr.evaluate.probes.logreg import Trained, train_logreg
from bigr_repr.evaluate.probes.protocols import LOGREG, SgdProtocol, sgd_protocol
from bigr_repr.evaluate.probes.sgd import train_sgd
from bigr_repr.system.devices import choose_device

__all__ = ["C_GRID", "LinearProbe", "linear_probe", "linear_probes", "mean_per_class", "sgd_words", "summarized"]

C_GRID: Final = tuple(float(f"{value:.2g}") for value in np.logspace(-6, 2, 17))

_K = TypeVar("_K", bound=Hashable)


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearProbe:
    """Result of a linear probe. Accuracies are percentages, means over the seeds.

    `top5` counts a hit among the five classes with the largest logits (all of them, if there are fewer).
    `interval`: 95 % of top1, by resampling the test images. `seed_interval`: 95 % of the mean over seeds, by Student's
    t; None for one seed, or if all gave the same. `top1_by_seed`, `settings` (as chosen): one per seed.
    `held_out_top1` is the accuracy by which they were chosen; None if there were too few images to hold any out.
    `edges`: notes on chosen settings at an end of their grid. `mean_per_class`: top-1, averaged over classes.
    `predicted` (n_test,): the first seed's predictions. `protocol` describes the method in words.
    """

    top1: float
    top5: float
    interval: Interval
    seed_interval: Interval | None
    top1_by_seed: tuple[float, ...]
    held_out_top1: float | None
    settings: tuple[dict[str, float], ...]
    n_train: int
    n_test: int
    n_features: int
    n_classes: int
    seeds: tuple[int, ...]
    protocol: str
    edges: tuple[str, ...] = ()
    mean_per_class: float
    predicted: NDArray[np.int64] = field(repr=False)


def linear_probe(
    train_features: ArrayLike,
    train_labels: ArrayLike | None,
    test_features: ArrayLike,
    test_labels: ArrayLike | None,
    *,
    protocol: str | SgdProtocol = LOGREG,
    grid: Sequence[float] = C_GRID,
    search_rows: int = 20_000,
    seeds: Sequence[int] = (0,),
    device: torch.device | str | None = None,
) -> LinearProbe:
    """Train a linear classifier on frozen features and measure it on a held-back test set.

    Features are (n, D) bool, integers or floats, labels integers (n,). protocol: "logreg", "mae", "mage",
    "dinov2", or your own SgdProtocol. Every setting is chosen by the accuracy on a held-out fifth of the training set,
    and the head then trained on all of it.

    For "logreg", features are standardized, and C is chosen from `grid` on at most `search_rows` images; a seed
    determines the held-out part. For the others, a seed determines the initial weights and the batch order, the first
    one also the held-out part, and the choice is among the protocol's rates; a single rate is used as given. device: a
    GPU if there is one, unless given.

    Raises ValueError, in one line, for features and labels that cannot be compared (see `labeled`), for a value of
    `grid` that is not positive, for no seeds, or for too few images to hold any out.
    """
    found = linear_probes(
        {0: train_features}, train_labels, {0: test_features}, test_labels,
        protocol=protocol, grid=grid, search_rows=search_rows, seeds=seeds, device=device,
    )  # fmt: skip
    return found[0]


def linear_probes(
    train_features: Mapping[_K, ArrayLike],
    train_labels: ArrayLike | None,
    test_features: Mapping[_K, ArrayLike],
    test_labels: ArrayLike | None,
    *,
    protocol: str | SgdProtocol = LOGREG,
    grid: Sequence[float] = C_GRID,
    search_rows: int = 20_000,
    seeds: Sequence[int] = (0,),
    device: torch.device | str | None = None,
) -> dict[_K, LinearProbe]:
    """`linear_probe` of several layers of the same images, by name; gradient-descent heads train together.

    A layer's result does not depend on the others.
    """
    if not seeds:
        raise ValueError("seeds=() is empty; pass at least one, such as (0,)")
    pairs = _check_pairs(train_features, train_labels, test_features, test_labels)
    if not pairs:
        return {}
    classes, target = shared_classes(*next(iter(pairs.values()))), choose_device(device)
    if protocol == LOGREG:
        trained = [
            train_logreg(train, test.features, classes, grid, search_rows, seeds, target)
            for train, test in pairs.values()
        ]
        words = _logreg_words(grid, search_rows, len(next(iter(pairs.values()))[0]))
    else:
        settings = protocol if isinstance(protocol, SgdProtocol) else sgd_protocol(protocol)
        trained = train_sgd(list(pairs.values()), classes, settings, seeds, target)
        words = sgd_words(settings, len(next(iter(pairs.values()))[0]))
    found = {
        name: summarized(*pair, classes, heads, tuple(seeds), words)
        for (name, pair), heads in zip(pairs.items(), trained, strict=True)
    }
    for name, probe in found.items():
        warn_of_edges(name, probe.edges)
    return found


def _check_pairs(
    train_features: Mapping[_K, ArrayLike],
    train_labels: ArrayLike | None,
    test_features: Mapping[_K, ArrayLike],
    test_labels: ArrayLike | None,
) -> dict[_K, tuple[Labeled, Labeled]]:
    pairs: dict[_K, tuple[Labeled, Labeled]] = {}
    for name, features in train_features.items():
        train, test = labeled("train", features, train_labels), labeled("test", test_features[name], test_labels)
        same_width(train, test)
        pairs[name] = train, test
    return pairs


def summarized(
    train: Labeled,
    test: Labeled,
    classes: NDArray[np.int64],
    heads: list[Trained],
    seeds: tuple[int, ...],
    words: str,
) -> LinearProbe:
    """The result of one layer's heads, one per seed; words: the protocol's description."""
    ranked = [classes[head.ranked] for head in heads]
    hits = np.mean([order[:, 0] == test.labels for order in ranked], axis=0)
    top1 = tuple(accuracy(order, test.labels, 1) for order in ranked)
    held_out = [head.held_out_top1 for head in heads if head.held_out_top1 is not None]
    return LinearProbe(
        top1=float(np.mean(top1)),
        top5=float(np.mean([accuracy(order, test.labels, 5) for order in ranked])),
        interval=bootstrap(hits),
        seed_interval=over_seeds(top1),
        top1_by_seed=top1,
        held_out_top1=float(np.mean(held_out)) if held_out else None,
        settings=tuple(head.settings for head in heads),
        n_train=len(train),
        n_test=len(test),
        n_features=train.features.shape[1],
        n_classes=len(classes),
        seeds=seeds,
        protocol=words,
        mean_per_class=float(np.mean([mean_per_class(order[:, 0], test.labels) for order in ranked])),
        edges=tuple(dict.fromkeys(head.edge for head in heads if head.edge is not None)),
        predicted=ranked[0][:, 0],
    )


def mean_per_class(predicted: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """The mean, in percent, over the classes of `labels` of the share of their rows (n,) that `predicted` (n,) hits."""
    _, places = np.unique(labels, return_inverse=True)
    hits = np.bincount(places, weights=predicted == labels)
    return float(100 * np.mean(hits / np.bincount(places)))


def _logreg_words(grid: Sequence[float], search_rows: int, n_train: int) -> str:
    base = "logreg: multinomial logistic regression on standardized features, L2 penalty, to its optimum by L-BFGS"
    if len(set(grid)) == 1:
        return f"{base}; C={grid[0]:g} given; fitted on all {n_train} training images"
    drawn = "the training set" if n_train <= search_rows else f"a sample of {search_rows} training images"
    search = f"C from {len(set(grid))} values {min(grid):g}..{max(grid):g} by accuracy on a held-out fifth of {drawn}"
    return f"{base}; {search} (stratified); refitted on all {n_train} training images"


def sgd_words(protocol: SgdProtocol, n_train: int, images: str = "on extracted features, without augmentation") -> str:
    """The protocol in words."""
    steps, warmup = protocol.steps(n_train)
    norm = "BatchNorm without affine, then " if protocol.batch_norm else ""
    rates = f"{min(protocol.rates):g}..{max(protocol.rates):g}"
    choice = f"{len(protocol.rates)} rates {rates} x batch/256, chosen on a held-out fifth (stratified), retrained"
    if len(protocol.rates) == 1:
        choice = f"rate {protocol.rates[0]:g} x batch/256 given, trained"
    return (
        f"{protocol.name}: {norm}linear by {protocol.optimizer.upper()}, momentum {protocol.momentum:g}, batch "
        f"{min(protocol.batch, n_train)}, {steps} steps, {warmup} of warm-up, cosine; {choice} on all "
        f"{n_train} training images; {images}"
    )
