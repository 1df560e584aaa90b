"""Weighted nearest-neighbor classification, of floats by cosine and of bits by Hamming distance. Knows no images.

Source: DINO (arXiv 2104.14294), section 4.1 and appendix F: each of the k most similar training images votes for its
class with weight exp(similarity / T), T = 0.07. Bits vote likewise, with similarity 1 - 2 d / n_bits, which is the
cosine of codes written as -1 and 1.
"""

# n rows (images), q queries, m database rows, D features, K classes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bigr_repr.codes import check_length
from bigr_repr.evaluate.data.labeled import Labeled, accuracy, check_lengths, labeled, same_width, shared_classes
from bigr_repr.evaluate.metrics.interval import Interval, bootstrap
from bigr_repr.system.devices import choose_device

__all__ = ["Knn", "Nearest", "knn", "nearest"]

METRICS: Final = ("cosine", "hamming")
_MEMORY: Final = 64 << 20  # bytes of similarities held at a time; all work arrays take less than six times that
_GROUP: Final = 16  # columns per group, of which at first only the maximum is examined


@dataclass(frozen=True, kw_only=True, eq=False)
class Knn:
    """Result of nearest neighbors: accuracies in percent for each k, in the requested order.

    `top5` counts a hit among the five classes with the most votes. `interval`: 95 % of top1, by resampling the test
    images. `predicted`: {k: classes with the most votes, (n_test,)}. `protocol` describes the method in words.
    """

    top1: dict[int, float]
    top5: dict[int, float]
    interval: dict[int, Interval]
    metric: str
    temperature: float
    n_train: int
    n_test: int
    n_classes: int
    protocol: str
    predicted: dict[int, NDArray[np.int64]] = field(repr=False)


class Nearest(NamedTuple):
    """The k nearest rows of a database: `rows` (q, k) int64 and `similarities` (q, k) float32, nearest first."""

    rows: NDArray[np.int64]
    similarities: NDArray[np.float32]


def knn(
    train_features: ArrayLike,
    train_labels: ArrayLike,
    test_features: ArrayLike,
    test_labels: ArrayLike,
    *,
    k: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    metric: str = "cosine",
    n_bits: int | None = None,
    center: bool = False,
    device: torch.device | str | None = None,
) -> Knn:
    """Classify test images by their nearest training images.

    Features are (n, D) numbers for metric "cosine", packed codes (n, bytes) uint8 with `n_bits` for "hamming"; labels
    are integers (n,). center: subtract the mean of the training features first (DINO does not). device: a GPU if
    there is one, unless given. Memory beyond the features stays below 0.5 GB.

    Raises ValueError, in one line, for features and labels that cannot be compared, or a k outside 1..len(train).
    """
    train, test = labeled("train", train_features, train_labels), labeled("test", test_features, test_labels)
    _check_sides(train, test, metric)
    classes = shared_classes(train, test)
    _check(k, temperature, len(train), center=center, metric=metric)
    mean = train.features.mean(axis=0, dtype=np.float64).astype(np.float32) if center else None
    found = nearest(test.features, train.features, max(k), metric=metric, n_bits=n_bits, mean=mean, device=device)
    voters = np.searchsorted(classes, train.labels)[found.rows]
    ranked = {value: _vote(voters, found.similarities, value, len(classes), temperature) for value in k}
    truth = np.searchsorted(classes, test.labels)
    what = f"Hamming distance of {n_bits} bits" if metric == "hamming" else "cosine of L2-normalized features"
    what += ", the training mean subtracted" if center else ""
    return Knn(
        top1={value: accuracy(order, truth, 1) for value, order in ranked.items()},
        top5={value: accuracy(order, truth, 5) for value, order in ranked.items()},
        interval={value: bootstrap(order[:, 0] == truth) for value, order in ranked.items()},
        metric=metric, temperature=temperature, n_train=len(train), n_test=len(test), n_classes=len(classes),
        protocol=f"k nearest neighbors by {what}, votes weighted exp(similarity / {temperature:g}), exact search",
        predicted={value: classes[order[:, 0]] for value, order in ranked.items()},
    )  # fmt: skip


def _check_sides(train: Labeled, test: Labeled, metric: str) -> None:
    same_width(train, test)
    if metric == "cosine":
        check_lengths(train)
        check_lengths(test)


def _check(k: Sequence[int], temperature: float, rows: int, *, center: bool, metric: str) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be above 0; DINO's is 0.07")
    for value in k if len(k) else [0]:
        if not 1 <= value <= rows:
            raise ValueError(f"k={value} is outside 1..{rows}, the number of training images; choose a smaller k")
    if center and metric != "cosine":
        raise ValueError(f"center=True is for metric='cosine', not {metric!r}; leave it out")


def nearest(
    queries: NDArray[Any],
    base: NDArray[Any],
    k: int,
    *,
    metric: str = "cosine",
    n_bits: int | None = None,
    mean: NDArray[np.float32] | None = None,
    device: torch.device | str | None = None,
) -> Nearest:
    """The k rows of `base` (m, D) most similar to each of `queries` (q, D), by exact search in bounded memory.

    Metrics as in `knn`; mean (D,): subtracted from all rows before the cosine. Equal Hamming distances are
    ordered by row number. device: for the cosine; Hamming distances are computed on the CPU's cores.
    Raises ValueError for an unknown metric or one that does not fit the features.
    """
    target = choose_device(device)
    if metric not in METRICS:
        raise ValueError(f"metric={metric!r} is unknown; choose one of {', '.join(METRICS)}")
    if metric == "cosine":
        return _by_cosine(queries, base, k, mean, target)
    if n_bits is None:
        raise ValueError("metric='hamming' needs n_bits, the number of bits in a packed code")
    return _by_bits(queries, base, k, n_bits)


# ---- helpers


def _by_bits(queries: NDArray[Any], base: NDArray[Any], k: int, n_bits: int) -> Nearest:
    from bigr_repr.retrieval.index.scan import scan  # faiss is loaded on first use

    for codes in (queries, base):
        if codes.dtype != np.uint8:
            raise ValueError(f"codes have dtype {codes.dtype}; expected uint8, packed as bigr_repr.codes states")
        check_length(codes, n_bits)
    found = scan(np.ascontiguousarray(base), np.ascontiguousarray(queries), k)
    return Nearest(found.rows, (1 - 2 * found.distances / n_bits).astype(np.float32))


def _by_cosine(
    queries: NDArray[Any], base: NDArray[Any], k: int, mean: NDArray[np.float32] | None, device: torch.device
) -> Nearest:
    base_rows = min(len(base), max(1, _MEMORY // (4 * base.shape[1])))
    query_rows = min(len(queries), max(1, _MEMORY // (4 * (base_rows + 16 * k))))
    starts = range(0, len(queries), query_rows)
    best: list[tuple[Tensor, Tensor] | None] = [None] * len(starts)
    for first in range(0, len(base), base_rows):
        columns = _unit(base[first : first + base_rows], mean, device).T
        for i, start in enumerate(starts):
            products = _unit(queries[start : start + query_rows], mean, device) @ columns
            best[i] = _merge(best[i], products, first, k)
    similarities, rows = (torch.cat([part[side] for part in best if part is not None]).cpu() for side in (0, 1))
    return Nearest(rows.numpy(), similarities.numpy())


def _unit(features: NDArray[Any], mean: NDArray[np.float32] | None, device: torch.device) -> Tensor:
    """L2-normalized rows, so that products are cosines."""
    numbers = features.astype(np.float32)
    return F.normalize(torch.from_numpy(numbers if mean is None else numbers - mean).to(device), dim=1)


def _merge(best: tuple[Tensor, Tensor] | None, products: Tensor, first: int, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of `best` (values, rows), both (q, k), and of `products` (q, block) with rows from `first`."""
    candidates, columns = _candidates(products, min(k, products.shape[1]))
    places = first + columns
    if best is not None:
        candidates, places = torch.cat([best[0], candidates], dim=1), torch.cat([best[1], places], dim=1)
    order = candidates.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return candidates.gather(1, order), places.gather(1, order)


def _candidates(products: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row of `products` (q, m), as values and columns (q, k).

    Each of the k groups of columns with the largest maxima contains a value that no value outside exceeds, so the k
    largest are in these groups: the long rows are read once and never sorted.
    """
    rows, count = products.shape
    groups = count // _GROUP
    if groups < 4 * k:
        values, columns = products.topk(k, dim=1)
        return values, columns
    whole = products[:, : groups * _GROUP].reshape(rows, groups, _GROUP)
    chosen = whole.amax(dim=2).topk(k, dim=1).indices
    columns = (chosen[:, :, None] * _GROUP + torch.arange(_GROUP, device=products.device)).flatten(1)
    rest = torch.arange(groups * _GROUP, count, device=products.device).expand(rows, -1)
    columns = torch.cat([columns, rest], dim=1)
    values, places = products.gather(1, columns).topk(k, dim=1)
    return values, columns.gather(1, places)


def _vote(
    voters: NDArray[np.int64], similarities: NDArray[np.float32], k: int, classes: int, temperature: float
) -> NDArray[np.int64]:
    """The five classes (indices) with the most votes of the k nearest, best first: (q, min(5, K)); -1: no vote."""
    # Relative to the nearest, which changes no order and keeps the exponential within range.
    gaps = (similarities[:, :k] - similarities[:, :1]).astype(np.float64)
    weights, ranked = np.exp(gaps / temperature), []
    rows = max(1, _MEMORY // (24 * classes))
    for start in range(0, len(voters), rows):
        block = slice(start, start + rows)
        cells = voters[block, :k] + classes * np.arange(len(voters[block]))[:, None]
        votes = np.bincount(cells.ravel(), weights[block].ravel(), classes * len(cells)).reshape(-1, classes)
        order = np.argsort(-votes, axis=1, kind="stable")[:, :5]
        ranked.append(np.where(np.take_along_axis(votes, order, axis=1) > 0, order, -1))
    return np.concatenate(ranked)
