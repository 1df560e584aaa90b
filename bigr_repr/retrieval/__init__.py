"""Search by bits: binary codes, indexes over FAISS, rescoring, regions, near-duplicates, and results to look at."""

from bigr_repr.retrieval.binariser import BINARISERS, Binariser, fit_binariser
from bigr_repr.retrieval.build import build_index
from bigr_repr.retrieval.index import HammingIndex, Neighbors
from bigr_repr.retrieval.recall import SelfCheck, recall_with_ties
from bigr_repr.retrieval.regions import Region, TokenLayout
from bigr_repr.retrieval.settings import KINDS, IndexSettings

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
