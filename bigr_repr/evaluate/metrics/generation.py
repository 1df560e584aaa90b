"""How close generated images are to real ones: Fréchet distance, precision and recall of features. Knows no images.

Any extractor's features can be used, and every result includes its name: numbers from different extractors must
not be compared. The Fréchet distance is the FID only with features of the usual Inception network.
"""

# n rows (images), D features

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bigr_repr.system.devices import choose_device

__all__ = ["GenerationQuality", "PrecisionRecall", "frechet_distance", "generation_quality", "precision_recall"]

_MEMORY: Final = 128 << 20  # bytes of distances held at a time


class PrecisionRecall(NamedTuple):
    """Fractions in [0, 1] of generated images within the real ones, and of real images within the generated ones."""

    precision: float
    recall: float


@dataclass(frozen=True, kw_only=True)
class GenerationQuality:
    """All metrics of one set of generated images. `extractor` and `protocol` describe them in words."""

    frechet_distance: float
    precision: float
    recall: float
    extractor: str
    k: int
    n_real: int
    n_generated: int
    n_features: int
    protocol: str


def generation_quality(
    real: ArrayLike, generated: ArrayLike, *, extractor: str, k: int = 3, fid: bool = False,
    device: torch.device | str | None = None,
) -> GenerationQuality:  # fmt: skip
    """All metrics of features (n, D) of generated images against those of real ones.

    extractor: the network that computed both, to be shown with the numbers.  fid: whether it is the FID's network.
    k, device: as in `precision_recall`.
    Raises ValueError for an extractor without a name, and as `frechet_distance` and `precision_recall` do.
    """
    if not extractor.strip():
        raise ValueError("extractor='' is empty; name the network of the features, because numbers depend on it")
    shares = precision_recall(real, generated, k=k, device=device)
    x, y = _features(real, generated)
    return GenerationQuality(
        frechet_distance=frechet_distance(x, y),
        precision=shares.precision,
        recall=shares.recall,
        extractor=extractor,
        k=k,
        n_real=len(x),
        n_generated=len(y),
        n_features=x.shape[1],
        protocol=f"{'FID: ' if fid else ''}Fréchet distance of Gaussians; "
        f"precision and recall of {k}-nearest-neighbor manifolds; "
        f"{len(y)} generated against {len(x)} real images, {x.shape[1]} features of: {extractor}",
    )


def frechet_distance(real: ArrayLike, generated: ArrayLike) -> float:
    """|m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)) of the means and covariances of features (n, D), both in float64.

    With fewer images, the distance is larger, even from a distribution to itself: compare only equal numbers
    of images. Source: Heusel et al., arXiv 1706.08500.
    Raises ValueError for fewer than 2 rows, different D, or features that are not finite.
    """
    x, y = (part.astype(np.float64) for part in _features(real, generated))
    gap = x.mean(axis=0) - y.mean(axis=0)
    first, second = (np.atleast_2d(np.cov(part, rowvar=False)) for part in (x, y))
    # The eigenvalues of S S' are those of R S' R with R the root of S, which is symmetric: no complex rounding errors.
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(min=0)).sum()
    return max(0.0, float(gap @ gap + np.trace(first) + np.trace(second) - 2 * shared))


def precision_recall(
    real: ArrayLike, generated: ArrayLike, *, k: int = 3, device: torch.device | str | None = None
) -> PrecisionRecall:
    """Fractions of images within the other set's manifold: balls around its images up to their k-th nearest neighbors.

    device: a GPU if there is one, unless given.  Source: Kynkäänniemi et al., arXiv 1904.06991, also with k = 3.
    Raises ValueError for k outside 1..n-1, different D, or features that are not finite.
    """
    arrays = _features(real, generated)
    smaller = min(map(len, arrays))
    if not 1 <= k < smaller:
        raise ValueError(f"k={k} is outside 1..{smaller - 1}, the smaller set's number of images minus one")
    target = choose_device(device)
    center = arrays[0].mean(axis=0, dtype=np.float64)  # far from 0, distances by matrix products lose their digits
    x, y = (torch.from_numpy((part - center).astype(np.float32)).to(target) for part in arrays)
    return PrecisionRecall(_share_inside(y, x, _radii(x, k)), _share_inside(x, y, _radii(y, k)))


def _radii(points: Tensor, k: int) -> Tensor:
    """Distance of every point (n, D) to its k-th nearest other one: (n,)."""
    found = [torch.cdist(block, points).kthvalue(k + 1, dim=1).values for block in _blocks(points, points)]
    return torch.cat(found)


def _share_inside(points: Tensor, centers: Tensor, radii: Tensor) -> float:
    inside = [(torch.cdist(block, centers) <= radii).any(dim=1) for block in _blocks(points, centers)]
    return float(torch.cat(inside).double().mean())


def _blocks(points: Tensor, others: Tensor) -> Iterator[Tensor]:
    rows = max(1, _MEMORY // (4 * len(others)))
    return (points[start : start + rows] for start in range(0, len(points), rows))


def _features(real: ArrayLike, generated: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both as arrays (n, D), checked."""
    arrays = np.asarray(real), np.asarray(generated)
    for name, array in zip(("real", "generated"), arrays, strict=True):
        if array.ndim != 2 or len(array) < 2 or array.shape[1] < 1 or array.dtype.kind not in "biuf":
            found = f"{name} features have shape {array.shape} and dtype {array.dtype}"
            raise ValueError(f"{found}; expected numbers (n, D) of at least 2 images")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} features are not all finite; extract them again in float32")
    if arrays[0].shape[1] != arrays[1].shape[1]:
        widths = f"real features have {arrays[0].shape[1]} columns and generated ones {arrays[1].shape[1]}"
        raise ValueError(f"{widths}; use the same extractor for both")
    return arrays
