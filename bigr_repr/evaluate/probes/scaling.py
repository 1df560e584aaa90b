"""Scales columns to mean 0 and deviation 1, in blocks. Knows nothing of labels or classifiers."""

# n rows (images), D features

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BLOCK: Final = 1 << 22  # numbers standardized at a time

Scaling = tuple[NDArray[np.float64], NDArray[np.float64]]


def scaling_of(features: NDArray[Any]) -> Scaling:
    """Mean and standard deviation of each column, accumulated in double precision; 1 for a constant column."""
    rows = max(1, _BLOCK // features.shape[1])
    blocks = [features[start : start + rows] for start in range(0, len(features), rows)]
    mean = sum(block.sum(axis=0, dtype=np.float64) for block in blocks) / len(features)
    variance = sum(np.square(block - mean).sum(axis=0) for block in blocks) / len(features)
    deviation = np.sqrt(variance)
    # A constant column's deviation can be its mean's rounding error instead of 0.
    return mean, np.where(deviation > 1e-7 * np.abs(mean), deviation, 1.0)


def standardize(features: NDArray[Any], scaling: Scaling, device: torch.device) -> Tensor:
    """(features - mean) / deviation as float32 on a device.

    Raises ValueError if a number is beyond float32, as where a column hardly varied in the rows that scaling is of.
    """
    mean, deviation = scaling
    x = torch.empty(features.shape, device=device)
    rows = max(1, _BLOCK // features.shape[1])
    for start in range(0, len(features), rows):
        block = (features[start : start + rows] - mean) / deviation
        with np.errstate(over="ignore"):
            scaled = block.astype(np.float32)
        if not np.isfinite(scaled).all():
            column = int(np.flatnonzero(~np.isfinite(scaled).all(axis=0))[0])
            raise ValueError(
                f"features: column {column} has numbers beyond float32's largest after division by its standard "
                f"deviation in training, {deviation[column]:.3g}; leave the column out, or scale it"
            )
        x[start : start + rows] = torch.from_numpy(scaled)
    return x
