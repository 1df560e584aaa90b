"""Trains tokenizers and generators, makes the code data sets between them, and adapts trained models."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
