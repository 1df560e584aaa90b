"""Image files to pixels: find them, open their containers, decode, turn upright, convert colors, crop.

Knows nothing of models.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
