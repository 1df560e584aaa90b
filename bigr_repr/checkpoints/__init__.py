"""Models on disk: loads by name, folder or hub, saves, and imports released weights."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
