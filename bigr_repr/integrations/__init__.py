"""The model as other frameworks know models: nothing of theirs is imported unless it is asked for."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
