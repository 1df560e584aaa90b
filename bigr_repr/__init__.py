"""Image representations from a generator: features, bit codes, search and edits from one BiGR model.

Public names are declared in `__init__.pyi` and load on first use: importing the package loads neither torch nor faiss.
"""

from typing import Any

import lazy_loader

from bigr_repr._version import __version__ as __version__

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    try:
        return _load(name)
    except AttributeError:
        raise AttributeError(f"module 'bigr_repr' has no attribute {name!r}; it has {', '.join(__all__)}") from None
