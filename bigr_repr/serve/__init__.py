"""Embeddings, codes and search over HTTP, and a search page: one process keeps the model and index loaded."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
