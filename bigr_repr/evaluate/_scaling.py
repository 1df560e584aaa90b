"""Columns to mean 0 and deviation 1, in blocks, and stratified draws of rows. Knows nothing of classifiers."""

# n rows (images), D features

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BLOCK: Final = 1 << 22  # numbers standardised at a time

Scaling = tuple[NDArray[np.float64], NDArray[np.float64]]


def scaling_of(features: NDArray[Any]) -> Scaling:
    """Mean and standard deviation of each column, accumulated in double precision; 1 for a constant column."""
    rows = max(1, _BLOCK // features.shape[1])
    blocks = [features[start : start + rows] for start in range(0, len(features), rows)]
    mean = sum(block.sum(axis=0, dtype=np.float64) for block in blocks) / len(features)
    variance = sum(np.square(block - mean).sum(axis=0) for block in blocks) / len(features)
    deviation = np.sqrt(variance)
    # A constant column can come out with the rounding error of its mean instead of 0.
    return mean, np.where(deviation > 1e-7 * np.abs(mean), deviation, 1.0)


def standardise(features: NDArray[Any], scaling: Scaling, device: torch.device) -> Tensor:
    """(features - mean) / deviation as float32 on a device."""
    mean, deviation = scaling
    x = torch.empty(features.shape, device=device)
    rows = max(1, _BLOCK // features.shape[1])
    for start in range(0, len(features), rows):
        block = (features[start : start + rows] - mean) / deviation
        x[start : start + rows] = torch.from_numpy(block.astype(np.float32))
    return x


def class_indices(labels: NDArray[np.int64], classes: NDArray[np.int64], device: torch.device) -> Tensor:
    """Labels as places in the sorted `classes`, on a device."""
    return torch.from_numpy(np.searchsorted(classes, labels)).to(device)


def stratified_split(
    labels: NDArray[np.int64], share: float, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row numbers (kept, drawn), sorted: of each class about `share` is drawn, at least one row and never all."""
    order = generator.permutation(len(labels))
    drawn = np.zeros(len(labels), np.bool_)
    for name in np.unique(labels):
        rows = order[labels[order] == name]
        drawn[rows[: min(max(1, round(share * len(rows))), len(rows) - 1)]] = True
    return np.flatnonzero(~drawn), np.flatnonzero(drawn)


def stratified_sample(labels: NDArray[np.int64], size: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """`size` row numbers, sorted: each class in proportion, and at least one row of each; all rows if there are fewer.

    Raises ValueError for a size below the number of classes.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if size >= len(labels):
        return np.arange(len(labels))
    if size < len(classes):
        raise ValueError(f"{size} images cannot stand for {len(classes)} classes; ask for at least one of each")
    wanted = np.maximum(1.0, counts * (size / len(labels)))
    quota = np.floor(wanted).astype(np.int64)
    while quota.sum() > size:  # classes that were rounded up to one image took from the others
        quota[np.argmax(quota)] -= 1
    most = np.argsort(-(wanted - quota), kind="stable")[: size - quota.sum()]
    quota[most] += 1
    order = generator.permutation(len(labels))
    return np.sort(np.concatenate([order[labels[order] == c][:q] for c, q in zip(classes, quota, strict=True)]))
