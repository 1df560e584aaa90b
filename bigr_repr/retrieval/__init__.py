"""Search by bits: binary codes, indexes over FAISS, rescoring, regions, near-duplicates, and results to look at.

What is named here is loaded on first use, so that the binarisers and the benchmarks do without FAISS.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bigr_repr.retrieval.binariser import BINARISERS, Binariser, fit_binariser
    from bigr_repr.retrieval.build import build_index
    from bigr_repr.retrieval.index import HammingIndex, Neighbors
    from bigr_repr.retrieval.recall import SelfCheck, recall_with_ties
    from bigr_repr.retrieval.regions import Region, TokenLayout
    from bigr_repr.retrieval.settings import KINDS, IndexSettings

_HOMES = {
    "BINARISERS": "binariser",
    "Binariser": "binariser",
    "HammingIndex": "index",
    "IndexSettings": "settings",
    "KINDS": "settings",
    "Neighbors": "index",
    "Region": "regions",
    "SelfCheck": "recall",
    "TokenLayout": "regions",
    "build_index": "build",
    "fit_binariser": "binariser",
    "recall_with_ties": "recall",
}

__all__ = [
    "BINARISERS",
    "KINDS",
    "Binariser",
    "HammingIndex",
    "IndexSettings",
    "Neighbors",
    "Region",
    "SelfCheck",
    "TokenLayout",
    "build_index",
    "fit_binariser",
    "recall_with_ties",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
