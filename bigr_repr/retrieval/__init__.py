"""Search by bits: binary codes, indexes over FAISS, rescoring, regions, near-duplicates, and results to look at."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
