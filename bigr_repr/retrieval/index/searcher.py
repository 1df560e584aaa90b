"""Finds the nearest rows of an index: by a scan, FAISS's structures, a GPU, or its shards. Knows no ids, no files."""

# n rows, q queries, k neighbors

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from bigr_repr.retrieval.codes.regions import Region, TokenLayout
from bigr_repr.retrieval.index.gpu import MOST_NEIGHBORS, GpuFlat, on_device
from bigr_repr.retrieval.index.neighbors import Scope
from bigr_repr.retrieval.index.parts import Parts
from bigr_repr.retrieval.index.scan import Scanned, scan, scan_among, scan_masked
from bigr_repr.retrieval.index.settings import IndexSettings
from bigr_repr.retrieval.index.shards import Shards

if TYPE_CHECKING:
    from bigr_repr.retrieval.index.approximate import Approximate


@dataclass(frozen=True, kw_only=True)
class RowSearcher:
    """approximate: for ivf, hnsw and hash. gpu: a copy of the codes there. shards: of a sharded index. Without any of
    them, all codes are compared; filtered and region searches do so too."""

    settings: IndexSettings
    approximate: Approximate | None = None
    gpu: GpuFlat | None = None
    shards: Shards | None = None

    def nearest(
        self, codes: NDArray[np.uint8], queries: NDArray[np.uint8], k: int, effort: int | None, scope: Scope | None
    ) -> Scanned:
        """The k nearest of codes (n, bytes) to queries (q, bytes); scope: which rows to look at.

        Raises ValueError for an effort where the search is exact.
        """
        filtered = scope is not None and scope.chosen is not None
        if effort is not None and (self.settings.exact or effort < 0 or filtered):
            exact = "a search of some rows" if filtered else "a flat index"
            raise ValueError(f"effort={effort}: only ivf, hnsw and hash take an effort, from 0; {exact} is exact")
        if not k:
            return Scanned(np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.int32))
        if self.shards is not None:
            return self.shards.nearest(queries, k, effort, None if scope is None else scope.chosen)
        if scope is not None and scope.rows is not None:
            return scan_among(codes, queries, k, scope.rows, scope.passing)
        if self.approximate is not None:
            chosen = self.settings.effort if effort is None else effort
            assert chosen is not None
            return self.approximate.search_with_tail(codes, queries, k, chosen)
        if self.gpu is not None and k <= MOST_NEIGHBORS:
            return self.gpu.search(queries, k)
        return scan(codes, queries, k)

    def in_region(
        self, tokens: NDArray[np.uint8], queries: NDArray[np.uint8], region: Region, layout: TokenLayout, scope: Scope
    ) -> Scanned:
        """The nearest of the tokenizer's codes (n, bytes) by their bits in a region; scope.depth of them."""
        mask = region.mask(layout)
        if not scope.depth:
            return Scanned(np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.int32))
        if self.shards is not None:
            return self.shards.in_region(queries, scope.depth, region, scope.chosen)
        return scan_masked(tokens, queries, mask, scope.depth, scope.rows)

    def following(self, parts: Parts) -> Self:
        """The searcher of a changed index, on the same device."""
        gpu = None if self.gpu is None else GpuFlat(parts.rows.codes)
        return type(self)(settings=parts.settings, approximate=parts.approximate, gpu=gpu)

    def on(self, device: str, codes: NDArray[np.uint8]) -> Self:
        """The same on a device.  Raises ValueError as HammingIndex.to does."""
        if self.shards is not None:
            self.shards.to(device)
            return self
        return type(self)(
            settings=self.settings, approximate=self.approximate, gpu=on_device(codes, device, self.settings.kind)
        )
