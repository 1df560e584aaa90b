"""Captions: the synthetic world with its reader and judge, and the captions of users' own pictures."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
