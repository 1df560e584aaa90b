"""Exact search on a GPU, which FAISS supports only for flat indexes. Knows no ids, no files."""

from __future__ import annotations

import logging
import threading
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bigr_repr.retrieval.index.scan import Scanned

log = logging.getLogger(__name__)
_SMALL: Final = 16 << 20  # bytes of codes that a CPU scans faster than a GPU starts up
MOST_NEIGHBORS: Final = 2048  # limit of FAISS's GPU kernels


def gpu_count() -> int:
    """Number of GPUs that FAISS can use: 0 if it was built without GPU support."""
    import faiss

    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


class GpuFlat:
    """A copy of codes (n, bytes) on the first GPU. FAISS allows only one search at a time there; others wait."""

    def __init__(self, codes: NDArray[np.uint8]) -> None:
        import faiss

        flat = faiss.IndexBinaryFlat(8 * codes.shape[1])
        flat.add(np.ascontiguousarray(codes))
        self._resources = faiss.StandardGpuResources()
        self._index = faiss.index_binary_cpu_to_gpu(self._resources, 0, flat)
        self._alone = threading.Lock()

    def search(self, queries: NDArray[np.uint8], k: int) -> Scanned:
        """Like scan.scan, but ties at the k-th distance are broken arbitrarily."""
        with self._alone:
            distances, rows = self._index.search(queries, k)
        order = np.lexsort((rows, distances), axis=1)
        return Scanned(np.take_along_axis(rows, order, axis=1), np.take_along_axis(distances, order, axis=1))


def on_device(codes: NDArray[np.uint8], device: str, kind: str) -> GpuFlat | None:
    """See HammingIndex.to; None: the CPU."""
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={device!r} is unknown; choose auto, cpu or cuda")
    flat = kind == "flat"
    if device == "cuda" and not (gpu_count() and flat):
        why = "FAISS sees no GPU here" if flat else f"FAISS searches {kind} on a CPU only"
        raise ValueError(f"device='cuda': {why}; use cpu")
    worth = device == "cuda" or codes.nbytes > _SMALL
    wanted = device != "cpu" and flat and worth and gpu_count() > 0 and len(codes) > 0
    log.info("searching on %s", "a GPU" if wanted else "the CPU")
    return GpuFlat(codes) if wanted else None
