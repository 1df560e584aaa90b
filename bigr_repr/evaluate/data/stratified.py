"""Stratified samples of rows. Knows nothing of features or classifiers."""

# n rows (images)

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def stratified_sample(labels: NDArray[np.int64], size: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """`size` row numbers, sorted: classes in proportion, with at least one row each; all rows if there are fewer.

    Raises ValueError for a size below the number of classes.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if size >= len(labels):
        return np.arange(len(labels))
    if size < len(classes):
        raise ValueError(f"{size} images cannot represent {len(classes)} classes; request at least one of each")
    wanted = np.maximum(1.0, counts * (size / len(labels)))
    quota = np.floor(wanted).astype(np.int64)
    while quota.sum() > size:  # classes rounded up to one image must be balanced by the others
        quota[np.argmax(quota)] -= 1
    most = np.argsort(-(wanted - quota), kind="stable")[: size - quota.sum()]
    quota[most] += 1
    order = generator.permutation(len(labels))
    return np.sort(np.concatenate([order[labels[order] == c][:q] for c, q in zip(classes, quota, strict=True)]))
