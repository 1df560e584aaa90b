"""Training of tokenizers and generators, the code data sets between them, and adaptation of trained models."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
