"""Structure of features without any classifier: k-means against labels, effective rank, alignment, uniformity.

Knows no images. Sources: RankMe, Garrido et al., arXiv 2210.02885; alignment and uniformity, Wang and Isola, arXiv
2005.10242 (there of two views of an image; here of two images of a class).
"""

# n rows (images), D features, K classes

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bigr_repr.evaluate.data.labeled import Labeled, check_lengths, labeled

__all__ = ["Structure", "cluster_accuracy", "rank_me", "structure", "structure_of"]

_PAIRS: Final = 200_000
_RESTARTS: Final = 5


@dataclass(frozen=True, kw_only=True)
class Structure:
    """Structure of features, measured without training on their labels.

    nmi, ari, accuracy: of k-means with one cluster per class, against the classes; normalized mutual information and
    adjusted Rand index in [-1, 1], accuracy in percent with the best matching of clusters to classes. rank_me:
    effective rank, 1..D. alignment: mean squared distance of two images of a class, smaller is better, None if no class
    has two; uniformity: log of the mean of exp(-2 squared distance) of any two, smaller is more uniform; both of
    L2-normalized features.
    """

    nmi: float
    ari: float
    accuracy: float
    rank_me: float
    alignment: float | None
    uniformity: float
    images: int
    classes: int
    protocol: str


def structure(features: ArrayLike, labels: ArrayLike, *, seed: int = 0) -> Structure:
    """Measure features (n, D), numbers, with labels (n,), integers. seed: of k-means' starts and of the pairs.

    Raises ValueError for features and labels that do not fit, a single class, or a seed outside 0..2**31 - 1.
    """
    return structure_of(labeled("", features, labels), seed=seed)


def structure_of(data: Labeled, *, seed: int) -> Structure:
    """`structure` of features whose side messages name."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    if not 0 <= seed < 2**31:
        raise ValueError(f"seed={seed} must lie in 0..{2**31 - 1}")
    check_lengths(data)
    classes, truth = np.unique(data.labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"labels hold one class ({classes[0]}); clusters are compared with at least 2")
    unit = _unit(data.features)
    found = _k_means(unit, len(classes), seed)
    alignment, uniformity = _pairs(unit, truth, np.random.default_rng(seed))
    return Structure(
        nmi=float(normalized_mutual_info_score(truth, found)),
        ari=float(adjusted_rand_score(truth, found)),
        accuracy=cluster_accuracy(truth, found),
        rank_me=rank_me(data.features),
        alignment=alignment,
        uniformity=uniformity,
        images=len(truth),
        classes=len(classes),
        protocol=f"k-means with {len(classes)} clusters, {_RESTARTS} starts, of L2-normalized features, seed {seed}",
    )


def rank_me(features: ArrayLike) -> float:
    """exp of the entropy of the normalized singular values of features (n, D): 1..min(n, D).

    Raises ValueError if all features are 0.
    """
    values = np.linalg.svd(np.asarray(features, np.float64), compute_uv=False)
    if not values.any():
        raise ValueError("all features are 0, which have no rank; extract them again")
    shares = values / values.sum() + 1e-7
    return float(np.exp(-(shares * np.log(shares)).sum()))


def cluster_accuracy(labels: NDArray[np.int64], clusters: NDArray[np.int64]) -> float:
    """Percentage of rows whose cluster is matched to their class, with the best one-to-one matching.

    labels, clusters: integers from 0, (n,).
    """
    from scipy.optimize import linear_sum_assignment

    counts = np.zeros((int(max(labels.max(), clusters.max())) + 1,) * 2, np.int64)
    np.add.at(counts, (clusters, labels), 1)
    rows, columns = linear_sum_assignment(-counts)
    return float(100 * counts[rows, columns].sum() / len(labels))


def _unit(features: NDArray[np.generic]) -> NDArray[np.float32]:
    x = features.astype(np.float32)
    unit: NDArray[np.float32] = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return unit


def _k_means(x: NDArray[np.float32], count: int, seed: int) -> NDArray[np.int64]:
    import faiss

    means = faiss.Kmeans(
        x.shape[1], count, niter=50, nredo=_RESTARTS, seed=seed, min_points_per_centroid=1,
        max_points_per_centroid=len(x),
    )  # fmt: skip
    means.train(np.ascontiguousarray(x))
    found: NDArray[np.int64] = means.index.search(np.ascontiguousarray(x), 1)[1][:, 0]
    return found


def _pairs(
    x: NDArray[np.float32], labels: NDArray[np.int64], generator: np.random.Generator
) -> tuple[float | None, float]:
    """Alignment and uniformity over random pairs of different rows."""
    one = generator.integers(len(x), size=_PAIRS)
    other = (one + generator.integers(1, len(x), size=_PAIRS)) % len(x)
    gaps = np.square(x[one] - x[other]).sum(axis=1, dtype=np.float64)
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(labels.max() + 2))
    sizes = np.diff(starts)[labels[one]]
    friends = order[starts[labels[one]] + generator.integers(sizes)]
    same = (friends != one) & (sizes > 1)
    near = np.square(x[one[same]] - x[friends[same]]).sum(axis=1, dtype=np.float64)
    return float(near.mean()) if same.any() else None, float(np.log(np.exp(-2 * gaps).mean()))
