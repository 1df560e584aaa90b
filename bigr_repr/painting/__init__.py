"""Paints into photographs of any size, and draws series of pictures: windows, masks, blending, files."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
