"""Distances by RaBitQ (Gao and Long, SIGMOD 2024), as in FAISS: one bit per dimension, compared with float queries.

In addition to its bits, a row stores two 32-bit factors. Knows nothing of labels.
"""

# q queries, m database rows, D features, b bits

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigr_repr.retrieval.codes.binarizer import fit_binarizer

__all__ = ["rabitq"]


def rabitq(
    queries: NDArray[Any], base: NDArray[Any], n_bits: int, *, seed: int = 0
) -> Callable[[slice], NDArray[np.float32]]:
    """RaBitQ's estimates of the negative cosine between queries (q, D), a slice at a time, and base (m, D).

    Features are normalized to length 1 and randomly rotated in n_bits dimensions, those of the first principal
    components if fewer than D. Queries stay floats.
    """
    import faiss

    ours, theirs = (_unit(side) for side in (queries, base))
    if n_bits < theirs.shape[1]:
        components = fit_binarizer("pca", theirs, n_bits=n_bits).matrix
        assert components is not None
        ours, theirs = ours @ components.T, theirs @ components.T
    rotation = faiss.RandomRotationMatrix(theirs.shape[1], n_bits)
    rotation.init(seed)
    index = faiss.IndexRaBitQ(n_bits, faiss.METRIC_INNER_PRODUCT)
    stored = rotation.apply(np.ascontiguousarray(theirs))
    index.train(stored)
    index.add(stored)
    wanted = rotation.apply(np.ascontiguousarray(ours))
    floats = faiss.RaBitQSearchParameters()
    floats.qb = 0  # the query is not rounded

    def distances(rows: slice) -> NDArray[np.float32]:
        products, places = index.search(wanted[rows], len(theirs), params=floats)
        found = np.empty(products.shape, np.float32)
        np.put_along_axis(found, places, -products, axis=1)
        return found

    return distances


def _unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    floats = vectors.astype(np.float32)
    return floats / np.maximum(np.linalg.norm(floats, axis=1, keepdims=True), 1e-12)  # type: ignore[no-any-return]
