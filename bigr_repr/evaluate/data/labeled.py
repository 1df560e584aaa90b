"""Features with labels, and the checks common to all evaluations. Knows nothing of classifiers."""

# n rows (images), D features

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Labeled:
    """Features (n, D) as given, and labels (n,) int64. name: of their side, in messages; "" if there is only one."""

    name: str
    features: NDArray[Any]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


def labeled(name: str, features: ArrayLike, labels: ArrayLike | None) -> Labeled:
    """Check features (n, D) (bool, integers or floats) and labels (n,) (integers), arrays or CPU tensors.

    Raises ValueError for other shapes or types, no rows, different numbers of rows, or features that are not finite,
    or not in float32, in which all measures compute.
    """
    side = f"{name}: " if name else ""
    if labels is None:
        raise ValueError(f"{side}there are no labels; use class folders, or a Parquet file with a column label")
    x, y = np.asarray(features), np.asarray(labels)
    if x.ndim != 2 or 0 in x.shape or x.dtype.kind not in "biuf":
        raise ValueError(
            f"{_said(name, 'features')} have shape {x.shape} and dtype {x.dtype}; expected numbers (n, D), n >= 1"
        )
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise ValueError(
            f"{_said(name, 'labels')} have shape {y.shape} and dtype {y.dtype}; expected whole numbers (n,)"
        )
    if len(x) != len(y):
        raise ValueError(f"{side}{len(x)} rows of features but {len(y)} labels; give one label per row")
    check_finite(name, x, np.arange(len(x)))
    return Labeled(name, x, y.astype(np.int64))


def _said(name: str, what: str) -> str:
    return f"{name} {what}" if name else what


def check_finite(name: str, features: NDArray[Any], rows: NDArray[np.int64]) -> None:
    """Raises ValueError for numbers (n, D) that are not finite, or not in float32; rows (n,): their numbers to name."""
    if features.dtype.kind != "f":
        return
    bad = np.flatnonzero(~np.isfinite(features.sum(axis=1, dtype=np.float64)))
    if len(bad):
        raise ValueError(
            f"{_said(name, 'features')}: {len(bad)} of {len(rows)} rows are not finite "
            f"(the first is row {rows[bad].min()}); leave those rows out, or extract them again in float32"
        )
    most = float(np.finfo(np.float32).max)
    if features.dtype.itemsize > 4 and len(bad := np.flatnonzero(_largest(features) > most)):
        raise ValueError(
            f"{_said(name, 'features')}: {len(bad)} of {len(rows)} rows hold numbers above {most:.2g}, float32's "
            f"largest (the first is row {rows[bad].min()}); scale the features down, or leave those rows out"
        )


def _largest(features: NDArray[Any]) -> NDArray[np.float64]:
    """The largest absolute number of each row: (n,)."""
    ends: NDArray[np.float64] = np.maximum(features.max(axis=1), -features.min(axis=1).astype(np.float64))
    return ends


def check_lengths(data: Labeled) -> None:
    """Raises ValueError for rows that are too long for a cosine: their squares add up to more than float32 holds."""
    limit = float(np.sqrt(np.finfo(np.float32).max))
    width = data.features.shape[1]
    long = np.flatnonzero(_largest(data.features) > limit / width**0.5)  # others cannot be: no copy of all is made
    bad = long[np.linalg.norm(data.features[long].astype(np.float64), axis=1) > limit]
    if len(bad):
        raise ValueError(
            f"{_said(data.name, 'features')}: {len(bad)} of {len(data)} rows are longer than {limit:.2g}, whose square "
            f"float32 cannot hold (the first is row {bad[0]}); scale the features down, or leave those rows out"
        )


def same_width(train: Labeled, test: Labeled) -> None:
    """Raises ValueError unless both have the same number of features."""
    widths = train.features.shape[1], test.features.shape[1]
    if widths[0] != widths[1]:
        raise ValueError(
            f"{train.name} features have {widths[0]} columns and {test.name} features {widths[1]}; "
            "use the same model, layer and pooling for both"
        )


def shared_classes(train: Labeled, test: Labeled) -> NDArray[np.int64]:
    """The labels that occur in `train`, sorted.

    Raises ValueError for fewer than two, or for labels that occur only in `test`.
    """
    classes = np.unique(train.labels)
    if len(classes) < 2:
        raise ValueError(f"{train.name} labels have only one class ({classes[0]}); a classifier needs at least 2")
    strange = np.setdiff1d(test.labels, classes)
    if len(strange):
        listed = ", ".join(map(str, strange[:_SHOWN])) + (", …" if len(strange) > _SHOWN else "")
        raise ValueError(
            f"{test.name} labels hold {len(strange)} classes without any image in {train.name} ({listed}); "
            "add images of them there, or leave these test images out"
        )
    return classes


def class_indices(labels: NDArray[np.int64], classes: NDArray[np.int64], device: torch.device) -> Tensor:
    """Labels as indices into the sorted `classes`, on a device."""
    return torch.from_numpy(np.searchsorted(classes, labels)).to(device)


def accuracy(ranked: NDArray[np.int64], labels: NDArray[np.int64], top: int) -> float:
    """Percentage of rows whose label is among the first `top` of `ranked` (n, >= 1) classes, best first."""
    return float(100 * np.mean((ranked[:, :top] == labels[:, None]).any(axis=1)))
