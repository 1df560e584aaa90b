"""Captions: the synthetic world with its reader and judge, and captions beside pictures of one's own."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
